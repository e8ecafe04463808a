"""Index cards of published methods, read from their docstrings: the paper, what is promised, what was measured."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Card:
    """One method, as its docstring tells of it.

    Attributes:
        name: where it is, such as ``"fk.programs.hedged"``.
        line: what it is, the docstring's first sentence.
        source: papers, with their arXiv numbers.
        guarantee: what is promised of its results.
        engines: those that it runs under, and those that it does not.
        measured: what was seen here, or why nothing was.
        lines: lines of code in its file, without docstrings, comments and empty ones.
    """

    name: str
    line: str
    source: str
    guarantee: str
    engines: str
    measured: str
    lines: int

    @property
    def arxiv(self) -> tuple[str, ...]:
        """The arXiv numbers of its papers."""
        return tuple(re.findall(r"arXiv:(\d{4}\.\d{4,5})", self.source))


_WORDS = {"Source": "source", "Guarantee": "guarantee", "Engines": "engines", "Measured": "measured"}
_UNSEEN = "Not shown here"
"""The word that stands for "Measured" where nothing was."""


def index(namespace: ModuleType, prefix: str) -> tuple[Card, ...]:
    """Return the cards of a namespace's public names, in their order; names whose docstrings have none are left out.

    Raises ValueError for a docstring that promises something and does not say the rest.
    """
    found = []
    for name in namespace.__all__:
        thing = getattr(namespace, name)
        told = paragraphs(inspect.getdoc(thing) or "")
        if "guarantee" not in told:
            continue
        missing = {field.name for field in fields(Card)} - told.keys() - {"name", "lines"}
        if missing:
            raise ValueError(f"the docstring of {prefix}.{name} does not say its {', '.join(sorted(missing))}")
        found.append(Card(name=f"{prefix}.{name}", lines=lines_of_code(thing), **told))
    return tuple(found)


def table(cards: Sequence[Card]) -> str:
    """Return the cards as a table in Markdown."""
    lines = [row("where", "what", "paper", "lines", "promise", "engines", "measured"), "|---|---|---|---|---|---|---|"]
    for card in cards:
        told = card.source, str(card.lines), card.guarantee, card.engines, card.measured
        lines.append(row(f"`{card.name}`", card.line, *told))
    return "\n".join(lines)


def row(*cells: str) -> str:
    """Return texts of reStructuredText as a row of a table in Markdown."""
    return "| " + " | ".join(cell.replace("``", "`").replace("|", "\\|") for cell in cells) + " |"


def is_engine(thing: Any) -> bool:
    """Whether a thing is the class of an engine, which runs and promises something."""
    return inspect.isclass(thing) and hasattr(thing, "run") and hasattr(thing, "guarantee")


def lines_of_code(thing: Any) -> int:
    """Return how many lines hold code in the file of a function or class, and in its module's ``PARTS`` beside it."""
    code: Any = inspect.unwrap(thing)
    home = Path(inspect.getsourcefile(code) or "")
    return sum(_lines(home.with_name(name)) for name in (home.name, *getattr(inspect.getmodule(code), "PARTS", ())))


def _lines(file: Path) -> int:
    source = file.read_text(encoding="utf-8")
    said = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            said |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    plain = (line.strip() for i, line in enumerate(source.splitlines(), 1) if i not in said)
    return sum(bool(line) and not line.startswith("#") for line in plain)


def paragraphs(doc: str) -> dict[str, str]:
    """Return what the paragraphs, or lines, that begin with a card's words say."""
    found = {"line": " ".join(doc.partition("\n\n")[0].split()).rstrip(".")}
    begins = "|".join([*_WORDS, _UNSEEN])
    for match in re.finditer(rf"^({begins}): (.+?)(?=\n\n|\n(?:{begins}): |\Z)", doc, re.DOTALL | re.MULTILINE):
        word, said = match.group(1), " ".join(textwrap.dedent(match.group(2)).split())
        if word == _UNSEEN:
            word, said = "Measured", f"not shown here: {said}"
        found[_WORDS[word]] = said.rstrip(".")
    return found

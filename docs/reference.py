"""Write the pages of the reference from what is public, and the list of it that tests compare.

python docs/reference.py     # writes docs/api.txt, the names and signatures that users may rely on
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import feynkac as fk
import feynkac.models.testing  # which is imported by name alone
from feynkac.ppl.cards import is_engine, paragraphs, row

NAMESPACES = {
    "feynkac": "The top level: programs, `infer`, engines, posteriors.",
    "feynkac.models": "Language models, local and served.",
    "feynkac.rewards": "Judges, classifiers, checkers and other rewards.",
    "feynkac.constraints": "Grammars and potentials over tokens.",
    "feynkac.diffusion": "Diffusion: generators, steering, correctors, rewards of images.",
    "feynkac.programs": "Published methods, one in a file.",
    "feynkac.tasks": "Small tasks with models of their own.",
    "feynkac.scaling": "What posteriors and budgets say together.",
    "feynkac.tuning": "Settings chosen by trial.",
    "feynkac.plots": "Pictures of posteriors.",
    "feynkac.dist": "Distributions for programs without JAX.",
    "feynkac.handlers": "Handlers of effects, with NumPyro's meanings.",
    "feynkac.oracles": "Exact answers, to test engines with.",
    "feynkac.keys": "Keys of counter-based randomness.",
    "feynkac.errors": "What is raised, and what is warned of.",
    "feynkac.models.testing": "A tiny model, scripted models and a fake server, for tests of your own.",
}
ROOMS = {
    "particles": "A weighted population",
    "tempering": "Whole runs, by degrees",
    "mcmc": "Markov chains",
    "search": "Trees and beams",
    "pools": "Independent runs, then a choice",
}


HEAVY = "Exception, dict, tuple, list, Module, ABC, Protocol, object"
"""Classes whose methods are not listed again with those of ours that inherit them."""


@dataclass(frozen=True)
class Name:
    """A public name: where users find it, and what it is."""

    space: str
    name: str
    thing: Any

    @property
    def path(self) -> str:
        """The name as users write it."""
        return f"{self.space}.{self.name}"

    @property
    def kind(self) -> str:
        """The word of autodoc for it."""
        if inspect.isclass(self.thing):
            return "exception" if issubclass(self.thing, BaseException) else "class"
        return "function" if callable(self.thing) and hasattr(self.thing, "__name__") else "data"

    @property
    def line(self) -> str:
        """The first sentence of its docstring."""
        if self.kind == "data":
            return f"A constant: `{self.thing!r}`." if isinstance(self.thing, int | str | float) else "A constant."
        text = " ".join((inspect.getdoc(self.thing) or "").split("\n\n")[0].split())
        return re.split(r"(?<=[.]) (?=[A-Z])", text)[0]


def public(path: str) -> Iterator[Name]:
    """Yield the public names of a namespace but the namespaces in it."""
    module = reduce(getattr, path.split(".")[1:], fk)
    names = getattr(module, "__all__", None) or [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
    ]
    for name in names:
        thing = getattr(module, name)
        if not isinstance(thing, ModuleType):
            yield Name(path, name, thing)


def room(name: Name) -> str | None:
    """Return the room of an engine, None for what is none."""
    if not is_engine(name.thing):
        return None
    found = name.thing.__module__.split(".inference.")[-1].split(".")[0]
    return found if found in ROOMS else None


def promised(name: Name) -> str:
    """Return the guarantee of an engine, in words."""
    return name.thing.guarantee if isinstance(name.thing.guarantee, str) else "by its settings"


def object_page(name: Name) -> str:
    """Return the page of one name."""
    title = name.path.replace("feynkac.", "fk.", 1)
    members = f"\n   :members:\n   :inherited-members: {HEAVY}" if name.kind == "class" else ""
    if name.kind == "exception":
        members = "\n   :members:"
    if room(name):
        members += "\n   :exclude-members: run, at_once, resume"
    before = f"**Guarantee:** {promised(name)}.\n\n" if room(name) else ""
    return f"{title}\n{'=' * len(title)}\n\n{before}.. auto{name.kind}:: {name.path}{members}\n"


def table(names: list[Name], folder: str) -> list[str]:
    """Return a table of names with links to their pages."""
    rows = [row("name", "what"), "|---|---|"]
    return rows + [row(f"[`{n.path.replace('feynkac.', 'fk.', 1)}`]({folder}{n.path}.rst)", n.line) for n in names]


def toctree(pages: list[str]) -> list[str]:
    """Return a hidden table of contents."""
    return ["", "```{toctree}", ":hidden:", ":maxdepth: 1", "", *pages, "```", ""]


def engine_rows(names: list[Name]) -> list[str]:
    """Return a table of engines: what each is, its promise and its paper."""
    rows = [row("engine", "what", "promise", "paper"), "|---|---|---|---|"]
    for name in names:
        told = paragraphs(inspect.getdoc(name.thing) or "")
        rows.append(row(f"[`{name.name}`]({name.path}.rst)", name.line, promised(name), told.get("source", "")))
    return rows


def write(folder: Path) -> None:
    """Write all pages into a folder: the index, one for each namespace, the engines, and one for each name."""
    folder.mkdir(exist_ok=True)
    pages: dict[str, str] = {}
    seen: set[int] = set()
    index = ["# Reference", "", "Every public name, by where it is found.", "", row("where", "what"), "|---|---|"]
    for path, line in NAMESPACES.items():
        names = [name for name in public(path) if id(name.thing) not in seen or name.kind == "data"]
        seen.update(id(name.thing) for name in names)
        engines = [name for name in names if room(name)] if path == "feynkac" else []
        rest = [name for name in names if name not in engines]
        for name in names:
            pages[f"{name.path}.rst"] = object_page(name)
        short = path.replace("feynkac", "fk", 1)
        lines = [f"# {short}", "", line, "", *table(rest, "")]
        if engines:
            lines += ["", "Engines have [a page of their own](engines.md)."]
            pages["engines.md"] = engine_page(engines)
        pages[f"{path}.md"] = "\n".join(lines + toctree([f"{name.path}.rst" for name in rest]))
        index.append(row(f"[`{short}`]({path}.md)", line))
    pages["index.md"] = "\n".join(index + toctree([f"{path}.md" for path in NAMESPACES]))
    for name, text in pages.items():
        found = folder / name
        if not found.exists() or found.read_text(encoding="utf-8") != text:
            found.write_text(text, encoding="utf-8")
    for left in folder.iterdir():
        if left.name not in pages:
            left.unlink()


def engine_page(engines: list[Name]) -> str:
    """Return the page of the engines, by room."""
    lines = [
        "# Engines",
        "",
        "Each is a frozen dataclass of settings in one small file. `fk.infer(model, engine, seed=0)` runs any of them.",
    ]
    for key, title in ROOMS.items():
        here = [name for name in engines if room(name) == key]
        lines += ["", f"## {title}", "", *engine_rows(here)]
    return "\n".join(lines + toctree([f"{name.path}.rst" for name in engines]))


def listed() -> str:
    """Return the public names with their signatures, one in a line."""
    lines = []
    for path in NAMESPACES:
        for name in public(path):
            try:
                told = str(inspect.signature(name.thing)) if name.kind in ("class", "function") else ""
            except (TypeError, ValueError):
                told = "(…)"
            lines.append(name.path + re.sub(r" at 0x[0-9a-f]+", "", told))
    return "\n".join(sorted(lines)) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("api.txt").write_text(listed(), encoding="utf-8")

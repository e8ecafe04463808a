"""Write the tables of ``docs/recipes.md`` from the docstrings of the methods.

python docs/recipes.py
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import feynkac as fk
from feynkac.ppl.cards import is_engine, lines_of_code, paragraphs, row, table

PAGE = Path(__file__).with_name("recipes.md")


def engines() -> str:
    """Return a table of the engines whose docstrings name a paper."""
    rows = [row("engine", "what", "paper", "lines", "promise"), "|---|---|---|---|---|"]
    for name in fk.__all__:
        thing: Any = getattr(fk, name)
        if not is_engine(thing):
            continue
        told = paragraphs(inspect.getdoc(thing) or "")
        if "source" in told:
            promise = thing.guarantee if isinstance(thing.guarantee, str) else "by its settings: see its docstring"
            rows.append(row(f"`fk.{name}`", told["line"], told["source"], str(lines_of_code(thing)), promise))
    return "\n".join(rows)


def page(text: str) -> str:
    """Return the page with the tables that the docstrings say."""
    tables = {name: table(getattr(fk, name).index()) for name in ("programs", "scaling", "tuning")}
    for name, said in {**tables, "engines": engines()}.items():
        begin, end = f"<!-- {name}: from docstrings -->", f"<!-- end of {name} -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        text = "\n\n".join([before + begin, said, end + after])
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

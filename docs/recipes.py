"""Write the tables of ``docs/recipes.md`` from the docstrings of the methods.

python docs/recipes.py
"""

from __future__ import annotations

from pathlib import Path

import feynkac as fk
from feynkac.ppl.cards import table

PAGE = Path(__file__).with_name("recipes.md")


def page(text: str) -> str:
    """Return the page with the tables that the docstrings say."""
    for name in ("programs", "scaling", "tuning"):
        begin, end = f"<!-- {name}: from docstrings -->", f"<!-- end of {name} -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        text = "\n\n".join([before + begin, table(getattr(fk, name).index()), end + after])
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

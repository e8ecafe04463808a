"""Docstrings as Sphinx reads them: ours are written to be read in a terminal, with less markup than it wants."""

from __future__ import annotations

import re
from typing import Any

WORDS = "Source|Guarantee|Engines|Measured|Not shown here|Cost|When it pays|Feynman–Kac mapping"
LABEL = re.compile(rf"({WORDS})(?:: |:$)(.*)")
SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Example|Examples|Note|Warns):$")
CODE = re.compile(r"(``.+?``|`[^`]+`)")


def depth(line: str) -> int:
    """Return how far a line is indented."""
    return len(line) - len(line.lstrip())


def escaped(line: str) -> str:
    """Return a line in which bars and stars are what they look like, outside of code."""
    parts = CODE.split(line)
    return "".join(part if i % 2 else re.sub(r"(?<!\\)([|*])", r"\\\1", part) for i, part in enumerate(parts))


def marked(lines: list[str]) -> list[str]:
    """Return a docstring's lines with the markup that it goes without.

    Labels such as "Source:" begin paragraphs of their own, in bold; blocks that are indented outside of a section of
    arguments are literal; bars and stars in the text are themselves.
    """
    found: list[str] = []
    section, i = False, 0
    while i < len(lines):
        line = lines[i]
        label = LABEL.match(line)
        if line.strip() and depth(line) == 0:
            section = bool(SECTION.match(line))
        if line.startswith(">>> "):
            end = next((j for j in range(i, len(lines)) if not lines[j].strip()), len(lines))
            found += lines[i:end]
            i = end
        elif label:
            found += ["", f"**{label[1]}:** {escaped(label[2])}"]
            i += 1
            while i < len(lines) and lines[i].strip() and not LABEL.match(lines[i]):
                found.append(escaped(lines[i].strip()))
                i += 1
            found.append("")
        elif not section and line.strip() and depth(line) >= 4 and found and not found[-1].strip():
            end = i
            while end < len(lines) and (not lines[end].strip() or depth(lines[end]) >= 4):
                end += 1
            found += ["::", "", *lines[i:end]]
            if found[-1].strip():
                found.append("")
            i = end
        else:
            found.append(escaped(line))
            i += 1
    return found


KEPT: dict[str, list[str]] = {}
"""The docstrings of properties, by name."""


def process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Mark up a docstring in place, before napoleon reads its sections."""
    lines[:] = marked(lines)
    if what in ("property", "attribute", "data"):
        KEPT[name] = list(lines)


def restore(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Undo what napoleon does to properties: it takes the words before a colon for a type."""
    lines[:] = KEPT.pop(name, lines)


def setup(app: Any) -> dict[str, bool]:
    """Have Sphinx call `process`."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", process, priority=100)
    app.connect("autodoc-process-docstring", restore, priority=900)
    return {"parallel_read_safe": True}

"""A table of texts, as it is shown in a terminal, in rich, and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from .views import plain, short_line

_WIDE = 60
_STYLE = (
    "<style>.fk-sheet{font:13px/1.45 system-ui,sans-serif;margin:.5em 0}"
    ".fk-sheet table{border-collapse:collapse;width:auto!important}"
    ".fk-sheet td,.fk-sheet th{text-align:right!important;padding:.2em .7em;white-space:nowrap;"
    "font-variant-numeric:tabular-nums}.fk-sheet td{border-bottom:1px solid #7676764d}"
    ".fk-sheet td:first-child,.fk-sheet th:first-child{text-align:left!important;white-space:normal;"
    "width:auto!important}"
    ".fk-sheet th{opacity:1;border-bottom:1.5px solid currentColor}"
    ".fk-sheet div{font-size:.9em;opacity:.9;margin-top:.4em}</style>"
)


class Sheet(NamedTuple):
    """Cells, the first of a row its name and on the left, the others numbers and on the right, with notes below."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Return lines for a terminal, in which no cell can do any harm."""
        cells = [[short_line(cell, _WIDE) for cell in line] for line in (self.head, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = [
            "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
            for line in cells
        ]
        return "\n".join([*(line.rstrip() for line in lines), *map(plain, self.notes)])

    def rich(self) -> Any:
        """Return a table of rich's, with the notes as its caption."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        caption = Text("\n".join(map(plain, self.notes))) if self.notes else None
        table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
        for i, name in enumerate(self.head):
            table.add_column(Text(name), justify="right" if i else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(short_line(cell, _WIDE)) for cell in row))
        return table

    def html(self) -> str:
        """Return a table for a page, in its colours."""
        top = "".join(f"<th>{escape(cell)}</th>" for cell in self.head)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        notes = "".join(f"<div>{escape(note)}</div>" for note in self.notes)
        return (
            f'<div class="fk-sheet">{_STYLE}<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>{notes}'
            "</div>"
        )

"""The texts of the heaviest lines of a genealogy below one another: what they share, and where they part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from ..base.chain import Chain
from ..drawing.palette import BRANCHES, INK
from ..drawing.views import cut
from .lineages import Level

_MOST, _SHARED, _OWN = 8, 60, 500
"""Lines that are shown, and the characters of what one shares with the line above it, and of its own."""


class Line(NamedTuple):
    """One line, from the start to its end.

    Attributes:
        weight: of its particle.
        clade: number of its branch, −1 for none.
        shared: the text that it has in common with the line above, step by step.
        turn: the step where it parts from the line above; "" where nothing is shared.
        own: its text from there on.
    """

    weight: float
    clade: int
    shared: str
    turn: str
    own: str


def partings(run: Chain, tree: Sequence[Level], say: Callable[[Any], str]) -> list[Line]:
    """Return the heaviest lines of different texts, in the order of the tree, each by what it shares with the last."""
    last = tree[-1]
    texts: dict[tuple[str, ...], int] = {}
    for k in sorted(np.flatnonzero(last.alive).tolist(), key=lambda k: -last.mass[k]):
        told = _told(run, int(last.particle[k]), say)
        if len(texts) < _MOST:
            texts.setdefault(told, k)
    found, before = [], tuple[str, ...]()
    between = "" if any(part != part.strip() for told in texts for part in told) else " · "
    for told, k in sorted(texts.items(), key=lambda item: last.height[item[1]]):
        same = next((t for t, (a, b) in enumerate(zip(before, told)) if a != b), min(len(before), len(told)))
        turn = same + 1 if any(told[:same]) else same
        parts = [between.join(filter(None, part)) for part in (told[:same], told[same:turn], told[turn:])]
        shared, turned = (part + between * bool(part and any(parts[i + 1 :])) for i, part in enumerate(parts[:2]))
        found.append(Line(float(last.mass[k]), int(last.clade[k]), shared, turned, parts[2]))
        before = told
    return found


def partings_html(run: Chain, tree: Sequence[Level], say: Callable[[Any], str]) -> str:
    """Show the lines; nothing where fewer than two have any text."""
    lines = [line for line in partings(run, tree, say) if line.shared + line.turn + line.own]
    return f'<div style="font:13px/1.5 system-ui,sans-serif;margin-top:.6em">{"".join(map(_row, lines))}</div>' * (
        len(lines) > 1
    )


def _told(run: Chain, particle: int, say: Callable[[Any], str]) -> tuple[str, ...]:
    """Return what a particle said at each step."""
    return tuple(say(run.steps[t].choices[i]) for t, i in enumerate(run.lines[:, particle].tolist()))


def _row(line: Line) -> str:
    colour = BRANCHES[line.clade % len(BRANCHES)] if line.clade >= 0 else INK
    shared, turn = cut(line.shared, len(line.shared) or 1), cut(line.turn, _OWN)
    shared = shared if len(shared) <= _SHARED else "…" + shared[-_SHARED:]
    return (
        f'<div style="border-left:4px solid {colour};padding-left:.6em;margin:.25em 0;white-space:pre-wrap;'
        f'overflow-wrap:anywhere"><span style="font-variant-numeric:tabular-nums">{line.weight:.3f}</span>  '
        f'<span style="opacity:.65">{escape(shared)}</span><b>{escape(turn)}</b>{escape(cut(line.own, _OWN))}</div>'
    )

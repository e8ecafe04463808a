"""The trace of one particle, step by step, as a matplotlib figure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..base.weights import normalize
from ..drawing.palette import BLUE, INK, ORANGE
from ..drawing.views import Row, cut, number, rows
from ..results.posterior import Posterior

_MOST = 64
_WIDE = 46
"""Characters of a step that are shown."""


def tokens(
    posterior: Posterior, particle: int | None = None, *, ax: Any = None, figsize: tuple[float, float] | None = None
) -> Any:
    """Draw what one particle did at each step: its text, its log-probability and its log-potential.

    Grey bars are −log p, the surprise of what was drawn; the others log G, blue where a factor was in favour and
    orange where it was against. Above 64 steps, neighbouring ones are joined and their numbers added.

    Args:
        posterior: of any engine.
        particle: its number among all chains; None is the best.
        ax: axes to draw in; None makes a figure.
        figsize: of the new figure, in inches.

    Raises IndexError for a particle that is not there.
    """
    from ..drawing.figure import axes, label, write

    chosen = posterior._best() if particle is None else particle
    chain, i = posterior._locate(chosen)
    made = rows(chain, i, _MOST)
    ax = axes(ax, figsize, (7.0, 0.9 + 0.2 * max(len(made), 2)))
    surprise = _scaled([-row.log_prob for row in made])
    potential = _scaled([row.log_potential for row in made])
    for y, (row, s, g) in enumerate(zip(made, surprise, potential)):
        colour = ORANGE if row.log_potential < 0 else BLUE
        ax.barh(y, s, left=0.0, height=0.72, color=INK, alpha=0.45)
        ax.barh(y, abs(g), left=1.35, height=0.72, color=colour, alpha=0.75)
        write(ax, s, y, _amount(row.log_prob), xytext=(3, 0), va="center", fontsize=7)
        write(ax, 1.35 + abs(g), y, _amount(row.log_potential), xytext=(3, 0), va="center", fontsize=7)
        write(ax, -0.05, y, cut(row.text, _WIDE), ha="right", va="center")
    longest = max((min(len(row.text), _WIDE) for row in made), default=0)
    ax.set_xlim(-0.15 - 0.036 * longest, 2.75)
    ax.set_ylim(len(made) - 0.4, -1.6)
    ax.set_xticks([])
    ax.set_yticks(range(len(made)), [_name(row) for row in made])
    ax.tick_params(axis="y", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    for x, text in ((0.0, "log p of what was drawn"), (1.35, "log G of the step")):
        write(ax, x, -1.0, text, va="center", fontweight="bold")
    label(ax, f"Particle {chosen}: weight {normalize(posterior.log_weights)[chosen]:.3f}", "", "step")
    return ax.figure


def _name(row: Row) -> str:
    return str(row.first) if row.first == row.last else f"{row.first}–{row.last}"


def _scaled(values: list[float]) -> list[float]:
    """Return bars of length at most 1: infinite ones have it, unknown ones none."""
    finite = np.abs([v for v in values if math.isfinite(v)])
    top = float(finite.max(initial=0.0)) or 1.0
    return [0.0 if math.isnan(v) else math.copysign(1.0, v) if math.isinf(v) else v / top for v in values]


def _amount(value: float) -> str:
    return "" if math.isnan(value) else number(value, 3)

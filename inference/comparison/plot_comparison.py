"""The Pareto plot of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..drawing.palette import BLUE, INK, ORANGE
from .trials import Row

COSTS = {
    "tokens_in": "tokens in",
    "tokens_out": "tokens out",
    "model_calls": "model calls",
    "reward_calls": "reward calls",
    "requests": "requests",
    "nfe": "denoiser evaluations",
    "seconds": "seconds",
    "cpu_seconds": "CPU seconds",
}


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the points (cost, quality) that none beats in both, cheapest first.

    >>> front([(3.0, 0.9), (1.0, 0.5), (2.0, 0.4)])
    [1, 0]
    """
    best, kept = -math.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            kept.append(i)
    return kept


def pareto(rows: Sequence[Row], x: str, ax: Any, figsize: tuple[float, float] | None) -> Any:
    """Draw quality against cost, with intervals, labels and the Pareto front."""
    from ..drawing.figure import axes, label, write

    if x not in COSTS:
        raise ValueError(f"x must be one of {', '.join(COSTS)}, not {x!r}")
    ax = axes(ax, figsize, (6.4, 3.8))
    drawn = [row for row in rows if not math.isnan(row.quality.mean)]
    points = [(float(getattr(row, x)), row.quality.mean) for row in drawn]
    best = front(points)
    costs = [cost for cost, _ in points]
    if costs and min(costs) > 0 and max(costs) > 8 * min(costs):
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:,g}")
    ax.step([costs[i] for i in best], [points[i][1] for i in best], where="post", color=ORANGE, linewidth=1.5)
    places = [math.log(cost) for cost in costs] if ax.get_xscale() == "log" else costs
    near = 0.15 * (max(places, default=0.0) - min(places, default=0.0))
    for i, (row, (cost, quality)) in enumerate(zip(drawn, points)):
        colour = ORANGE if i in best else BLUE
        if not math.isnan(row.quality.low):
            ax.plot([cost, cost], [row.quality.low, row.quality.high], color=colour, linewidth=1.2, alpha=0.7)
        ax.plot([cost], [quality], "o", color=colour, markersize=6)
        # A name goes to the left where another engine stands close by on the right.
        left = any((places[i], i) < (place, j) and place - places[i] < near for j, place in enumerate(places))
        write(
            ax,
            cost,
            quality,
            row.engine,
            xytext=(-6 if left else 6, 5 if i in best else -11),
            ha="right" if left else "left",
            color=INK,
        )
    ax.margins(x=0.45, y=0.12)  # room for the names
    label(ax, "Quality against cost", f"{COSTS[x]} of a run over all problems", "quality, 95% interval")
    ax.set_title("orange: the Pareto front", loc="right", fontsize=8, color=ORANGE)
    return ax.figure

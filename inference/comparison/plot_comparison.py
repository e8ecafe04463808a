"""The Pareto plot of a comparison."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from ..drawing.palette import BRANCHES, INK
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
_WIDE, _LINE = 30, 0.15
"""Characters of a line of a name, and its height in inches."""

_LEADER = {"arrowstyle": "-", "relpos": (0.0, 0.5), "linewidth": 0.6, "alpha": 0.8, "shrinkA": 12, "shrinkB": 4}


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
    """Draw quality against cost, with intervals and the Pareto front; the names stand on the right, one below another.

    Engines of about the same cost stand side by side.
    """
    from ..drawing.figure import axes, key, label, sign

    if x not in COSTS:
        raise ValueError(f"x must be one of {', '.join(COSTS)}, not {x!r}")
    drawn = [row for row in rows if not math.isnan(row.quality.mean)]
    names = [_named(row.engine) for row in drawn]
    lines = sum(name.count("\n") + 1.4 for name in names)
    ax = axes(ax, figsize, (7.2, max(3.4, _LINE * lines + 0.9)))
    costs, qualities = [float(getattr(row, x)) for row in drawn], [row.quality.mean for row in drawn]
    best = front(list(zip(costs, qualities)))
    _cost_axis(ax, costs, whole=not x.endswith("seconds"))
    _quality_axis(ax, drawn)
    ax.step([costs[i] for i in best], [qualities[i] for i in best], where="post", color=INK, linewidth=1.2, zorder=1)
    places = [_moved(ax, aside) for aside in _asides(ax, costs)]
    for i, (row, place) in enumerate(zip(drawn, places)):
        colour = BRANCHES[i % len(BRANCHES)]
        if not math.isnan(row.quality.low):
            interval = [row.quality.low, row.quality.high]
            ax.plot([costs[i]] * 2, interval, color=colour, linewidth=1.2, alpha=0.7, transform=place)
        edge = INK if i in best else colour
        ax.plot(costs[i], qualities[i], "o", color=colour, markersize=7, markeredgecolor=edge, transform=place)
    label(ax, "Quality against cost", f"{COSTS[x]} of a run", "quality, 95% interval")
    key(ax, [sign("Pareto front", "o", linestyle="-", markerfacecolor="none")] if drawn else [])
    _names(ax, names, costs, qualities, places)
    return ax.figure


def _named(engine: str) -> str:
    """Break a name into lines, two at most."""
    return "\n".join(textwrap.wrap(engine, _WIDE, max_lines=2, placeholder="…", break_long_words=True))


def _cost_axis(ax: Any, costs: Sequence[float], whole: bool) -> None:
    """Scale the axis of the costs, of which none is negative; ``whole`` numbers have no others between them."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    low, high = min(costs, default=0.0), max(costs, default=1.0)
    if low > 0 and high > 8 * low:
        ax.set_xscale("log")
        ax.set_xlim(low / (high / low) ** 0.08, high * (high / low) ** 0.08)
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        room = 0.1 * (high - low) or 1.0
        ax.set_xlim(max(low - room, 0.0) if low < high else low - room, high + room)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=whole))
    if low == high:
        ax.set_xticks([low])
    ax.xaxis.set_major_formatter("{x:,g}")


def _quality_axis(ax: Any, drawn: Sequence[Row]) -> None:
    ends = [end for row in drawn for end in row.quality if not math.isnan(end)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    ax.set_ylim(low - room, high + room)


def _asides(ax: Any, costs: Sequence[float]) -> list[float]:
    """Return how far to the side each is drawn, in points, so that engines of one cost are not on top of each other."""
    low, high = ax.get_xlim()
    log = ax.get_xscale() == "log"
    span = math.log(high / low) if log else high - low
    order = sorted(range(len(costs)), key=lambda i: (costs[i], i))
    groups: list[list[int]] = []
    for i in order:
        before = costs[groups[-1][-1]] if groups else math.inf
        near = (math.log(costs[i] / before) if log and groups else costs[i] - before) < 0.02 * span
        if groups and near:
            groups[-1].append(i)
        else:
            groups.append([i])
    asides = [0.0] * len(costs)
    for group in groups:
        for k, i in enumerate(group):
            asides[i] = 10.0 * (k - (len(group) - 1) / 2)
    return asides


def _moved(ax: Any, points: float) -> Any:
    from matplotlib.transforms import ScaledTranslation

    return ax.transData + ScaledTranslation(points / 72, 0.0, ax.figure.dpi_scale_trans)


def _names(ax: Any, names: list[str], costs: list[float], qualities: list[float], places: list[Any]) -> None:
    """Write the names on the right, in the order of quality, each with a thin line to its point."""
    from ..drawing.figure import SMALL

    height = ax.figure.get_size_inches()[1] * ax.get_position().height
    order = sorted(range(len(names)), key=lambda i: (qualities[i], -i))
    low, high = ax.get_ylim()
    tall = [_LINE * (names[i].count("\n") + 1.4) / height for i in order]
    wanted = [(qualities[i] - low) / ((high - low) or 1.0) for i in order]
    for i, at in zip(order, spread(wanted, tall)):
        colour = BRANCHES[i % len(BRANCHES)]
        ax.plot(1.05, at, "o", color=colour, markersize=5, transform=ax.transAxes, clip_on=False)
        ax.annotate(
            names[i],
            (costs[i], qualities[i]),
            xycoords=places[i],
            xytext=(1.07, at),
            textcoords="axes fraction",
            va="center",
            fontsize=SMALL,
            color=INK,
            parse_math=False,
            annotation_clip=False,
            arrowprops={**_LEADER, "color": colour},
        )


def spread(wanted: Sequence[float], tall: Sequence[float]) -> list[float]:
    """Place boxes of given heights near where they want to be (middles, rising), none on top of another.

    They stay within 0…1 where there is room.

    >>> spread([0.5, 0.5, 0.5], [0.2, 0.2, 0.2])
    [0.3, 0.5, 0.7]
    """
    whole = sum(tall)
    tops: list[float] = []
    blocks: list[tuple[float, list[int]]] = []  # lower end, members; blocks that meet become one
    for i in range(len(wanted)):
        members = [i]
        while True:
            offsets = [sum(tall[members[0] : k]) + tall[k] / 2 for k in members]
            start = sum(wanted[k] - off for k, off in zip(members, offsets)) / len(members)
            size = sum(tall[k] for k in members)
            start = min(max(start, 0.0), max(1.0 - size, 0.0)) if whole <= 1.0 else start
            if not blocks or blocks[-1][0] + sum(tall[k] for k in blocks[-1][1]) <= start + 1e-12:
                break
            members = blocks.pop()[1] + members
        blocks.append((start, members))
    for start, members in blocks:
        for k in members:
            tops.append(round(start + sum(tall[members[0] : k]) + tall[k] / 2, 9))
    return tops

"""Small multiples: a panel for each family of engines, best-of-N in grey in each, names at the ends of the lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Table = list[dict[str, Any]]
INKS = ("#0072b2", "#d55e00", "#009e73", "#aa4499")
"""Four colours that the colour-blind tell apart (Okabe and Ito; Tol)."""
GREY = "#8c8c8c"
COSTS = {"tokens": "tokens sampled for a problem", "reward_calls": "calls of the verifier for a problem"}
APART = 0.062
"""Least distance of two names, as a share of the panel's height."""


class Panel(NamedTuple):
    """A table, which of its engines to draw, and against what."""

    title: str
    table: Table
    engines: Sequence[str]
    cost: str = "tokens"

    def rows(self, engine: str) -> Table:
        return [row for row in self.table if row["engine"] == engine and row[self.cost] > 0]


def multiples(rows: list[list[Panel]], yardstick: str, title: str, path: Path, sides: Sequence[str] = ("", "")) -> None:
    """Draw accuracy against cost with 95% bands, a panel for each entry, and write the picture; ``sides`` name rows."""
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(3.1 * len(rows[0]) + 0.4, 3.0 * len(rows) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    drawn = figure.subplots(len(rows), len(rows[0]), sharey=True, sharex="row", squeeze=False)
    for row, panels, side in zip(drawn, rows, sides):
        for axes, panel in zip(row, panels):
            _draw(axes, panel, yardstick)
        row[0].set_ylabel(f"share of problems solved{side}", fontsize=8.5)
        left, right = row[0].get_xlim()  # which the row shares: room for the names
        row[0].set_xlim(left, right * (right / left) ** 0.75)
    for axes in drawn.ravel():
        _names(axes)
    figure.savefig(path, dpi=110)
    with Image.open(path) as picture:  # few colours: a third of the bytes
        picture.convert("RGB").quantize(128).save(path, optimize=True)


def by_family(table: Table, families: dict[str, tuple[str, ...]]) -> list[list[Panel]]:
    """Return a row of panels for each cost, with a family in each."""
    engines = {row["engine"] for row in table}
    shown = {name: [e for e in members if e in engines] for name, members in families.items()}
    return [
        [Panel(name if cost == "tokens" else "", table, members, cost) for name, members in shown.items() if members]
        for cost in COSTS
    ]


def _draw(axes: Any, panel: Panel, yardstick: str) -> None:
    axes.set_xscale("log")
    for engine, ink in [(yardstick, GREY), *zip(panel.engines, INKS)]:
        rows = panel.rows(engine)
        x = [row[panel.cost] for row in rows]
        low, high = ([row[end] for row in rows] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=ink, alpha=0.13, lw=0)
        axes.plot(x, [row["accuracy"] for row in rows], "o-", ms=3, lw=1.5, color=ink, label=engine)
    axes.set_title(panel.title, fontsize=10, fontweight="bold", loc="left")
    axes.set_xlabel(COSTS[panel.cost], fontsize=8.5)
    axes.grid(alpha=0.25, lw=0.6)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _names(axes: Any) -> None:
    """Write each line's name at the right of its last point; names that would touch are moved apart."""
    bottom, top = axes.get_ylim()
    ends = [(line.get_xydata()[-1], line) for line in axes.get_lines() if len(line.get_xydata())]
    ends.sort(key=lambda end: end[0][1])
    heights = spread([(y - bottom) / (top - bottom) for (_, y), _ in ends], APART)
    for ((x, y), line), height in zip(ends, heights):
        axes.annotate(
            line.get_label(),
            (x, y),
            (0.64, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=line.get_color(),
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "lw": 0.5, "alpha": 0.5, "shrinkB": 3},
        )


def spread(heights: list[float], apart: float) -> list[float]:
    """Return rising heights that are at least so far apart, within 0 and 1, and as near as may be to those given.

    >>> [round(y, 3) for y in spread([0.5, 0.5, 0.9], 0.1)]
    [0.45, 0.55, 0.9]
    """
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _ends(groups[-2], apart)[1] + apart > _ends(groups[-1], apart)[0]:
            last = groups.pop()
            groups[-1] += last
    return [y for group in groups for y in np.linspace(*_ends(group, apart), len(group)).tolist()]


def _ends(group: list[float], apart: float) -> tuple[float, float]:
    """Return the lowest and the highest place of names that stand side by side around the mean of their heights."""
    length = apart * (len(group) - 1)
    low = min(max(float(np.mean(group)) - length / 2, 0.02), 0.98 - length)
    return low, low + length

"""Small multiples: a panel for each family of engines, best-of-N in grey in each, names at the ends of the lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Table = list[dict[str, Any]]
INKS = ("#0072b2", "#d55e00", "#009e73", "#aa4499")
"""Four colours that the colour-blind tell apart (Okabe and Ito; Tol)."""
GREY = "#8c8c8c"
COSTS = {"tokens": "tokens sampled for a problem", "reward_calls": "calls of the verifier for a problem"}
APART = 0.062
"""Least distance of two names, as a share of the panel's height."""


def multiples(table: Table, families: dict[str, tuple[str, ...]], yardstick: str, title: str, path: Path) -> None:
    """Draw accuracy against each cost (rows) for each family (columns), with 95% bands, and write the picture."""
    from matplotlib.figure import Figure

    shown = {name: [e for e in engines if _rows(table, e, "tokens")] for name, engines in families.items()}
    shown = {name: engines for name, engines in shown.items() if engines}
    figure = Figure(figsize=(3.1 * len(shown) + 0.4, 6.4), layout="constrained")
    panels = figure.subplots(2, len(shown), sharey=True, sharex="row", squeeze=False)
    for row, (cost, label) in zip(panels, COSTS.items()):
        for axes, (family, engines) in zip(row, shown.items()):
            _panel(axes, table, engines, yardstick, cost)
            axes.set_xlabel(label, fontsize=8.5)
            if axes in panels[0]:
                axes.set_title(family, fontsize=10, fontweight="bold", loc="left")
        row[0].set_ylabel("share of problems solved", fontsize=8.5)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    for row in panels:  # which share their axis: room for the names
        left, right = row[0].get_xlim()
        row[0].set_xlim(left, right * (right / left) ** 0.6)
    for axes, engines in zip(panels.ravel(), 2 * list(shown.values())):
        _names(axes, engines, yardstick)
    figure.savefig(path, dpi=110)


def _rows(table: Table, engine: str, cost: str) -> Table:
    return [row for row in table if row["engine"] == engine and row[cost] > 0]


def _panel(axes: Any, table: Table, engines: list[str], yardstick: str, cost: str) -> None:
    axes.set_xscale("log")
    for engine, ink in [(yardstick, GREY), *zip(engines, INKS)]:
        rows = _rows(table, engine, cost)
        x = [row[cost] for row in rows]
        low, high = ([row[end] for row in rows] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=ink, alpha=0.13, lw=0)
        axes.plot(x, [row["accuracy"] for row in rows], "o-", ms=3, lw=1.5, color=ink, label=engine)
    axes.grid(alpha=0.25, lw=0.6)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _names(axes: Any, engines: list[str], yardstick: str) -> None:
    """Write each line's name at the right of its last point; names that would touch are moved apart."""
    bottom, top = axes.get_ylim()
    ends = [(line.get_xydata()[-1], line) for line in axes.get_lines() if len(line.get_xydata())]
    ends.sort(key=lambda end: end[0][1])
    heights = spread([(y - bottom) / (top - bottom) for (_, y), _ in ends], APART)
    for ((x, y), line), height in zip(ends, heights):
        axes.annotate(
            line.get_label(),
            (x, y),
            (0.68, height),
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

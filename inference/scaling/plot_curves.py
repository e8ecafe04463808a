"""The pictures of curves and judges."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..drawing.palette import BRANCHES, INK, ORANGE


def plot_curve(curve: Any, name: str, fit: Any, ax: Any, figsize: tuple[float, float] | None) -> Any:
    """Draw a `Curve` with its intervals, and a `Saturation` that fits it, if any, as a dashed line."""
    from ..drawing.figure import axes, label, write

    fresh = ax is None
    ax = axes(ax, figsize, (6.0, 3.4))
    colour = BRANCHES[len(ax.containers) % len(BRANCHES)]
    value, low, high = curve.interval()
    bars = np.nan_to_num(np.stack([value - low, high - value])).clip(0.0)
    ax.errorbar(curve.k, value, bars, color=colour, marker="o", markersize=4, linewidth=1.5, elinewidth=1.0)
    if fit is not None:
        grid = np.geomspace(curve.k.min(), curve.k.max(), 200)
        ax.plot(grid, fit(grid), "--", color=INK, linewidth=1.0)
    if curve.k.min() > 0 and curve.k.max() > 8 * curve.k.min():
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    if name:
        write(ax, curve.k[-1], value[-1], name, xytext=(6, 0), va="center", color=colour)
        ax.margins(x=0.2)
    if fresh:
        label(ax, "Quality against tries", "k", "mean over problems, 95% interval")
    return ax.figure


def plot_judge(judge: Any, most: int, ax: Any, figsize: tuple[float, float] | None) -> Any:
    """Draw the error of the one of k answers that a `Judge` likes best, against k."""
    from ..drawing.figure import axes, label, write

    ax = axes(ax, figsize, (6.0, 3.4))
    k = np.unique(np.geomspace(1, most, 24).round().astype(int))
    ax.plot(k, [judge.best_of(int(n)) for n in k], color=BRANCHES[0], marker="o", markersize=4, linewidth=1.5)
    best = judge.best_k(most)
    ax.plot([best], [judge.best_of(best)], "o", color=ORANGE, markersize=7)
    write(ax, best, judge.best_of(best), f"k = {best}", xytext=(0, 8), ha="center", color=ORANGE)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    label(ax, "What the judge likes best of k", "k", "mean squared error")
    return ax.figure

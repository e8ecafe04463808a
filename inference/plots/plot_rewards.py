"""The log-potentials of a posterior by step, as a matplotlib figure."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..drawing import views
from ..drawing.palette import BLUE, INK, ORANGE
from ..results.posterior import Posterior


def rewards(posterior: Posterior, *, ax: Any = None, figsize: tuple[float, float] | None = None) -> Any:
    """Draw the log-potentials log G by step: median, middle 50% and 80%, and up to 64 particles as points.

    Where they take few values altogether, such as 0 and log 0.1, each value of a step is a dot as large as the share of
    particles that have it: nothing is between them. Above 48 steps the boxes of the steps are joined to bands.

    Only particles that met a factor or an observation in a step count there. The particles that a step
    killed (log G = −∞) are counted at the foot; marks at the head are resamplings. Far outliers are counted, not
    shown.
    """
    from ..drawing.figure import SMALL, axes, key, label, sign, steps_axis, write

    ax = axes(ax, figsize, (5.6, 2.4))
    seen = views.rewards(posterior.chains)
    signs = _dots(ax, seen) if len(views.values_of(seen)) else _spread(ax, seen)
    steps_axis(ax, max(len(chain.steps) for chain in posterior.chains))
    label(ax, "Rewards", "step", "log G, nats")
    low, high, lower = _reach(seen)
    ax.set_ylim(low, high)
    across = ax.get_xaxis_transform()
    marks = seen.step[seen.resampled]
    ax.plot(marks + 0.5, np.full(len(marks), 0.98), "|", color=ORANGE, markersize=7, transform=across)
    crowded = len(seen.step) > 40
    for t, dead in zip(seen.step, seen.dead):
        if dead and not crowded:
            write(ax, t, 0.0, f"{dead}", xytext=(0, 2), xycoords=across, ha="center", color=ORANGE, fontsize=7.5)
    killed = f"{int(seen.dead.sum()):,} killed" + ("" if crowded else ", by step at the foot")
    notes = [(seen.dead.any(), killed), (lower, f"{lower:,} below the axis"), (not len(seen.step), "no factor")]
    ax.set_title("; ".join(text for holds, text in notes if holds), loc="right", fontsize=SMALL, color=ORANGE)
    key(ax, signs + [sign("resampled", "|", color=ORANGE, markersize=7)] * bool(len(marks)))
    return ax.figure


def _dots(ax: Any, seen: views.Rewards) -> list[Any]:
    """Draw the values of each step as dots, as large as their share; return what to say of them."""
    from ..drawing.figure import sign

    for t, points in zip(seen.step.tolist(), seen.points):
        values, counts = np.unique(points, return_counts=True)
        size = 4 + 90 * counts / max(len(points), 1)
        ax.scatter([t] * len(values), values, s=size, color=BLUE, linewidths=0, zorder=3)
    return [sign("share of the particles", "o", color=BLUE, markersize=6)]


def _spread(ax: Any, seen: views.Rewards) -> list[Any]:
    """Draw quantiles and some of the particles; return what to say of them."""
    from ..drawing.figure import sign

    q = seen.quantiles
    for first, last in ((0, 4), (1, 3)):
        if len(seen.step) <= views.BOXES:
            ax.bar(seen.step, q[last] - q[first], 0.7, q[first], color=BLUE, alpha=0.28, linewidth=0)
        else:
            ax.fill_between(seen.step, q[first], q[last], color=BLUE, alpha=0.28, linewidth=0)
    if len(seen.step) <= views.BOXES:
        ax.hlines(q[2], seen.step - 0.35, seen.step + 0.35, color=BLUE, linewidth=1.8)
    else:
        ax.plot(seen.step, q[2], color=BLUE, linewidth=1.8)
    ax.plot(*_scattered(seen), ".", color=INK, alpha=0.7, markersize=4, markeredgewidth=0)
    if not len(seen.step):
        return []
    bands = [sign(text, color=BLUE, alpha=alpha, linewidth=7) for text, alpha in (("50%", 0.48), ("80%", 0.28))]
    return [sign("median", color=BLUE, linewidth=1.8), *bands, sign("a particle", ".", alpha=0.7, markersize=4)]


def _scattered(seen: views.Rewards) -> tuple[Any, Any]:
    """Return up to 64 particles of each step as points, equal ones side by side."""
    xs, ys = [np.empty(0)], [np.empty(0)]
    for t, points in zip(seen.step, seen.points):
        ys.append(np.sort(points)[np.linspace(0, len(points) - 1, min(len(points), 64)).astype(int)])
        xs.append(t + 0.5 * (np.arange(len(ys[-1])) * 0.618 % 1) - 0.25)
    return np.concatenate(xs), np.concatenate(ys)


def _reach(seen: views.Rewards) -> tuple[float, float, int]:
    """Return a range that shows the bulk of the rewards, and how many lie below it."""
    if not any(map(len, seen.points)):
        return -1.0, 1.0, 0
    every = np.concatenate(seen.points)
    high, bulk = float(every.max()), float(np.nanmin(seen.quantiles[0]))
    if len(views.values_of(seen)):
        bulk = float(every.min())
    low = max(float(every.min()), bulk - 0.5 * (high - bulk)) if high > bulk else float(every.min())
    room = 0.1 * (high - low) or 0.5
    foot = 2.0 * room if seen.dead.any() else room
    return low - foot, high + room, int((every < low - foot).sum())

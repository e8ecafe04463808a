"""The picture of a diagnosis."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..drawing.palette import BLUE, GREEN, INK, ORANGE


def plot_diagnosis(found: Any, figsize: tuple[float, float] | None) -> Any:
    """Draw three panels by step: AUC, mean score against the share that is right, and the predicted ESS."""
    from ..drawing.figure import axes, label, picture, write

    figure = picture(figsize or (9.0, 2.8))
    panels = [axes(ax, None, (3.0, 2.8)) for ax in figure.subplots(1, 3)]
    steps = [row.step for row in found.rows]
    wanted = (
        ("What tells right from wrong", "AUC", (("auc_within", "within a problem", BLUE), ("auc", "over all", ORANGE))),
        ("How sure it is", "mean", (("score", "score", BLUE), ("share", "right", GREEN))),
        ("What SMC keeps", "predicted ESS / n", (("ess", "", BLUE),)),
    )
    for ax, (title, name, lines) in zip(panels, wanted):
        ends = []
        for field, told, colour in lines:
            y = np.array([getattr(row, field) for row in found.rows])
            if np.isnan(y).all():
                continue
            ax.plot(steps, y, color=colour, marker="o", markersize=4, linewidth=1.5)
            ends.append((float(y[np.isfinite(y)][-1]), told, colour))
        ax.set_ylim(0.0, 1.08)
        # Names stand apart, however close their lines end.
        apart = 0.0 if len(ends) < 2 else max(0.0, 0.12 - abs(ends[0][0] - ends[1][0])) / 2
        for rank, (end, told, colour) in enumerate(sorted(ends)):
            shift = apart * (1 if rank else -1) * 130
            write(ax, steps[-1], end, told, xytext=(6, shift), va="center", color=colour)
        ax.set_xticks(steps)
        ax.set_xlim(steps[0] - 0.3, steps[-1] + (0.75 if ends and ends[0][1] else 0.1) * max(len(steps) - 0.5, 1))
        label(ax, title, "step", name)
    panels[0].axhline(0.5, color=INK, linewidth=0.8, linestyle=":")
    return figure

"""The picture of a calibration."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.student import NORMAL
from ..drawing.figure import axes, label, picture
from ..drawing.palette import BLUE, INK, ORANGE

_MOST = 12
"""Quantities that are drawn: those that are least uniform."""


def plot_ranks(found: Any, figsize: tuple[float, float] | None) -> Any:
    """Draw rank histograms and ECDF differences, a row for each quantity."""
    worst = sorted(range(len(found.names)), key=lambda i: -found.table()[i].chi2)[:_MOST]
    figure = picture(figsize or (7.2, 1.7 * len(worst)))
    panels = figure.subplots(len(worst), 2, squeeze=False)
    expected = len(found) / found.bins
    half = NORMAL * np.sqrt(expected * (1 - 1 / found.bins))
    band, steps = found.band(), (np.arange(found.draws + 1) + 1) / (found.draws + 1)
    for (left, right), i in zip(panels, sorted(worst)):
        row = found.table()[i]
        colour = BLUE if row.ok else ORANGE
        axes(left, None, (1, 1))
        left.axhspan(expected - half, expected + half, color=INK, alpha=0.2, linewidth=0)
        left.bar(np.arange(found.bins), found.counts[i], width=0.9, color=colour)
        label(left, row.name, "", "simulations")
        left.set_xticks([])
        left.set_title(f"χ² {row.chi2:.1f}", loc="right", fontsize=8, color=colour)
        axes(right, None, (1, 1))
        right.fill_between(steps, -band, band, color=INK, alpha=0.2, linewidth=0)
        ranks = np.bincount(found.ranks[i], minlength=found.draws + 1)
        right.plot(steps, ranks.cumsum() / len(found) - steps, color=colour, linewidth=1.5)
        label(right, "", "", "ECDF − uniform")
    label(panels[-1][0], panels[-1][0].get_title(loc="left"), "rank", "simulations")
    label(panels[-1][1], "", "rank / (draws + 1)", "ECDF − uniform")
    return figure

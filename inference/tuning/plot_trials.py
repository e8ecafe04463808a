"""The picture of a search: the scores in order, and the best so far."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..drawing.figure import axes, label, picture
from ..drawing.palette import BLUE, ORANGE


def plot_trials(found: Any, figsize: tuple[float, float] | None) -> Any:
    """Draw what a `Tuned` has found: each trial's score, the best so far, and the score on problems held out."""
    figure = picture(figsize or (5.4, 3.0))
    panel, scores = figure.subplots(), np.array([trial.score for trial in found.trials])
    axes(panel, None, (1, 1))
    number = np.arange(1, len(scores) + 1)
    panel.plot(number, scores, "o", color=BLUE, markersize=4, label="a trial")
    panel.step(number, np.maximum.accumulate(scores), where="post", color=BLUE, linewidth=1.5, label="best so far")
    if found.held_out is not None:
        mean, se, _ = found.held_out
        panel.errorbar([number[-1] + 1], [mean], [se], fmt="s", color=ORANGE, markersize=5, label="held out ± 1 SE")
    panel.legend(fontsize=8, frameon=False)
    label(panel, "", "trial", "score")
    return figure

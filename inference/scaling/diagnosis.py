"""What `diagnose` found: a table by step, a picture, and which engine to try."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...ppl.model import Floats
from ..base.checks import positive
from ..base.selection import best_of
from ..base.step import freeze
from ..particles.entropic import EntropicParticleFilter
from ..particles.particle_filter import ParticleFilter
from ..pools.best_of_n import BestOfN
from ..search.a_star import AStar

EARLY = 0.7
"""AUC within a problem, after the first step, from which on partial runs are worth comparing."""
CERTAIN = 0.99
"""AUC within a problem, after the last step, from which on the first answer that is finished may be taken."""
FEW = 24
"""Answers up to which a search pays however little is known early."""
DEARER = 1.5
"""What A* costs where little is known early, in answers for each child of a node."""
EXPANSIONS = 64
TOO_SURE = 0.6
"""Slope of the logistic recalibration, at the step where it is least, below which a filter is tempered."""


class Row(NamedTuple):
    """A step of a `Diagnosis`, over the runs that made it.

    Attributes:
        step: its number, from 1.
        runs: how many made it.
        auc: chance that a right answer scores above a wrong one here, over all problems.
        auc_within: the same for two answers to one problem, which is what an engine has to choose between.
        score: mean score; NaN (as ``ece`` and ``slope``) where scores are no probabilities.
        share: of the runs that come out right.
        ece: expected calibration error, of ten bins.
        slope: of the logistic recalibration; below 1 the scores are too sure.
        bellman: E[(E[V(s′)|s] − V(s))²] of this step, V(s) being the score before it; NaN at the first step.
        relative: E_V[(E[V(s′)|s]/V(s) − 1)²], states ∝ V; to second order the mean square of the log-ratio.
        drift: log(E[V(s′)]/E[V(s)]); below 0 the score before was too high.
        ess: share of particles that are worth something after this step, if they were equal before, in (0, 1].
    """

    step: int
    runs: int
    auc: float
    auc_within: float
    score: float
    share: float
    ece: float
    slope: float
    bellman: float
    relative: float
    drift: float
    ess: float


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What a verifier is worth, step by step. Made by `diagnose`.

    The rule of `choose`, for a budget of n answers: A*, whose nodes have n children, where scores tell right from wrong
    after the first step already (AUC within a problem of .7 or more) and are next to certain of what is finished (.99
    or more after the last step: A* takes the first finished answer that comes up); A* with n/1.5 children where they do
    not after the first step and n is 24 or less, for then it often comes back to an earlier fork; else a particle
    filter of n, the entropic one where scores are much too sure (a slope below .6). Where there is nothing to compare
    before the end it is best-of-n, and where scores are no probabilities, as A* wants them, a filter. The numbers were
    set on 40 training problems of Countdown.

    Attributes:
        rows: a `Row` for each step.
        scores: (problems, answers) log of each answer's last score.
        right: (problems, answers) whether it is right.
        tokens: that one answer takes, on average.
        reward_calls: of one answer.
        program: that was diagnosed.
    """

    rows: tuple[Row, ...]
    scores: Floats
    right: NDArray[np.bool_]
    tokens: float
    reward_calls: float
    program: str

    def __post_init__(self) -> None:
        freeze(self, "scores", "right")

    @property
    def variance(self) -> float:
        """Σ_t (1/ESS_t − 1): n times the relative variance of SMC's evidence with n particles, for an exact value."""
        return float(sum(1.0 / row.ess - 1.0 for row in self.rows))

    def best_of(self, n: int) -> float:
        """Return the share of problems that best-of-n solves, without bias; n up to the answers of a problem."""
        positive("n", n)
        if n > self.right.shape[1]:
            raise ValueError(f"there are {self.right.shape[1]} answers to each problem, and best-of-{n} needs as many")
        return float(np.mean([best_of(*pair, n) for pair in zip(self.scores, self.right)]))

    def choose(self, budget: int) -> BestOfN | AStar | ParticleFilter | EntropicParticleFilter:
        """Return the engine to try for a budget of so many whole answers to a problem, by the rule above.

        Each wants a program of its own, which `solve` makes by ``weigh``: `BestOfN` one whose weight is the last score
        ("final"), filters one that multiplies the odds of the score after each step ("odds"), and `AStar` one whose
        factors are the scores ("product").
        """
        positive("budget", budget)
        early, late = self.rows[0].auc_within, self.rows[-1].auc_within
        if len(self.rows) == 1 or math.isnan(early):
            return BestOfN(budget)
        if self._sure < math.inf and (late >= CERTAIN if early >= EARLY else budget <= FEW):
            return AStar(EXPANSIONS, width=budget if early >= EARLY else max(round(budget / DEARER), 1))
        return EntropicParticleFilter(budget, len(self.rows)) if self._sure < TOO_SURE else ParticleFilter(budget)

    @property
    def _sure(self) -> float:
        """The least slope of all steps, at most 10⁹; infinite where scores are no probabilities."""
        return min((min(row.slope, 1e9) for row in self.rows if not math.isnan(row.slope)), default=math.inf)

    def advice(self, budget: int) -> str:
        """Say in a sentence what to try for a budget of so many whole answers to a problem, and why."""
        engine, early = self.choose(budget), self.rows[0].auc_within
        tokens = f" ({budget * self.tokens:,.0f} tokens)" if self.tokens else ""
        told = f"after step 1 scores tell right from wrong within a problem with an AUC of {early:.2f}"
        if isinstance(engine, BestOfN):
            shown, why = f"BestOfN({budget})", "there is nothing to compare before the end"
        elif isinstance(engine, AStar):
            shown, why = f"AStar({EXPANSIONS}, width={engine.width}) on the score of each step", told
        else:
            shown, why = f"{type(engine).__name__}({budget}) on the odds of each step's score", told
        return f"For a budget of {budget} answers{tokens} to a problem try {shown}: {why}."

    def plot(self, *, figsize: tuple[float, float] | None = None) -> Any:
        """Draw by step what tells right from wrong, how sure the scores are, and what SMC keeps; return the figure."""
        from .plot_diagnosis import plot_diagnosis

        return plot_diagnosis(self, figsize)

    # -- showing ------------------------------------------------------------------------------------------------

    def _cells(self) -> list[tuple[str, ...]]:
        return [tuple(_written(value) for value in row) for row in self.rows]

    def _notes(self) -> list[str]:
        problems, answers = self.right.shape
        notes = [
            f"{problems} problem{'s' * (problems != 1)} × {answers} answers, {self.right.mean():.0%} of them right; an "
            f"answer takes {self.tokens:.0f} tokens and {self.reward_calls:.1f} scores",
        ]
        if self._sure < 1.0:
            notes.append(f"too sure: the slope of a logistic recalibration is down to {self._sure:.2f} (1 is right)")
        return notes

    def __repr__(self) -> str:
        lines = [_HEAD, *self._cells()]
        widths = [max(map(len, column)) for column in zip(*lines)]
        shown = ["  ".join(cell.rjust(w) for cell, w in zip(line, widths)) for line in lines]
        return "\n".join([*shown, *self._notes()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{cell}</th>" for cell in _HEAD)
        body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in line) + "</tr>" for line in self._cells())
        notes = "".join(f"<div>{escape(note)}</div>" for note in self._notes())
        return (
            f"<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f'<div style="font-size:.85em;opacity:.8">{notes}</div></div>'
        )


_HEAD = (
    "step", "runs", "AUC", "within", "score", "right", "ECE", "slope", "Bellman", "relative", "drift", "ESS",
)  # fmt: skip


def _written(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "" if math.isnan(value) else f"{value:.3g}".replace("-", "−").replace("inf", "∞")

"""What curves of accuracy against budget say: progress, area, and where more is in vain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.checks import one_of
from .verdicts import share

Prior = Literal["uniform", "linear", "last"]


def _curve(values: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(values, float)
    if found.ndim != 1 or not len(found) or np.isnan(found).any():
        raise ValueError(f"a curve is a row of numbers, not {found!r}")
    return found


def regret(curve: ArrayLike, *, best: float = 1.0, tokens: ArrayLike | None = None) -> float:
    """What a run lost on its way: Σ_j (J* − J_j) over its episodes, or by tokens, Σ_j (J* − J_j)·Δt_j.

    Of two runs that end equally well the one of less regret could have been stopped earlier.

    Args:
        curve: (k,) J_j, the accuracy if the run were stopped after episode j.
        best: J*.
        tokens: (k,) Δt_j, how long each stood; None: episodes count alike.

    Raises ValueError for curves that are none, and tokens of another length.

    Source: Optimizing Test-Time Compute via Meta Reinforcement Fine-Tuning (2025), arXiv:2503.07572.
    Guarantee: closed form.
    Engines: all: accuracy of `fk.steps` after each step.
    Not shown here: on the small task best-of-N, filter and entropic filter could not be told apart by it.

    >>> round(regret([0.2, 0.5, 0.5, 0.8]), 6), round(regret([0, 0.2, 0.5, 0.6], tokens=[100] * 4), 6)
    (2.0, 270.0)
    """
    found = _curve(curve)
    widths = np.ones_like(found) if tokens is None else _curve(tokens)
    if len(widths) != len(found):
        raise ValueError(f"there are {len(found)} values and {len(widths)} numbers of tokens")
    return float(np.sum((best - found) * widths))


def anytime(curve: ArrayLike, prior: Prior | ArrayLike = "uniform") -> float:
    """The mean accuracy of a run that is stopped at a random budget: Σ_b p_b·acc_b.

    Args:
        curve: (k,) accuracies at budgets 1…k (of equal steps).
        prior: the budget's law: "uniform", "linear" (p_b ∝ b), "last" (the whole budget), or (k,) weights.

    Raises ValueError for weights that are negative, sum to 0, or are not as many.

    Source: Optimizing Anytime Reasoning via Budget Relative Policy Optimization (2025), arXiv:2505.13438.
    Guarantee: closed form.
    Engines: all, as `regret`.
    Not shown here: it ranks engines on the small task as `regret` does, which is not at all.

    >>> [round(anytime([0.2, 0.5, 0.6, 0.7], prior), 6) for prior in ("uniform", "linear", "last")]
    [0.5, 0.58, 0.7]
    """
    found = _curve(curve)
    k = len(found)
    if isinstance(prior, str):
        one_of("prior", prior, ("uniform", "linear", "last"))
        named = {"uniform": np.ones(k), "linear": np.arange(1.0, k + 1), "last": np.arange(k) == k - 1}
        weights = np.asarray(named[prior], float)
    else:
        weights = _curve(prior)
    if len(weights) != k or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError(f"prior needs {k} weights that are not negative and not all 0, not {weights}")
    return float(found @ weights / weights.sum())


@dataclass(frozen=True)
class Saturation:
    """Accuracy as it saturates with the number of tries: acc(N) = F·(1 − (1 − p)^N).

    One p for all problems fits a mixture badly: with p = .05 and .5 in equal parts 8 tries find .666, at the mean p
    .924. `fit` says by ``residual`` how far off it is.

    Attributes:
        ceiling: F, what is reached in the end.
        p: the chance of a try.
        residual: the largest distance of the curve that was fitted; NaN where none was.

    Source: Scaling over Scaling (2025), arXiv:2505.20522, whose model of performance (TTSPM) it is.
    Guarantee: closed form; `fit` is least squares.
    Engines: BestOfN, SelfConsistency and other pools of independent tries.
    Not shown here: see `fit` on your own curve; in mixtures of problems it is a summary and no law.

    >>> Saturation(1.0, 0.3).enough(0.01), Saturation(0.8, 0.1).enough(0.01)
    (10, 20)
    >>> curve = Saturation(0.6, 0.2)([1, 2, 4, 8, 16])
    >>> found = Saturation.fit([1, 2, 4, 8, 16], curve)
    >>> round(found.ceiling, 4), round(found.p, 4), found.residual < 1e-6
    (0.6, 0.2, True)
    """

    ceiling: float
    p: float
    residual: float = math.nan

    def __post_init__(self) -> None:
        share("ceiling", self.ceiling)
        if not 0 < self.p < 1:
            raise ValueError(f"p lies between 0 and 1, not {self.p!r}")

    def __call__(self, n: ArrayLike) -> NDArray[np.float64]:
        """Return the accuracy after n tries, of the shape of n."""
        return self.ceiling * -np.expm1(np.asarray(n, float) * math.log1p(-self.p))

    def enough(self, gain: float) -> int:
        """Return the number of tries from which on one more adds less than ``gain``: ⌈ln(ε/(F·p))/ln(1 − p)⌉."""
        if not gain > 0:
            raise ValueError(f"gain is positive, not {gain!r}")
        return max(0, math.ceil(math.log(gain / (self.ceiling * self.p)) / math.log1p(-self.p))) if self.ceiling else 0

    @classmethod
    def fit(cls, n: ArrayLike, accuracy: ArrayLike) -> Saturation:
        """Return the curve that is nearest to accuracies (k,) after n (k,) tries, by least squares."""
        tries, found = _curve(n), _curve(accuracy)
        if len(tries) != len(found) or len(found) < 2:
            raise ValueError(f"a fit needs two points or more, with a number of tries each, not {len(found)}")
        low, high = 1e-6, 1 - 1e-6
        for _ in range(8):  # the best F of a p is linear least squares, so that p alone is searched, ever more finely
            grid = np.concatenate([np.geomspace(low, high, 200), 1 - np.geomspace(1 - high, 1 - low, 200)])
            shapes = -np.expm1(np.log1p(-grid)[:, None] * tries)
            ceilings = np.clip((shapes @ found) / (shapes * shapes).sum(1), 0.0, 1.0)
            errors = ((ceilings[:, None] * shapes - found) ** 2).sum(1)
            order = np.argsort(grid)
            at = int(np.argmin(errors[order]))
            p, ceiling = float(grid[order][at]), float(ceilings[order][at])
            low, high = float(grid[order][max(at - 1, 0)]), float(grid[order][min(at + 1, len(grid) - 1)])
        best = cls(ceiling, p)
        return cls(ceiling, p, float(np.abs(best(tries) - found).max()))

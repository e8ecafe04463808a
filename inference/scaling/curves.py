"""What curves of accuracy against budget say: progress, area, and where more is in vain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...ppl import keys as _keys
from ..base.checks import one_of
from ..base.student import LEVEL, Interval
from ..comparison.intervals import mean_interval
from ..results.posterior import Posterior
from .verdicts import share

Prior = Literal["uniform", "linear", "last"]


def independent(posterior: Posterior) -> None:
    """Raise ValueError for runs that depend on each other."""
    if posterior.serial or any(step.resampled for chain in posterior.chains for step in chain.steps):
        raise ValueError(
            f"runs of {posterior.engine} depend on each other, and they are needed as they were drawn: "
            "use ImportanceSampling or BestOfN"
        )


def _curve(values: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(values, float)
    if found.ndim != 1 or not len(found) or np.isnan(found).any():
        raise ValueError(f"a curve is a row of numbers, not {found!r}")
    return found


@dataclass(frozen=True, eq=False)
class Curve:
    """The quality that each problem has at each size, with intervals over problems: of anything that is read off it.

    Args:
        k: (m,) sizes, such as numbers of tries, in ascending order.
        table: (problems, m) the quality of each problem at each size.

    Raises ValueError for another shape, for NaN, and for sizes that do not ascend.

    >>> curve = Curve([1, 2, 4], [[0, 0, 1], [0, 1, 1], [0, 0, 0], [1, 1, 1]])
    >>> curve.value.tolist()
    [0.25, 0.5, 0.75]
    >>> mean, low, high = curve.estimate(anytime, seed=0)
    >>> mean, low < mean < high
    (0.5, True)
    """

    k: NDArray[np.float64]
    table: NDArray[np.float64]

    def __post_init__(self) -> None:
        sizes, table = np.asarray(self.k), np.array(self.table, float)
        if sizes.ndim != 1 or table.ndim != 2 or table.shape[1] != len(sizes) or not table.size:
            raise ValueError(f"a curve of {sizes.shape} sizes needs a table (problems, sizes), not {table.shape}")
        if np.isnan(table).any() or not (np.diff(sizes) > 0).all():
            raise ValueError("a curve's qualities are numbers, and its sizes ascend")
        object.__setattr__(self, "k", sizes)
        object.__setattr__(self, "table", table)

    @property
    def value(self) -> NDArray[np.float64]:
        """The mean over problems, (m,)."""
        return np.asarray(self.table.mean(0))

    @property
    def error(self) -> NDArray[np.float64]:
        """Its standard error over problems, (m,); NaN for one problem."""
        n = len(self.table)
        return np.asarray(self.table.std(0, ddof=1) / math.sqrt(n)) if n > 1 else np.full(len(self.k), math.nan)

    def interval(self, at: int | None = None) -> Interval:
        """Return the mean with its 95% interval at a position of ``k``, or at all of them, (m,) each.

        Where all qualities are 0 or 1 it is Wilson's, else Student's t with the skewness taken out.
        """
        if at is None:
            found = [self.interval(i) for i in range(len(self.k))]
            return Interval(*(np.array(part) for part in zip(*found)))
        column = self.table[:, at]
        return mean_interval(column.tolist(), range(len(column)), binary=bool(np.isin(column, (0.0, 1.0)).all()))

    def estimate(self, statistic: Callable[[NDArray[np.float64]], Any], *, seed: int, draws: int = 1000) -> Interval:
        """Return ``statistic(value)`` with its 95% interval, by the bootstrap over problems.

        The interval is that of percentiles, which covers less than it says where problems are few; it is NaN for one.

        Args:
            statistic: a number that is read off a row of values (m,): `anytime`, `regret`, the ceiling of a fit.
            seed: of the bootstrap.
            draws: how often problems are drawn anew.
        """
        n = len(self.table)
        if n < 2:
            return Interval(float(statistic(self.value)), math.nan, math.nan)
        u = _keys.uniform(_keys.fold(_keys.root(seed), np.arange(draws * n))).reshape(draws, n)
        found = [float(statistic(row)) for row in self.table[(u * n).astype(int)].mean(1)]
        low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(float(statistic(self.value)), float(low), float(high))

    def __sub__(self, other: Curve) -> Curve:
        """Return the difference of two curves of the same sizes and problems, paired by problem."""
        if not np.array_equal(self.k, other.k) or self.table.shape != other.table.shape:
            raise ValueError("only curves of the same sizes and problems have a difference")
        return Curve(self.k, self.table - other.table)

    def plot(
        self,
        name: str = "",
        *,
        fit: Saturation | None = None,
        ax: Any = None,
        figsize: tuple[float, float] | None = None,
    ) -> Any:
        """Draw the curve with its intervals, and a fit as a dashed line; return the figure.

        Args:
            name: is written beside its end.
            fit: what to draw with it.
            ax: where to draw it, such as beside another curve: ``figure.axes[0]``.
            figsize: in inches, of a new figure.

        Raises ImportError without matplotlib (``pip install feynkac[plots]``).
        """
        from .plot_curves import plot_curve

        return plot_curve(self, name, fit, ax, figsize)


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
    Measured: to 480 tokens on Countdown (30 problems of 4 numbers, one seed, N = 1, 4, 16): best-of-N 187 [119,
        261], particle filter 186 [121, 261], entropic filter 186 [123, 260] tokens: no ranking.

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
    Measured: over N = 1, 4, 16 on the runs of `regret` the filters are above best-of-N by .011 [−.122, .144] and
        .011 [−.111, .134]: no ranking.

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
    Measured: on pass@k of Countdown (60 problems of 4 numbers, k to 32) F = .777 [.685, .861], p = .169 [.131,
        .210], within .033, enough(.01) = 14; on best-of-k by the verifier .652 [.545, .751], .213 [.162, .268],
        .024, 11. But fitted to k ≤ 8 they foretell .657 and .588 at 32, where .808 and .676 were seen: no law for
        mixtures.

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
        for _ in range(6):  # the best F of a p is linear least squares, so that p alone is searched, ever more finely
            grid = np.concatenate([np.geomspace(low, high, 50), 1 - np.geomspace(1 - high, 1 - low, 50)])
            shapes = -np.expm1(np.log1p(-grid)[:, None] * tries)
            ceilings = np.clip((shapes @ found) / (shapes * shapes).sum(1), 0.0, 1.0)
            errors = ((ceilings[:, None] * shapes - found) ** 2).sum(1)
            order = np.argsort(grid)
            at = int(np.argmin(errors[order]))
            p, ceiling = float(grid[order][at]), float(ceilings[order][at])
            low, high = float(grid[order][max(at - 1, 0)]), float(grid[order][min(at + 1, len(grid) - 1)])
        best = cls(ceiling, p)
        return cls(ceiling, p, float(np.abs(best(tries) - found).max()))

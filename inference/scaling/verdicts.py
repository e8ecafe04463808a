"""Judges in closed form: what verdicts add to votes, what a judge's errors cost, and when one may stop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.checks import is_real, positive

_PANELS = 64
"""Panels of 32 nodes each in which a judge's error is integrated."""


def share(name: str, value: float) -> float:
    """Return a probability. Raises ValueError, naming it, for what is none."""
    if not is_real(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} is a probability, not {value!r}")
    return float(value)


def binomial(n: int, p: float) -> NDArray[np.float64]:
    """Return the chances (n + 1,) of 0…n successes in n trials."""
    k = np.arange(n + 1)
    if p in (0.0, 1.0):
        return np.asarray(k == n * p, float)
    logs = np.concatenate([[0.0], np.log(np.arange(1.0, n + 1)).cumsum()])  # factorials overflow from 171 on
    return np.asarray(np.exp(logs[n] - logs - logs[::-1] + k * math.log(p) + (n - k) * math.log1p(-p)))


def verify_or_vote(
    solutions: int, verifications: int, *, p: float, tpr: float = 1.0, fpr: float = 0.0, ratio: float = 1.0
) -> tuple[float, float]:
    """How often S solutions with V verdicts each end in the right answer, and what they cost, in solutions.

    Without verdicts the majority wins, where wrong answers agree (the worst case). With them the solution of the
    largest mean verdict does; ties are broken evenly in both. The cost is S(1 + λV). So a budget may be spent on more
    solutions or on more verdicts, and which is better depends on the judge: compare the pairs (S, V) of equal cost.

    Args:
        solutions: S.
        verifications: V of each; 0 is the vote.
        p: the chance that a solution is right.
        tpr: the chance of a good verdict on a right one.
        fpr: the same on a wrong one.
        ratio: λ, the cost of a verdict in solutions.

    Returns (accuracy, cost). Raises ValueError for what is no probability, and for no solutions.

    Source: When To Solve, When To Verify (2025), arXiv:2504.01005.
    Guarantee: closed form, for independent solutions and verdicts.
    Engines: none; `SelfConsistency` and `BestOfN` are what it compares.
    Not shown here: no generative verifier comes with the library.

    >>> [round(verify_or_vote(s, v, p=0.6, tpr=0.8, fpr=0.3)[0], 6) for s, v in ((32, 0), (16, 1), (8, 3), (4, 7))]
    [0.871618, 0.8, 0.955862, 0.961383]
    """
    positive("solutions", solutions)
    p, tpr, fpr = share("p", p), share("tpr", tpr), share("fpr", fpr)
    if verifications < 0 or ratio < 0:
        raise ValueError(f"verifications and ratio are not negative, not {verifications} and {ratio}")
    cost = solutions * (1 + ratio * verifications)
    if verifications == 0:
        return majority(p, solutions), cost
    right, wrong = p * binomial(verifications, tpr), (1 - p) * binomial(verifications, fpr)
    below = np.concatenate([[0.0], np.minimum(np.cumsum(right + wrong), 1.0)])
    best = np.diff(below**solutions)  # the chance that the largest count is k
    either = right + wrong
    return float(np.sum(best * np.divide(right, either, out=np.zeros_like(right), where=either > 0))), cost


def majority(p: float, n: int) -> float:
    """How often the majority of n answers is right, each of which is with probability p; ties count half.

    >>> round(majority(0.6, 3), 6)
    0.648
    """
    chances = binomial(n, share("p", p))
    return float(chances[n // 2 + 1 :].sum() + (chances[n // 2] / 2 if n % 2 == 0 else 0.0))


@dataclass(frozen=True)
class Judge:
    """A judge that prefers answers near its own peak, where the truth may be elsewhere: what selecting by it costs.

    Answers are y ~ N(mean, sd²), the judge's reward is −(y − peak)², and the error is E (y − truth)² of what is chosen.
    Where peak and truth differ, there is a best number of answers, beyond which more of them are worse: the judge is
    then overoptimised.

    Args:
        mean: of the answers.
        sd: their standard deviation.
        peak: what the judge likes best.
        truth: what is right; None: the judge knows.

    Source: Demystifying LLM-as-a-Judge (2025), arXiv:2512.19905.
    Guarantee: closed form; `best_of` by quadrature to 1e-9.
    Engines: none; `BestOfN(k)` and its soft form are what it describes.
    Measured: the verifier of Countdown is not overoptimised at k ≤ 40: from 16 to 40 answers best-of-k gains .060
        [−.007, .131] (60 problems of 4 numbers).

    >>> judge = Judge(mean=0.0, sd=1.0, peak=2.0, truth=1.0)
    >>> [round(judge.best_of(k), 5) for k in (4, 6, 16)], judge.best_k(16)
    ([0.46198, 0.4236, 0.61161], 6)
    >>> mean, error = Judge(0.0, 1.0, 1.0).tilted(0.5)
    >>> round(mean, 6), round(error, 6)
    (0.8, 0.24)
    """

    mean: float
    sd: float
    peak: float
    truth: float | None = None

    def __post_init__(self) -> None:
        if not self.sd > 0:
            raise ValueError(f"sd is positive, not {self.sd!r}")

    @property
    def _truth(self) -> float:
        return self.peak if self.truth is None else self.truth

    def tilted(self, temperature: float) -> tuple[float, float]:
        """Return the mean of answers weighed by exp(reward/T), and their error."""
        if not temperature > 0:
            raise ValueError(f"the temperature is positive, not {temperature!r}")
        variance = 1.0 / (1.0 / self.sd**2 + 2.0 / temperature)
        mean = variance * (self.mean / self.sd**2 + 2.0 * self.peak / temperature)
        return mean, variance + (mean - self._truth) ** 2

    def best_of(self, k: int) -> float:
        """Return the error of the one of k answers that the judge likes best."""
        positive("k", k)
        farther, errors = self._by_distance
        return float(k * np.sum(farther ** (k - 1) * errors))

    @cached_property
    def _by_distance(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """At nodes of distance u from the peak: P(an answer is farther), and the density's squared error by weight."""
        x, weights = np.polynomial.legendre.leggauss(32)
        nodes = (np.arange(_PANELS)[:, None] + (x + 1) / 2).ravel() / _PANELS
        reach = abs(self.peak - self.mean) + 12.0 * self.sd
        u = nodes**2 * reach  # finer near the peak, where the best of many answers are
        step = np.tile(weights, _PANELS) / (2 * _PANELS) * 2 * nodes * reach
        above, below = self.peak + u, self.peak - u
        root = self.sd * math.sqrt(2)
        tails = zip((above - self.mean).tolist(), (self.mean - below).tolist())
        farther = np.array([(math.erfc(one / root) + math.erfc(other / root)) / 2 for one, other in tails])
        errors = sum(_normal((y - self.mean) / self.sd) / self.sd * (y - self._truth) ** 2 for y in (above, below))
        return farther, step * np.asarray(errors)

    def best_k(self, most: int = 64) -> int:
        """Return the k ≤ most of the least error."""
        return 1 + int(np.argmin([self.best_of(k) for k in range(1, most + 1)]))

    def plot(self, most: int = 64, *, ax: Any = None, figsize: tuple[float, float] | None = None) -> Any:
        """Draw the error against k, up to ``most``, and the best k; return the figure. Needs matplotlib."""
        from .plot_curves import plot_judge

        return plot_judge(self, most, ax, figsize)


def _normal(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def conformal(scores: ArrayLike, delta: float = 0.1) -> float:
    """The threshold that a new score stays at or below with probability at least 1 − δ, from n scores like it.

    It is the k-th smallest score, k = ⌈(n + 1)(1 − δ)⌉, and infinite where k > n: too few scores promise nothing. With
    s = 1 − p(right), an answer may be taken where 1 − p ≤ q for "right" and not for "wrong".

    Args:
        scores: (n,) nonconformity scores, exchangeable with the new one.
        delta: δ.

    Raises ValueError for no scores, NaN, and a δ outside (0, 1).

    Source: LYNX: Learning Dynamic Exits (2025), arXiv:2512.05325; split conformal prediction, Vovk et al. (2005),
        doi:10.1007/b106715.
    Guarantee: coverage of at least 1 − δ, on average over the scores, if they are exchangeable.
    Engines: all; `fk.programs.early_exit` takes it as its threshold.
    Measured: at δ = .1 it covers .923 (standard deviation of a split .074) of the right answers' 1 − r by the
        verifier of Countdown, from 25 problems to 25 others.

    >>> conformal([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]), conformal([0.1] * 8)
    (0.9, inf)
    """
    found = np.sort(np.asarray(scores, float).ravel())
    if not len(found) or np.isnan(found).any():
        raise ValueError(f"scores are numbers, and at least one, not {found!r}")
    if not 0 < delta < 1:
        raise ValueError(f"delta lies between 0 and 1, not {delta!r}")
    k = math.ceil((len(found) + 1) * (1 - delta) - 1e-9)
    return float(found[k - 1]) if k <= len(found) else math.inf

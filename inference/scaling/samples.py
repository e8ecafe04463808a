"""What samples say of a model: bounds of what can be selected, where their spread comes from, how they differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.checks import positive
from ..results.posterior import Posterior
from .verdicts import binomial, share


class Bounds(NamedTuple):
    """What is right of k answers: all of them, one at random, the majority (ties half), at least one."""

    worst: float
    mean: float
    majority: float
    best: float


def bounds_at_k(correct: ArrayLike, k: int) -> Bounds:
    """Between what bounds any selection among k answers lies: from the worst to a perfect verifier.

    ``correct`` says of n answers which are right: their k-subsets are counted, so that each number is unbiased (pass@k
    is ``best``). A single number between 0 and 1 is the chance of an answer, of which there are then as many as one
    likes.

    Args:
        correct: (n,) of bools, n ≥ k, or a probability.
        k: how many answers there are to select from.

    Raises ValueError for fewer answers than k, and what is no probability.

    Source: Inference-Time Scaling for Complex Tasks: Where We Stand (2025), arXiv:2504.00294; pass@k as in Chen et al.
        (2021), arXiv:2107.03374.
    Guarantee: unbiased, for independent answers.
    Engines: ImportanceSampling draws them; BestOfN and SelfConsistency select.
    Measured: see `pass_at_k` on the small task in the notebook on scaling.

    >>> [round(x, 5) for x in bounds_at_k(0.4, 5)]
    [0.01024, 0.4, 0.31744, 0.92224]
    >>> round(bounds_at_k([True] * 3 + [False] * 7, 2).best, 5)
    0.53333
    """
    positive("k", k)
    given = np.asarray(correct)
    if given.ndim == 0:
        law, p = binomial(k, share("correct", float(given))), float(given)
    else:
        right = given.astype(bool).ravel()
        n, c = len(right), int(right.sum())
        if n < k:
            raise ValueError(f"{n} answers have no subsets of {k}")
        law = np.array([math.comb(c, j) * math.comb(n - c, k - j) / math.comb(n, k) for j in range(k + 1)])
        p = c / n
    tie = law[k // 2] / 2 if k % 2 == 0 else 0.0
    return Bounds(float(law[-1]), p, float(law[k // 2 + 1 :].sum() + tie), float(1.0 - law[0]))


class Curve(NamedTuple):
    """A curve with the standard error of its points over problems, each (m,)."""

    k: NDArray[np.int64]
    value: NDArray[np.float64]
    error: NDArray[np.float64]


def pass_at_k(
    posteriors: Sequence[Posterior], correct: Callable[[Any, int], bool], sizes: Sequence[int], which: str = "best"
) -> Curve:
    """The curve of `bounds_at_k` over problems: how often at least one of k independent answers is right.

    Args:
        posteriors: of independent, equally weighted runs of each problem, such as those of ``ImportanceSampling(64)``
            on programs without a reward.
        correct: says of a value and its problem's number whether it is right.
        sizes: the k.
        which: "worst", "mean", "majority" or "best".

    Source: as `bounds_at_k`: arXiv:2107.03374.
    Guarantee: unbiased, with the standard error over problems.
    Engines: ImportanceSampling.
    Measured: in the notebook on scaling, for the small reasoner.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def guess(p):
    ...     return await fk.sample("right", fk.dist.Bernoulli(p))
    >>> posteriors = fk.infer([guess(0.2), guess(0.5)], fk.ImportanceSampling(400), seed=0)
    >>> curve = pass_at_k(posteriors, lambda value, problem: bool(value), [1, 4])
    >>> bool(np.all(np.abs(curve.value - [0.35, 0.764]) < 0.06))
    True
    """
    right = [[bool(correct(value, i)) for value in posterior.values] for i, posterior in enumerate(posteriors)]
    table = np.array([[getattr(bounds_at_k(row, k), which) for k in sizes] for row in right])
    error = table.std(0, ddof=1) / math.sqrt(len(table)) if len(table) > 1 else np.full(len(sizes), math.nan)
    return Curve(np.asarray(sizes, np.int64), table.mean(0), error)


@dataclass(frozen=True)
class Variability:
    """Where the variance of right and wrong comes from: tasks, paraphrases of a task, and sampling.

    Attributes:
        task: the variance of tasks' means.
        paraphrase: the mean variance among paraphrases of a task.
        sampling: the mean variance of an answer, p(1 − p).

    Source: Stochastic CHAOS (2026), arXiv:2601.07239.
    Guarantee: exact for given probabilities; estimates of them add their own variance.
    Engines: ImportanceSampling over tasks × paraphrases × seeds.
    Measured: `fk.scaling.tail` is closed form; fragility and safety were not tested here.

    >>> found = Variability.of([[0.9, 0.5], [0.1, 0.3]])
    >>> round(found.task, 6), round(found.paraphrase, 6), round(found.sampling, 6), round(found.total, 6)
    (0.0625, 0.025, 0.16, 0.2475)
    """

    task: float
    paraphrase: float
    sampling: float

    @property
    def total(self) -> float:
        """The variance of one answer to one paraphrase of one task."""
        return self.task + self.paraphrase + self.sampling

    @classmethod
    def of(cls, p: ArrayLike) -> Variability:
        """Return that of the chances of being right, (tasks, paraphrases)."""
        found = np.asarray(p, float)
        if found.ndim != 2 or not found.size or not ((found >= 0) & (found <= 1)).all():
            raise ValueError(f"p needs a probability for each task and paraphrase, not an array {found.shape}")
        return cls(float(found.mean(1).var()), float(found.var(1).mean()), float((found * (1 - found)).mean()))


def tail(q: float, k: int) -> float:
    """How often k answers show what each shows with probability q: 1 − (1 − q)^k.

    >>> round(tail(0.01, 100), 6)
    0.633968
    """
    return -math.expm1(k * math.log1p(-share("q", q))) if q < 1 else 1.0


class Gap(NamedTuple):
    """Mean lengths, their difference (right − wrong), and its standard error."""

    right: float
    wrong: float
    difference: float
    error: float


def length_gap(lengths: ArrayLike, correct: ArrayLike) -> Gap:
    """Whether right answers are shorter than wrong ones: the difference of their mean lengths.

    Args:
        lengths: (n,) tokens of answers.
        correct: (n,) whether each is right.

    Raises ValueError where there are not two of each.

    Source: Think Deep, Think Fast (2025), arXiv:2504.14047.
    Guarantee: unbiased, with Welch's standard error; answers to one problem are not independent.
    Engines: any pool; where right ones are shorter, `FirstFinish` pays.
    Not shown here: all answers of the small task have the same number of steps.

    >>> length_gap([10, 12, 20, 22], [1, 1, 0, 0])
    Gap(right=11.0, wrong=21.0, difference=-10.0, error=1.4142135623730951)
    """
    tokens, right = np.asarray(lengths, float), np.asarray(correct, bool)
    one, other = tokens[right], tokens[~right]
    if min(len(one), len(other)) < 2:
        raise ValueError(f"there are {len(one)} right answers and {len(other)} wrong ones: two of each are needed")
    error = math.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other))
    return Gap(float(one.mean()), float(other.mean()), float(one.mean() - other.mean()), error)


def prefix_diversity(texts: Sequence[Any], length: int) -> float:
    """The share of different ones among the first ``length`` tokens of texts: what parallel tries do not repeat.

    Texts are `Text`s of a language model, or sequences such as strings; shorter ones count as they are.

    Source: EconProver (2025), arXiv:2509.12603.
    Guarantee: a statistic.
    Engines: any pool.
    Not shown here: what diversity is worth, without prefixes trained for it.

    >>> prefix_diversity(["abc", "abd", "xyz", "abz"], 2)
    0.5
    """
    positive("length", length)
    if not len(texts):
        raise ValueError("there are no texts")
    starts = {tuple(getattr(text, "tokens", text)[:length]) for text in texts}
    return len(starts) / len(texts)

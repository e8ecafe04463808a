"""What samples say of a model: bounds of what can be selected, where their spread comes from, how they differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.checks import one_of, positive
from ..results.posterior import Posterior
from .curves import Curve, independent
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
    Measured: on Countdown of 3, 4 and 5 numbers (60 problems each, 16 answers) mean .430, .165, .099 and best of 8
        .813, .566, .499: the gain .383 [.321, .451], .402 [.324, .472], .400 [.320, .475] does not shrink with
        difficulty, whereas the paper's do.

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


def pass_at_k(
    posteriors: Sequence[Posterior], correct: Callable[[Any, int], bool], sizes: Sequence[int], which: str = "best"
) -> Curve:
    """The curve of `bounds_at_k` over problems: how often at least one of k independent answers is right.

    Args:
        posteriors: of independent runs of each problem, as many as were asked for, such as those of
            ``ImportanceSampling(64)`` or ``BestOfN(64)``. Their weights do not count; an unfinished run is wrong.
            Rollouts of `TreeSampling` are not independent either, though nothing tells them apart.
        correct: says of a value and its problem's number whether it is right.
        sizes: the k.
        which: "worst", "mean", "majority" or "best".

    Raises ValueError for runs that depend on each other: resampled, or of a Markov chain.

    Source: as `bounds_at_k`: arXiv:2107.03374.
    Guarantee: unbiased, with intervals over problems.
    Engines: ImportanceSampling, BestOfN.
    Measured: .154, .266, .416, .575, .707, .808 [.692, .891] at k = 1, 2, 4, 8, 16, 32 for the reasoner of
        Countdown (60 held-out problems of 4 numbers, one pool of 40 answers each).

    >>> import feynkac as fk
    >>> @fk.program
    ... async def guess(p):
    ...     return await fk.sample("right", fk.dist.Bernoulli(p))
    >>> posteriors = fk.infer([guess(0.2), guess(0.5)], fk.ImportanceSampling(400), seed=0)
    >>> curve = pass_at_k(posteriors, lambda value, problem: bool(value), [1, 4])
    >>> bool(np.all(np.abs(curve.value - [0.35, 0.764]) < 0.06))
    True
    """
    one_of("which", which, Bounds._fields)
    rows = [_right(posterior, correct, i) for i, posterior in enumerate(posteriors)]
    return Curve(sizes, [[getattr(bounds_at_k(row, k), which) for k in sizes] for row in rows])  # type: ignore[arg-type]


def best_of_k(posteriors: Sequence[Posterior], correct: Callable[[Any, int], bool], sizes: Sequence[int]) -> Curve:
    """The curve of best-of-k over problems: how often the answer of the largest reward among k is right.

    Between `pass_at_k` and its "mean" it shows what a reward makes of the answers. See `Posterior.best_of`.

    Args:
        posteriors: as in `pass_at_k`, of programs with a reward.
        correct: says of a value and its problem's number whether it is right.
        sizes: the k.

    Raises ValueError as `pass_at_k` does, and for fewer finished runs than k.

    Source: Scaling LLM Test-Time Compute Optimally (2024), arXiv:2408.03314, for best-of-N; `selection.best_of` for
        the estimate.
    Guarantee: unbiased, with intervals over problems.
    Engines: ImportanceSampling, BestOfN.
    Measured: .154, .263, .402, .534, .623, .676 [.557, .778] at k = 1, 2, 4, 8, 16, 32 with the verifier of
        Countdown (the pool of `pass_at_k`): it finds most of what there is up to k = 8.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def die():
    ...     face = await fk.sample("face", fk.dist.DiscreteUniform(1, 6))
    ...     await fk.factor("high", float(face))
    ...     return face
    >>> pool = fk.infer([die()], fk.ImportanceSampling(600), seed=0)
    >>> curve = best_of_k(pool, lambda face, problem: face == 6, [1, 4])
    >>> bool(np.all(np.abs(curve.value - [1 / 6, 1 - (5 / 6) ** 4]) < 0.06))
    True
    """
    rows = []
    for i, posterior in enumerate(posteriors):
        independent(posterior)
        found = {
            id(value): float(correct(value, i)) for value, done in zip(posterior.values, posterior.complete) if done
        }
        rows.append([posterior.best_of(k, lambda value, found=found: found[id(value)]) for k in sizes])  # type: ignore[misc]
    return Curve(sizes, rows)  # type: ignore[arg-type]


def _right(posterior: Posterior, correct: Callable[[Any, int], bool], problem: int) -> list[bool]:
    independent(posterior)
    return [bool(done and correct(value, problem)) for value, done in zip(posterior.values, posterior.complete)]


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
    Measured: on 20 problems of Countdown, 4 orders of their numbers and 8 draws, the orders' share of the variance
        is .027 [−.010, .069] at T = .3 and −.006 [−.024, .011] at T = 1: none was seen. Fragility and safety were
        not tested.

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

    @classmethod
    def estimate(cls, correct: ArrayLike) -> Variability:
        """Return that of answers seen, (tasks, paraphrases, draws), each right or wrong: unbiased for these tasks.

        What few draws add to the variances of means is taken out, so that an estimate may fall below 0. Raises
        ValueError for fewer than two draws.
        """
        seen = np.asarray(correct, float)
        if seen.ndim != 3 or not seen.size or seen.shape[2] < 2 or not np.isin(seen, (0.0, 1.0)).all():
            raise ValueError(
                f"correct needs right or wrong for each task, paraphrase and two draws or more, not {seen.shape}"
            )
        tasks, paraphrases, draws = seen.shape
        within = seen.var(2, ddof=1)
        noise = float(within.mean()) / draws  # of the mean of one paraphrase's answers
        found = cls.of(seen.mean(2))
        return cls(
            found.task - (1 - 1 / tasks) * noise / paraphrases,
            found.paraphrase - (1 - 1 / paraphrases) * noise,
            float(within.mean()),
        )


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


def length_gap(lengths: ArrayLike, correct: ArrayLike, problems: ArrayLike | None = None) -> Gap:
    """Whether right answers are shorter than wrong ones: the difference of their mean lengths.

    Over all answers it may be that hard problems have long answers. With ``problems`` answers are compared within each
    problem that has right and wrong ones, and its means and standard error are those over such problems.

    Args:
        lengths: (n,) tokens of answers.
        correct: (n,) whether each is right.
        problems: (n,) the problem of each; None takes answers for independent.

    Raises ValueError where there are not two of each, or not two problems that have both.

    Source: Think Deep, Think Fast (2025), arXiv:2504.14047.
    Guarantee: unbiased; the standard error is Welch's, or over problems.
    Engines: any pool; where right ones are shorter, `FirstFinish` pays.
    Measured: right answers of Countdown have 30.0 tokens, and wrong ones 30.0: all have as many steps, so nothing
        is told.

    >>> length_gap([10, 12, 20, 22], [1, 1, 0, 0])
    Gap(right=11.0, wrong=21.0, difference=-10.0, error=1.4142135623730951)
    >>> length_gap([10, 20, 30, 42], [1, 0, 1, 0], problems=[0, 0, 1, 1])
    Gap(right=20.0, wrong=31.0, difference=-11.0, error=1.0)
    """
    tokens, right = np.asarray(lengths, float), np.asarray(correct, bool)
    if tokens.shape != right.shape or tokens.ndim != 1:
        raise ValueError(f"lengths and correct are rows of equal length, not {tokens.shape} and {right.shape}")
    if problems is not None:
        return _paired(tokens, right, np.asarray(problems))
    one, other = tokens[right], tokens[~right]
    if min(len(one), len(other)) < 2:
        raise ValueError(f"there are {len(one)} right answers and {len(other)} wrong ones: two of each are needed")
    error = math.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other))
    return Gap(float(one.mean()), float(other.mean()), float(one.mean() - other.mean()), error)


def _paired(tokens: NDArray[np.float64], right: NDArray[np.bool_], problems: NDArray[Any]) -> Gap:
    if problems.shape != tokens.shape:
        raise ValueError(f"problems names that of each of {len(tokens)} answers, not {problems.shape}")
    groups = [problems == problem for problem in np.unique(problems)]
    both = [group for group in groups if 0 < right[group].sum() < group.sum()]
    if len(both) < 2:
        raise ValueError(f"{len(both)} problems have right answers and wrong ones: two or more are needed")
    means = np.array([[tokens[group & right].mean(), tokens[group & ~right].mean()] for group in both])
    gaps = means[:, 0] - means[:, 1]
    one, other = means.mean(0).tolist()
    return Gap(one, other, float(gaps.mean()), float(gaps.std(ddof=1) / math.sqrt(len(gaps))))


def prefix_diversity(texts: Sequence[Any], length: int) -> float:
    """The share of different ones among the first ``length`` tokens of texts: what parallel tries do not repeat.

    Each text is a `Text` of a language model, or a sequence such as a string; shorter ones count as they are.

    Source: EconProver (2025), arXiv:2509.12603.
    Guarantee: a statistic.
    Engines: any pool.
    Measured: of 16 answers to each of 20 problems of Countdown .419 [.361, .477] begin differently at T = .4 and
        .716 [.670, .758] at T = 1.3, where fewer are right (.094 and not .184). What trained prefixes do was not
        tested.

    >>> prefix_diversity(["abc", "abd", "xyz", "abz"], 2)
    0.5
    """
    positive("length", length)
    if not len(texts):
        raise ValueError("there are no texts")
    starts = {tuple(getattr(text, "tokens", text)[:length]) for text in texts}
    return len(starts) / len(texts)

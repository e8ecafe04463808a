"""Choosing among runs: votes over answers, and what the best of k runs is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...ppl.model import Floats, Index
from .weights import logmeanexp


class Ballot:
    """The answers of n particles that keep their places; each is asked for once, when its particle has finished.

    An answer of None abstains: it is no answer, ``cast`` (n,) is False there, and no count has it.
    """

    def __init__(self, n: int, key: Callable[[Any], Hashable] | None, engine: str, setting: str = "key") -> None:
        self.answers: list[Any] = [None] * n
        self.cast = np.zeros(n, bool)
        self._asked = np.zeros(n, bool)
        self._key = key
        self._engine, self._setting = engine, setting

    def ask(self, values: Callable[[], Sequence[Any]], voting: NDArray[np.bool_]) -> None:
        """Take the answers of the particles ``voting`` (n,) that have not given theirs."""
        fresh = np.flatnonzero(voting & ~self._asked)
        if not len(fresh):
            return
        all_values = values()
        for i in fresh.tolist():
            self.answers[i] = self._answer(i, all_values[i])
            self.cast[i] = self.answers[i] is not None
        self._asked[fresh] = True

    def _answer(self, particle: int, value: Any) -> Any:
        try:
            answer = value if self._key is None else self._key(value)
        except Exception as error:
            place = f"{self._setting} of {self._engine}"
            error.add_note(f"feynkac: in the {place}, for the value {value!r:.200} of particle {particle}")
            raise
        try:
            hash(answer)
        except TypeError:
            hint = f"let {self._setting} return another"
            if self._key is None:
                hint = f"give a {self._setting}= that makes a string or number of it"
            raise TypeError(
                f"{self._engine} compares answers, and the answer of particle {particle} is an unhashable "
                f"{type(answer).__name__}: {hint}"
            ) from None
        return one_nan(answer)

    def winner(self, log_weights: Floats) -> NDArray[np.bool_]:
        """Return which particles gave the answer of largest total weight, (n,); a tie goes to the first drawn."""
        members: dict[Any, list[int]] = {}
        for i in np.flatnonzero(self.cast & (log_weights > -np.inf)).tolist():
            members.setdefault(self.answers[i], []).append(i)
        totals = {a: logmeanexp(log_weights[m]) + np.log(len(m)) for a, m in members.items()}
        out = np.zeros(len(self.cast), bool)
        if totals:
            out[members[max(totals, key=lambda a: totals[a])]] = True
        return out


def one_nan(answer: Any) -> Any:
    """Return an answer, any NaN in it as the same object: as answers all NaNs are one, though they equal nothing.

    >>> len({one_nan(float("nan")), one_nan(np.float64("nan"))}), len({one_nan((1, float("nan"))) for _ in range(2)})
    (1, 1)
    """
    if type(answer) is tuple:
        return tuple(one_nan(part) for part in answer)
    return math.nan if isinstance(answer, float | np.floating) and answer != answer else answer


def choose(scores: Floats, done: NDArray[np.bool_], temperature: float | None = None) -> Floats:
    """Return log-weights (n,) that select by score: of the runs that have finished alive, where there are any.

    Without a temperature the best has 0 (all of them, where several tie) and the others −inf; with temperature T the
    log-weights are scores / T.

    >>> choose(np.array([3.0, 2.0, 1.0]), np.array([False, True, True])).tolist()
    [-inf, 0.0, -inf]
    """
    finished = done & (scores > -np.inf)
    if finished.any():
        scores = np.where(finished, scores, -np.inf)
    if temperature is not None:
        return scores / temperature
    return np.where((scores == scores.max()) & (scores > -np.inf), 0.0, -np.inf)


def best_first(scores: Floats, count: int) -> Index:
    """Return the positions of the ``count`` largest scores, largest first; the first of equals."""
    return np.argsort(-scores, kind="stable")[:count]


def best_of(scores: ArrayLike, quality: ArrayLike, k: int) -> float:
    """Return the expected quality of the best-scored of k runs, drawn without replacement from a pool of n.

    An unbiased estimate of the quality of best-of-k, from one pool for every k ≤ n: Σ_i q_i C(n−1−i, k−1) / C(n, k),
    with the pool sorted from the highest score down. Runs of equal score share their quality, as a random tie-break
    would in expectation.

    Args:
        scores: (n,) what the runs are ranked by.
        quality: (n,) what one would like to know of the winner, such as 1 where it is correct.
        k: 1…n.

    Source: the estimator of pass@k of Chen et al. (2021), arXiv:2107.03374, with a ranking.

    >>> best_of([5, 4, 3, 2, 1], [0, 1, 1, 0, 0], 2)
    0.5
    """
    s, q = np.asarray(scores, np.float64), np.asarray(quality, np.float64)
    n = len(s)
    if s.ndim != 1 or q.shape != s.shape:
        raise ValueError(f"best_of needs one score and one quality for each run, not shapes {s.shape} and {q.shape}")
    if np.isnan(s).any():
        raise ValueError("a score is NaN")
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the {n} runs of the pool, not {k!r}")
    _, ties = np.unique(-s, return_inverse=True)
    shared = np.bincount(ties, q) / np.bincount(ties)
    i = np.arange(n - 1)
    # P(the winner is the i-th best) = C(n−1−i, k−1) / C(n, k), each from the one before.
    chance = k / n * np.cumprod(np.r_[1.0, np.maximum(n - k - i, 0) / np.maximum(n - 1 - i, 1)])
    return float(chance @ shared[np.sort(ties)])

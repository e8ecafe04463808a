"""What a posterior likes best as a whole: votes, and the value of minimum Bayes risk."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...ppl.score import Score, evaluate
from ..base.checks import one_of
from ..base.selection import one_nan
from ..base.weights import logmeanexp

Pool = Literal["sum", "mean", "max", "min", "logsumexp"]
_POOLS: dict[str, Callable[[list[float]], float]] = {
    "sum": math.fsum,
    "mean": lambda rewards: math.fsum(rewards) / len(rewards),
    "max": max,
    "min": min,
    "logsumexp": lambda rewards: logmeanexp(np.array(rewards)) + math.log(len(rewards)),
}


def tally(
    posterior: Any,
    key: Callable[[Any], Hashable] | None,
    reward: Callable[[Any], Any] | ArrayLike | None,
    pool: Pool,
) -> dict[Any, float]:
    """Return what each answer has, the most first; see `Posterior.vote`."""
    one_of("pool", pool, _POOLS)
    if reward is None:
        if pool != "sum":
            raise ValueError(f"weights are added up, and pool={pool!r} is for rewards: give reward=, too")
        weights = posterior.probabilities
        running = np.flatnonzero(posterior.complete & (weights > 0))
    else:
        running = np.flatnonzero(posterior.complete & (posterior.log_potential > -np.inf))
        weights = np.full(len(posterior), np.nan)
        weights[running] = _rewards(posterior, reward, running)
    voters = posterior.values if key is not None or posterior._answers is None else posterior._answers
    votes: dict[Any, list[float]] = {}
    for i in running.tolist():
        choice = one_nan(voters[i] if key is None else key(voters[i]))
        if choice is not None:
            votes.setdefault(choice, []).append(float(weights[i]))
    totals = {choice: float(_POOLS[pool](each)) for choice, each in votes.items()}
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def _rewards(posterior: Any, reward: Callable[[Any], Any] | ArrayLike, index: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the rewards of some particles, none of them NaN."""
    if callable(reward):
        found = numbers([reward(posterior.values[i]) for i in index])
    else:
        given = np.asarray(reward, float)
        if given.shape != (len(posterior),):
            raise ValueError(f"there is a reward for each of {len(posterior)} particles, not {given.shape}")
        found = given[index]
    if np.isnan(found).any():
        raise ValueError(f"the reward of particle {index[np.isnan(found)][0]} is NaN")
    return found


def numbers(given: Sequence[Any]) -> NDArray[np.float64]:
    """Return numbers and the numbers of scores, which are evaluated together."""
    found = list(given)
    scores = [i for i, one in enumerate(found) if isinstance(one, Score)]
    for i, number in zip(scores, evaluate([found[i] for i in scores])):
        found[i] = number
    return np.array(found, float)


def most_liked(posterior: Any, utility: Callable[[Any, Any], float] | NDArray[Any]) -> Any:
    """Return the value of the most expected utility; see `Posterior.mbr`."""
    n, p = len(posterior), posterior.probabilities
    index = np.flatnonzero(posterior.complete & (p > 0))
    if not len(index):
        raise ValueError("no particle ran to its end, so that there is nothing to choose from")
    values = [posterior.values[i] for i in index]
    if callable(utility):
        table = numbers([utility(one, other) for one in values for other in values]).reshape(len(values), -1)
    else:
        table = np.asarray(utility, float)
        if table.shape != (n, n):
            raise ValueError(f"a table of utilities has a row and a column for each of {n} values, not {table.shape}")
        table = table[np.ix_(index, index)]
    if np.isnan(table).any():
        i, j = index[np.argwhere(np.isnan(table))[0]].tolist()
        raise ValueError(f"the utility of value {i} to value {j} is NaN")
    return values[int(np.argmax(table @ p[index]))]

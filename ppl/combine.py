"""Several scores of one kind as one: means, products, the least, the greatest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from .errors import AmbiguousScore
from .score import Score

How = Literal["mean", "min", "max", "median", "product", "geometric"]

_WEIGHTED = ("mean", "geometric")
_POSITIVE = ("product", "geometric")


def combine(scores: Sequence[Score], how: How = "mean", *, weights: Sequence[float] | None = None) -> Score:
    """Make one score of several of the same kind; the result is of that kind.

    Args:
        scores: probabilities, real rewards, or log-weights.
        how: "mean", "min", "max" or "median"; and for probabilities "product" or "geometric" (the geometric mean,
            a product of experts: Hinton 2002, doi:10.1162/089976602760128018).
        weights: of a mean, not negative; they are divided by their sum.

    Raises AmbiguousScore for scores of several kinds, or a product of other than probabilities (add log-weights);
    ValueError for no scores, and for weights that do not fit.

    >>> from feynkac.ppl.score import evaluate, reward
    >>> low, high = (reward(lambda x, p=p: p, kind="probability", name=str(p)) for p in (0.2, 0.8))
    >>> scores = [low("x"), high("x")]
    >>> [round(v, 3) for v in evaluate([combine(scores, how) for how in ("mean", "min", "product", "geometric")])]
    [0.5, 0.2, 0.16, 0.4]
    """
    scores = list(scores)
    check(how, weights, len(scores))
    kinds = {score.kind for score in scores}
    if len(kinds) > 1:
        raise AmbiguousScore(
            f"cannot combine {' and '.join(map(repr, scores))}: they are of different kinds; make all "
            "log-weights and add them"
        )
    kind = scores[0].kind
    if how in _POSITIVE and kind != "probability":
        raise AmbiguousScore(f"a {how} is of probabilities, but {scores[0]!r} is a {kind}: log-weights are added")
    share = [1.0 / len(scores)] * len(scores) if weights is None else [w / math.fsum(weights) for w in weights]
    reduce = _reducer(how, share)
    cuts = [0]
    for score in scores:
        cuts.append(cuts[-1] + len(score.leaves))

    def value(results: Sequence[float]) -> float:
        return reduce([score.value(results[a:b]) for score, a, b in zip(scores, cuts, cuts[1:])])

    return Score(tuple(leaf for score in scores for leaf in score.leaves), kind, value)


def check(how: str, weights: Sequence[float] | None, n: int) -> None:
    """Raise ValueError unless n scores can be combined so."""
    if how not in ("mean", "min", "max", "median", "product", "geometric"):
        raise ValueError(f"how must be 'mean', 'min', 'max', 'median', 'product' or 'geometric', not {how!r}")
    if n < 1:
        raise ValueError("there are no scores to combine")
    if weights is None:
        return
    if how not in _WEIGHTED:
        raise ValueError(f"weights are for a mean or a geometric mean, not for how={how!r}")
    if len(weights) != n or not all(w >= 0 and math.isfinite(w) for w in weights) or not any(weights):
        raise ValueError(f"weights must be {n} numbers that are not negative, and not all 0: {list(weights)}")


def _reducer(how: str, share: Sequence[float]) -> Callable[[Sequence[float]], float]:
    simple: dict[str, Callable[[Sequence[float]], float]] = {
        "min": min,
        "max": max,
        "median": lambda values: float(np.median(values)),
        "product": math.prod,
        "mean": lambda values: _dot(share, values),
        "geometric": lambda values: math.exp(_dot(share, [math.log(p) if p > 0 else -math.inf for p in values])),
    }
    return simple[how]


def _dot(share: Sequence[float], values: Sequence[float]) -> float:
    return math.fsum(w * value for w, value in zip(share, values) if w > 0)

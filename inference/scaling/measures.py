"""What a verifier's scores are worth: rank, calibration, Bellman error and the spread of weights, from samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...ppl.model import Floats

_BINS = 10
_EDGE = 1e-6
"""How close to 0 and 1 a score counts in a logistic fit."""
_FLAT = 1e-9


class Bellman(NamedTuple):
    """How far values V(s) are from E[V(s′) | s].

    Attributes:
        error: E[(E[V(s′)|s] − V(s))²].
        relative: E_V[(E[V(s′)|s]/V(s) − 1)²], states drawn ∝ V as particles are; to second order it is the mean square
            of log(E[V(s′)|s]/V(s)).
        drift: log(E[V(s′)]/E[V(s)]), which is 0 for values that are right on average.
    """

    error: float
    relative: float
    drift: float


def bellman(value: Floats, children: Floats) -> Bellman:
    """Estimate Bellman errors from states' values (n,) and those of k ≥ 2 children of each, (k, n).

    ``error``, and numerator and denominator of ``relative``, are unbiased, by products of different children: the mean
    of k children is noisy, and its square would count that noise as error. So they may be below 0.

    >>> tuple(round(x, 6) for x in bellman(np.array([0.5, 0.5]), np.array([[1.0, 0.4], [0.0, 0.4]])))
    (-0.12, -0.48, -0.105361)
    """
    k = len(children)
    gaps = value - children
    pairs = (gaps.sum(0) ** 2 - (gaps**2).sum(0)) / (k * (k - 1))
    alive = value > 0
    if not alive.any():
        return Bellman(float(pairs.mean()) if len(pairs) else math.nan, math.nan, math.nan)
    total = float(value.sum())
    with np.errstate(divide="ignore"):
        drift = float(np.log(children.mean(0).sum() / total))
    return Bellman(float(pairs.mean()), float((pairs[alive] / value[alive]).sum() / total), drift)


def predicted_ess(value: Floats, children: Floats) -> float:
    """Return E_V[w]²/E_V[w²] of the weights w = V(s′)/V(s) of a step, states drawn ∝ V: the ESS of SMC, as a share.

    From states' values (n,) and those of children (k, n); NaN where no state, or no child, has any value.

    >>> round(predicted_ess(np.array([1.0, 1.0]), np.array([[1.5, 0.5], [0.5, 1.5]])), 6)
    0.8
    """
    alive = value > 0
    before, after = value[alive], children[:, alive]
    square = float((after**2).mean(0) @ (1.0 / before))
    return float(after.mean(0).sum() ** 2 / (before.sum() * square)) if square > 0 else math.nan


def auc(scores: Floats, right: NDArray[np.bool_]) -> float:
    """Return the chance that a right answer scores above a wrong one, ties half; NaN without both kinds.

    >>> auc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    0.875
    """
    wins, pairs = _won(scores, right)
    return wins / pairs if pairs else math.nan


def auc_within(groups: list[tuple[Floats, NDArray[np.bool_]]]) -> float:
    """Return the same for answers to one problem: the mean over all pairs of a right and a wrong one of a group."""
    won = [_won(scores, right) for scores, right in groups]
    pairs = sum(of for _, of in won)
    return sum(wins for wins, _ in won) / pairs if pairs else math.nan


def _won(scores: Floats, right: NDArray[np.bool_]) -> tuple[float, int]:
    order = np.unique(scores, return_inverse=True)[1]
    good, bad = np.bincount(order[right], minlength=1), np.bincount(order[~right], minlength=1)
    size = max(len(good), len(bad))
    good, bad = (np.pad(counts, (0, size - len(counts))) for counts in (good, bad))
    return float(good @ (np.cumsum(bad) - bad / 2)), int(good.sum() * bad.sum())


def calibration_error(scores: Floats, right: NDArray[np.bool_]) -> float:
    """Return the expected calibration error: Σ |mean score − share right| · share, over ten equal bins of [0, 1].

    >>> round(calibration_error(np.array([0.95, 0.95, 0.15]), np.array([True, False, False])), 6)
    0.35
    """
    place = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(place, scores - right, _BINS)
    return float(np.abs(gaps).sum() / len(scores))


def slope(scores: Floats, right: NDArray[np.bool_]) -> float:
    """Return b of the logistic fit logit P(right) = a + b·logit(score): below 1 the scores are too sure.

    Scores count as 10⁻⁶ from 0 and 1 at least. It is infinite where scores part right from wrong entirely, −infinite
    where they do so the wrong way round, and NaN without both kinds or with one score alone.
    """
    rank = auc(scores, right)
    clipped = np.clip(scores, _EDGE, 1 - _EDGE)
    x = np.log(clipped) - np.log1p(-clipped)
    if math.isnan(rank) or np.ptp(x) < _FLAT:
        return math.nan
    edges = [x[right].min() - x[~right].max(), x[~right].min() - x[right].max()]
    if max(edges) > -_FLAT:
        return math.inf if edges[0] > -_FLAT else -math.inf
    design = np.stack([np.ones(len(x)), (x - x.mean()) / x.std()], 1)
    beta = np.zeros(2)
    for _ in range(100):
        p = 1.0 / (1.0 + np.exp(-np.clip(design @ beta, -30, 30)))
        step = np.linalg.solve(design.T * (p * (1 - p)) @ design, design.T @ (right - p))
        beta = beta + step / max(1.0, float(np.abs(step).max()) / 2)
        if np.abs(step).max() < 1e-10:
            break
    return float(beta[1] / x.std())

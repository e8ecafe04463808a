"""Log-weights: their mean, effective sample size and entropy, in a numerically stable way.

All take log-weights of shape (n,), where −inf is a weight of zero, and raise `InvalidWeight` on NaN and +inf.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ...ppl.errors import InvalidWeight
from ...ppl.model import Floats

_FLOOR = -1000.0


class Spread(NamedTuple):
    """How evenly n weights are spread.

    Attributes:
        ess: effective sample size, in [1, n]; 0 where every weight is zero.
        entropy: of the normalised weights in nats, in [0, log n]; 0 where every weight is zero.
        log_mean: log of the mean weight; −inf where every weight is zero, or there is none.
    """

    ess: float
    entropy: float
    log_mean: float


def spread(log_weights: ArrayLike) -> Spread:
    """Return effective sample size, entropy and log-mean of weights in one go.

    >>> spread([5.0, 5.0, -math.inf])._replace(log_mean=0.0) == (2.0, math.log(2.0), 0.0)
    True
    """
    logs, peak = _below(log_weights)
    if peak == -math.inf:
        return Spread(0.0, 0.0, peak)
    weights = np.exp(logs)
    total = float(weights.sum())
    mean_log = float(weights @ logs) / total
    return Spread(
        total**2 / float(weights @ weights),
        max(0.0, math.log(total) - mean_log),
        peak + math.log(total / len(weights)),
    )


def normalize(log_weights: ArrayLike) -> Floats:
    """Return probabilities (n,) in proportion to the weights; all 0 where every weight is zero.

    >>> normalize([0.0, math.log(3.0), -math.inf]).tolist()
    [0.25, 0.75, 0.0]
    """
    logs, peak = _below(log_weights)
    if peak == -math.inf:
        return np.zeros(logs.shape)
    weights: Floats = np.exp(logs)
    weights /= weights.sum()
    return weights


def logmeanexp(log_weights: ArrayLike) -> float:
    """Return the log of the mean weight; −inf where every weight is zero, or there is none.

    >>> logmeanexp([1000.0, -math.inf]) == 1000.0 - math.log(2.0)
    True
    """
    return spread(log_weights).log_mean


def ess(log_weights: ArrayLike) -> float:
    """Return the effective sample size (Σw)² / Σw², in [1, n]; 0 where every weight is zero.

    Kong, Liu and Wong (1994), doi:10.1080/01621459.1994.10476469.

    >>> ess([0.0, 0.0, -math.inf])
    2.0
    """
    return spread(log_weights).ess


def _below(log_weights: ArrayLike) -> tuple[Floats, float]:
    """Return log-weights (n,) less the largest, with a finite floor below which exp is 0, and the largest."""
    logs = np.asarray(log_weights, dtype=np.float64)
    peak = float(logs.max(initial=-np.inf))
    if not peak < math.inf:
        raise InvalidWeight(f"a log-weight must be a number less than +inf, got {peak}")
    if peak == -math.inf:
        return logs, peak
    return np.maximum(logs - peak, _FLOOR), peak

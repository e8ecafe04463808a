"""Log-weights: their mean, effective sample size and entropy, in a numerically stable way.

All take log-weights of shape (n,), where −inf is a weight of zero, and raise `InvalidWeight` on NaN and +inf.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from ..ppl.errors import InvalidWeight
from ..ppl.model import Floats


def normalize(log_weights: ArrayLike) -> Floats:
    """Return probabilities (n,) in proportion to the weights; all 0 where every weight is zero.

    >>> normalize([0.0, math.log(3.0), -math.inf]).tolist()
    [0.25, 0.75, 0.0]
    """
    weights, _ = _scaled(log_weights)
    return weights / (weights.sum() or 1.0)


def logmeanexp(log_weights: ArrayLike) -> float:
    """Return the log of the mean weight; −inf where every weight is zero, or there is none.

    >>> logmeanexp([1000.0, -math.inf]) == 1000.0 - math.log(2.0)
    True
    """
    weights, peak = _scaled(log_weights)
    return peak + math.log(weights.mean()) if peak > -math.inf else -math.inf


def ess(log_weights: ArrayLike) -> float:
    """Return the effective sample size (Σw)² / Σw², in [1, n]; 0 where every weight is zero.

    Kong, Liu and Wong (1994), doi:10.1080/01621459.1994.10476469.

    >>> ess([0.0, 0.0, -math.inf])
    2.0
    """
    weights, _ = _scaled(log_weights)
    return float(weights.sum() ** 2 / ((weights**2).sum() or 1.0))


def entropy(log_weights: ArrayLike) -> float:
    """Return the entropy −Σ p log p of the normalised weights in nats, in [0, log n]; 0 where all are zero.

    >>> entropy([5.0, 5.0]) == math.log(2.0)
    True
    """
    p = normalize(log_weights)
    p = p[p > 0]
    return max(0.0, -float((p * np.log(p)).sum()))


def _scaled(log_weights: ArrayLike) -> tuple[Floats, float]:
    """Return weights (n,) scaled so that the largest is 1 (all 0 where all are zero), and its log."""
    logs = np.asarray(log_weights, dtype=np.float64)
    peak = float(logs.max(initial=-np.inf))
    if not peak < math.inf:
        raise InvalidWeight(f"a log-weight must be a number less than +inf, got {peak}")
    if peak == -math.inf:
        return np.zeros(logs.shape), peak
    return np.exp(logs - peak), peak

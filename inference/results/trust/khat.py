"""Pareto k̂: how heavy the tail of the weights is, and so whether their means can be trusted."""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ....ppl.model import Floats

FEWEST = 25
"""Positive weights that a fit needs: its tail is a fifth of them, and has at least five."""


def khat(log_weights: ArrayLike) -> float:
    """Return the shape k of a generalised Pareto law fitted to the largest weights, shape (n,) → number.

    Means under the weights have a finite variance below k = 0.5; above 0.7 no practical number of particles makes
    them reliable. Weights of zero are left out. NaN where there is no tail to fit: fewer than 25 positive weights, or
    many of the largest equal to each other (as just after resampling, or where a model has few weights) or to zero
    beside the very largest; the effective sample size tells which.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), arXiv:1507.02646; computed by arviz-stats.

    Raises:
        ImportError: without arviz-stats.

    >>> from feynkac.ppl import keys
    >>> u = keys.uniform(keys.root(0), 20_000)[0]
    >>> round(khat(-0.7 * np.log(u)), 1)  # weights u^(-0.7) have k = 0.7
    0.7
    >>> khat(np.zeros(100))
    nan
    """
    if importlib.util.find_spec("arviz_stats") is None:
        raise ImportError("k-hat needs arviz-stats: pip install feynkac[plots]")
    stats: Any = importlib.import_module("arviz_stats.base")
    logs = np.asarray(log_weights, np.float64)
    logs = logs[logs > -np.inf]
    if not _has_tail(logs):
        return math.nan
    # psislw expects log-likelihoods, whose negatives are the log-weights.
    with np.errstate(all="ignore"):
        _, k = stats.array_stats.psislw(logs.min() - logs)
    return float(k)


def _has_tail(logs: Floats) -> bool:
    """Whether at least half of the values of the tail to be fitted differ, and three quarters exceed its cutoff."""
    n = len(logs)
    if n < FEWEST:
        return False
    tail = int(3 * math.sqrt(n)) if n > 225 else n // 5
    weights = np.sort(np.exp(logs - logs.max()))[n - tail - 1 :]
    different = 1 + int((np.diff(weights[1:]) > 1e-12).sum())
    return bool(weights[(tail + 2) // 4] - weights[0] > 1e-12) and 2 * different >= tail

"""Confidence intervals of means over problems and seeds, where trials of one problem resemble each other.

The mean is that of the clusters' means, so that each problem counts alike. For numbers the interval is Student's t
over the clusters, with the cubic transformation that takes their skewness out (Hall 1992,
doi:10.1111/j.2517-6161.1992.tb01875.x); so intervals of exponential numbers over 10 problems cover 0.92 and not 0.90,
of log-normal ones 0.90 and not 0.81, and of normal ones 0.95. For a metric that is 0 or 1 it is Wilson's (1927,
doi:10.1080/01621459.1927.10502953) at the effective number of trials (Korn and Graubard 1998, Survey Methodology 24(2),
193–201), and for a paired difference of such metrics that of Agresti and Min (2005, doi:10.1002/sim.1781), with
clusters in place of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from ...ppl.model import Floats
from ..base.student import NORMAL, NOTHING, Interval, interval, t_quantile

_SYMMETRIC = 1e-6


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable], binary: bool) -> Interval:
    """Return the mean of n values and its interval; values of one cluster may depend on each other.

    >>> [round(x, 3) for x in mean_interval([1.0, 2.0, 3.0], [0, 1, 2], binary=False)]
    [2.0, -0.484, 4.484]
    >>> [round(x, 3) for x in mean_interval([1.0] * 8 + [0.0] * 2, range(10), binary=True)]
    [0.8, 0.49, 0.943]
    """
    means = _cluster_means(values, clusters)
    if not len(means):
        return NOTHING
    mean, k, n = float(means.mean()), len(means), len(values)
    if not binary:
        return _student(means)
    effective = float(k)
    if n > k > 1 and 0.0 < mean < 1.0:
        spread = float(means.var(ddof=1)) / k
        trials = float(n) if spread == 0 else float(np.clip(mean * (1 - mean) / spread, k, n))
        effective = trials * (NORMAL / t_quantile(k - 1)) ** 2
    return _wilson(mean, effective)


def difference_interval(values: Sequence[float], clusters: Sequence[Hashable], binary: bool) -> Interval:
    """Return the mean of paired differences and its interval; ``binary`` says that they are of metrics 0 or 1.

    >>> difference_interval([0.0, 0.0, 0.0], [0, 1, 2], binary=True).high > 0.3  # three ties prove little
    True
    """
    means = _cluster_means(values, clusters)
    if not len(means):
        return NOTHING
    if not binary:
        return _student(means)
    shrunk = np.append(means, (math.sqrt(0.5), -math.sqrt(0.5)))
    half = t_quantile(len(means)) * float(shrunk.std()) / math.sqrt(len(shrunk))
    middle = float(shrunk.mean())
    return Interval(float(means.mean()), max(middle - half, -1.0), min(middle + half, 1.0))


def _cluster_means(values: Sequence[float], clusters: Sequence[Hashable]) -> Floats:
    groups: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters):
        groups.setdefault(cluster, []).append(value)
    return np.array([sum(group) / len(group) for group in groups.values()])


def _student(means: Floats) -> Interval:
    """Return the interval of a mean of k numbers; with 3 or more, of the mean with its skewness taken out."""
    mean, k = float(means.mean()), len(means)
    if k < 2:
        return Interval(mean, math.nan, math.nan)
    se = float(means.std(ddof=1)) / math.sqrt(k)
    centred = means - mean
    spread = float((centred**2).mean())
    skew = float((centred**3).mean()) / spread**1.5 if spread > 0 else 0.0
    if k < 3 or abs(skew) < _SYMMETRIC:
        return interval(mean, se, k - 1)
    # Hall's T + γT²/(3√k) + γ²T³/(27k) + γ/(6√k) is a cube up to constants, and so is inverted exactly.
    root, t = math.sqrt(k), t_quantile(k - 1)
    low, high = (3 * root / skew * (np.cbrt(1 + skew / root * (q - skew / (6 * root))) - 1) for q in (t, -t))
    return Interval(mean, mean - float(low) * se, mean - float(high) * se)


def _wilson(p: float, n: float) -> Interval:
    z = NORMAL
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(middle - half, 0.0), min(middle + half, 1.0))

"""Confidence intervals of means over problems and seeds, where trials of one problem resemble each other.

The mean is that of the clusters' means, so that each problem counts alike. For numbers the interval is Student's t
over the clusters. For a metric that is 0 or 1 it is Wilson's (1927, doi:10.1080/01621459.1927.10502953) at the
effective number of trials (Korn and Graubard 1998, Survey Methodology 24(2), 193–201), and for a paired difference of
such metrics that of Agresti and Min (2005, doi:10.1002/sim.1781), with clusters in place of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from ...ppl.model import Floats

LEVEL = 0.95
_Z = 1.959963984540054
"""P(|Z| < z) = 0.95 for a standard normal Z."""


class Interval(NamedTuple):
    """A mean with its 95% confidence interval; NaN where there is too little to tell."""

    mean: float
    low: float
    high: float

    def within(self, least: float, most: float) -> Interval:
        """Return the interval cut to what is possible.

        >>> Interval(0.9, 0.7, 1.1).within(0.0, 1.0)
        Interval(mean=0.9, low=0.7, high=1.0)
        """
        low, high = (math.nan if math.isnan(end) else min(max(end, least), most) for end in (self.low, self.high))
        return Interval(self.mean, low, high)


NOTHING = Interval(math.nan, math.nan, math.nan)


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
        effective = trials * (_Z / t_quantile(k - 1)) ** 2
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


@cache
def t_quantile(df: int) -> float:
    """Return t with P(|T| < t) = 0.95 for Student's T with ``df`` degrees of freedom.

    >>> round(t_quantile(1), 3), round(t_quantile(4), 3), round(t_quantile(30), 3)
    (12.706, 2.776, 2.042)
    """
    if df > 500:
        return _Z
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_mass(middle, df) < LEVEL else (low, middle)
    return high


def _student_mass(t: float, df: int) -> float:
    """P(|T| < t), by the finite series of Abramowitz and Stegun (1964), 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(df))
    odd = df % 2
    term = math.cos(angle) if odd else 1.0
    total = term if df > 1 else 0.0
    for k in range(2 + odd, df - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def _cluster_means(values: Sequence[float], clusters: Sequence[Hashable]) -> Floats:
    groups: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters):
        groups.setdefault(cluster, []).append(value)
    return np.array([sum(group) / len(group) for group in groups.values()])


def _student(means: Floats) -> Interval:
    mean, k = float(means.mean()), len(means)
    if k < 2:
        return Interval(mean, math.nan, math.nan)
    half = t_quantile(k - 1) * float(means.std(ddof=1)) / math.sqrt(k)
    return Interval(mean, mean - half, mean + half)


def _wilson(p: float, n: float) -> Interval:
    z = _Z
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(middle - half, 0.0), min(middle + half, 1.0))

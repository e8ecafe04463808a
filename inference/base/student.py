"""Student's t: quantiles, and intervals from a standard error and its degrees of freedom."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95
NORMAL = 1.959963984540054
"""P(|Z| < z) = 0.95 for a standard normal Z."""


class Interval(NamedTuple):
    """A mean with its confidence interval, 95% unless said otherwise; NaN where there is too little to tell."""

    mean: Any
    low: Any
    high: Any

    def within(self, least: float, most: float) -> Interval:
        """Return the interval cut to what is possible.

        >>> Interval(0.9, 0.7, 1.1).within(0.0, 1.0)
        Interval(mean=0.9, low=0.7, high=1.0)
        """
        low, high = (math.nan if math.isnan(end) else min(max(end, least), most) for end in (self.low, self.high))
        return Interval(self.mean, low, high)


NOTHING = Interval(math.nan, math.nan, math.nan)


def interval(mean: Any, se: Any, df: float, level: float = LEVEL) -> Interval:
    """Return mean ± t·se, for numbers or arrays; degrees of freedom are rounded down, and at least 1.

    >>> [round(x, 2) for x in interval(1.0, 0.1, 3.9)]
    [1.0, 0.68, 1.32]
    """
    if math.isnan(df):
        return Interval(mean, mean + np.nan * se, mean + np.nan * se)
    half = t_quantile(max(1, math.floor(df)), level) * se
    return Interval(mean, mean - half, mean + half)


@cache
def t_quantile(df: int, level: float = LEVEL) -> float:
    """Return t with P(|T| < t) = level for Student's T with ``df`` degrees of freedom.

    Raises ValueError for a level outside (0, 1).

    >>> round(t_quantile(1), 3), round(t_quantile(4), 3), round(t_quantile(30), 3), round(t_quantile(3, 0.5), 3)
    (12.706, 2.776, 2.042, 0.765)
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"the level of an interval is between 0 and 1, not {level!r}")
    if df > 500 and level == LEVEL:
        return NORMAL
    low, high = 0.0, 1.0
    while _mass(high, df) < level:
        high *= 2.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _mass(middle, df) < level else (low, middle)
    return high


def _mass(t: float, df: int) -> float:
    """P(|T| < t), by the finite series of Abramowitz and Stegun (1964), 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(df))
    odd = df % 2
    term = math.cos(angle) if odd else 1.0
    total = term if df > 1 else 0.0
    for k in range(2 + odd, df - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total

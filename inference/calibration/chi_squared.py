"""The χ² law with whole degrees of freedom, in closed form."""

from __future__ import annotations

import math
from functools import cache


def chi2_tail(x: float, df: int) -> float:
    """Return P(X > x) for X ~ χ² with ``df`` ≥ 1 degrees of freedom (Abramowitz and Stegun 1964, 26.4.4 and 26.4.5).

    >>> round(chi2_tail(3.841459, 1), 6), round(chi2_tail(5.991465, 2), 6)
    (0.05, 0.05)
    """
    if x <= 0.0:
        return 1.0
    half = x / 2.0
    odd = df % 2
    total = math.erfc(math.sqrt(half)) if odd else 0.0
    # Terms (x/2)^k e^{−x/2} / Γ(k + 1), for k = ½, 1½, … or 0, 1, …, by their logs.
    for i in range(df // 2):
        k = i + 0.5 * odd
        total += math.exp(k * math.log(half) - half - math.lgamma(k + 1.0))
    return min(total, 1.0)


@cache
def chi2_threshold(df: int, rate: float) -> float:
    """Return x with P(X > x) = ``rate``, in (0, 1).

    >>> round(chi2_threshold(19, 2e-5), 2)
    55.43
    """
    low, high = 0.0, 1.0
    while chi2_tail(high, df) > rate:
        high *= 2.0
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if chi2_tail(middle, df) > rate else (low, middle)
    return high

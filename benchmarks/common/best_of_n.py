"""Best-of-N as a yardstick: what N runs are worth, and how many a given reward needs, from one pool of runs."""

from __future__ import annotations

import numpy as np

from feynkac.inference.base.selection import best_of


def expected(pool: np.ndarray, n: int) -> float:
    """Return the expected reward of best-of-n, without bias, from the rewards (m,) of a pool, m ≥ n."""
    return best_of(pool, pool, n)


def needed(pool: np.ndarray, reward: float) -> float:
    """Return the N whose best-of-N has an expected reward of at least this; infinity beyond the pool."""
    low, high = 1, len(pool)
    if expected(pool, high) < reward:
        return float("inf")
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if expected(pool, middle) < reward else (low, middle)
    return low

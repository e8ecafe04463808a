"""Orders of items as a law: uniform, or drawn one by one in proportion to weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..keys import Keys
from ..model import Draws, Floats
from . import batching as _b
from .distribution import Distribution, Values


class Permutation(Distribution):
    """An order of K items, a tuple of their numbers, first to last; by ``log_weights`` (K,), or uniform over ``n``.

    The first is drawn in proportion to the weights, the next among those that are left, and so on: the law of Plackett
    and Luce. Equal weights make all K! orders as likely. An order of items to be shown is a site like any other, so
    that engines, traces and replays know it.

    Raises ValueError for no items, and for weights that are not finite.

    Source: Plackett (1975), doi:10.2307/2346567; drawn by Gumbel noise, Yellott (1977),
        doi:10.1016/0022-2496(77)90026-8.

    >>> round(math.exp(Permutation(3).log_prob((2, 0, 1))), 6), len(Permutation(3).support())
    (0.166667, 6)
    >>> round(math.exp(Permutation(log_weights=np.log([0.5, 0.3, 0.2])).log_prob((1, 0, 2))), 6)
    0.214286
    """

    __slots__ = ("log_weights",)
    parameters = ("log_weights",)

    def __init__(self, n: int | None = None, *, log_weights: ArrayLike | None = None) -> None:
        if (n is None) is (log_weights is None):
            raise ValueError("Permutation: give either n or log_weights")
        self.log_weights: Any = np.zeros(n) if log_weights is None else log_weights

    def _tables(self, requests: Sequence[Any]) -> Floats:
        table = self._numbers("log_weights", [r.log_weights for r in requests])
        if table.ndim != 2 or not table.shape[1]:
            raise ValueError(f"Permutation: log_weights must be one for each item, got shape {table.shape[1:]}")
        self._require("log_weights", "finite", np.isfinite(table), table)
        return table

    def _sample(self, requests: Sequence[Any], keys: Keys) -> Draws:
        table = self._tables(requests)
        # Exponential clocks: who rings first is drawn in proportion to the rates, and so on among the others.
        rings = np.log(-np.log1p(-_b.uniforms(keys, table.shape))) - table
        orders = np.argsort(rings, axis=1, kind="stable")
        return Draws([tuple(order) for order in orders.tolist()], _log_prob(table, orders))

    def _score(self, requests: Sequence[Any], values: Values) -> Floats:
        table = self._tables(requests)
        k = table.shape[1]
        fit = np.array([self._orders(value, k) for value in values])
        orders = np.array([value if ok else range(k) for value, ok in zip(values, fit)], np.intp)
        return np.where(fit, _log_prob(table, orders), -np.inf)

    @staticmethod
    def _orders(value: Any, k: int) -> bool:
        if not isinstance(value, tuple | list) or len(value) != k:
            return False
        return all(isinstance(item, int | np.integer) for item in value) and set(value) == set(range(k))

    def support(self) -> list[Any] | None:
        """Return all orders, where they are few."""
        k = len(self.log_weights)
        return list(itertools.permutations(range(k))) if math.factorial(k) <= _b.FEW else None

    def fits(self, value: Any) -> bool:
        """Whether a value is an order of as many items."""
        return self._orders(value, len(self.log_weights))

    def covers(self, other: Any) -> bool:
        """Whether this law can reach all that ``other`` can: every order of as many items."""
        same = isinstance(other, Permutation) and len(other.log_weights) == len(self.log_weights)
        return same or super().covers(other)


def _log_prob(table: Floats, orders: Any) -> Floats:
    """Return the log-probabilities (n,) of orders (n, K) by log-weights (n, K)."""
    chosen = np.take_along_axis(table, orders, 1)
    left = np.logaddexp.accumulate(chosen[:, ::-1], axis=1)[:, ::-1]  # of those not placed before
    log_prob: Floats = (chosen - left).sum(1)
    return log_prob

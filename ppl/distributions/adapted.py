"""What the adapters of other libraries' distributions share."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import CannotScore
from ..keys import Keys
from ..model import Draws, Floats
from . import batching as _b
from .batching import Bounds


class Adapted:
    """Base of the adapters: wraps ``dist``, and keeps its ``batch_key``."""

    __slots__ = ("batch_key", "dist")

    def __init__(self, dist: Any, batch_key: Hashable) -> None:
        self.dist = dist
        self.batch_key = batch_key

    def __repr__(self) -> str:
        return f"as_kernel({self.dist!r})"

    @property
    def fingerprint(self) -> Hashable:
        """The family and its parameters, arrays by shape and checksum."""
        return type(self.dist).__qualname__, tuple(_b.digest(item) for item in self._parameters())

    def sample_batch(self, requests: Sequence[Any], keys: Keys) -> Draws:
        """Draw one value for each of n requests: values (n, *event), log-probabilities (n,)."""
        raise NotImplementedError

    def log_prob_batch(self, requests: Sequence[Any], values: Sequence[Any]) -> Floats:
        """Return log p of each value under its request, shape (n,); −inf outside the support."""
        raise NotImplementedError

    def log_prob_terms(self, requests: Sequence[Any], values: Sequence[Any]) -> Floats:
        """Return log p of each component of each value, (n, *batch). Raises CannotScore where they are not apart."""
        raise CannotScore(f"{self!r}: the components of its values have no weights of their own")

    def log_prob(self, value: Any) -> float:
        """Return log p(value), summed over the event."""
        return float(self.log_prob_batch([self], [value])[0])

    def support(self) -> list[Any] | None:
        """Return all values of positive probability where they are few, else None."""
        values = self._candidates()
        if values is None:
            return None
        found = self.log_prob_batch([self] * len(values), values) > -np.inf
        return [value for value, ok in zip(values, found.tolist()) if ok]

    def bounds(self) -> Bounds | None:
        """Return where the draws lie, or None where bounds alone do not say."""
        return None

    def covers(self, other: Any) -> bool:
        """Whether this distribution can reach all that ``other`` can; see `batching.covers`."""
        return _b.covers(self, other)

    def fits(self, value: Any) -> bool:
        """Whether a value has the shape of a draw, and is whole where draws are."""
        raise NotImplementedError

    def _parameters(self) -> Sequence[Any]:
        raise NotImplementedError

    def _candidates(self) -> list[Any] | None:
        """Return values that include the support, where the event is a scalar and they are few."""
        return None


def constrained(constraint: Any, shape: tuple[int, ...]) -> Bounds | None:
    """Read the bounds of an event from a PyTorch or NumPyro constraint, or None where it is no interval."""
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    names = {cls.__name__.strip("_") for cls in type(constraint).__mro__}
    low, high = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    if "Boolean" in names:
        low, high = 0.0, 1.0
    elif low is None and high is None and "Real" not in names:
        return None
    low = np.asarray(-np.inf if low is None else low, np.float64)
    high = np.asarray(np.inf if high is None else high, np.float64)
    return Bounds(bool(constraint.is_discrete), np.broadcast_to(low, shape), np.broadcast_to(high, shape))


def listed(values: Any) -> list[Any]:
    """List a library's array (K, *event) of values: whole numbers as ints, vectors as read-only arrays."""
    array = np.asarray(values)
    return _b.unstack(_b.frozen(whole(array).copy()))


def whole(values: Any) -> Any:
    """Turn an array of floats that are all integers into int64."""
    if values.dtype.kind == "f" and bool(np.all(np.isfinite(values) & (values == np.floor(values)))):
        return values.astype(np.int64)
    return values


def arrays(values: Iterable[Any]) -> list[Any]:
    """Take tensors off their device and graph, and leave all else."""
    return [v.detach().cpu().numpy() if hasattr(v, "detach") else v for v in values]

"""Shared arithmetic of batched kernels: stacking parameters, drawing by inversion, comparing supports."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import keys as _keys
from ..keys import Keys
from ..model import Floats, Index

FEW = 1000
"""The longest support that a distribution over integers lists."""

PLAIN = frozenset({float, int, bool, str, type(None), np.float64})
"""Types whose values are their own fingerprints."""

_BELOW_ONE = 1.0 - 2.0**-53


class Bounds(NamedTuple):
    """Where draws lie: on every number (or integer) from ``low`` to ``high``, each of the event's shape."""

    discrete: bool
    low: Floats
    high: Floats


class Ragged(ValueError):
    """Items that do not stack to one array: of several shapes, or not numbers."""


def numbers(name: str, what: str, items: Sequence[Any] | NDArray[Any]) -> Floats:
    """Stack n numbers or arrays to (n, ...) floats. Raises `Ragged`."""
    try:
        return np.array(items, dtype=np.float64)
    except (TypeError, ValueError):
        raise Ragged(f"{name}: {what} must be a number or an array of them, got {items[0]!r}") from None


def fits(event: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether values of ``shape`` may be independent draws of ``event``: it broadcasts to them unaided."""
    try:
        return np.broadcast_shapes(event, shape) == shape
    except ValueError:
        return False


def has_form(value: Any, shape: tuple[int, ...], discrete: bool) -> bool:
    """Whether a value is a number, or an array of them, of a certain shape, and whole or not.

    >>> has_form(1, (), True), has_form(1, (), False), has_form([0.5], (), False), has_form("a", (), True)
    (True, False, False, False)
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return array.shape == tuple(shape) and array.dtype.kind in ("biu" if discrete else "f")


def align(columns: Sequence[Floats]) -> list[Floats]:
    """Give arrays (n, *shape) the same number of axes, so that their shapes broadcast as NumPy's do.

    >>> [a.shape for a in align([np.zeros(4), np.zeros((4, 3))])]
    [(4, 1), (4, 3)]
    """
    rank = max(c.ndim for c in columns)
    return [c if c.ndim == rank else c.reshape(len(c), *[1] * (rank - c.ndim), *c.shape[1:]) for c in columns]


def total(terms: Floats) -> Floats:
    """Sum (n, *event) over the event: (n,)."""
    return terms if terms.ndim == 1 else terms.reshape(len(terms), -1).sum(-1)


def frozen(values: NDArray[Any]) -> NDArray[Any]:
    """Make vector-valued draws read-only, since the particles that fork share them."""
    if values.ndim > 1:
        values.flags.writeable = False
    return values


def unstack(values: Sequence[Any] | NDArray[Any]) -> list[Any]:
    """List n values, scalars as Python numbers."""
    return values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else list(values)


def groups(marks: Iterable[Hashable]) -> list[Index]:
    """Return the positions of each distinct mark.

    >>> [g.tolist() for g in groups("abca")]
    [[0, 3], [1], [2]]
    """
    found: dict[Hashable, list[int]] = {}
    for i, mark in enumerate(marks):
        found.setdefault(mark, []).append(i)
    return [np.array(index, np.intp) for index in found.values()]


def uniforms(keys: Keys, shape: tuple[int, ...]) -> Floats:
    """Draw uniforms in (0, 1) of shape (n, *event), each row from its own key."""
    u = _keys.uniform(keys) if len(shape) == 1 else _keys.uniform(keys, _size(shape)).reshape(shape)
    return np.minimum(u, _BELOW_ONE)


def normals(keys: Keys, shape: tuple[int, ...]) -> Floats:
    """Draw standard normals of shape (n, *event), each row from its own key."""
    return _keys.normal(keys) if len(shape) == 1 else _keys.normal(keys, _size(shape)).reshape(shape)


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[1:]))


def invert(probs: Floats, u: Floats) -> Index:
    """Draw categories by inversion: probabilities (..., K) and uniforms in (0, 1) (...) to indices (...).

    Never returns a category of probability zero: the distribution function is scaled to end at exactly 1.

    >>> invert(np.array([[0.0, 0.3, 0.7, 0.0]] * 2), np.array([0.2, 0.999])).tolist()
    [1, 2]
    """
    cdf = probs.cumsum(-1)
    cdf /= cdf[..., -1:]
    index: Index = (cdf <= u[..., None]).sum(-1, dtype=np.intp)
    return index


def digest(value: Any) -> Hashable:
    """Summarise a value cheaply for a fingerprint: itself, or its shape and checksum."""
    if type(value) in PLAIN:
        return value  # type: ignore[no-any-return]
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        array = np.empty((), object)
    if array.dtype.kind != "O":
        return array.shape, array.dtype.str, zlib.crc32(array.tobytes())
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(digest(item) for item in value)
    return type(value).__qualname__


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal; arrays by shape and content."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b))
    return a is b or bool(a == b)


def covers(proposal: Any, target: Any) -> bool:
    """Whether ``proposal`` reaches all that ``target`` can.

    Exact where the target lists its ``support()``, and where both give ``bounds()``. Else kernels of one
    family are taken to cover each other, and others not.
    """
    reach = proposal.bounds() if hasattr(proposal, "bounds") else None
    values = target.support() if hasattr(target, "support") else None
    if values is not None:
        if reach is not None and not reach.discrete:
            return False
        try:
            return bool(np.all(proposal.log_prob_batch([proposal] * len(values), values) > -np.inf))
        except (TypeError, ValueError):
            return False
    goal = target.bounds() if hasattr(target, "bounds") else None
    if reach is not None and goal is not None:
        inside = reach.discrete == goal.discrete and reach.low.shape == goal.low.shape
        return bool(inside and np.all(reach.low <= goal.low) and np.all(goal.high <= reach.high))
    return bool(proposal.batch_key == target.batch_key)

"""Counter-based random keys: cheap 64-bit integers on the host, folded, never stepped.

A key is a ``uint64``. `fold` derives a new one from data (a seed, a lineage, a depth, a site); the draws of
`uniform` and `normal` are pure functions of a key and a counter. So a draw depends on its own key alone and
never on what else is in the batch. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood
2014, doi:10.1145/2660193.2660195).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Keys: TypeAlias = NDArray[np.uint64]
"""An array of keys, one per particle."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SALT = np.uint64(0xD1B54A32D192ED03)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_ALL = (1 << 64) - 1
_S30, _S27, _S31, _S12 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(12)


def _mix(z: Keys) -> Keys:
    """Mix an array that the caller has no more use for: it is overwritten."""
    z ^= z >> _S30
    z *= _M1
    z ^= z >> _S27
    z *= _M2
    z ^= z >> _S31
    return z


def _mix_one(z: int) -> np.uint64:
    """Mix one word, as `_mix` does."""
    z &= _ALL
    z = (z ^ (z >> 30)) * int(_M1) & _ALL
    z = (z ^ (z >> 27)) * int(_M2) & _ALL
    return np.uint64(z ^ (z >> 31))


def _words(data: ArrayLike) -> Keys:
    array = np.atleast_1d(np.asarray(data))
    if array.dtype == np.uint64:
        return array
    if array.dtype.kind not in "iu":
        raise TypeError(f"keys fold integers, not {array.dtype}")
    return array.astype(np.int64).view(np.uint64)


def _salted(item: ArrayLike) -> Keys | np.uint64:
    if isinstance(item, int | np.integer) and not isinstance(item, bool):
        one = int(item)
        if not -(1 << 63) <= one <= _ALL:
            raise ValueError(f"keys fold integers of 64 bits, not {one}; `root` takes any seed")
        return _mix_one(one + int(_SALT))
    return _mix(_words(item) + _SALT)


def fold(keys: ArrayLike, *data: ArrayLike) -> Keys:
    """Derive keys from ``keys`` and integers; every argument is broadcast to shape (n,).

    Folding is ordered and (up to 64-bit collisions) injective: ``fold(k, 1, 2)`` differs from
    ``fold(k, 2, 1)`` and from ``fold(k, 1)``. An integer is its 64 bits, so that −1 is 2⁶⁴ − 1. Raises ValueError for
    one that has more, and TypeError for what is no integer.

    >>> a = fold(root(0), np.arange(3))
    >>> len(set(a.tolist())), bool(fold(a, 1)[0] == fold(a, 2)[0])
    (3, False)
    """
    out = _words(keys)
    for item in data:
        out = _mix(out * _GOLDEN + _salted(item))
    return out


def root(seed: int) -> Keys:
    """Return the key of a run, shape (1,), from any Python integer.

    >>> root(0).shape
    (1,)
    """
    if not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be an integer, not {type(seed).__name__}")
    low, high = int(seed) & (2**64 - 1), (int(seed) >> 64) & (2**64 - 1)
    return fold(_GOLDEN, np.array([low], np.uint64), np.array([high], np.uint64))


@lru_cache(maxsize=4096)
def tag(name: str) -> np.uint64:
    """Return a stable integer for a name, to be folded into a key."""
    raw = name.encode()
    return np.uint64(zlib.crc32(raw) << 32 | zlib.adler32(raw))


def uniform(keys: ArrayLike, size: int | None = None, offset: int = 0) -> NDArray[np.float64]:
    """Draw uniforms in the open interval (0, 1): shape (n,), or (n, size) where ``size`` is given.

    ``offset`` is the first counter: ``uniform(k, 5)[:, 3]`` equals ``uniform(k, 1, offset=3)[:, 0]``.

    >>> k = fold(root(0), np.arange(2))
    >>> bool((uniform(k, 5)[:, 3] == uniform(k, 1, offset=3)[:, 0]).all())
    True
    """
    base = _words(keys)
    counter = np.arange(offset + 1, offset + 1 + (1 if size is None else size), dtype=np.uint64)
    # One row per counter: long rows are quick, and there may be few counters.
    bits = _mix(_mix(base + (counter * _GOLDEN)[:, None]) ^ _SALT) >> _S12
    out = (bits.astype(np.float64) + 0.5) * 2.0**-52
    return out[0] if size is None else out.T


def normal(keys: ArrayLike, size: int | None = None) -> NDArray[np.float64]:
    """Draw standard normals by Box–Muller: shape (n,), or (n, size) where ``size`` is given.

    >>> bool(abs(normal(fold(root(1), np.arange(10_000))).mean()) < 0.05)
    True
    """
    u = uniform(keys, 2 * (1 if size is None else size))
    z, angle = np.log(u[:, 0::2]), 2.0 * np.pi * u[:, 1::2]
    z *= -2.0
    np.sqrt(z, out=z)
    z *= np.cos(angle, out=angle)
    return z[:, 0] if size is None else z


def generator(keys: ArrayLike) -> np.random.Generator:
    """Return one NumPy generator for a whole batch: the quickest, but what it draws depends on all its keys.

    >>> k = fold(root(0), np.arange(3))
    >>> bool((generator(k).normal(size=3) == generator(k).normal(size=3)).all())
    True
    """
    return np.random.Generator(np.random.PCG64(as_seed(keys)))


def generators(keys: ArrayLike) -> list[np.random.Generator]:
    """Return one NumPy generator per key, for libraries that draw from a ``Generator``."""
    return [np.random.Generator(np.random.Philox(key=int(key))) for key in _words(keys)]


def siblings(ancestors: NDArray[np.intp]) -> NDArray[np.int64]:
    """Number the copies of each ancestor in order: 0 for the first child, 1 for its twin, and so on.

    >>> siblings(np.array([4, 2, 4, 4])).tolist()
    [0, 0, 1, 2]
    """
    n = len(ancestors)
    if n < 2:
        return np.zeros(n, np.int64)
    ordered = bool((ancestors[1:] >= ancestors[:-1]).all())
    order = slice(None) if ordered else np.argsort(ancestors, kind="stable")
    ranked, place = ancestors[order], np.arange(n)
    starts = place.copy()
    starts[1:][ranked[1:] == ranked[:-1]] = 0
    ordinal = np.empty(n, np.int64)
    ordinal[order] = place - np.maximum.accumulate(starts)
    return ordinal


def inherit(lineage: Keys, ancestors: NDArray[np.intp], depth: int) -> Keys:
    """Return the lineage keys of the children: the first child keeps its parent's, twins get their own."""
    ordinal = siblings(ancestors)
    children = lineage[ancestors]
    twins = ordinal > 0
    children[twins] = fold(children[twins], tag("twin"), depth, ordinal[twins])
    return children


def concat(parts: Sequence[Keys]) -> Keys:
    """Join key arrays."""
    return np.concatenate(list(parts)) if parts else np.zeros(0, np.uint64)


def as_seed(keys: Any) -> int:
    """Return one 63-bit integer that depends on all the given keys, to seed a library's own generator."""
    # A sum of keys, each of which is used once, is as good as any of them.
    return int(_mix_one(int(np.add.reduce(_words(keys))))) >> 1

"""Values of any kind as named columns: one array over the particles for each number, text or array in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PLAIN = frozenset((float, int, bool, str))
_NOTHING = object()
"""What a particle has not got. (None is the value of an unfinished one, and counts as nothing too.)"""


def columns(values: Sequence[Any], name: str = "value", reserved: Iterable[str] = ()) -> dict[str, NDArray[Any]]:
    """Return one array (n, …) for each part of n values.

    A mapping, named tuple or dataclass gives a column for each of its keys, and so does a tuple or list that holds
    anything but numbers, for each place; inner ones are joined with a dot ("outer.inner"). Numbers and arrays of
    numbers become arrays; where their shapes differ they are padded with NaN at the end. Anything else becomes text,
    by ``str``. What a particle has not got is NaN among numbers (bools and integers become floats then) and "" among
    texts.

    Args:
        values: n values.
        name: of the column of a value without parts.
        reserved: names that may not be used. A name that is taken gets an underscore after it.

    >>> found = columns([{"text": "a", "score": 1}, {"text": "bc"}])
    >>> found["text"].tolist(), found["score"].tolist()
    (['a', 'bc'], [1.0, nan])
    """
    parts: dict[tuple[str, ...], list[Any]] = {}
    for i, value in enumerate(values):
        for path, leaf in [((), value)] if type(value) in _PLAIN else _leaves(value, ()):
            if path not in parts:
                parts[path] = [_NOTHING] * len(values)
            parts[path][i] = leaf
    out: dict[str, NDArray[Any]] = {}
    for path, leaves in parts.items():
        if any(leaf is not _NOTHING and leaf is not None for leaf in leaves):
            out[free(".".join(path) or name, {*reserved, *out})] = column(leaves)
    return out


def free(name: str, taken: set[str]) -> str:
    """Return a name that is not taken and has no slash, which names a group in a tree."""
    name = name.replace("/", ".") or "_"
    while name in taken:
        name += "_"
    return name


def column(leaves: Sequence[Any]) -> NDArray[Any]:
    """Return one array (n, …) for n numbers, arrays of numbers, or anything else, by ``str``; None is missing."""
    kinds = {type(leaf) for leaf in leaves}
    if len(kinds) == 1 and kinds <= _PLAIN:  # the common case, for speed
        plain = np.array(leaves)
        if plain.dtype != object:
            return plain
    there = [leaf is not _NOTHING and leaf is not None for leaf in leaves]
    arrays = [_numeric(leaf) if present else None for leaf, present in zip(leaves, there)]
    if any(array is None and present for array, present in zip(arrays, there)):
        return np.array([str(leaf) if present else "" for leaf, present in zip(leaves, there)])
    found = [array for array in arrays if array is not None]
    rank = max(array.ndim for array in found)
    if any(array.ndim != rank for array in found):
        return np.array([str(leaf) if present else "" for leaf, present in zip(leaves, there)])
    shape = tuple(np.max([array.shape for array in found], axis=0, initial=0)) if rank else ()
    dtype = np.result_type(*found)
    if not all(there) or any(array.shape != shape for array in found):
        dtype = np.result_type(dtype, np.float64)
    out = np.full((len(leaves), *shape), np.nan if dtype.kind in "fc" else 0, dtype)
    for i, array in enumerate(arrays):
        if array is not None:
            place: Any = (i, *map(slice, array.shape))
            out[place] = array
    return out


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = _parts(value)
    if inner is None:
        yield path, value
        return
    for key, part in inner:
        yield from _leaves(part, (*path, str(key)))


def _parts(value: Any) -> Iterable[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return value.items()
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not hasattr(value, "to_json"):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value)
    if isinstance(value, tuple | list) and value and _numeric(value) is None:
        return enumerate(value)
    return None


def _numeric(value: Any) -> NDArray[Any] | None:
    """The array of a number or of an array of numbers, also in lists; None for anything else."""
    if isinstance(value, str | bytes):
        return None
    if isinstance(value, tuple | list):
        inner = [_numeric(item) for item in value]
        if any(item is None or item.shape != inner[0].shape for item in inner):  # type: ignore[union-attr]
            return None
        return np.array(inner) if inner else np.zeros(0)
    if isinstance(value, bool | int | float | complex | np.generic | np.ndarray):
        array = np.asarray(value)
        return array if array.dtype.kind in "biufc" else None
    return None

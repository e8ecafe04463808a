"""Answers as bytes: JSON, and after it the bytes of arrays. No pickle; what is read back has the types that it had."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...ppl.values.guard import SharedDict, SharedList, SharedSet

_HEAD = 4
_KINDS = "biufcUSmM"
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def pack(value: Any) -> bytes:
    """Return a value as bytes. Raises TypeError, naming the type, for what would not come back as it was.

    >>> unpack(pack({"x": (1, 2.5, float("-inf"), b"raw"), "y": np.arange(3)}))
    {'x': (1, 2.5, -inf, b'raw'), 'y': array([0, 1, 2])}
    """
    tail = bytearray()
    head = json.dumps(_encode(value, tail), separators=(",", ":"), allow_nan=False).encode()
    return len(head).to_bytes(_HEAD, "little") + head + bytes(tail)


def unpack(data: bytes) -> Any:
    """Return the value of some bytes. Raises ValueError or its like for others than `pack` has made."""
    end = _HEAD + int.from_bytes(data[:_HEAD], "little")
    return _decode(json.loads(data[_HEAD:end]), memoryview(data)[end:])


def _encode(value: Any, tail: bytearray) -> Any:
    kind = type(value)
    if kind in (str, int, bool, type(None)):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"f": repr(value)}
    if kind in (list, SharedList):
        return [_encode(part, tail) for part in value]
    if kind is tuple:
        return {"t": [_encode(part, tail) for part in value]}
    if kind in (dict, SharedDict):
        return {"d": [[_encode(key, tail), _encode(part, tail)] for key, part in value.items()]}
    if kind in (set, SharedSet, frozenset):
        return {"z" if kind is frozenset else "s": [_encode(part, tail) for part in value]}
    if kind is bytes:
        return {"b": _add(value, tail)}
    if (kind is np.ndarray or isinstance(value, np.generic)) and value.dtype.kind in _KINDS:
        array = np.ascontiguousarray(value)
        tag = "a" if kind is np.ndarray else "g"
        return {tag: [array.dtype.str, list(np.shape(value)), *_add(array.tobytes(), tail)]}
    raise TypeError(f"a {kind.__module__}.{kind.__qualname__} is no number, string, array or container of these")


def _add(data: bytes, tail: bytearray) -> list[int]:
    begin = len(tail)
    tail += data
    return [begin, len(data)]


def _decode(data: Any, tail: memoryview) -> Any:
    if isinstance(data, list):
        return [_decode(part, tail) for part in data]
    if not isinstance(data, dict):
        return data
    ((tag, inner),) = data.items()
    return _TAGS[tag](inner, tail)


def _array(inner: Any, tail: memoryview) -> Any:
    dtype, shape, begin, size = inner
    kind = np.dtype(dtype)
    if kind.kind not in _KINDS:
        raise ValueError(f"an array of {dtype} is none of ours")
    return np.frombuffer(tail[begin : begin + size], kind).reshape(shape).copy()


_TAGS: dict[str, Callable[[Any, memoryview], Any]] = {
    "f": lambda inner, tail: _FLOATS[inner],
    "t": lambda inner, tail: tuple(_decode(inner, tail)),
    "d": lambda inner, tail: {_decode(key, tail): _decode(part, tail) for key, part in inner},
    "s": lambda inner, tail: set(_decode(inner, tail)),
    "z": lambda inner, tail: frozenset(_decode(inner, tail)),
    "b": lambda inner, tail: bytes(tail[inner[0] : inner[0] + inner[1]]),
    "a": _array,
    "g": lambda inner, tail: _array(inner, tail)[()],
}

"""Pictures of what can be changed in place: shallow, cheap to take, and cheap to compare."""

from __future__ import annotations

import gc
import io
import itertools
import operator
import random
import threading
import types
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from .guard import LEAVES, SharedDict, SharedList

HOME = __name__.partition(".")[0]
Look = Callable[[Any], tuple[Any, ...]]
SAMPLE = 1024
"""Of what holds more items than that, their number and so many of them are looked at."""
MANY = 1 << 16
"""Where a fork compares two, so many are."""
BYTES = 1 << 20
"""Of an array that is larger than that, `SAMPLE` elements are looked at."""


def alike(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    """Whether two pictures show the same objects (numbers and strings: equal ones)."""
    if len(before) != len(now):
        return False
    if all(map(operator.is_, before, now)):
        return True
    return all(a is b or (type(a) is type(b) and type(a) in LEAVES and a == b) for a, b in zip(before, now))


def contents(cell: Any) -> tuple[Any, ...]:
    """Return what a closure's variable holds, if anything."""
    try:
        return (cell.cell_contents,)
    except ValueError:  # not assigned yet
        return ()


def _items(value: Any) -> tuple[Any, ...]:
    return (len(value), *itertools.islice(value, SAMPLE)) if len(value) > SAMPLE else tuple(value)


def _list(value: Any) -> tuple[Any, ...]:
    return (len(value), *value[:: len(value) // SAMPLE + 1]) if len(value) > SAMPLE else tuple(value)


def items(value: Any) -> tuple[Any, ...]:
    """Picture a dict."""
    return (len(value), *itertools.chain.from_iterable(itertools.islice(value.items(), SAMPLE)))


def _array(value: Any) -> tuple[Any, ...]:
    if value.dtype == object:
        return *value.shape, *value.flat[:: value.size // SAMPLE + 1]
    some = value if value.nbytes <= BYTES else value.flat[:: value.size // SAMPLE + 1]
    return *value.shape, hash(some.tobytes())


def _held(value: Any) -> tuple[Any, ...]:
    """Picture what another library's object holds as an array: a table, a series."""
    return _array(np.asarray(value))


def _written(value: Any) -> tuple[Any, ...]:
    """Picture a file in memory."""
    return (None,) if value.closed else (value.tell(), hash(value.getvalue()))


def _tensor(value: Any) -> tuple[Any, ...]:
    try:
        return (value._version,)
    except RuntimeError:  # one made in inference mode has no count of its changes
        return tuple(value.detach().flatten()[:: value.numel() // SAMPLE + 1].tolist())


def _iterator(value: Any) -> tuple[Any, ...]:
    return (repr(value) if type(value) is itertools.count else operator.length_hint(value, -1),)


def _generator(value: Any) -> tuple[Any, ...]:
    return (None if value.gi_frame is None else value.gi_frame.f_lasti, value.gi_running, *variables(value).values())


def attributes(value: Any, private: bool) -> dict[str, Any]:
    """Return an object's attributes; without those that begin with an underscore, and those its class computes once."""
    kind = type(value)
    found = dict(getattr(value, "__dict__", ()))
    for cls in kind.__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                found[slot] = getattr(value, slot)
    return {
        name: part
        for name, part in found.items()
        if (private or not name.startswith("_")) and not isinstance(getattr(kind, name, None), cached_property)
    }


def public(value: Any) -> tuple[Any, ...]:
    """Picture an object's public attributes."""
    return items(attributes(value, private=False))


def private(value: Any) -> tuple[Any, ...]:
    """Picture all of an object's attributes."""
    return items(attributes(value, private=True))


def class_state(cls: Any) -> dict[str, Any]:
    """Return the values that a class keeps, without its methods and descriptors."""
    return {
        name: value
        for name, value in vars(cls).items()
        if not name.startswith("__") and not callable(value) and not hasattr(value, "__get__")
    }


def class_picture(cls: Any) -> tuple[Any, ...]:
    """Picture what a class keeps."""
    return items(class_state(cls))


_SOME: tuple[Any, ...] = ((), [], {}, set(), range(0), "", b"", {}.values(), {}.items(), reversed([]))
_ITERATORS: tuple[type, ...] = (
    *(type(iter(some)) for some in _SOME),
    *(enumerate, zip, map, filter, itertools.count, itertools.cycle, itertools.islice, itertools.chain),
)
_LOOKS: tuple[tuple[tuple[Any, ...], Look], ...] = (
    ((types.CellType,), contents),
    ((dict,), items),
    ((list, bytearray, array), _list),
    ((set, deque), _items),
    ((np.ndarray,), _array),
    ((types.GeneratorType,), _generator),
    ((types.SimpleNamespace, threading.local), lambda value: items(vars(value))),
    ((io.StringIO, io.BytesIO), _written),
    ((ContextVar,), lambda value: (value.get(None),)),
    ((random.Random,), lambda rng: (hash(rng.getstate()),)),
    ((np.random.Generator,), lambda rng: (repr(rng.bit_generator.state),)),
    ((np.random.RandomState,), lambda rng: (rng.get_state()[1].tobytes(), rng.get_state()[2])),
    (_ITERATORS, _iterator),
)


@lru_cache(maxsize=4096)
def look_at(kind: type) -> Look | None:
    """Return how to look at what a type's own operations change in place; None where there is nothing of that kind."""
    if is_tensor(kind):
        return _tensor
    if kind.__module__.partition(".")[0] == HOME:
        return None
    found = next((look for kinds, look in _LOOKS if issubclass(kind, kinds)), None)
    return _held if found is None and is_data(kind) and hasattr(kind, "__array__") else found


@lru_cache(maxsize=4096)
def is_tensor(kind: type) -> bool:
    """Whether a type is that of torch's tensors, without an import of torch."""
    return any(cls.__module__ == "torch" and cls.__name__ == "Tensor" for cls in kind.__mro__)


@lru_cache(maxsize=4096)
def is_data(kind: type) -> bool:
    """Whether instances of a type are data, and not part of a model (kernels, rewards, modules) or of a library."""
    top = kind.__module__.partition(".")[0]
    parts = ("batch_key", "sample_batch", "score_batch", "advance", "state_dict")
    if top in (HOME, "builtins", "types", "torch", "transformers", "jax", "jaxlib", "numpy"):
        return False
    return bool(kind.__dictoffset__ or hasattr(kind, "__slots__")) and not any(hasattr(kind, part) for part in parts)


_identity: Any = object.__eq__
_FIXED = ("datetime", "decimal", "fractions", "ipaddress", "pathlib", "uuid", HOME)


def lasting(value: Any) -> bool:
    """Whether a hashable value is one that cannot change, so that it may stand for what it was when it was seen."""
    kind = type(value)
    if kind in LEAVES:
        return True
    if isinstance(value, tuple | frozenset):
        return all(map(lasting, value))
    if is_dataclass(kind) and kind.__module__.partition(".")[0] != HOME:
        frozen = kind.__dataclass_params__.frozen and kind.__eq__ is not _identity  # type: ignore[attr-defined]
        return frozen and all(lasting(getattr(value, field.name)) for field in fields(kind))
    return isinstance(value, str | bytes | int | float | complex | np.generic | range | Enum) or (
        kind.__module__.partition(".")[0] in _FIXED
    )


@lru_cache(maxsize=4096)
def may_change(kind: type) -> bool:
    """Whether values of a type that an await returns, or what they hold, could be changed in place."""
    return is_tensor(kind) or is_data(kind) or kind in (tuple, frozenset, SharedList, SharedDict)


def same(a: Any, b: Any, depth: int = 8) -> bool:
    """Whether two values, found at the same place of two runs, hold the same, as far as that can be told."""
    kind = type(a)
    if a is b or depth == 0:
        return True
    if type(b) is not kind:
        return False
    if isinstance(a, str | bytes | int | float | complex | np.generic):
        return bool(a == b or (a != a and b != b))
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(same(x, y, depth - 1) for x, y in itertools.islice(zip(a, b), MANY))
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            key in b and same(part, b[key], depth - 1) for key, part in itertools.islice(a.items(), MANY)
        )
    if kind is np.ndarray and a.dtype != object:
        return bool(a.shape == b.shape and a.tobytes() == b.tobytes())
    if kind is types.CellType or kind is types.FunctionType:
        x, y = (contents(one) if kind is types.CellType else one.__closure__ or () for one in (a, b))
        return same(x, y, depth - 1)
    if kind.__module__.partition(".")[0] == HOME:
        return kind.__eq__ is _identity or not lasting(a) or bool(a == b)
    if isinstance(a, set | frozenset):
        return len(a) == len(b) and (a == b or not all(map(lasting, a)))
    look = look_at(a.__class__)
    if look is not None and look is not _tensor:
        return alike(look(a), look(b))
    return not is_data(a.__class__) or same(attributes(a, True), attributes(b, True), depth - 1)


def awaiting(coro: Any) -> Iterator[Any]:
    """Yield a coroutine and those that it waits for, one within the other."""
    while coro is not None:
        kind = type(coro)
        if kind is types.CoroutineType:
            yield coro
            coro = coro.cr_await
        elif kind is types.GeneratorType:  # it waits, or drives a coroutine by hand, which it calls ``driven``
            coro = coro.gi_yieldfrom or variables(coro).get("driven")
        else:  # what `await` makes of an object whose __await__ returns a coroutine's: it refers to that alone
            coro = next((part for part in gc.get_referents(coro) if type(part) is types.CoroutineType), None)


def variables(coro: Any) -> dict[str, Any]:
    """Return the variables of a coroutine or a generator by name."""
    frame = coro.gi_frame if type(coro) is types.GeneratorType else coro.cr_frame
    if frame is None:
        return {}
    local = frame.f_locals
    found = dict(local)
    if type(local) is dict:
        local.clear()  # a copy that the frame would keep, and with it what the variables held
    return found

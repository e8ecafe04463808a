"""Pictures of what can be changed in place: shallow, cheap to take, and cheap to compare."""

from __future__ import annotations

import itertools
import operator
import random
import types
from collections import deque
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from .guard import LEAVES

HOME = __name__.partition(".")[0]
Look = Callable[[Any], tuple[Any, ...]]
SAMPLE = 256
"""Of what holds more items than that, their number and so many of them are looked at."""


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
    return *value.shape, value.flat[:: value.size // SAMPLE + 1].tobytes()


def _tensor(value: Any) -> tuple[Any, ...]:
    try:
        return (value._version,)
    except RuntimeError:  # one made in inference mode has no count of its changes
        return tuple(value.detach().flatten()[:: value.numel() // SAMPLE + 1].tolist())


def _iterator(value: Any) -> tuple[Any, ...]:
    return (repr(value) if type(value) is itertools.count else operator.length_hint(value, -1),)


def _generator(value: Any) -> tuple[Any, ...]:
    return (None if value.gi_frame is None else value.gi_frame.f_lasti, value.gi_running)


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
    ((list, bytearray), _list),
    ((set, deque), _items),
    ((np.ndarray,), _array),
    ((types.GeneratorType,), _generator),
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
    return next((look for kinds, look in _LOOKS if issubclass(kind, kinds)), None)


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


_FIXED = ("datetime", "decimal", "fractions", "ipaddress", "pathlib", "uuid", HOME)


def lasting(value: Any) -> bool:
    """Whether a hashable value is one that cannot change, so that it may stand for what it was when it was seen."""
    kind = type(value)
    if kind in LEAVES:
        return True
    if isinstance(value, tuple | frozenset):
        return all(map(lasting, value))
    if is_dataclass(kind) and kind.__module__.partition(".")[0] != HOME:
        frozen = kind.__dataclass_params__.frozen and kind.__eq__ is not object.__eq__  # type: ignore[attr-defined]
        return frozen and all(lasting(getattr(value, field.name)) for field in fields(kind))
    return isinstance(value, str | bytes | int | float | complex | np.generic | range | Enum) or (
        kind.__module__.partition(".")[0] in _FIXED
    )


def variables(coro: Any) -> dict[str, Any]:
    """Return a coroutine's variables by name."""
    local = coro.cr_frame.f_locals
    found = dict(local)
    if type(local) is dict:
        local.clear()  # a copy that the frame would keep, and with it what the variables held
    return found

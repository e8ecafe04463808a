"""What a value is, as plain data that is the same in every process: what answers of a model are kept under.

Python's own ``hash`` differs from process to process, and an ``id`` means nothing in another. Here numbers, strings,
arrays and containers are written out; functions are their code, with what they name; objects say themselves what they
are, by an attribute or a method ``journal_key``.
"""

from __future__ import annotations

import datetime
import decimal
import dis
import fractions
import functools
import hashlib
import json
import pathlib
import types
import uuid
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from .pictures import contents, is_tensor
from .reach import Names, names_in, package

_PLAIN = (str, int, bool, type(None))
_SPELLED = (
    pathlib.PurePath, decimal.Decimal, fractions.Fraction, uuid.UUID, datetime.date, datetime.time, datetime.timedelta,
    range, complex,
)  # fmt: skip
_CHANGERS = frozenset((
    "add", "append", "appendleft", "clear", "discard", "extend", "insert", "move_to_end", "pop", "popitem", "remove",
    "setdefault", "update",
))  # fmt: skip
_ADAPTER = ("active_adapter", "_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
_SAMPLED = 1 << 16
"""Of a weight with more elements than that, so many are looked at."""


class NoForm(TypeError):
    """A value that cannot be told from others by plain data."""


def digest(form: Any) -> bytes:
    """Return the SHA-256 of a form, (32,) bytes.

    >>> digest(form({"b": (1, 2.0), "a": "x"})).hex()[:8] == digest(form({"a": "x", "b": (1, 2.0)})).hex()[:8]
    True
    """
    text = json.dumps(form, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).digest()


def form(value: Any, function: Callable[[Any], Any] | None = None) -> Any:
    """Return a value as lists, strings and whole numbers, the same in every process.

    ``function`` gives the form of a function; by default it is `function_form`. Raises `NoForm`, naming the type, for
    what nothing is known of.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is float:
        return ["float", value.hex()]
    if isinstance(value, list | tuple):
        tag = "tuple" if isinstance(value, tuple) else "list"
        named = [_place(kind)] if hasattr(value, "_fields") else []
        return [tag, *named, [form(part, function) for part in value]]
    if isinstance(value, dict):
        pairs = [[form(key, function), form(part, function)] for key, part in value.items()]
        return ["dict", sorted(pairs, key=json.dumps)]
    if isinstance(value, set | frozenset):
        return ["set", sorted((form(part, function) for part in value), key=json.dumps)]
    if isinstance(value, bytes | bytearray):
        return ["bytes", hashlib.sha256(value).hexdigest()]
    if hasattr(kind, "journal_key") and not isinstance(value, type):
        said = value.journal_key
        return ["object", _place(kind), form(said() if callable(said) else said, function)]
    return _other(value, kind, function or function_form)


def _other(value: Any, kind: Any, function: Callable[[Any], Any]) -> Any:
    """Return the form of what is neither plain, nor a container, nor says itself what it is."""
    if isinstance(value, Enum):
        return ["enum", _place(kind), value.name]
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufcUSmM":
        array = np.ascontiguousarray(value)
        return ["array", array.dtype.str, list(np.shape(value)), hashlib.sha256(array.tobytes()).hexdigest()]
    if is_tensor(kind):
        return ["tensor", *_tensor(value.detach(), None)]
    if isinstance(value, _SPELLED):
        return ["spelled", _place(kind), repr(value)]
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType | functools.partial):
        return function(value)
    if isinstance(value, type):
        return ["class", _place(value)]
    if value is Ellipsis:
        return ["ellipsis"]
    if is_dataclass(kind):
        return ["data", _place(kind), [[field.name, form(getattr(value, field.name), function)]
                                       for field in fields(value)]]  # fmt: skip
    if hasattr(kind, "named_parameters") and hasattr(kind, "forward"):
        return ["weights", weights(value)]
    raise NoForm(f"a {_place(kind)} cannot be told from others")


def _place(kind: Any) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


# Functions


def function_form(fn: Any) -> Any:
    """Return what a function is: its code, its defaults, what it closes over, and the globals that it names.

    Functions of its own package are followed, and constants, strings, tuples and containers read, unless the code
    changes containers, which then are its memory. Of other objects and libraries the names are known, not the state.
    """
    return _function(fn, {}, 0)


def _function(fn: Any, seen: dict[int, int], depth: int) -> Any:
    if isinstance(fn, types.MethodType):
        return ["method", _function(fn.__func__, seen, depth), form(fn.__self__)]
    if isinstance(fn, functools.partial):
        return ["partial", form((fn.func, fn.args, fn.keywords))]
    fn = getattr(fn, "__wrapped__", fn)
    code = getattr(fn, "__code__", None)
    if code is None:
        bound = getattr(fn, "__self__", None)
        if bound is not None and not isinstance(bound, types.ModuleType):
            raise NoForm(f"{fn!r} is a method of an object")
        return ["builtin", getattr(fn, "__module__", None) or "", fn.__qualname__]
    if id(code) in seen:
        return ["again", seen[id(code)]]
    seen[id(code)] = len(seen)
    names = names_in(code)
    memory = _changes(code, names)

    def around(value: Any) -> Any:
        return _around(value, seen, depth, memory, package(fn.__module__ or ""))

    cells = [[around(part) for part in contents(cell)] for cell in fn.__closure__ or ()]
    scope = fn.__globals__
    reads = [[name, around(scope[name])] for name in names.reads if name in scope]
    defaults = [around(value) for value in (*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values())]
    return ["function", fn.__name__, _code(code), cells, reads, defaults]


def _changes(code: Any, names: Names) -> bool:
    """Whether code changes containers in place."""
    inner = [code, *(const for const in code.co_consts if isinstance(const, types.CodeType))]
    steps = [step.opname for one in inner for step in dis.get_instructions(one)]
    stores = not {"STORE_SUBSCR", "DELETE_SUBSCR"}.isdisjoint(steps)
    return stores or bool(names.writes) or not _CHANGERS.isdisjoint(names.takes)


def _around(value: Any, seen: dict[int, int], depth: int, memory: bool, home: str) -> Any:
    """Return what is known of something that a function names: functions and plain values as they are."""
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__]
    inner = getattr(value, "__wrapped__", value)
    if isinstance(inner, types.FunctionType):
        if depth < 8 and home == package(inner.__module__ or "") != "":
            return _function(inner, seen, depth + 1)
        return ["named", inner.__module__, inner.__qualname__]
    if isinstance(value, list | dict | set) and memory:
        return ["memory", type(value).__name__]
    if isinstance(value, (*_PLAIN, float, bytes, complex, list | dict | set | tuple | frozenset, Enum, np.ndarray)):
        try:
            return form(value, lambda fn: _around(fn, seen, depth, memory, home))
        except (NoForm, RecursionError):
            return ["container", type(value).__name__]
    if isinstance(value, type):
        return ["class", _place(value)]
    try:
        return form(value, lambda fn: _around(fn, seen, depth, memory, home)) if _says(value) else _kind(value)
    except NoForm:
        return _kind(value)


def _says(value: Any) -> bool:
    return hasattr(type(value), "journal_key") and package(type(value).__module__) == ""


def _kind(value: Any) -> Any:
    return ["some", _place(type(value))]


def _code(code: types.CodeType) -> Any:
    """Return code as data: what it does, not where it stands."""
    consts = [_code(const) if isinstance(const, types.CodeType) else form(const) for const in code.co_consts]
    return [code.co_code.hex(), consts, list(code.co_names), list(code.co_varnames), list(code.co_freevars)]


# Weights


_weighed: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()
"""Digests of modules, with what they were when they were made."""


def weights(module: Any) -> str:
    """Return a digest of a torch module: of its parameters and buffers, by a sample of the large ones, and its classes.

    Training, loading, adapters and another type change it.
    """
    told, tensors = [*map(_settings, module.modules())], [*_named(module)]
    now = told, [(name, id(tensor), tensor.data_ptr(), _version(tensor)) for name, tensor in tensors]
    known = _weighed.get(module)
    if known is not None and known[0] == now:
        return known[1]
    summary = hashlib.sha256()
    for name, tensor in tensors:
        summary.update(json.dumps([name, *_tensor(tensor.detach(), _SAMPLED)]).encode())
    kinds = {type(part) for part in module.modules()}
    own = [kind.forward for kind in kinds if package(kind.__module__) not in ("", "torch", "transformers", "diffusers")]
    code = sorted(json.dumps(_code(fn.__code__)) for fn in own if hasattr(fn, "__code__"))
    summary.update(json.dumps([told, code]).encode())
    _weighed[module] = now, summary.hexdigest()
    return _weighed[module][1]


def _version(tensor: Any) -> Any:
    """Return how often a tensor was changed; something new where it does not count, as in inference mode."""
    try:
        return tensor._version
    except RuntimeError:
        return object()


def _settings(module: Any) -> list[str]:
    """Return what a module says of itself, and which adapters of peft are in force in it."""
    held = vars(module)
    return [_place(type(module)), module.extra_repr(), *(f"{name} {held[name]}" for name in _ADAPTER if name in held)]


def _named(module: Any) -> Iterable[tuple[str, Any]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _tensor(tensor: Any, most: int | None) -> list[Any]:
    """Return a tensor's type, shape and a digest of its elements, or of some of them, evenly spread."""
    said = [str(tensor.dtype), list(tensor.shape)]
    if tensor.device.type == "meta":
        return [*said, "elsewhere"]
    flat = tensor.reshape(-1)
    if most is not None and len(flat) > most:
        flat = flat[:: len(flat) // most + 1]
    return [*said, hashlib.sha256(bytes(_bytes_of(flat))).hexdigest()]


def _bytes_of(flat: Any) -> bytes:
    import torch

    array = flat.contiguous().cpu().view(torch.uint8).numpy() if flat.numel() else np.zeros(0, np.uint8)
    found: bytes = array.tobytes()
    return found

"""What code can reach: all that can be changed in place within a few steps of some functions, coroutines and values."""

from __future__ import annotations

import dis
import gc
import itertools
import sys
import types
from collections import deque
from collections.abc import Collection, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .guard import LEAVES, SharedSet
from .pictures import (
    HOME,
    SAMPLE,
    Look,
    attributes,
    awaiting,
    class_picture,
    class_state,
    contents,
    is_data,
    is_tensor,
    look_at,
    private,
    public,
    variables,
)

_NOTHING = (types.ModuleType, types.BuiltinFunctionType, range, SharedSet)
_LEAF_TYPES = frozenset(LEAVES)
MOST = 4096
"""How many things are looked for at most."""
DEPTH = 8
"""How many steps away things are looked for: a variable, its items, their attributes, and so on."""


class Place(NamedTuple):
    """Something that can be changed in place: its name in the program, how to look at it, and what it was."""

    name: str
    thing: Any
    look: Look
    before: tuple[Any, ...] | None = None


class Names(NamedTuple):
    """Names in code, and in the functions in it: globals read and written, attributes taken and set."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    takes: tuple[str, ...]
    sets: tuple[str, ...]


@lru_cache(maxsize=4096)
def names_in(code: types.CodeType) -> Names:
    """Return the names in code."""
    reads, writes, takes, sets = set(), set(), set(), set()
    # What a method sets is, as a rule, its own object's: a memory, a count.
    method = "." in code.co_qualname.rpartition("<locals>.")[2]
    for step in dis.get_instructions(code):
        if step.opname == "LOAD_GLOBAL":
            reads.add(step.argval)
        elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            writes.add(step.argval)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            takes.add(step.argval)
        elif step.opname in ("STORE_ATTR", "DELETE_ATTR") and not method:
            sets.add(step.argval)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            for names, inner in zip((reads, writes, takes, sets), names_in(const)):
                names.update(inner)
    return Names(*(tuple(sorted(names)) for names in (reads, writes, takes, sets)))


class Reach:
    """All that can be changed in place within a few steps of some functions, coroutines and values.

    Args:
        homes: the packages of the code that is looked at: globals and private attributes are looked at in these alone.
        program: ids of all that the program itself is given. Particles share it, so that a container among it is
            shared, and an object is a model or a tool, with a memory of its own.
    """

    def __init__(self, homes: Collection[str], program: Collection[int] = ()) -> None:
        self.homes = set(homes) - {""}
        self.program = program
        self.own: dict[int, Place] = {}
        self.shared: dict[Any, Place] = {}
        self.seen: dict[int, Any] = {}
        self.sets: set[str] = set()
        self.tools: list[tuple[Any, str]] = []

    def mine(self, module: str) -> bool:
        """Whether a module is of the packages that are looked at, or lies beside one of them."""
        top = package(module)
        return bool(top) and (top in self.homes or any(_beside(top, home) for home in self.homes))

    def outside(self) -> dict[Any, Place]:
        """Return what particles share; of objects and modules, the attributes that the code itself sets."""
        names = tuple(sorted(self.sets))
        if names:
            for tool, name in self.tools:
                self.shared[id(tool), ""] = Place(name, tool, partial(_set_attributes, names))
        return self.shared

    def add(self, value: Any, name: str, depth: int = DEPTH, shared: bool = False) -> None:
        """Add what can be reached from a value that the program knows by a name."""
        kind: Any = type(value)
        if kind is types.ModuleType and self.mine(value.__name__):
            self.tools.append((value, name))
        if kind in LEAVES or kind in _NOTHING or depth == 0 or id(value) in self.seen or len(self.seen) > MOST:
            return
        self.seen[id(value)] = value  # kept, so that its id is no other's
        shared = shared or id(value) in self.program
        if kind is types.FunctionType:
            self.function(value, depth, shared)
        elif kind is types.CoroutineType:
            self.coroutine(value, depth)
        elif isinstance(value, type):
            self._class(value, name, depth)
        elif (look := look_at(kind)) is not None:
            self._watch(value, name, look, shared)
        elif is_data(kind):
            self._data(value, name, depth, shared)
        for part, called in _parts(value, name):
            self.add(part, called, depth - 1, shared)

    def coroutine(self, coro: Any, depth: int = DEPTH) -> None:
        """Add what a coroutine that has not started gets as arguments, and what its function closes over."""
        if coro.cr_frame is not None:
            for name, value in variables(coro).items():
                self.add(value, name, depth)
            for part in gc.get_referents(coro):
                if type(part) is types.FunctionType and part.__code__ is coro.cr_code:
                    self.add(part, part.__name__, depth)

    def enclosing(self, coro: Any) -> None:
        """Add what a coroutine that waits, and those that it waits for, hold in their variables."""
        for waiting in awaiting(coro):
            for part in gc.get_referents(waiting):
                self.add(part, "")

    def function(self, fn: Any, depth: int = DEPTH, shared: bool = False) -> None:
        """Add what a function closes over, its default arguments and attributes, and the globals that it names."""
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or ()):
            self.add(cell, name, depth, shared)
        defaults = fn.__defaults__ or ()
        named = fn.__code__.co_varnames[fn.__code__.co_argcount - len(defaults) :]
        for name, value in (*zip(named, defaults), *(fn.__kwdefaults__ or {}).items()):
            self.add(value, name, depth - 1, shared=True)
        if fn.__dict__:
            self.add(fn.__dict__, fn.__name__, depth - 1, shared=True)
        scope = fn.__globals__
        if self.mine(scope.get("__name__", "")):
            reads, writes, takes, sets = names_in(fn.__code__)
            self.sets.update(sets)
            for name in reads:
                value = scope.get(name)
                self.add(value, name, depth - 1, shared=True)
                if type(value) is types.ModuleType and self.mine(value.__name__):
                    for taken in takes:
                        self.add(vars(value).get(taken), f"{name}.{taken}", depth - 1, shared=True)
            for name in writes:
                self.shared[id(scope), name] = Place(name, scope, partial(_binding, name))

    def _data(self, value: Any, name: str, depth: int, shared: bool) -> None:
        kind = type(value)
        mine = self.mine(kind.__module__)
        if shared:  # a model or a tool
            if mine:
                self.tools.append((value, name))
            return
        self._watch(value, name, private if mine else public, shared)
        self._class(kind, kind.__name__, depth)
        for attribute, part in attributes(value, mine).items():
            self.add(part, f"{name}.{attribute}", depth - 1)

    def _class(self, cls: Any, name: str, depth: int) -> None:
        if not self.mine(cls.__module__):
            return
        for member in vars(cls).values():
            fn = getattr(member, "__func__", member)
            if type(fn) is types.FunctionType:
                self.add(fn, name, depth - 1, shared=True)
        if state := class_state(cls):
            self._watch(cls, name, class_picture, True)
            for attribute, part in state.items():
                self.add(part, f"{name}.{attribute}", depth - 1, shared=True)

    def _watch(self, value: Any, name: str, look: Look, shared: bool) -> None:
        if shared:
            self.shared[id(value)] = Place(name, value, look)
        else:
            self.own[id(value)] = Place(name, value, look, look(value))


def surroundings(reachable: Sequence[Any]) -> tuple[frozenset[str], dict[int, Any]]:
    """Return the package of a program's function, and by id all that the function reaches and is given."""
    homes = frozenset({package(reachable[0].__module__)})
    reach = Reach(homes)
    for part in reachable:
        reach.add(part, "")
    return homes, reach.seen


def around(fn: Any) -> dict[str, Any]:
    """Return the variables that a function closes over, and the globals that it reads, by name."""
    code = getattr(fn, "__code__", None)
    if code is None:
        return {}
    cells = {name: value for name, cell in zip(code.co_freevars, fn.__closure__ or ()) for value in contents(cell)}
    return {**{name: fn.__globals__[name] for name in names_in(code).reads if name in fn.__globals__}, **cells}


def tensors(value: Any, name: str) -> list[Place]:
    """Picture the torch tensors in a value and its containers."""
    kind: Any = type(value)
    if is_tensor(kind):
        look = look_at(kind)
        return [] if look is None else [Place(f"is {name}", value, look, look(value))]
    if isinstance(value, list | tuple | dict):
        return [place for part, called in _parts(value, name) for place in tensors(part, called)]
    return []


def package(module: str) -> str:
    """Return the top package of a module's name; none for our own, whose globals are nobody's variables."""
    top = module.partition(".")[0]
    return "" if top == HOME else top


def _parts(value: Any, name: str) -> list[tuple[Any, str]]:
    """Return what a container holds, or what a callable consists of, with names."""
    kind = type(value)
    if kind is types.CellType:
        return [(part, name) for part in contents(value)]
    if kind is types.GeneratorType:
        return [(part, f"{name}.{called}") for called, part in variables(value).items()]
    if kind is types.SimpleNamespace:
        return [(part, f"{name}.{called}") for called, part in vars(value).items()]
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [(part, f"{name}[{i}]") for i, part in enumerate(itertools.islice(value.flat, SAMPLE))]
    if kind is types.MethodType:
        return [(value.__func__, name), (value.__self__, "self")]
    if kind is partial:
        return [(part, name) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, dict | list | tuple | deque) and _LEAF_TYPES.issuperset(
        map(type, value.values() if isinstance(value, dict) else value)
    ):
        return []
    if isinstance(value, dict):
        some = itertools.islice(value.items(), SAMPLE)
        return [(part, f"{name}[{key!r}]" if type(key) in LEAVES else f"{name}[…]") for key, part in some]
    if isinstance(value, list | tuple | deque):
        return [(part, f"{name}[{i}]") for i, part in enumerate(itertools.islice(value, SAMPLE))]
    if package(kind.__module__) == "" and hasattr(kind, "reachable"):  # a program: its function and its arguments
        return [(part, name) for part in value.reachable]
    return []


def _binding(name: str, scope: Any) -> tuple[Any, ...]:
    return (scope[name],) if name in scope else ()


def _set_attributes(names: Sequence[str], thing: Any) -> tuple[Any, ...]:
    held = vars(thing) if type(thing) is types.ModuleType else attributes(thing, True)
    return tuple(part for name in names if name in held for part in (name, held[name]))


@lru_cache(maxsize=4096)
def _beside(top: str, home: str) -> bool:
    """Whether a package lies in the folder that another lies in: a module of helpers beside a script."""
    folder = _folder(home)
    return folder is not None and folder.name not in ("site-packages", "dist-packages") and folder == _folder(top)


def _folder(top: str) -> Path | None:
    module = sys.modules.get(top)
    file, within = getattr(module, "__file__", None), hasattr(module, "__path__")
    if file is None:
        return Path.cwd() if top == "__main__" else None
    return Path(file).resolve().parents[within]

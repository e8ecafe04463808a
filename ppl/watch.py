"""What a branch of a gather, or an iteration of a scan, changes outside itself is found here, and refused.

A fork does not replay a branch that has finished, nor an iteration: what they left in a list or a variable of the code
around them would be missing from the copy, and its weights wrong. So whatever they can reach in a few steps (variables
of enclosing functions, arguments, default arguments, attributes, globals) is pictured when the gather or the scan
opens, and looked at again whenever a piece of their code has run. Most reach nothing that can change, and cost nothing.
"""

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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import SharedMutation
from .fibers import fail
from .guard import LEAVES, SharedSet
from .pictures import (
    HOME,
    SAMPLE,
    Look,
    alike,
    attributes,
    awaiting,
    class_picture,
    class_state,
    contents,
    is_data,
    is_tensor,
    look_at,
    may_change,
    private,
    public,
    variables,
)
from .sites import address

if TYPE_CHECKING:
    from .fibers import Fiber

_NOTHING = (types.ModuleType, types.BuiltinFunctionType, range, SharedSet)
STEADY: set[type] = set(LEAVES)
"""Types whose values cannot be changed in place, as far as they have been met."""
_LEAF_TYPES = frozenset(LEAVES)
MOST = 4096
"""How many things are looked for at most."""
DEPTH = 8
"""How many steps from a branch things are looked for: a variable, its items, their attributes, and so on."""


class Place(NamedTuple):
    """Something that can be changed in place: its name in the program, how to look at it, and what it was."""

    name: str
    thing: Any
    look: Look
    before: tuple[Any, ...] | None = None


class Watch:
    """What the branches of a gather, or the iterations of a scan, can reach and must not change.

    Attributes:
        own: the particle's own things, as they were when the gather or scan opened.
        shared: what particles share: rewards and calls of others may change it while a branch waits, so it is compared
            from where a piece of code starts to where it ends.
    """

    __slots__ = ("own", "shared")

    def __init__(self, own: list[Place], shared: list[Place]) -> None:
        self.own = own
        self.shared = shared

    def begin(self) -> list[tuple[Any, ...]]:
        """Look at what particles share, before a piece of code runs."""
        return [look(thing) for _, thing, look, _ in self.shared]

    def changed(self, begun: Sequence[tuple[Any, ...]]) -> str | None:
        """Return the name of something that has changed, or None."""
        for name, thing, look, before in self.own:
            if before is not None and not alike(before, look(thing)):
                return name
        for (name, thing, look, _), was in zip(self.shared, begun):
            if not alike(was, look(thing)):
                return name
        return None

    def check(self, fiber: Fiber, begun: Sequence[tuple[Any, ...]]) -> None:
        """Raise `SharedMutation` if a branch or an iteration has changed something around it."""
        changed = self.changed(begun)
        if changed is None:
            return
        assert fiber.parent is not None
        effect = fiber.parent.effect
        scan = effect.kind == "scan"
        inside = f"an iteration of scan {effect.name!r}" if scan else f"branch {fiber.index} of gather {effect.name!r}"
        cell = changed.rpartition(".")[2].partition("[")[0] or changed
        fail(
            fiber,
            SharedMutation(
                f"particle {fiber.run.row}: {inside} has changed `{changed}`, which is not its own: in a forked "
                f"particle, which does not repeat finished {'iterations' if scan else 'branches'}, the change would be "
                f"lost. {'Put it into the carry' if scan else 'Return it from the branch'}, or share it: "
                f'`{cell} = fk.cell("{cell}", start)` before the {effect.kind}, and '
                f"`await {cell}.add(x)` or `await {cell}.set(x)` where it is changed"
            ),
        )


class Names(NamedTuple):
    """Names in code, and in the functions in it: globals read and written, attributes taken and set."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    takes: tuple[str, ...]
    sets: tuple[str, ...]


@lru_cache(maxsize=4096)
def _names_in(code: types.CodeType) -> Names:
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
            for names, inner in zip((reads, writes, takes, sets), _names_in(const)):
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
            reads, writes, takes, sets = _names_in(fn.__code__)
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


class Watches:
    """Makes the watches of a wave; what several of them need is found once."""

    def __init__(self) -> None:
        self._plain: dict[Any, Watch | None] = {}

    def of_step(self, fiber: Any, scan: Any) -> Watch | None:
        """Return a watch on what the step function of a scan can reach; None where nothing can change."""
        step = scan.step
        plain = type(step) is types.FunctionType and not step.__closure__
        if plain and step in self._plain:
            return self._plain[step]
        homes, program = fiber.run.program.surroundings
        reach = Reach(homes | {package(getattr(step, "__module__", None) or "")}, program)
        reach.add(step, "step")
        watch = _watching(list(reach.own.values()), reach)
        if plain:  # then all that it reaches is shared, and looked at anew each time
            self._plain[step] = watch
        return watch

    def of_branches(self, fiber: Any, gather: Any) -> Watch | None:
        """Return a watch on what the branches of a gather can reach; None where nothing can change.

        What one branch alone can reach, and none of the coroutines around the gather, is its own business.
        """
        homes, program = fiber.run.program.surroundings
        homes = homes | {package(branch.cr_frame.f_globals.get("__name__", "")) for branch in gather.branches}
        whole = Reach(homes, program)
        times: dict[int, int] = {}
        for branch in gather.branches:
            reach = Reach(homes, program)
            reach.coroutine(branch)
            whole.own |= reach.own
            whole.shared |= reach.shared
            whole.seen |= reach.seen
            whole.sets |= reach.sets
            whole.tools += reach.tools
            for place in reach.own:
                times[place] = times.get(place, 0) + 1
        if any(count == 1 for count in times.values()):
            around = Reach(homes, program)
            around.seen = {id(branch): branch for branch in gather.branches}
            while fiber is not None:
                around.enclosing(fiber.coro)
                fiber = fiber.parent
            times |= dict.fromkeys(around.seen, 2)
        return _watching([place for key, place in whole.own.items() if times[key] > 1], whole)

    def of_iteration(self, fiber: Any, carry: Any, x: Any) -> Watch | None:
        """Return the watch on a scan's step, and on the iteration's carry and input where these can change."""
        watch: Watch | None = fiber.inside
        reach = Reach(*fiber.run.program.surroundings)
        reach.add(carry, "carry")
        reach.add(x, "x")
        if not reach.own:
            return watch
        return Watch([*reach.own.values(), *(watch.own if watch else ())], watch.shared if watch else [])


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
    return {**{name: fn.__globals__[name] for name in _names_in(code).reads if name in fn.__globals__}, **cells}


def tensors(value: Any, name: str) -> list[Place]:
    """Picture the torch tensors in a value and its containers."""
    kind: Any = type(value)
    if is_tensor(kind):
        look = look_at(kind)
        return [] if look is None else [Place(f"is {name}", value, look, look(value))]
    if isinstance(value, list | tuple | dict):
        return [place for part, called in _parts(value, name) for place in tensors(part, called)]
    return []


def keep(fiber: Fiber, value: Any) -> None:
    """Picture what an await returned, where it could be changed in place: forks would see the change."""
    kind: Any = type(value)
    if not may_change(kind):
        STEADY.add(kind)
        return
    effect = fiber.effect
    reach = Reach(*fiber.run.program.surroundings)
    reach.add(value, address(effect.name, effect.visit))
    # What other libraries' objects do with their attributes is their own business: some load what they hold late.
    found = [
        place._replace(name=f"{place.name!r} returned") for place in reach.own.values() if place.look is not public
    ]
    if found:
        fiber.kept = (*fiber.kept, *found)
        fiber.run.keeps = True


def check_kept(fiber: Fiber) -> None:
    """Raise `SharedMutation` if something that an await of the fiber, or within it, returned has been changed since."""
    for name, thing, look, before in fiber.kept:
        if before is not None and not alike(before, look(thing)):
            kind: Any = type(thing)
            copy = "it.clone()" if is_tensor(kind) else "copy.deepcopy(it)"
            fail(
                fiber,
                SharedMutation(
                    f"particle {fiber.run.row}: a {kind.__name__} that {name} has been changed in place; particles "
                    f"share their arguments and what awaits return, so change a copy of it: {copy}"
                ),
            )
    for child in fiber.children:
        if child is not None:
            check_kept(child)


def _watching(own: list[Place], reach: Reach) -> Watch | None:
    shared = list(reach.outside().values())
    return Watch(own, shared) if own or shared else None

"""What a branch of a gather, or an iteration of a scan, changes outside itself is found here, and refused.

A fork does not replay a branch that has finished, nor an iteration: what they left in a list or a variable of the code
around them would be missing from the copy, and its weights wrong. So whatever they can reach in a few steps (variables
of enclosing functions, arguments, default arguments, attributes, globals) is pictured when the gather or the scan
opens, and looked at again whenever a piece of their code has run. Most reach nothing that can change, and cost nothing.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SharedMutation
from ..sites import address
from ..values.guard import LEAVES
from ..values.pictures import alike, is_tensor, may_change, public
from ..values.reach import Place, Reach, package
from .fibers import fail

if TYPE_CHECKING:
    from .fibers import Fiber, Watching

STEADY: set[type] = set(LEAVES)
"""Types whose values cannot be changed in place, as far as they have been met."""


_NUMBERS = frozenset((*LEAVES, np.bool_, np.int32, np.int64, np.float32, np.float64))


def steady(value: Any) -> bool:
    """Whether a value is a number, a text, or a tuple of those, of which nothing can be changed in place."""
    kind = type(value)
    return kind in _NUMBERS or (kind is tuple and all(map(steady, value)))


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
        inside = (
            f"an iteration of scan {effect.name!r}"
            if scan
            else f"branch {fiber.index} of {effect.kind} {effect.name!r}"
        )
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


class Watches:
    """Makes the watches of a wave; what several of them need is found once."""

    def __init__(self) -> None:
        self._plain: dict[Any, Watch | None] = {}

    def of_step(self, fiber: Any, scan: Any) -> Watch | None:
        """Return a watch on what the step function of a scan can reach; None where nothing can change."""
        step = scan.step
        plain = _alone(step)
        if plain is not None and plain in self._plain:
            return self._plain[plain]
        homes, program = fiber.run.program.surroundings
        reach = Reach(homes | {package(getattr(step, "__module__", None) or "")}, program)
        reach.add(step, "step")
        watch = _watching(list(reach.own.values()), reach)
        if plain is not None:  # then all that it reaches is shared, and looked at anew each time
            self._plain[plain] = watch
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

    def of_iteration(self, fiber: Fiber, carry: Any, x: Any) -> Watching | None:
        """Return the watch on a scan's step, and on the iteration's carry and input where these can change."""
        watch = fiber.inside
        reach = Reach(*fiber.run.program.surroundings)
        reach.add(carry, "carry")
        reach.add(x, "x")
        if not reach.own:
            return watch
        return Watch([*reach.own.values(), *(watch.own if watch else ())], watch.shared if watch else [])


def _alone(fn: Any) -> Any:
    """Return what a function shares with all that can reach the same; None for one that closes over something.

    A program that runs again makes its inner functions anew, of the same code.
    """
    if type(fn) is not types.FunctionType or fn.__closure__:
        return None
    more = fn.__defaults__ or fn.__kwdefaults__ or fn.__dict__
    return fn if more else (fn.__code__, id(fn.__globals__))


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

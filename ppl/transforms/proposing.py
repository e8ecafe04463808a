"""A guide beside a model: what it would draw at a site becomes the site's proposal; `handlers.propose` makes it.

The two coroutines go side by side, each a function of what it has seen. Where the model draws, the guide is run to its
next draw, whose law is the proposal if both are at the same address, and then both get the value. So the guide sees
what was drawn, forced or observed before, forks replay both, and weights and ``given`` are those of any proposal. A
gather of the model goes with one of the guide, branch by branch, and a scan with a scan, whose carry holds both.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, NamedTuple, NoReturn

from ..effects import Call, Effect, Gather, Race, Sample, Scan, as_coroutine
from ..errors import UnawaitedEffect, UnfitGuide
from ..program import Program
from ..running.fibers import Run, fail
from ..running.handling import Block, Scope
from ..sites import MISSING, Running, address, shut
from .params import Parameters

_QUIET = (Scope, Block, Parameters)
"""Handlers that a guide may be under: they do not change what it draws."""


def guided(model: Program, guide: Program) -> Program:
    """Return the model with the guide's laws as its proposals."""

    async def propose(model: Program, guide: Program) -> Any:
        for handler in guide.handlers:
            handler.inside()
        fiber = _beside(Running.fiber, guide)
        result, _ = await _together(model.inline(), fiber, len(Running.fiber.handlers), True)
        return result

    propose.__module__ = model.reachable[0].__module__  # whose variables are watched
    return Program(propose, (model, guide), {})


def _beside(outer: Any, guide: Program) -> Any:
    """Return a fiber of the guide, which nothing but the model's fiber drives."""
    handlers = [*outer.handlers, *guide.handlers]
    if outer.traced:
        from ..traced.fiber import TracedFiber, TracedRun
        from ..traced.met import Listener

        return TracedFiber(TracedRun(Listener(), guide.name), guide.coroutine(), handlers, {})
    run = Run(guide)
    run.begin(outer.run.row, outer.run.batch)
    run.root.handlers = handlers
    return run.root


@types.coroutine
def _together(
    driven: Coroutine[Any, Any, Any], fiber: Any, outer: int, whole: bool = False
) -> Generator[Any, Any, tuple[Any, Any]]:
    """Run a coroutine of the model, and beside it the guide's; return what each returns.

    ``outer`` is the number of handlers around both, and ``whole`` says whether it is all of the guide. (A fork looks at
    the variables of what is ``driven``, see `pictures.awaiting`.)
    """
    guide = _Guide(fiber, outer, whole)
    value: Any = None
    error: Exception | None = None
    try:
        while True:
            try:
                effect = driven.send(value) if error is None else driven.throw(error)
            except StopIteration as stop:
                yield from guide.end()
                return stop.value, guide.result
            error = None
            if isinstance(effect, Effect):
                yield from guide.meet(effect)
            try:
                value = guide.share(effect, (yield effect))
            except Exception as raised:  # by a call, or since the site is wrong
                error = raised
    finally:
        shut(driven)
        fiber.drop()


class _Guide:
    """A coroutine of the guide, beside one of the model."""

    def __init__(self, fiber: Any, outer: int, whole: bool) -> None:
        self.result: Any = None
        self._fiber = fiber
        self._outer = outer
        self._whole = whole
        self._next: Any = None  # what it wants to draw or to open, once it is known
        self._met: Any = None  # the model's effect that this one goes with
        self._answer: Any = None
        self._ended = False
        self._drawn: dict[str, int] = {}  # visits of names, by the model and by the guide
        self._wanted: dict[str, int] = {}

    def meet(self, effect: Effect) -> Generator[Any, Any, None]:
        """Let the guide propose what the model is about to draw, or go along where it branches or loops."""
        kind = type(effect)
        if not (kind in (Gather, Race, Scan) or (kind is Sample and effect.obs is MISSING)):  # type: ignore[attr-defined]
            return
        yield from self._advance()
        name = _full(effect.name, Running.fiber.handlers)
        self._drawn[name] = self._drawn.get(name, 0) + 1
        wanted = self._next
        if wanted is None or type(wanted) is not kind or wanted.name != name:
            return  # what has the same name is of the same visit: a guide that is behind has been refused
        self._next, self._met = None, effect
        if isinstance(effect, Sample) and isinstance(wanted, Sample):
            effect.proposal = wanted.kernel
        elif isinstance(effect, Gather) and isinstance(wanted, Gather):
            self._branch(effect, wanted)
        elif isinstance(effect, Scan) and isinstance(wanted, Scan):
            self._loop(effect, wanted)

    def share(self, effect: Effect, value: Any) -> Any:
        """Keep for the guide its part of what the model awaited, and return the model's."""
        if effect is not self._met:
            return value
        self._met, self._answer = None, value
        if type(effect) is Gather:
            value, self._answer = (tuple(part[i] for part in value) for i in (0, 1))
        elif type(effect) is Race:
            value, self._answer = (tuple((index, part[i]) for index, part in value) for i in (0, 1))
        elif type(effect) is Scan:
            (mine, its), ys = value
            value, self._answer = ((one, _part(ys, i)) for i, one in enumerate((mine, its)))
        return value

    def end(self) -> Generator[Any, Any, None]:
        """Run the guide to its end, where the model's coroutine has ended."""
        yield from self._advance()
        if self._next is not None:
            what = "draws" if type(self._next) is Sample else f"opens a {self._next.kind}"
            self._refuse(
                f"it {what} {address(self._next.name, self._next.visit)!r} and the model does not, at this place: a "
                "guide draws what its model draws, in branches and scans where the model does"
            )

    def _advance(self) -> Generator[Any, Any, None]:
        """Run the guide's code up to what it wants to draw or to open, unless it is there; its calls are made."""
        error: Exception | None = None
        while self._next is None and not self._ended:
            effect = self._send(error)
            error = None
            if effect is None:
                return
            if not isinstance(effect, Effect):
                self._refuse(f"it awaited a {type(effect).__name__}, which is not an effect of feynkac")
            name = _full(effect.name, self._fiber.handlers)
            if isinstance(effect, Call):
                effect.name = f"guide/{effect.name}"
                try:
                    self._answer = yield effect
                except Exception as raised:
                    error = raised
                continue
            effect.name, effect.visit = name, self._wanted.get(name, 0)
            self._wanted[name] = effect.visit + 1
            self._check(effect)
            self._next = effect

    def _send(self, error: Exception | None) -> Any:
        """Run the guide's code to its next effect; None where it has returned."""
        fiber = self._fiber
        run, (outer, Running.fiber) = fiber.run, (Running.fiber, fiber)
        value, self._answer = self._answer, None
        effect: Any = None
        try:
            effect = fiber.coro.send(value) if error is None else fiber.coro.throw(error)
        except StopIteration as stop:
            self._ended, self.result = True, stop.value
        finally:
            Running.fiber = outer
        if run.dropped is not None or (self._ended and self._whole and not fiber.traced and run.unawaited):
            what = run.dropped or "an effect or a program (in a container that was returned, say)"
            self._fail(UnawaitedEffect(f"{what} was created but never awaited: write `await` before it"))
        if not fiber.traced:
            fiber.effect = run.last = effect
        return effect

    def _check(self, effect: Any) -> None:
        """Raise where what the guide awaits is not for a guide, or comes too late."""
        kind, where = type(effect), address(effect.name, effect.visit)
        if kind not in (Sample, Gather, Race, Scan):
            self._refuse(f"it has the {effect.kind} {where!r}: a guide only draws; weights belong in the model")
        if kind is Sample:
            if effect.obs is not MISSING:
                self._refuse(f"it observes {where!r}: a guide only draws; give it the data as an argument")
            if effect.proposal is not None:
                self._refuse(f"it draws {where!r} from a proposal of its own; give it the law that it draws from")
            for handler in self._fiber.handlers[self._outer :]:
                if not isinstance(handler, _QUIET):
                    self._refuse(f"{where!r} is under a handler, {type(handler).__name__.lower()}, that changes it")
        if effect.visit < self._drawn.get(effect.name, 0):
            self._refuse(f"it comes to {where!r} after the model has: draw in the order in which the model does")

    def _branch(self, effect: Gather, wanted: Gather) -> None:
        mine, its = effect.branches, wanted.branches
        if effect.request != wanted.request:
            effect.close()
            wanted.close()
            had, has = (f" with k={race.k}" if isinstance(race, Race) else "" for race in (wanted, effect))
            self._refuse(
                f"its {wanted.kind} {wanted.name!r} has {len(its)} branches{had}, and the model's {len(mine)}{has}"
            )
        effect.branches = tuple(_started(_branch(*pair, self._within())) for pair in zip(mine, its))
        wanted.branches = ()  # they are closed with the model's

    def _loop(self, effect: Scan, wanted: Scan) -> None:
        if len(effect.xs) != len(wanted.xs):
            self._refuse(f"its scan {wanted.name!r} is over {len(wanted.xs)} inputs, the model's over {len(effect.xs)}")
        effect.step = _Steps(effect.step, wanted.step, self._within())
        effect.init = (effect.init, wanted.init)
        effect.xs = _Zip(effect.xs, wanted.xs)

    def _within(self) -> _Within:
        fiber = self._fiber
        return _Within(type(fiber), fiber.run, tuple(fiber.handlers), self._outer)

    def _refuse(self, why: str) -> NoReturn:
        run = self._fiber.run
        name = run.name if self._fiber.traced else run.program.name
        self._fail(UnfitGuide(f"the guide {name!r} does not fit its model: {why}"))

    def _fail(self, error: Exception) -> NoReturn:
        if self._fiber.traced:
            raise error
        fail(self._fiber, error)


def _part(ys: Any, i: int) -> Any:
    """Return one of the two that each y of a scan holds."""
    if hasattr(ys, "stacked"):  # of a scan that is traced
        return type(ys)(ys.stacked[i], len(ys))
    return tuple(y[i] for y in ys)


class _Within(NamedTuple):
    """What a part of the guide, a branch or an iteration, has around it; it outlasts the fiber that it is part of."""

    kind: Callable[..., Any]
    run: Any
    handlers: tuple[Any, ...]
    outer: int

    def fiber(self, coro: Any, *more: Any) -> Any:
        """Return a fiber of a coroutine of the part."""
        return self.kind(self.run, coro, [*self.handlers, *more], {})


class _Zip(Sequence[Any]):
    """The inputs of two scans."""

    def __init__(self, *xs: Any) -> None:
        self._xs = xs

    def __len__(self) -> int:
        return len(self._xs[0])

    def __getitem__(self, i: Any) -> Any:
        return tuple(xs[i] for xs in self._xs)


class _Steps:
    """The steps of two scans, as one."""

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any], within: _Within) -> None:
        self.reachable = (model, guide)  # what is watched
        self._within = within

    def __call__(self, carry: Any, x: Any) -> Any:
        model, guide = (
            as_coroutine(step(*at), "what a scan's step returns") for step, *at in zip(self.reachable, carry, x)
        )
        return _started(_iteration(model, guide, self._within))


async def _branch(model: Any, guide: Any, within: _Within) -> tuple[Any, Any]:
    await _ready(model, guide)
    scope = Running.fiber.handlers[-1]  # of the branch
    return await _together(model, within.fiber(guide, scope), within.outer)


async def _iteration(model: Any, guide: Any, within: _Within) -> tuple[Any, Any]:
    await _ready(model, guide)
    ended = await _together(model, within.fiber(guide), within.outer)
    for value in ended:
        if not (isinstance(value, tuple) and len(value) == 2):
            raise TypeError(f"the step of fk.scan must return (carry, y), not {value!r}")
    (carry, y), (its, other) = ended
    return (carry, its), (y, other)


@types.coroutine
def _ready(*coros: Any) -> Generator[None, Any, None]:
    """Wait to be run; where that never is, close the coroutines that are waiting, which would warn otherwise."""
    try:
        yield
    except BaseException:
        for coro in coros:
            shut(coro)
        raise


def _started(coro: Any) -> Any:
    """Bring a new coroutine to where it waits to be run."""
    coro.send(None)
    return coro


def _full(name: str, handlers: Sequence[Any]) -> str:
    """Return the name that a site has outside its handlers."""
    for handler in reversed(handlers):
        name = handler.rename(name)
    return name

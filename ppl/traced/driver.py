"""The driver: runs a program's code once, with whatever values a listener answers, symbols of JAX among them.

It does for one coroutine what a wave does for a batch of particles: handlers apply as there, addresses and visits are
the same, branches of a gather run one after another, and a scan is handed to the listener as a `Plan`. What sites mean
(draw, force, score, collect) is the listener's. Nothing here knows JAX, so that torch's symbols pass, too.
"""

from __future__ import annotations

import copy
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..effects import Call, Effect, Factor, Gather, Race, Sample, Scan, Twist
from ..errors import (
    AmbiguousScore,
    FeynkacError,
    ForeignAwaitable,
    InvalidWeight,
    NotTraceable,
    UnawaitedEffect,
)
from ..running.handling import Data, Replay, Scope, handle, touch
from ..score import Score
from ..sites import MISSING, Running, address, shut
from ..values.reals import real
from .fiber import Branch, Stop, TracedFiber, TracedRun, first_lines
from .met import Listener, Met, Spot


class Followed(NamedTuple):
    """What a traced coroutine came to: its value, the guide's level, the visits of each name, and the steps made."""

    value: Any
    level: Any
    visits: dict[str, int]
    step: int


def trace(program: Any, listener: Listener) -> Followed:
    """Run a bound program once, under its handlers.

    Raises NotTraceable, naming the site, where its code needs the number behind a symbol.
    """
    return follow(program.coroutine(), listener, program.handlers, name=program.name)


def follow(
    coro: Coroutine[Any, Any, Any], listener: Listener, handlers: Sequence[Any] = (), name: str = "coroutine"
) -> Followed:
    """Run any coroutine of effects once; see `trace`."""
    fiber = TracedFiber(TracedRun(listener, name), coro, list(handlers), {})
    value = drive(fiber)
    return Followed(value, fiber.level, fiber.visits, fiber.step)


def drive(fiber: TracedFiber) -> Any:
    """Run a fiber to its end, and return its value."""
    answer = None
    try:
        while True:
            done, found = _next(fiber, answer)
            if done:
                return found
            answer = _answer(fiber, found)
    finally:
        shut(fiber.coro)


def _next(fiber: TracedFiber, answer: Any) -> tuple[bool, Any]:
    """Run a fiber's code to its next effect (False, effect), or to its end (True, value)."""
    run: Any = fiber.run
    outer, Running.fiber = Running.fiber, fiber
    try:
        effect = fiber.coro.send(answer)
    except StopIteration as stop:
        if isinstance(stop.value, Effect):
            run.dropped = f"fk.{stop.value.kind}({stop.value.name!r}, …)"
        _check_dropped(run)
        return True, stop.value
    except (FeynkacError, Stop):
        raise
    except Exception as error:  # whatever it is, the interpreted program meets it as well, or needs numbers
        raise NotTraceable(f"{run.where()}: {type(error).__name__}: {first_lines(error)}") from error
    finally:
        Running.fiber = outer
    _check_dropped(run)
    if not isinstance(effect, Effect):
        raise ForeignAwaitable(
            f"{run.where()}: the program awaited a {type(effect).__name__}, which is not an effect of feynkac; "
            "wrap the asynchronous function: await fk.call(name, fn, *args)"
        )
    return False, effect


def _check_dropped(run: TracedRun) -> None:
    if run.dropped is not None:
        raise UnawaitedEffect(f"{run.where()}: {run.dropped} was never awaited: write `await` before it")


# -- what effects mean ---------------------------------------------------------------------------------------------


def _answer(fiber: TracedFiber, effect: Any) -> Any:
    """Let handlers and then the listener see an effect, and return what the code is answered."""
    bare, twin = effect.name, copy.copy(effect) if fiber.loops and type(effect) is Sample else None
    handle(fiber, effect)
    spot = Spot(_kind(effect), effect.name, effect.visit, fiber.step, hidden=effect.hidden)
    site = fiber.met(spot, bare, effect)
    if twin is not None and any(isinstance(handler, Data | Replay) for handler in fiber.handlers):
        _each_iteration(fiber, site, bare, twin)
    listener, kind = fiber.listener, type(effect)
    if kind is Sample:
        return _sampled(fiber, site, effect)
    if kind is Factor or kind is Twist:
        scored = isinstance(effect.log_weight, Score)
        weight = listener.score(site) if scored else log_weight(site, effect.log_weight)
        if not isinstance(site.terms.mask, bool):
            raise ValueError(f"{site!r}: an array mask is for observed arrays, and this is one number")
        site.value = site.terms.weigh(weight)
        fiber.step += 1
        if kind is Factor:
            listener.factor(site)
        else:
            fiber.guide.level, fiber.guide.twisted = site.value, True  # type: ignore[attr-defined]
            listener.twist(site)
        return None
    if kind is Gather:
        return _gathered(fiber, site, effect)
    if kind is Scan:
        return _scanned(fiber, effect)
    if kind is Race:
        raise NotTraceable(f"{site!r}: who wins an fk.race, and which steps are made, cannot be traced")
    return listener.call(site) if kind is Call else listener.other(site)


def _kind(effect: Any) -> str:
    return "observe" if type(effect) is Sample and effect.obs is not MISSING else str(effect.kind)


def _sampled(fiber: TracedFiber, site: Met, effect: Sample) -> Any:
    listener, observed = fiber.listener, effect.obs is not MISSING
    value = MISSING
    if observed:
        site.value = value = effect.obs
        listener.observe(site)
        fiber.step += 1
    if effect.fixed is not MISSING:
        spot = site.spot._replace(kind="do", name=f"{site.spot.name}__CF", step=fiber.step)
        listener.record(Met(spot, site.index, effect, effect.fixed))
        return effect.fixed
    return value if observed else listener.sample(site)


def _gathered(fiber: TracedFiber, site: Met, effect: Gather) -> tuple[Any, ...]:
    """Run the branches one after another. The step that follows is that of the one which makes the most."""
    values, step = [], fiber.step
    for i, coro in enumerate(effect.branches):
        prefix = f"{address(effect.label, effect.visit)}.{i}"
        scope = Branch(prefix, effect.label, i, effect.visit, site.spot.strides) if fiber.loops else Scope(prefix)
        child = TracedFiber(fiber.run, coro, [*fiber.handlers, scope], {}, fiber, i)  # type: ignore[arg-type]
        values.append(drive(child))
        step = max(step, child.step)
        fiber.guide.level = fiber.guide.level + child.level
    fiber.step = step
    return tuple(values)


def _scanned(fiber: TracedFiber, effect: Scan) -> Any:
    fiber.effect = effect  # by which handlers know that they are around a scan
    fiber.listener.opens(effect)
    if not len(effect.xs):
        return effect.init, ()
    from .loops import Plan

    plan = Plan(fiber, effect, drive)
    found = fiber.listener.scan(plan)
    for name, stride in plan.strides.items():
        fiber.visits[name] = fiber.visits.get(name, 0) + plan.length * stride
    fiber.step += plan.length * plan.steps
    return found


def _each_iteration(fiber: TracedFiber, site: Met, bare: str, twin: Sample) -> None:
    """Let handlers that hold values see a site in each iteration of its loops, and take what they hold for it as one.

    Raises NotTraceable where they hold a value for some iterations only.
    """
    met = []
    for at in np.ndindex(site.spot.lengths):
        one = copy.copy(twin)
        one.visit = site.spot.at(at)[1]
        touch(fiber, one, fiber.named(bare, at), one.visit)
        met.append(one)
    for name in ("obs", "forced", "fixed"):
        before, found = getattr(twin, name), [getattr(one, name) for one in met]
        changed = [value is not before for value in found]
        if any(changed) and not all(changed):
            raise NotTraceable(
                f"{site!r}: handlers give a value in some iterations of the scan only, so that not all do the same"
            )
        if any(changed):
            from .loops import by_iteration

            setattr(site.effect, name, by_iteration(found, site))
    if (site.effect.obs is MISSING) is (site.spot.kind == "observe"):
        raise NotTraceable(f"{site!r}: it is observed in some iterations of the scan only")


def log_weight(site: Met, value: Any) -> Any:
    """Return a log-weight, a number or a symbol of one.

    Raises AmbiguousScore for bools and what is no single number; InvalidWeight for a number that is NaN or +inf.
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        try:
            number = real(value)
        except TypeError as error:
            raise AmbiguousScore(f"{site!r}: a log-weight is a number or a score, and this is {error}") from error
        if not number < np.inf:
            raise InvalidWeight(f"{site!r}: the log-weight is {number}; it must be below +inf")
        return number
    name = getattr(dtype, "name", None) or str(dtype).rpartition(".")[2]
    if "bool" in name or "complex" in name or np.prod(value.shape) != 1:
        raise AmbiguousScore(
            f"{site!r}: a log-weight is a number, and this is of {name} and shape {tuple(value.shape)}; to keep only "
            "what is ok, write jnp.where(ok, 0.0, -jnp.inf)"
        )
    return value.reshape(())

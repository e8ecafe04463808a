"""The driver: runs a program's code once, with whatever values a listener answers, symbols of JAX among them.

It does for one coroutine what a wave does for a batch of particles: handlers apply as there, addresses and visits are
the same, branches of a gather run one after another, and a scan is handed to the listener as a `Plan`. What sites mean
(draw, force, score, collect) is the listener's. Nothing here knows JAX, so that torch's symbols pass, too.
"""

from __future__ import annotations

import copy
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..effects import Call, Effect, Factor, Gather, Sample, Scan, Twist
from ..errors import (
    AmbiguousScore,
    FeynkacError,
    ForeignAwaitable,
    InvalidWeight,
    NotTraceable,
    UnawaitedEffect,
)
from ..fibers import Fiber
from ..handling import Data, Replay, Scope, handle, touch
from ..keys import tag
from ..reals import real
from ..score import Score
from ..sites import MISSING, Running, address, check_name, short, shut
from ..terms import Terms


class Loop(NamedTuple):
    """A scan that is being traced.

    Attributes:
        length: its iterations.
        index: the current one: a symbol.
        strides: how often each name is visited in an iteration, by the name it has in the first one.
        steps: steps of the program that an iteration makes.
    """

    length: int
    index: Any
    strides: dict[str, int]
    steps: int


class Spot(NamedTuple):
    """Where a site is, in numbers alone: for each iteration of the loops around it, its name, visit and step.

    Attributes:
        kind: "sample", "observe", "factor", "twist", "deterministic", "call" or "do".
        name: in the first iteration.
        visit: in the first iteration; so is ``step``, of the program.
        lengths: of the loops, from the outermost.
        strides: by how much each loop's iteration adds to the visit; so do ``steps`` to the step.
        names: by iteration, where the name is not the same in all (in a gather within a loop); else None.
        hidden: whether a ``block`` handler hides the site.
    """

    kind: str
    name: str
    visit: int
    step: int
    lengths: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    names: Any = None
    hidden: bool = False

    @property
    def slot(self) -> str:
        """The address in the first iteration, which tells a site from all others of the traced code."""
        return address(self.name, self.visit)

    def at(self, index: Sequence[int] = ()) -> tuple[str, int, int]:
        """Return name, visit and step in an iteration of the loops."""
        name = self.name if self.names is None else str(self.names[tuple(index)])
        return name, self.visit + _dot(self.strides, index), self.step + _dot(self.steps, index)


def _dot(strides: Sequence[int], index: Sequence[Any]) -> Any:
    return sum(stride * i for stride, i in zip(strides, index))


class Met:
    """A site, as the driver meets it. ``value`` is what is observed, weighed or recorded; what it is of a sample, the
    listener says."""

    __slots__ = ("_law", "_proposal", "effect", "index", "spot", "terms", "value")

    def __init__(self, spot: Spot, index: tuple[Any, ...], effect: Any = None, value: Any = MISSING) -> None:
        self.spot = spot
        self.index = index
        self.effect = effect
        self.value = value
        self.terms: Terms = getattr(effect, "terms", None) or Terms()
        self._law: Any = None
        self._proposal: Any = None

    def __repr__(self) -> str:
        return f"{self.spot.kind} {self.slot!r}"

    @property
    def slot(self) -> str:
        """See `Spot.slot`."""
        return self.spot.slot

    @property
    def visit(self) -> Any:
        """The visit: a symbol in loops."""
        return self.spot.visit + _dot(self.spot.strides, self.index)

    @property
    def step(self) -> Any:
        """The program's step that the site belongs to: a symbol in loops."""
        return self.spot.step + _dot(self.spot.steps, self.index)

    @property
    def kernel(self) -> Any:
        """What the program wrote: a distribution, or a kernel."""
        return self.effect.kernel

    @property
    def law(self) -> Any:
        """Its law in JAX. Raises NotTraceable, naming the site, where there is none."""
        if self._law is None:
            self._law = self._in_jax(self.effect.kernel)
        return self._law

    @property
    def proposal(self) -> Any:
        """The law that it is drawn from, where the program gives one of its own, else None."""
        if self._proposal is None and self.effect.proposal is not None:
            self._proposal = self._in_jax(self.effect.proposal)
        return self._proposal

    def _in_jax(self, dist: Any) -> Any:
        from .laws import law_of

        return law_of(dist, f"site {self.slot!r}")

    @property
    def forced(self) -> Any:
        """The value that a handler forces, or MISSING."""
        return self.effect.forced

    def log_prob(self, value: Any) -> Any:
        """Return log p of a value, as it counts: scaled, and of an observation under its mask."""
        mask, scale = self.terms
        if self.spot.kind != "observe" or mask is True:
            return self.law.log_prob(value) if scale == 1.0 else scale * self.law.log_prob(value)
        if mask is False:
            return 0.0
        import jax.numpy as jnp

        terms = self.law.terms(jnp.where(mask, value, value[mask][0] if mask.any() else 0.0))
        if terms.shape != mask.shape:
            raise ValueError(f"{self!r}: a mask of shape {mask.shape} for components of shape {terms.shape}")
        return scale * jnp.sum(jnp.where(mask, terms, 0.0))

    def key(self, key: Any) -> Any:
        """Return the site's key of JAX, from that of the particle (or the run)."""
        import jax
        import jax.numpy as jnp

        if self.spot.names is None:
            word: Any = _word(self.spot.name)
        else:
            word = jnp.asarray(np.vectorize(_word, otypes=[np.uint32])(self.spot.names))[self.index]
        return jax.random.fold_in(jax.random.fold_in(key, word), self.visit)


def _word(name: str) -> np.uint32:
    return np.uint32(int(tag(name)) >> 32)


class Listener:
    """What answers sites and collects what they weigh. Base of all; by itself it refuses what it does not know."""

    checkpoint = False
    """Whether a scan's step is computed again for gradients, to keep one carry of each iteration and no more."""

    def sample(self, site: Met) -> Any:
        """Return the value of a latent."""
        raise NotImplementedError

    def observe(self, site: Met) -> None:
        """Take up an observation: of ``site.value``, with ``site.log_prob(site.value)``."""

    def factor(self, site: Met) -> None:
        """Take up a factor, of log-weight ``site.value``."""

    def twist(self, site: Met) -> None:
        """Take up a twist, of level ``site.value``."""

    def record(self, site: Met) -> None:
        """Take up a deterministic quantity, or an intervention (of kind "do"): ``site.value``."""

    def score(self, site: Met) -> Any:
        """Return the log-weight of a lazy score."""
        raise NotTraceable(f"{site!r}: a lazy score is computed by a model, which nothing can trace")

    def call(self, site: Met) -> Any:
        """Return the value of an `fk.call`."""
        raise NotTraceable(
            f"site {site.slot!r}: fk.call records what a function of Python returned; where JAX can trace it, call it "
            "without fk.call"
        )

    def other(self, site: Met) -> Any:
        """Return the answer to any other effect."""
        raise NotTraceable(f"site {site.slot!r}: fk.{site.effect.kind} cannot be traced")

    def opens(self, effect: Scan) -> None:
        """Take note of a scan, before anything of it is traced."""

    def scan(self, plan: Any) -> tuple[Any, Any]:
        """Return the last carry and the ys of a scan: by one `lax.scan`, see `loops.Plan`."""
        return plan.run(self)  # type: ignore[no-any-return]

    def probe(self) -> Listener:
        """Return the listener of the run that finds out what an iteration of a scan does."""
        from .listeners import Probe

        return Probe()

    def enter(self, plan: Any) -> Any:
        """Return what differs by iteration (values to force, say): arrays with a leading axis of iterations."""
        return ()

    def iterate(self, extra: Any) -> Listener:
        """Return the listener of one iteration, from that iteration's part of `enter`."""
        raise NotTraceable(f"{type(self).__name__} cannot be used inside a scan")

    def outputs(self) -> Any:
        """Return what an iteration's listener collected, as arrays."""
        return ()

    def leave(self, plan: Any, inside: Any, stacked: Any) -> None:
        """Take up what all iterations collected: their stacked `outputs`; ``inside`` is the listener of the trace."""


class TracedRun:
    """What the fibers of one listener share: the parts of `Run` that effects use."""

    __slots__ = ("dropped", "last", "listener", "name", "relies", "unawaited")

    def __init__(self, listener: Listener, name: str) -> None:
        self.listener = listener
        self.name = name
        self.last: Spot | None = None
        self.unawaited = 0
        self.dropped: str | None = None
        self.relies = False

    def where(self) -> str:
        """Say how far the code has come."""
        after = "before its first site" if self.last is None else f"after site {self.last.slot!r}"
        return f"program {self.name!r}, {after}"


class TracedFiber(Fiber):
    """A coroutine that is traced, in the loops that it is in.

    ``step`` is the step of the program that it has come to, and ``twisted`` whether it has set the guide's level.
    """

    __slots__ = ("loops", "step", "twisted")
    traced: ClassVar[bool] = True
    step: int

    def __init__(
        self,
        run: TracedRun,
        coro: Any,
        handlers: list[Any],
        visits: dict[str, int],
        parent: TracedFiber | None = None,
        index: int = 0,
    ) -> None:
        super().__init__(run, coro, handlers, visits, parent, index)  # type: ignore[arg-type]
        self.loops: tuple[Loop, ...] = () if parent is None else parent.loops
        self.step = 0 if parent is None else parent.step
        self.twisted = False

    def record(self, name: str, value: Any) -> None:
        """Hand a deterministic quantity to the listener."""
        check_name(name, "a recorded quantity")
        full, visit, hidden = self.visited(name)
        self.listener.record(self.met(Spot("deterministic", full, visit, self.step, hidden=hidden), name, None, value))

    @property
    def listener(self) -> Listener:
        """What answers its sites."""
        return self.run.listener  # type: ignore[attr-defined, no-any-return]

    def met(self, spot: Spot, bare: str, effect: Any, value: Any = MISSING) -> Met:
        """Return a site, placed in the loops; ``bare`` is the name that the code gave it."""
        if self.loops:
            spot = spot._replace(
                lengths=tuple(loop.length for loop in self.loops),
                strides=tuple(loop.strides.get(spot.name, 0) for loop in self.loops),
                steps=tuple(loop.steps for loop in self.loops),
                names=self._names(bare, spot.name),
            )
        self.run.last = spot  # type: ignore[assignment]
        return Met(spot, tuple(loop.index for loop in self.loops), effect, value)

    def _names(self, bare: str, name: str) -> Any:
        """Return the full name by iteration, where a gather's number makes it differ, else None."""
        if not any(isinstance(handler, Branch) for handler in self.handlers):
            return None
        names = np.empty([loop.length for loop in self.loops], object)
        for at in np.ndindex(names.shape):
            names[at] = self.named(bare, at)[-1]
        return None if (names == name).all() else names

    def named(self, bare: str, at: Sequence[int]) -> list[str]:
        """Return the names that a site has from the innermost handler on, in an iteration of the loops."""
        names = [bare]
        for handler in reversed(self.handlers):
            names.append((handler.at(at) if isinstance(handler, Branch) else handler).rename(names[-1]))
        return names


@dataclass(frozen=True, eq=False)
class Branch(Scope):
    """The scope of a branch of a gather within loops: the gather's visit, and so the name, changes with them."""

    label: str
    number: int
    visit: int
    strides: tuple[int, ...]

    def at(self, index: Sequence[int]) -> Scope:
        """Return the scope in an iteration of the loops around the gather."""
        return Scope(f"{address(self.label, self.visit + _dot(self.strides, index))}.{self.number}")


class Followed(NamedTuple):
    """What a traced coroutine came to: its value, the guide's level, the visits of each name, and the steps made."""

    value: Any
    level: Any
    visits: dict[str, int]
    step: int


class Stop(Exception):
    """What a listener raises to end a trace where it is; the coroutines are closed, and it passes."""


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


def first_lines(error: BaseException) -> str:
    """Return the first paragraph of an error's message, which says what JAX or torch could not do."""
    return short(_Plain(str(error).strip().partition("\n\n")[0].replace("\n", " ")), 400)


class _Plain(str):
    """A string that is shown without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


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

    plan = Plan(fiber, effect)
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

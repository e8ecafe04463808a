"""The driver: one step of a batch of particles.

A wave resumes all fibers of all runs, collects what they await, serves requests of one kind with one batched
call, and repeats until every run has reached a step end. Nothing here uses asyncio: coroutines are driven by
``send``, so programs work in notebooks, inside a running loop, and in a fixed order.

A fork starts the program again and feeds it the recorded log; see `forks`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

from ..distributions import adapters
from ..effects import Call, Effect, Factor, Gather, Race, Sample, Scan, Twist
from ..errors import ContextOverflow, ContextWarning, EndlessStep, ForeignAwaitable, ImpossibleChoice, UnawaitedEffect
from ..keys import Keys
from ..score import Score
from ..sites import MISSING, Running, address, shut
from ..values.guard import guard
from . import collector
from .cells import NO_WRITES, Touch, after
from .fibers import Checkpoint, Failed, Fiber, Finished, Run, annotate, fail
from .handling import Scope, handle
from .nesting import Nested
from .races import Races
from .serving import Server
from .watch import STEADY, Watches, check_kept, keep, steady

T = TypeVar("T")
_new = tuple.__new__  # makes a named tuple at half the price


class Surroundings(NamedTuple):
    """What a wave changes for its time: the garbage collector, the hooks of generators, the fiber that runs."""

    resting: bool
    hooks: Any
    fiber: Fiber | None

    @classmethod
    def now(cls) -> Surroundings:
        """Return what there is."""
        return cls(collector.resting(), sys.get_asyncgen_hooks(), Running.fiber)

    def put_back(self) -> None:
        """Have it as it was; Ctrl-C may come between any two lines, so that whoever runs waves does it once more."""
        Running.fiber = self.fiber
        sys.set_asyncgen_hooks(*self.hooks)
        if not self.resting:
            collector.wake()


MOST_ROUNDS = 100_000
"""How often a wave is served before it is taken for an endless loop."""


class Wave:
    """One step of a batch of runs, each with its own key. `run` drives them all to their next step end."""

    def __init__(self, runs: Sequence[Run], keys: Keys, owners: Sequence[int] | None = None) -> None:
        self.runs = runs
        self.ready: list[tuple[Fiber, Any]] = []
        self.server = Server(keys, owners, self.ready)
        self._watches = Watches()
        self._races = Races()

    def run(self, finish: Callable[[], T]) -> T:
        """Drive every run from where it is to its next step end, and return what ``finish`` makes of them.

        It is called while the garbage collector rests still, which would walk through all that the wave has made.
        Raises whatever the programs raise, with a note that names the particle, the site and its trace.
        """
        before = Surroundings.now()
        adapters.quicken()
        try:
            collector.rest()
            # An event loop that is running (in a notebook) must not adopt the programs' asynchronous generators.
            sys.set_asyncgen_hooks(None, None)
            try:
                self._drive()
            except BaseException:
                for run in self.runs:
                    run.drop()
                raise
            made = finish()
        finally:
            before.put_back()
        self._tell_of_overflow()
        return made

    def _tell_of_overflow(self) -> None:
        """Warn of the particles that ended as their texts do not fit into a context."""
        lost = [run for run in self.runs if run.overflow is not None]
        if lost:
            warnings.warn(
                f"{len(lost)} of {len(self.runs)} particles ended with weight zero, as their texts do not fit; the "
                f"first, particle {lost[0].row} of program {lost[0].program.name!r}: {lost[0].overflow}",
                ContextWarning,
                stacklevel=4,
            )

    def _drive(self) -> None:
        for run in self.runs:
            held, run.held = run.held, []
            for fiber, effect in held:
                self._act(fiber, effect)
            if run.root.effect is None:
                self.ready.append((run.root, None))
        rounds = 0
        while self.ready or self.server.pending:
            rounds += 1
            most = MOST_ROUNDS * (1 + len(self.ready))
            # Fibers made ready while this loop runs (a branch, a forced value) are appended and met by it.
            for met, (fiber, value) in enumerate(self.ready):
                if met > most or rounds > MOST_ROUNDS:
                    self._endless(fiber.run)
                if fiber.run.dead:
                    shut(fiber.coro)  # it may not have started
                    continue
                effect = self.next(fiber, value)
                if effect is not None:
                    self._act(fiber, effect)
            self.ready.clear()
            if self.server.pending:
                self.server.serve()
        self._look_ahead()
        for run in self.runs:
            if run.dead:
                continue
            if run.keeps:
                check_kept(run.root)
            if run.given:
                if run.tentative:
                    run.refuse()
                    continue
                unmet = f"the forced choices {sorted(run.given)} were not met in this step"
                fail(run.root, ImpossibleChoice(unmet))

    def _endless(self, run: Run) -> NoReturn:
        fail(
            run.root,
            EndlessStep(
                f"particle {run.row} has visited {MOST_ROUNDS:,} sites without a step end, where budgets and callbacks "
                "are looked at: an endless loop? End its steps by fk.factor or fk.observe, or bound it"
            ),
        )

    def _look_ahead(self) -> None:
        """Run past the step end to the next effect, without serving it: so a program that returns is done now.

        Code between awaits depends on nothing that resampling changes, so it may run before.
        """
        for run in self.runs:
            if run.written and not run.dead:
                self._commit(run)
        self._races.decide(self)
        for run in self.runs:
            waiting, run.waiting = run.waiting, []
            if not run.dead:
                for fiber in waiting:
                    self.ready.append((fiber, fiber.value))
        self._run_on()
        while self._races.decide(self, innermost=True):
            self._run_on()

    def _run_on(self) -> None:
        for fiber, value in self.ready:
            if fiber.run.dead:
                continue
            effect = self.next(fiber, value)
            if effect is None:
                continue
            if type(effect) is Touch:
                self._touch(fiber, effect)  # it depends on nothing else, either
            else:
                fiber.run.held.append((fiber, effect))
        self.ready.clear()

    def _act(self, fiber: Fiber, effect: Any) -> None:
        """Act on what a fiber awaits: queue it, answer it, or open what is inside it."""
        kind = type(effect)
        if kind is Sample:
            self.server.sample(fiber, effect)
        elif kind is Factor or kind is Twist:
            if isinstance(effect.log_weight, Score):
                self.server.queue(fiber, ("score",))
            else:
                self.server.weigh(fiber, effect.log_weight)
        elif kind is Call or kind is Nested:
            value = self.server.given(fiber, effect)
            if value is MISSING:
                self.server.queue(fiber, (effect.kind,))
            else:
                self.server.called(fiber, value)
        elif kind is Touch:
            self._touch(fiber, effect)
        elif kind is Gather or kind is Race:
            self._open_gather(fiber, effect)
        elif not len(effect.xs):
            self.complete(fiber, effect, (guard(effect.init), ()))
        else:
            self.open_scan(fiber, effect, Checkpoint(0, guard(effect.init), None, dict(fiber.visits)))

    def _touch(self, fiber: Fiber, effect: Touch) -> None:
        """Read or write a cell, and go on."""
        try:
            value = effect.serve(fiber)
        except Exception as error:  # of the cell's merge
            fail(fiber, error)
        fiber.log = (fiber.log, effect.kind, effect.name, effect.request, value)
        self.ready.append((fiber, value))

    def _commit(self, run: Run) -> None:
        try:
            run.commit()
        except Exception as error:
            annotate(run, error)
            raise

    def next(self, fiber: Fiber, value: Any) -> Any:
        """Run a fiber's code up to its next effect, and return it; None where it has returned."""
        run, watch = fiber.run, fiber.watch
        if value is not None and type(value) not in STEADY:
            keep(fiber, value)
        if watch is not None:
            begun = watch.begin()
        outer, Running.fiber = Running.fiber, fiber
        try:
            effect = fiber.coro.throw(value.error) if type(value) is Failed else fiber.coro.send(value)
        except StopIteration as stop:
            if isinstance(stop.value, Effect):
                run.dropped = f"fk.{stop.value.kind}({stop.value.name!r}, …)"
            elif run.dropped is None and fiber.parent is None and run.unawaited > 0:
                run.dropped = "an effect or a program (in a container that was returned, say)"
            if run.dropped is not None:
                self._dropped(fiber)
            if watch is not None:
                watch.check(fiber, begun)
            self._returned(fiber, stop.value)
            return None
        except ContextOverflow as error:
            run.overrun(error)
            return None
        except AssertionError as error:
            if _is_numpyros(error):
                fail(
                    fiber,
                    ForeignAwaitable(
                        "numpyro.sample draws nothing in a program of feynkac: write "
                        "`await fk.sample(name, dist)`, which takes NumPyro's distributions"
                    ),
                )
            annotate(run, error)
            raise
        except Exception as error:
            annotate(run, error)
            raise
        finally:
            Running.fiber = outer
        if run.dropped is not None:
            self._dropped(fiber)
        if watch is not None:
            watch.check(fiber, begun)
        if not isinstance(effect, Effect):
            fail(
                fiber,
                ForeignAwaitable(
                    f"the program awaited a {type(effect).__name__}, which is not an effect of feynkac; "
                    "wrap the asynchronous function: await fk.call(name, fn, *args)"
                ),
            )
        if fiber.handlers:
            try:
                handle(fiber, effect)
            except ContextOverflow as error:  # of a string that is to be observed
                run.overrun(error)
                return None
            except ValueError as error:
                fail(fiber, error)
            except Exception as error:
                annotate(run, error)
                raise
        else:
            name = effect.name
            visits = fiber.visits
            effect.visit = visit = visits.get(name, 0)
            visits[name] = visit + 1
        fiber.effect = run.last = effect
        return effect

    def _returned(self, fiber: Fiber, value: Any) -> None:
        run, parent = fiber.run, fiber.parent
        if parent is None:
            run.done = True
            run.result = value
            return
        effect = parent.effect
        if type(effect) is Race:
            parent.children[fiber.index] = None
            parent.results[fiber.index] = Finished(guard(value), fiber.writes, fiber.level)
            self._races.returned(self, parent)
            return
        if type(effect) is Gather:
            parent.children[fiber.index] = None
            parent.results[fiber.index] = Finished(guard(value), fiber.writes)
            parent.guide.level += fiber.level  # it holds until the next twist, as in code without branches
            if not any(parent.children):
                self.join(parent, parent.results)
                self.complete(parent, effect, tuple([ended.value for ended in parent.results]))
            return
        if not (isinstance(value, tuple) and len(value) == 2):
            fail(parent, TypeError(f"the step of fk.scan must return (carry, y), not {value!r}"))
        if fiber.writes:
            parent.writes, fiber.writes = after(parent.writes, fiber.writes), NO_WRITES
        assert parent.checkpoint is not None
        iteration, _, before, _ = parent.checkpoint
        iteration, carry, outputs = iteration + 1, guard(value[0]), (before, guard(value[1]))
        if iteration < len(effect.xs):
            self._iterate(parent, effect, _new(Checkpoint, (iteration, carry, outputs, dict(fiber.visits))))
            return
        ys = []
        cell: Any = outputs
        while cell is not None:
            cell, y = cell
            ys.append(y)
        self.complete(parent, effect, (carry, tuple(reversed(ys))))

    def join(self, fiber: Fiber, ended: Sequence[Finished]) -> None:
        """Hand what branches wrote to cells to the fiber that waited for them."""
        if fiber.run.written:
            fiber.writes = after(fiber.writes, fiber.joined([branch.writes for branch in ended]))

    def _open_gather(self, fiber: Fiber, effect: Gather) -> None:
        fiber.children = self.branches(fiber, effect)
        fiber.results = [None] * len(fiber.children)
        for child in fiber.children:
            assert child is not None
            self.ready.append((child, None))
        if not fiber.children:
            self.complete(fiber, effect, ())

    def branches(self, fiber: Fiber, effect: Gather) -> list[Fiber | None]:
        """Return the fibers of a gather's branches, which have not started."""
        name = address(effect.label, effect.visit)
        watch = self._watches.of_branches(fiber, effect)
        children: list[Fiber | None] = []
        for i, coro in enumerate(effect.branches):
            child = Fiber(fiber.run, coro, [*fiber.handlers, Scope(f"{name}.{i}")], {}, fiber, i)
            child.watch = watch
            children.append(child)
        return children

    def open_scan(self, fiber: Fiber, effect: Scan, start: Checkpoint) -> Fiber:
        """Return the fiber of an iteration of a scan that is not open yet."""
        fiber.inside = self._watches.of_step(fiber, effect)
        return self._iterate(fiber, effect, start)

    def _iterate(self, fiber: Fiber, effect: Scan, start: Checkpoint) -> Fiber:
        fiber.checkpoint = start
        iteration, carry, _, _ = start
        try:
            x = effect.xs[iteration]
            coro = effect.iterate(carry, x)
        except Exception as error:
            fail(fiber, error)
        if fiber.children:
            # The last iteration's fiber serves again: it is done with, and snapshots hold none of it.
            (child,) = fiber.children
            assert child is not None
            child.coro = coro
            child.log = child.recorded = None
            child.kept = ()
        else:
            child = Fiber(fiber.run, coro, fiber.handlers, fiber.visits, fiber, len(fiber.handlers))
            child.guide = fiber.guide
            fiber.children = [child]
        fixed = steady(carry) and steady(x)
        child.watch = fiber.inside if fixed else self._watches.of_iteration(fiber, carry, x)
        if not fiber.run.replaying:
            self.ready.append((child, None))
        return child

    def complete(self, fiber: Fiber, effect: Effect, value: Any) -> None:
        """Log a completed effect, and go on with its value."""
        # What a scan's iterations visited is not seen by a replay, which skips them.
        entry = (value, dict(fiber.visits)) if type(effect) is Scan else value
        fiber.log = (fiber.log, effect.kind, effect.name, effect.request, entry)
        fiber.children = []
        self.ready.append((fiber, value))

    def _dropped(self, fiber: Fiber) -> None:
        what, fiber.run.dropped = fiber.run.dropped, None
        fail(fiber, UnawaitedEffect(f"{what} was created but never awaited: write `await` before it"))


def _is_numpyros(error: BaseException) -> bool:
    """Whether an error comes from a `numpyro.sample` that found no handler around it."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == "numpyro.primitives":
            return True
        trace = trace.tb_next
    return False

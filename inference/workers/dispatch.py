"""Hands chunks of problems to workers, places what comes back by its number, and says what became of the rest."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...ppl.cost import Budget, Cost, recorded
from ...ppl.errors import FeynkacError, WorkerLost
from ...ppl.running.collector import patience
from ...ppl.sites import short
from ..base.chain import Chain
from ..base.checks import check_engine, is_true
from ..base.engine import Engine, ranking_of
from ..base.interrupts import noticing
from ..base.progress import Progress
from ..base.step import Step
from ..results.posterior import Posterior
from .folder import Folder, InMemory, Store
from .job import Facts, Job, plain
from .pool import Broken, Event, Finished, InProcess, News, Pool, Ready, Workers
from .travel import joined, unpack
from .worker import Outcome

Found = Posterior | Sequence[Posterior]


def infer_apart(
    model: Any,
    engine: Engine | Sequence[Engine],
    seed: int,
    budget: Budget | None,
    callbacks: Sequence[Callable[[Step], Any]],
    progress: bool | None,
    workers: Workers | None,
    save: Any,
) -> Found:
    """Run many models, or the chains of one, on workers; see `infer`."""
    engines: Sequence[Engine] = engine if isinstance(engine, Sequence) else [engine]
    for one in engines:
        check_engine("infer", one)
    if workers is not None and (isinstance(workers, type) or not hasattr(workers, "open")):
        raise TypeError(f"workers= says who works, such as fk.Ray(num_workers=2), and is not {short(workers, 60)}")
    job = Job(model, engine, seed, budget, watched=bool(callbacks))
    run = Dispatch(job, workers or InProcess(), InMemory() if save is None else Folder(save), callbacks)
    try:
        particles = run.chunk * max((one.chains * one.particles for one in engines), default=0)
        with patience(particles), noticing(run.interrupt), Progress(run.standing, progress) as bar:
            run.go(bar)
    except Exception as error:
        if run.begun:
            error.posterior = run.found()  # type: ignore[attr-defined]
            error.add_note("feynkac: the posteriors that were there are in the error's attribute `posterior`")
        raise
    if run.stopped == "interrupted" and not run.begun:
        raise KeyboardInterrupt
    run.check()
    return run.found()


class Dispatch:
    """A run on workers: chunks that wait, chunks that run, and what has come of the others."""

    def __init__(self, job: Job, workers: Workers, store: Store, callbacks: Sequence[Callable[[Step], Any]]) -> None:
        self._job, self._workers, self._store, self._callbacks = job, workers, store, callbacks
        self._pool: Pool | None = None
        self._facts: Facts | None = None
        self._waiting: deque[tuple[int, ...]] = deque()
        self._running: dict[tuple[int, ...], News | None] = {}
        self._events: deque[Event] = deque()
        self._losses: dict[tuple[int, ...], int] = {}
        self._done: set[int] = set()
        self._rest: dict[int, Posterior] = {}
        self._costs: dict[tuple[int, ...], Cost] = {}
        self._interrupted = False
        self.failures: dict[int, Exception] = {}
        self.stopped: str | None = None
        self.chunk = workers.chunk
        if job.made:  # what is wrong with models or folder is said before any worker is woken
            self._begin(job.make().facts)

    # -- a run --------------------------------------------------------------------------------------------------

    def go(self, bar: Progress) -> None:
        """Run all that is missing. Ctrl-C ends it and keeps what is there; a second one does not wait for workers."""
        follow = bar.shown or bool(self._callbacks)
        try:
            while self._busy():
                try:
                    self._turn(follow)
                    bar.update()
                except KeyboardInterrupt:
                    self._interrupted = False
                    if recorded():  # a run inside another one (in a function of fk.call) ends with it
                        raise
                    if self.stopped is not None:
                        break
                    self.stop("interrupted")
        finally:
            if self._pool is not None:
                self._pool.close()

    def _busy(self) -> bool:
        if self.stopped is not None:
            return bool(self._events) or (bool(self._running) and self._pool is not None and self._pool.busy)
        return self._facts is None or bool(self._waiting or self._running)

    def _turn(self, follow: bool) -> None:
        if self._pool is None:
            self._pool = self._workers.open(self._job, len(self._waiting) or None, follow)
        # Ctrl-C may come between any two lines: what is half done is done again, or known to nobody.
        while self._waiting and self._pool.free:
            units = self._waiting[0]
            self._pool.submit(units)
            self._running[units] = None
            self._waiting.popleft()
        if not self._events:
            self._events.extend(self._pool.wait())
        while self._events:
            self._take(self._events[0])
            self._events.popleft()
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def stop(self, reason: str) -> None:
        """End the run: chunks that wait are given up, and those that run end with the waves that were made."""
        self.stopped = reason
        self._waiting.clear()
        if self._pool is not None:
            self._pool.stop(reason)

    def interrupt(self) -> None:
        """Take note of Ctrl-C, even where its exception is swallowed."""
        self._interrupted = True

    # -- what happens -------------------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        if isinstance(event, Broken):
            raise event.error
        if isinstance(event, Ready):
            self._begin(event.facts)
            return
        units = tuple(event.units)
        if units not in self._running:
            return
        if isinstance(event, News):
            self._running[units] = event
            for step in event.steps:
                self._show(step)
            return
        if isinstance(event, Finished):
            for outcome in event.outcomes:
                self._place(outcome)
            self._costs[units] = event.cost
        else:
            self._lose(units, event.why)
        del self._running[units]

    def _begin(self, facts: Facts) -> None:
        """Learn what the run is on, from here or the first worker; the others must say the same."""
        if self._facts is not None:
            self._compare(facts)
            return
        self._facts = facts
        if not facts.many and isinstance(self._store, Folder):
            raise ValueError("save= is a folder for the posteriors of many models; of one, call posterior.save(path)")
        self._done = self._store.open(facts, self._job)
        size = self.chunk
        for first in range(0, len(facts.names), size):
            units = (unit for unit in range(first, first + size) if unit < len(facts.names) and unit not in self._done)
            if missing := tuple(units):
                self._waiting.append(missing)

    def _compare(self, facts: Facts) -> None:
        first = self._facts
        assert first is not None
        if facts.version != first.version:
            raise FeynkacError(f"workers have feynkac {facts.version} and {first.version}: install the same everywhere")
        if list(map(plain, facts.names)) != list(map(plain, first.names)):
            raise ValueError(
                f"the function that makes the models made {len(first.names)} in one worker and {len(facts.names)} in "
                f"another ({short(first.names, 80)} and {short(facts.names, 80)}): the same ones must come of it "
                "everywhere, in the same order"
            )

    def _show(self, step: Step) -> None:
        if self.stopped is not None:
            return
        # Every callback sees every step, whoever asks to stop.
        votes = [callback(step) for callback in self._callbacks]
        if any(map(is_true, votes)):
            self.stop("callback")

    def _place(self, outcome: Outcome) -> None:
        unit, data, error, whole = outcome
        if error is not None and unit not in self.failures:
            error.add_note(f"feynkac: in {self._called(unit)}")
            self.failures[unit] = error
        if data is None:
            return
        if whole:
            self._store.put(unit, data)
            self._done.add(unit)
        else:
            self._rest[unit] = unpack(data, f"the posterior of {self._called(unit)}")

    def _lose(self, units: tuple[int, ...], why: str) -> None:
        """Run a chunk again whose worker died; after too many times each of its problems alone, once."""
        if self.stopped is not None:
            return
        lost = self._losses[units] = self._losses.get(units, 0) + 1
        if lost <= self._workers.max_retries:
            self._waiting.appendleft(units)
        elif len(units) > 1:
            for unit in units:
                self._losses[unit,] = self._workers.max_retries
                self._waiting.append((unit,))
        else:
            self.failures[units[0]] = WorkerLost(
                f"the worker of {self._called(units[0])} died, and so did those that tried again ({lost} times): {why}"
            )

    # -- what there is ------------------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether there is any posterior to show."""
        return bool(self._done) or any(map(len, self._rest.values()))

    def _called(self, unit: int) -> str:
        assert self._facts is not None
        word = "problem" if self._facts.many else "chain"
        name = self._facts.names[unit]
        return f"{word} {unit} of {len(self._facts.names)}, {name if len(name) <= 80 else name[:79] + '…'}"

    @property
    def _cost(self) -> Cost:
        return sum(self._costs.values(), Cost())

    def standing(self) -> tuple[int, int, str]:
        """Return how much is done, of how much, and a line that says more."""
        if self._facts is None:
            return 0, 1, "waiting for a worker"
        total, done = len(self._facts.names), len(self._done | self.failures.keys())
        news = [one for one in self._running.values() if one is not None and one.total]
        now = f", {sum(one.done for one in news)} of {sum(one.total for one in news)} particles now" if news else ""
        tokens = self._cost.tokens_out + sum(one.tokens for one in news)
        word = "problems" if self._facts.many else "chains"
        return done, total, f"{done} of {total} {word} finished{now}" + (f", {tokens:,} tokens" if tokens else "")

    def found(self) -> Found:
        """Return what there is: the posteriors of many models, or that of one."""
        assert self._facts is not None
        rest = {unit: self._nothing(unit) for unit in range(len(self._facts.names)) if unit not in self._done}
        every = self._store.found({**rest, **self._rest})
        return every if self._facts.many else joined(every, self._cost)

    def _nothing(self, unit: int) -> Posterior:
        """Return the posterior of a unit of which no particle has come."""
        assert self._facts is not None
        return Posterior(
            values=(),
            chains=(Chain(np.zeros(0), np.zeros(0, bool), math.nan, ()),),
            cost=Cost(),
            guarantee="prefix",
            engine=repr(self._job.engine_of(unit)),
            model=self._facts.names[unit],
            seed=int(self._job.seed),
            stopped="error" if unit in self.failures else self.stopped or "error",
            ranking=ranking_of(self._job.engine_of(unit)),
        )

    def check(self) -> None:
        """Raise the error of the first problem that failed, with all there is and the errors of the others."""
        if not self.failures:
            return
        first, *others = sorted(self.failures)
        error: Any = self.failures[first]
        if others:
            error.add_note(f"feynkac: {len(others)} more failed, {short(others, 60)}: the error's attribute `failures`")
        error.failures = dict(self.failures)
        error.posterior = self.found()
        error.add_note("feynkac: the posteriors of those that did not fail are in the error's attribute `posterior`")
        raise error

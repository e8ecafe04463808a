"""A run in progress: engines in lockstep, wave by wave, with their cost, their budget and what they have so far."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextvars import copy_context
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..ppl import keys as _keys
from ..ppl.cost import Budget, Ledger, OutOfTime, assign
from ..ppl.cost import recording as accounting
from ..ppl.errors import AllParticlesDead, FeynkacError
from ..ppl.memory import Epoch, current_epoch, enter
from ..ppl.model import Advance, FeynmanKac
from ..ppl.program import Program, launch, resume
from ..ppl.running.particle import Particles
from ..ppl.running.wave import Surroundings
from ..ppl.values import recording
from .base.chain import Chain, detach, detach_choices
from .base.engine import Ask, Engine, Growing, Guarantee, Move, Report, Start, ranking_of, weaker
from .base.step import Step
from .pooling import alone, together
from .problem import Problem, Task, pose
from .results.posterior import Posterior


class History(NamedTuple):
    """A persistent list of steps: the last one, and those before it."""

    before: History | None
    step: Step


class Standing(NamedTuple):
    """Where a chain stands between two waves. Never changed: a wave replaces those of all chains at once."""

    request: Start | Move | Ask | None = None
    report: Report | Growing | None = None
    history: History | None = None
    begun: bool = False
    overflow: str | None = None
    """Why a particle ended whose text did not fit into a context, if any did."""

    @property
    def over(self) -> bool:
        """Whether its engine has nothing left to do."""
        return self.begun and self.request is None


class Session:
    """A run in progress: iterate over its steps, and take the posterior at any time.

    Made by `steps`; `infer` drives one to the end. A wave counts as a whole or not at all: where it is interrupted, or
    something raises, the posterior is that of the waves before it.

    Args:
        engine: one for all models, or as many as these.
        watched: whether somebody looks at its steps; else a compiled program may be run as a whole.
    """

    _watched = True

    def __init__(
        self,
        models: Sequence[FeynmanKac[Any]],
        engine: Engine | Sequence[Engine],
        seed: int,
        budget: Budget | None = None,
        watched: bool = True,
    ) -> None:
        self._watched = watched or (budget is not None and budget.limited)
        engines = engine if isinstance(engine, Sequence) else [engine] * len(models)
        self._begin([pose(*pair, seed, i) for i, pair in enumerate(zip(models, engines))], budget)

    def _begin(self, problems: Sequence[Problem], budget: Budget | None = None) -> None:
        self.budget = budget or Budget()
        self.ledger = Ledger(len(problems))
        self.stopped: str | None = None
        self._epoch = current_epoch() or Epoch()  # see `afresh`
        self._recorder = recording.current()
        self._interrupted = False
        self._problems = problems
        self._raises = len(problems) == 1
        """Whether an error of one problem says all there is to say."""
        begun = [self._open(owner, chain) for owner, one in enumerate(problems) for chain in one.chains]
        self._tasks = [task for task, _ in begun]
        self._standings = [standing for _, standing in begun]
        self._rely: set[int] = set()
        """Problems whose programs build on estimates that are not unbiased."""

    def _open(self, owner: int, chain: int) -> tuple[Task, Standing]:
        """Return a chain of a problem, and where it stands before its first wave."""
        one, run = self._problems[owner], None
        key = _keys.fold(one.key, chain)
        if not self._watched and getattr(one.model, "fuses", False) and hasattr(one.engine, "at_once"):
            run = one.engine.at_once(one.model, key)
        return Task(owner, one.model, one.engine.run(one.model, key) if run is None else run), Standing()

    def __iter__(self) -> Iterator[Step]:
        """Yield each step of each chain as it is made; the run can be left, and taken up again."""
        # All chains go on before any step is shown, so that a reader who stops here leaves a whole wave.
        while (made := self.wave()) is not None:
            yield from made

    def wave(self) -> list[Step] | None:
        """Make the next wave and return its steps; None where the run is over or has been stopped."""
        going = [i for i in range(len(self._tasks)) if self._goes_on(i)] if self.stopped is None else []
        # The first wave is always made, so that there is a posterior to return.
        if going and self.budget.limited and self.begun:
            self.stopped = self.budget.exceeded(self.ledger.total())
            self.ledger.limit(self.budget.seconds)
        if not going or self.stopped is not None:
            return None
        try:
            return self._wave(going)
        except OutOfTime:
            if self.ledger.left > 0:  # it is a run outside this one that has none left
                raise
            self.stop("seconds")
            return None

    def stop(self, reason: str) -> None:
        """End the run; the posterior so far is kept, flagged as incomplete."""
        self.stopped = reason

    def interrupt(self) -> None:
        """Take note of Ctrl-C: the wave that is being made is given up, even where its exception was swallowed."""
        self._interrupted = True

    @property
    def begun(self) -> bool:
        """Whether any chain has particles to show."""
        return any(now.report is not None for now in self._standings)

    @property
    def over(self) -> bool:
        """Whether all chains have run to their ends."""
        return all(now.over for now in self._standings)

    # -- a wave -------------------------------------------------------------------------------------------------

    def _goes_on(self, i: int) -> bool:
        return not self._ended(i)

    def _ended(self, i: int) -> bool:
        """Whether a chain has made all that was asked of it."""
        return self._standings[i].over

    def _wave(self, going: Sequence[int]) -> list[Step]:
        """Serve what the chains ask for and let them go on; all of them stand elsewhere then, or none does."""
        answers = self._serve([i for i in going if self._standings[i].begun])
        self._check_interrupt()
        standings, made = list(self._standings), []
        try:
            for i in going:
                standings[i], steps = self._go_on(i, answers.get(i))
                made += steps
            self._check_interrupt()
        except BaseException as error:
            # Some engines have gone on and others not, so that the run cannot be taken up again.
            self.stop("interrupted" if isinstance(error, KeyboardInterrupt) else "error")
            raise
        self._standings = standings
        return made

    def _check_interrupt(self) -> None:
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def _go_on(self, i: int, answer: Advance[Any] | None) -> tuple[Standing, list[Step]]:
        """Give an engine its answer, and return where it stands after its reports and the steps that it made."""
        _, report, history, _, overflow = self._standings[i]
        overflow = overflow or _overflow(answer)
        request, made = None, []
        while request is None:
            try:
                item = copy_context().run(self._send, i, answer)  # as in `_serve`
            except StopIteration:
                break
            except AllParticlesDead as error:
                if overflow is None:
                    raise
                if self._raises:
                    error.add_note(f"feynkac: texts did not fit into a context: {overflow}")
                    raise
                break  # one problem whose texts do not fit must not end the run of the others
            answer = None
            if not isinstance(item, Report | Growing):
                request = item
                continue
            report = replace(item, step=None)
            if item.step is not None:
                used = self.ledger.of(self._tasks[i].owner)
                made.append(replace(item.step, choices=detach_choices(item.step.choices), cost=used))
        for step in made:
            history = History(None if isinstance(report, Growing) else history, step)  # a tree is its own history
        return Standing(request, report, history, True, overflow), made

    def _send(self, i: int, answer: Advance[Any] | None) -> Any:
        """Let an engine go on to what it yields next, and count what it computes itself, such as gradients."""
        recording.enter(self._recorder)
        with accounting(self.ledger):
            assign(np.array([self._tasks[i].owner]))
            return self._tasks[i].run.send(answer)  # type: ignore[arg-type]

    def _serve(self, asking: Sequence[int]) -> dict[int, Advance[Any]]:
        """Make the steps asked for, in a context of their own: what they set in it need not be put back."""
        before = Surroundings.now()
        try:
            return copy_context().run(self._answers, asking)
        finally:
            before.put_back()

    def _answers(self, asking: Sequence[int]) -> dict[int, Advance[Any]]:
        """Serve all programs in one wave of starts and one of moves, other models alone."""
        enter(self._epoch)
        recording.enter(self._recorder)
        answers: dict[int, Advance[Any]] = {}
        requests = [(i, self._tasks[i], self._standings[i].request) for i in asking]
        with accounting(self.ledger):
            for kind, serve in ((Start, launch), (Move, resume)):
                pooled = [one for one in requests if type(one[2]) is kind and isinstance(one[1].model, Program)]
                if pooled:
                    answers.update(together(serve, pooled))
                    for i, task, _ in pooled:
                        if any(particle.relies for particle in answers[i].state.items):
                            self._rely.add(task.owner)
            for i, task, request in requests:
                if i not in answers:
                    assign(np.full(len(request.keys), task.owner))  # type: ignore[union-attr]
                    answers[i] = alone(task.model, request)
        return answers

    # -- what there is ------------------------------------------------------------------------------------------

    def standing(self) -> tuple[int, int, str]:
        """Return how many particles have finished, of how many, and a line that says more."""
        last = [now.history.step for now in self._standings if now.history is not None]
        grown = [now.report.finished for now in self._standings if isinstance(now.report, Growing)]
        if grown:  # of what searches find, there may be more than is asked for
            done = sum(grown)
            total = max(done, sum(one.engine.particles * len(one.chains) for one in self._problems))
        else:
            done, total = sum(int(step.done.sum()) for step in last), sum(len(step.done) for step in last)
        text = f"{done} of {total} particles finished, step {max((s.depth for s in last), default=0)}"
        if last and not grown:  # the last step of a search or a Markov chain is not its sample
            text += f", ESS {float(np.mean([step.ess / len(step.done) for step in last])):.0%}"
        tokens = self.ledger.total().tokens_out
        return done, total, text + (f", {tokens:,} tokens" if tokens else "")

    @property
    def posteriors(self) -> list[Posterior]:
        """The posterior of each model, as far as the run has come; an empty one where it has no particles yet."""
        return [posterior.detach() for posterior in self.attached()]

    def attached(self) -> list[Posterior]:
        """Return the posterior of each model, with values that still hold what a live run needs of them."""
        places: list[list[int]] = [[] for _ in self._problems]
        for i, task in enumerate(self._tasks):
            places[task.owner].append(i)
        return [self._posterior(owner, chains) for owner, chains in enumerate(places)]

    @property
    def posterior(self) -> Posterior:
        """The posterior of the (first) model, as far as the run has come."""
        if not self.begun:
            raise RuntimeError("the run has not made a step yet: iterate over it first")
        return self.posteriors[0]

    def _posterior(self, owner: int, places: Sequence[int]) -> Posterior:
        chains, values, overflow = [], [], None
        model, engine = self._problems[owner].model, self._problems[owner].engine
        promise: Guarantee = weaker(engine.guarantee, getattr(model, "guarantee", "unbiased"))
        if owner in self._rely:
            promise = "heuristic"
        for i in places:
            now = self._standings[i]
            overflow = overflow or now.overflow
            made = None if now.report is None else _chain(now, self._problems[owner].compiled)
            if made is not None:
                chains.append(made[0])
                values += model.values(made[1])
            if not self._ended(i):
                # Whole runs that were stopped early are fewer, and how many may depend on what they found.
                whole = made is not None and made[0].arrived
                promise = weaker(promise, "consistent" if whole else "prefix")
        return Posterior(
            values=tuple(values),
            chains=tuple(chains) or (_NOTHING if overflow is None else replace(_NOTHING, log_evidence=-math.inf),),
            cost=self.ledger.of(owner),
            guarantee=promise,
            engine=repr(engine),
            model=repr(model),
            seed=self._problems[owner].seed,
            stopped=self.stopped,
            ranking=ranking_of(engine),
        )


class Tolerant(Session):
    """A session in which a problem whose engine fails ends alone; ``failures`` has the errors by problem."""

    def __init__(self, problems: Sequence[Problem], budget: Budget | None = None) -> None:
        self._begin(problems, budget)

    def _begin(self, problems: Sequence[Problem], budget: Budget | None = None) -> None:
        super()._begin(problems, budget)
        self._raises = True  # whatever else is in the run
        self.failures: dict[int, FeynkacError] = {}

    def _goes_on(self, i: int) -> bool:
        return self._tasks[i].owner not in self.failures and super()._goes_on(i)

    def _go_on(self, i: int, answer: Advance[Any] | None) -> tuple[Standing, list[Step]]:
        try:
            return super()._go_on(i, answer)
        except FeynkacError as error:
            self.failures[self._tasks[i].owner] = error
            return self._standings[i], []


def _overflow(answer: Advance[Any] | None) -> str | None:
    """Return why a particle of a wave ended whose text did not fit into a context, if any did."""
    if answer is None or not isinstance(answer.state, Particles):
        return None
    found = [item.overflow for item in answer.state.items if item.overflow is not None]
    return found[0] if found else None


_NOTHING = Chain(np.zeros(0), np.zeros(0, bool), math.nan, ())


def _chain(now: Standing, compiled: str | None) -> tuple[Chain, Any]:
    """Return what is kept of a chain, and the state that its values are read from."""
    assert now.report is not None
    report = now.report.report() if isinstance(now.report, Growing) else now.report
    tree = report.tree
    return Chain(
        log_weights=np.asarray(report.log_weights, float),
        complete=np.asarray(report.state.done if tree is None else tree.done[tree.particles], bool),
        log_evidence=report.log_evidence,
        steps=(report.history or _listed(now.history)) if tree is None else tree.steps,
        answers=None if report.answers is None else tuple(detach(a) for a in report.answers),
        tree=tree,
        info={**report.info, **({} if compiled is None else {"compiled": compiled})},
        serial=report.serial,
        stats=dict(report.stats),
        stages=report.stages,
    ), report.state


def _listed(history: History | None) -> tuple[Step, ...]:
    steps = []
    while history is not None:
        steps.append(history.step)
        history = history.before
    return tuple(reversed(steps))

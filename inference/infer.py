"""The one entry point: run an engine on a model, or on many models that share batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np

from ..ppl import keys as _keys
from ..ppl.cost import Budget, Ledger, recording
from ..ppl.model import Advance, FeynmanKac
from ..ppl.program import Particles, Program, launch, resume
from .base.chain import Chain, detach, detach_choices
from .base.engine import Ask, Engine, Growing, Move, Report, Run, Start, ranking_of, weaker
from .base.progress import Progress
from .base.step import Step
from .results.posterior import Posterior

Callback = Callable[[Step], Any]
"""Called after every step of every chain; returning True stops the run, which keeps what it has."""


@dataclass
class _Task:
    """One chain of one model: a running engine, and its last report."""

    owner: int
    model: FeynmanKac[Any]
    engine: Run
    request: Start | Move | Ask | None = None
    report: Report | Growing | None = None
    history: list[Step] = field(default_factory=list)


class Session:
    """A run in progress: iterate over its steps, and take the posterior at any time.

    Made by `steps`; `infer` drives one to the end.
    """

    def __init__(
        self, models: Sequence[FeynmanKac[Any]], engine: Engine, seed: int, budget: Budget | None = None
    ) -> None:
        key = _keys.root(seed)
        self.engine = engine
        self.budget = budget or Budget()
        self.ledger = Ledger(len(models))
        self.stopped: str | None = None
        self._seed = int(seed)
        self._tasks = [
            _Task(owner, model, engine.run(model, _keys.fold(key, owner, chain)))
            for owner, model in enumerate(models)
            for chain in range(engine.chains)
        ]

    def __iter__(self) -> Iterator[Step]:
        """Yield each step of each chain as it is made; the run can be left, and taken up again."""
        fresh = [task for task in self._tasks if task.report is None and task.request is None]
        yield from [step for task in fresh for step in self._go_on(task, None)]
        while self.stopped is None:
            asking = [task for task in self._tasks if task.request is not None]
            # The first wave is always made, so that there is a posterior to return.
            if asking and self.budget.limited and any(task.report is not None for task in asking):
                self.stopped = self.budget.exceeded(self.ledger.total())
            if not asking or self.stopped is not None:
                return
            # All chains go on before any step is shown, so that a reader who stops here leaves a whole wave.
            answers = self._serve(asking)
            yield from [step for task, answer in zip(asking, answers) for step in self._go_on(task, answer)]

    def stop(self, reason: str) -> None:
        """End the run; the posterior so far is kept, flagged as incomplete."""
        self.stopped = reason

    def _go_on(self, task: _Task, answer: Advance[Any] | None) -> list[Step]:
        """Give an engine its answer, take its reports, and keep its next request."""
        task.request = None
        made: list[Step] = []
        while task.request is None:
            try:
                item = task.engine.send(answer)  # type: ignore[arg-type]
            except StopIteration:
                break
            answer = None
            if isinstance(item, Report | Growing):
                task.report = replace(item, step=None)
                if item.step is not None:
                    choices = detach_choices(item.step.choices)
                    made.append(item.step if choices is item.step.choices else replace(item.step, choices=choices))
            else:
                task.request = item
        task.history += made
        if isinstance(task.report, Growing):  # a tree is its own history
            del task.history[:-1]
        return made

    def _serve(self, tasks: Sequence[_Task]) -> list[Advance[Any]]:
        """Make the steps asked for: all programs in one wave of starts and one of moves, other models alone."""
        answers: dict[int, Advance[Any]] = {}
        with recording(self.ledger):
            for kind, serve in ((Start, launch), (Move, resume)):
                pooled = [
                    (i, task)
                    for i, task in enumerate(tasks)
                    if type(task.request) is kind and isinstance(task.model, Program)
                ]
                if pooled:
                    answers.update(_together(serve, pooled))
            for i, task in enumerate(tasks):
                if i not in answers:
                    answers[i] = self._alone(task)
        return [answers[i] for i in range(len(tasks))]

    def _alone(self, task: _Task) -> Advance[Any]:
        request = task.request
        assert request is not None
        self.ledger.rows = np.full(len(request.keys), task.owner, np.intp)
        if isinstance(request, Ask):
            made: Advance[Any] = getattr(task.model, request.method)(request.state, request.keys, *request.args)
            return made
        if isinstance(request, Start):
            return task.model.start(request.keys, request.given)
        return task.model.advance(request.state, request.keys, request.given)

    def standing(self) -> tuple[int, int, str]:
        """Return how many particles have finished, of how many, and a line that says more."""
        last = [task.history[-1] for task in self._tasks if task.history]
        grown = [task.report.finished for task in self._tasks if isinstance(task.report, Growing)]
        if grown:  # of what searches find, there may be more than is asked for
            done = sum(grown)
            total = max(done, self.engine.particles * len(self._tasks))
        else:
            done, total = sum(int(step.done.sum()) for step in last), sum(len(step.done) for step in last)
        share = float(np.mean([step.ess / len(step.done) for step in last])) if last else 0.0
        tokens = self.ledger.total().tokens_out
        text = f"{done} of {total} particles finished, step {max((s.depth for s in last), default=0)}, ESS {share:.0%}"
        return done, total, text + (f", {tokens:,} tokens" if tokens else "")

    @property
    def posteriors(self) -> list[Posterior]:
        """The posterior of each model, as far as the run has come."""
        by_owner: dict[int, list[_Task]] = {}
        for task in self._tasks:
            if task.report is not None:
                by_owner.setdefault(task.owner, []).append(task)
        return [self._posterior(owner, tasks) for owner, tasks in sorted(by_owner.items())]

    @property
    def posterior(self) -> Posterior:
        """The posterior of the (first) model, as far as the run has come."""
        posteriors = self.posteriors
        if not posteriors:
            raise RuntimeError("the run has not made a step yet: iterate over it first")
        return posteriors[0]

    def _posterior(self, owner: int, tasks: list[_Task]) -> Posterior:
        chains, values = [], []
        for task in tasks:
            assert task.report is not None
            report = task.report.report() if isinstance(task.report, Growing) else task.report
            tree = report.tree
            values += [detach(value) for value in task.model.values(report.state)]
            chains.append(
                Chain(
                    log_weights=np.asarray(report.log_weights, float),
                    complete=np.asarray(report.state.done if tree is None else tree.done[tree.particles], bool),
                    log_evidence=report.log_evidence,
                    steps=tuple(task.history) if tree is None else tree.steps,
                    answers=None if report.answers is None else tuple(detach(a) for a in report.answers),
                    tree=tree,
                    info=dict(report.info),
                    serial=report.serial,
                )
            )
        return Posterior(
            values=tuple(values),
            chains=tuple(chains),
            cost=self.ledger.of(owner),
            guarantee=weaker(self.engine.guarantee, getattr(tasks[0].model, "guarantee", "unbiased")),
            engine=repr(self.engine),
            model=repr(tasks[0].model),
            seed=self._seed,
            stopped=self.stopped,
            ranking=ranking_of(self.engine),
        )


def _together(serve: Any, pooled: list[tuple[int, _Task]]) -> dict[int, Advance[Any]]:
    """Serve the requests of several programs in one wave, and cut the answer up again."""
    requests = [task.request for _, task in pooled]
    sizes = [len(request.keys) for request in requests]  # type: ignore[union-attr]
    keys = _keys.concat([request.keys for request in requests])  # type: ignore[union-attr]
    owners = [task.owner for (_, task), size in zip(pooled, sizes) for _ in range(size)]
    given: list[Any] = []
    for request, size in zip(requests, sizes):
        given += list(request.given) if request.given is not None else [None] * size  # type: ignore[union-attr]
    subject: Any
    if isinstance(requests[0], Start):
        subject = [task.model for (_, task), size in zip(pooled, sizes) for _ in range(size)]
    else:
        subject = Particles([item for request in requests for item in request.state.items])  # type: ignore[union-attr]
    whole: Advance[Any] = serve(subject, keys, given, owners)
    ends = np.cumsum(sizes)
    return {i: _slice(whole, end - size, end) for (i, _), size, end in zip(pooled, sizes, ends.tolist())}


def _slice(whole: Advance[Any], start: int, end: int) -> Advance[Any]:
    rows = slice(start, end)
    return Advance(
        Particles(whole.state.items[rows]),
        whole.choices[rows],
        whole.log_prob[rows],
        whole.log_proposal[rows],
        whole.log_potential[rows],
        whole.log_twist[rows],
        whole.done[rows],
        whole.scored[rows],
    )


def steps(model: FeynmanKac[Any], engine: Engine, *, seed: int, budget: Budget | None = None) -> Session:
    """Run an engine step by step: iterate over its steps, and take ``.posterior`` at any time.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def walk():
    ...     x = 0.0
    ...     for _ in range(3):
    ...         x = await fk.sample("x", fk.dist.Normal(x, 1.0))
    ...         await fk.factor("G", -x * x)
    ...     return x
    >>> run = fk.steps(walk(), fk.SMC(10), seed=0)
    >>> [step.depth for step in run]
    [0, 1, 2]
    >>> run.posterior.complete.all()
    np.True_
    """
    return Session([model], engine, seed, budget)


@overload
def infer(
    model: Iterable[FeynmanKac[Any]],
    engine: Engine,
    *,
    seed: int,
    budget: Budget | None = ...,
    callbacks: Sequence[Callback] = ...,
    progress: bool | None = ...,
) -> list[Posterior]: ...
@overload
def infer(
    model: FeynmanKac[Any],
    engine: Engine,
    *,
    seed: int,
    budget: Budget | None = ...,
    callbacks: Sequence[Callback] = ...,
    progress: bool | None = ...,
) -> Posterior: ...
def infer(
    model: FeynmanKac[Any] | Iterable[FeynmanKac[Any]],
    engine: Engine,
    *,
    seed: int,
    budget: Budget | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
) -> Posterior | list[Posterior]:
    """Run an engine on a model and return its posterior; on a list of models, a list of posteriors.

    Many models (and the chains of each) advance in lockstep and share their batches.

    Args:
        model: a bound program, or any `FeynmanKac` model; or a sequence of them.
        engine: an engine with its settings, such as ``SMC(32)``.
        seed: an integer. Same seed, same posterior.
        budget: limits on the cost of the whole call; the unfinished particles are kept and flagged.
        callbacks: functions of each `Step`; one that returns True ends the run.
        progress: whether to show a progress line (needs rich); None: where somebody is watching.

    Raises:
        Whatever the model raises, with a note naming the particle; the error's ``posterior`` holds the steps
        that were complete. Ctrl-C does not raise: it ends the run and returns what there is, flagged.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin(p):
    ...     heads = await fk.sample("heads", fk.dist.Bernoulli(p))
    ...     await fk.factor("G", 1.0 * heads)
    ...     return heads
    >>> [round(p.expect(float), 1) for p in fk.infer([coin(0.2), coin(0.5)], fk.SMC(2000), seed=0)]
    [0.4, 0.7]
    """
    many = not hasattr(model, "advance") and isinstance(model, Iterable)
    models: list[Any] = list(model) if isinstance(model, Iterable) and many else [model]
    if not models:
        return []
    for one in models:
        if not hasattr(one, "advance"):
            hint = "; call the program with its arguments first" if callable(one) else ""
            raise TypeError(f"infer takes Feynman-Kac models, not {type(one).__name__}{hint}")
    session = Session(models, engine, seed, budget)
    try:
        with Progress(session.standing, progress) as bar:
            for step in session:
                bar.update()
                # Every callback sees every step, whoever asks to stop.
                votes = [callback(step) for callback in callbacks]
                if any(vote is True for vote in votes):
                    session.stop("callback")
    except KeyboardInterrupt:
        session.stop("interrupted")
        if not session.posteriors:
            raise
    except Exception as error:
        if session.posteriors:
            session.stop("error")
            error.posterior = session.posteriors if many else session.posterior  # type: ignore[attr-defined]
            error.add_note("feynkac: the posterior of the steps before is in the error's attribute `posterior`")
        raise
    return session.posteriors if many else session.posterior

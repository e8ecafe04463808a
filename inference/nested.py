"""Serves `fk.nested`: the runs that the particles of a wave ask for, as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..ppl import keys as _keys
from ..ppl.compiled.deciding import prepare
from ..ppl.cost import rows
from ..ppl.errors import JournalError, Unsupported
from ..ppl.keys import Keys
from ..ppl.running.fibers import Failed
from ..ppl.running.nesting import Nested
from ..ppl.values.guard import guard
from .base.checks import check_run, positive
from .base.engine import is_resumable, weaker
from .problem import Problem, Task, work
from .results.posterior import Posterior
from .session import Standing, Tolerant


def run_nested(requests: Sequence[Nested], keys: Keys) -> list[Any]:
    """Return the posterior of each request, or the error of its run in a `Failed`."""
    try:
        return _together(requests, keys)
    except JournalError:
        raise
    except Exception as error:
        if len(requests) == 1:
            return [Failed(error)]
    # An error in a shared batch is of one of them: each is run alone, which gives what it would have beside others.
    found = []
    for i, request in enumerate(requests):
        with rows([i]):
            found += run_nested([request], keys[i : i + 1])
    return found


@dataclass(frozen=True)
class Part(Problem):
    """Some steps of a problem: up to ``steps`` from its start, after those of a posterior if there is one."""

    steps: int | None = None
    since: Posterior | None = None


@dataclass(frozen=True)
class Live:
    """What a posterior of ``steps`` keeps to go on from: its problem, and where its chains stand. Never changed."""

    problem: Part
    standings: tuple[Standing, ...]


class Parts(Tolerant):
    """A session whose chains end after the steps that were asked for."""

    _watched = False

    def _open(self, owner: int, chain: int) -> tuple[Task, Standing]:
        one: Any = self._problems[owner]
        key = _keys.fold(one.key, chain)
        if one.steps is None:
            return super()._open(owner, chain)
        if one.since is None:
            return Task(owner, one.model, one.engine.run(one.model, key)), Standing()
        was: Standing = one.since.live.standings[chain]
        since = replace(was.report, step=was.history.step)  # type: ignore[type-var, union-attr]
        return Task(owner, one.model, one.engine.resume(one.model, key, since)), was._replace(request=None, begun=False)

    def _ended(self, i: int) -> bool:
        one: Any = self._problems[self._tasks[i].owner]
        return super()._ended(i) or (one.steps is not None and made(self._standings[i]) >= one.steps)

    def parts(self) -> list[Posterior]:
        """Return the posterior of each problem, of the whole run so far, with what goes on from it."""
        stand: list[list[Standing]] = [[] for _ in self._problems]
        for task, standing in zip(self._tasks, self._standings):
            stand[task.owner].append(standing)
        return [self._part(*each) for each in zip(self._problems, stand, self.attached())]

    def _part(self, one: Any, standings: Sequence[Standing], posterior: Posterior) -> Posterior:
        if one.since is not None:
            cost, promise = one.since.cost + posterior.cost, weaker(one.since.guarantee, posterior.guarantee)
            posterior = replace(posterior, cost=cost, guarantee=promise)
        live = None if one.steps is None else Live(replace(one, since=None), tuple(standings))
        return replace(posterior, values=guard(posterior.values), live=live)


def made(standing: Standing) -> int:
    """Return how many steps a chain has made."""
    return 0 if standing.history is None else standing.history.step.depth + 1


def _together(requests: Sequence[Nested], keys: Keys) -> list[Any]:
    session = Parts([_problem(request, seed) for request, seed in zip(requests, keys.tolist())])
    for _ in session:
        pass
    return [Failed(session.failures[i]) if i in session.failures else found for i, found in enumerate(session.parts())]


def _problem(request: Nested, seed: int) -> Part:
    """Return what a request asks for; as `infer` would with this seed, where it is a whole run."""
    model, engine, steps = request.args
    key = _keys.fold(_keys.root(seed), 0)
    if steps is not None:
        positive("steps", steps)
    if not isinstance(model, Posterior):
        check_run("nested", [model], engine, None)
        if steps is not None and not is_resumable(engine):
            raise Unsupported(
                f"nested {request.name!r}: {engine!r} cannot make {steps} steps alone and go on; with steps= an engine "
                "is SMC without move and reduce, or ImportanceSampling"
            )
        found = prepare(model, *work(engine))
        return Part(found.model, engine, seed, key, steps, compiled=found.note)
    if engine is not None or steps is None:
        raise TypeError(
            f"nested {request.name!r}: to go on from a run, give it and the steps, nested(name, run, steps=t)"
        )
    if model.live is None:
        raise ValueError(
            f"nested {request.name!r}: this posterior has no live run to go on from; give the one that nested(…, "
            "steps=t) returned in this program"
        )
    before = max(map(made, model.live.standings))
    if steps <= before and not model.complete.all():
        raise ValueError(f"nested {request.name!r}: the run has made {before} steps, so that steps must be more")
    problem: Part = model.live.problem
    return replace(problem, seed=seed, key=key, steps=steps, since=model)

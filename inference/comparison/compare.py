"""Compare engines on the same problems, at the same budget."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ...ppl import keys as _keys
from ...ppl.cost import Budget, Cost
from ...ppl.errors import FeynkacError, JournalError
from ...ppl.memory import afresh
from ...ppl.model import FeynmanKac
from ...ppl.sites import short
from ..base.checks import check_run, one_of
from ..base.engine import Engine
from ..base.interrupts import noticing
from ..base.progress import Progress
from ..problem import Problem
from ..results.posterior import Posterior
from ..session import Tolerant
from .table import Comparison, Over
from .trials import Trial, TrialRun

Metric: TypeAlias = Callable[[Posterior], float]


def compare(
    model: FeynmanKac[Any] | Iterable[FeynmanKac[Any]],
    engines: Sequence[Engine] | Mapping[str, Engine],
    *,
    metric: Metric | Sequence[Metric],
    budget: Budget | None = None,
    seeds: Iterable[int] = (0, 1, 2),
    reference: str | None = None,
    over: Over | None = None,
    failure: float = math.nan,
    bounds: tuple[float, float] | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Run each engine with each seed on all problems, and compare quality and cost.

    The engines take turns, seed by seed, so that a comparison that is interrupted (Ctrl-C) is still a fair one; it is
    returned with the runs that were finished. An engine that fails on a problem (`AllParticlesDead`, `Unsupported` or
    another error of feynkac's, or a metric that raises ValueError) is recorded there, and the rest goes on. Any other
    error is raised, with what there is in its attribute ``comparison``. Rewards and language models forget
    between runs, so that no engine is spared what another one had scored or forwarded.

    Args:
        model: a problem, or several, which share their batches.
        engines: the engines; a dictionary gives them names.
        metric: the quality of a posterior, larger is better, such as ``lambda p: passes(p.best())``, where the best is
            what suits each engine (see `Posterior.best`); or one for each problem, where each has its own answer.
        budget: limits of each run, that is of one engine with one seed on all problems together.
        seeds: integers; each is one run of each engine.
        reference: name of the engine that the others are compared with; None is the first.
        over: what the intervals generalise to: ``"problems"`` like these (the default with several problems; it takes
            five or more to say much), or ``"seeds"``, other runs on these very problems.
        failure: the quality that a failure counts as; NaN leaves it out of the means.
        bounds: the least and the largest quality there can be, such as (0, 1): intervals stay within them, and a metric
            that does not is a failure. None knows of none (a metric of 0 and 1 alone needs none).
        progress: whether to show a progress line, as in `infer`.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def die():
    ...     face = await fk.sample("face", fk.dist.DiscreteUniform(1, 6))
    ...     await fk.factor("high", float(face))
    ...     return face
    >>> engines = [fk.SMC(2), fk.BestOfN(20), fk.SuffixMH(20)]
    >>> found = fk.compare(die(), engines, metric=lambda p: p.best() == 6, seeds=range(20))
    >>> [(row.engine, row.quality.mean) for row in found.table()]
    [('SMC(2)', 0.2), ('BestOfN(20)', 0.95), ('SuffixMH(20)', 0.95)]
    """
    many = not hasattr(model, "advance") and isinstance(model, Iterable)
    models: list[Any] = list(model) if isinstance(model, Iterable) and many else [model]
    listed = [int(seed) for seed in seeds]
    named = dict(engines) if isinstance(engines, Mapping) else _labels(list(engines))
    metrics = list(metric) if isinstance(metric, Sequence) else [metric] * len(models)
    first = next(iter(named), "") if reference is None else reference
    _check(models, named, metrics, listed, first, over, budget)
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"bounds are the least and the largest quality, in this order, not {bounds}")
    trials: list[Trial] = []
    runs: list[TrialRun] = []

    def gathered(stopped: str | None = None) -> Comparison:
        aim: Over = over or ("problems" if len(models) > 1 else "seeds")
        return Comparison(tuple(trials), tuple(runs), tuple(named), first, aim, stopped, bounds)

    def standing() -> tuple[int, int, str]:
        done, total = len(runs), len(named) * len(listed)
        return done, total, f"{done} of {total} runs" + (f", last {runs[-1].engine}" if runs else "")

    try:
        with Progress(standing, progress) as bar:
            for seed in listed:
                for name, engine in named.items():
                    run, made = _run(name, engine, models, metrics, seed, budget, failure, bounds)
                    runs.append(run)
                    trials += made
                    bar.update()
    except KeyboardInterrupt:
        if not runs:
            raise
        return gathered("interrupted")
    except Exception as error:
        if runs:
            error.comparison = gathered("error")  # type: ignore[attr-defined]
            error.add_note("feynkac: the runs that were finished are in the error's attribute `comparison`")
        raise
    return gathered()


class _Trials(Tolerant):
    """A run of all problems."""

    def finish(self) -> None:
        """Run to the end. An error in a batch that the problems share fails all those still running."""
        try:
            with noticing(self.interrupt):
                for _ in self:
                    pass
        except JournalError:
            raise
        except FeynkacError as error:
            for task, now in zip(self._tasks, self._standings):
                if not now.over:
                    self.failures.setdefault(task.owner, error)

    def by_problem(self) -> dict[int, Posterior]:
        """Return the posteriors of the problems that did not fail."""
        return {owner: p for owner, p in enumerate(self.posteriors) if owner not in self.failures and len(p)}


def _run(
    name: str,
    engine: Engine,
    models: Sequence[Any],
    metrics: Sequence[Metric],
    seed: int,
    budget: Budget | None,
    failure: float,
    bounds: tuple[float, float] | None,
) -> tuple[TrialRun, list[Trial]]:
    """Run one engine with one seed on all problems, and measure what came of it."""
    cpu = time.process_time()
    with afresh():
        key = _keys.root(seed)
        problems = [Problem(model, engine, seed, _keys.fold(key, i)) for i, model in enumerate(models)]
        session = _Trials(problems, budget)
        session.finish()
    run = TrialRun(name, seed, session.ledger.total(), time.process_time() - cpu, session.stopped)
    posteriors, trials = session.by_problem(), []
    for i, metric in enumerate(metrics):
        posterior, failed = posteriors.get(i), session.failures.get(i)
        error = None if failed is None else _told(failed)
        cost = dataclasses.replace(session.ledger.of(i), seconds=run.cost.seconds)
        quality = failure
        if posterior is not None:
            quality, error = _measure(metric, posterior, failure, bounds)
        trials.append(_trial(name, i, seed, quality, posterior, cost, session.stopped, error))
    return run, trials


def _trial(
    name: str,
    model: int,
    seed: int,
    quality: float,
    posterior: Posterior | None,
    cost: Cost,
    stopped: str | None,
    error: str | None,
) -> Trial:
    evidence, ess, particles, prefix = math.nan, math.nan, 0, False
    if posterior is not None:
        prefix = posterior.guarantee == "prefix" or (stopped is not None and not posterior.complete.all())
        evidence, ess, particles = math.nan if prefix else posterior.log_evidence, posterior.ess, len(posterior)
    return Trial(name, model, seed, quality, evidence, ess, particles, cost, stopped, error, prefix)


def _measure(
    metric: Metric, posterior: Posterior, failure: float, bounds: tuple[float, float] | None
) -> tuple[float, str | None]:
    """Return the quality of a posterior, or what went wrong where there is none."""
    try:
        quality = metric(posterior)
    except (ValueError, FeynkacError) as error:
        return failure, f"the metric raised {_told(error)}"
    try:
        value = float(quality)
    except (TypeError, ValueError):
        raise TypeError(f"metric must return a number, not {short(quality, 60)}") from None
    if not math.isfinite(value):
        return failure, "the metric is not finite"
    if bounds is not None and not bounds[0] <= value <= bounds[1]:
        return failure, f"the metric is {value:g}, outside of its bounds {bounds}"
    return value, None


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"


def _labels(engines: Sequence[Engine]) -> dict[str, Engine]:
    """Name engines by their class and what was set; equal names are numbered."""
    named: dict[str, Engine] = {}
    for engine in engines:
        name = _label(engine)
        twins = sum(other == name or other.startswith(f"{name} #") for other in named)
        named[f"{name} #{twins + 1}" if twins else name] = engine
    return named


def _label(engine: Any) -> str:
    """Write an engine as one would make it: the settings that are not the default."""
    if isinstance(engine, type) or not dataclasses.is_dataclass(engine):
        return short(engine, 60)
    parts = []
    for field in dataclasses.fields(engine):
        value = getattr(engine, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING:
            parts.append(short(value, 40))
        elif field.repr and field.init and value != default:
            parts.append(f"{field.name}={short(value, 40)}")
    return f"{type(engine).__name__}({', '.join(parts)})"


def _check(
    models: Sequence[Any],
    engines: Mapping[str, Any],
    metrics: Sequence[Any],
    seeds: Sequence[int],
    reference: str,
    over: str | None,
    budget: Any,
) -> None:
    """Raise for arguments that cannot be compared."""
    for what, items in (("model", models), ("engine", engines), ("seed", seeds)):
        if not items:
            raise ValueError(f"compare needs at least one {what}")
    if len(set(seeds)) < len(seeds):
        raise ValueError("seeds must differ: a run with the same seed is the same run")
    for engine in engines.values():
        check_run("compare", models, engine, budget)
    if len(metrics) != len(models) or not all(map(callable, metrics)):
        raise ValueError(f"metric must be a function of a posterior, or one for each of the {len(models)} problems")
    if reference not in engines:
        raise ValueError(f"reference must be one of {', '.join(engines)}, not {reference!r}")
    if over is not None:
        one_of("over", over, ("problems", "seeds"))

"""The one entry point: run an engine on a model, or on many models that share batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

from ..ppl.collector import patience
from ..ppl.cost import Budget, recorded
from ..ppl.model import FeynmanKac
from .base.checks import check_run
from .base.engine import Engine
from .base.interrupts import noticing
from .base.progress import Progress
from .base.step import Step
from .results.posterior import Posterior
from .session import Session

Callback = Callable[[Step], Any]
"""Called after every step of every chain; returning True stops the run, which keeps what it has."""


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
    check_run("steps", [model], engine, budget)
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
        seed: an integer. Same seed and arguments, same posterior.
        budget: limits on the cost of the whole call; the unfinished particles are kept and flagged.
        callbacks: functions of each `Step`; one that returns True (NumPy's, torch's and JAX's too) ends the run.
        progress: whether to show a progress line (needs rich); None: where somebody is watching.

    A run that is cut short, by the budget, a callback or Ctrl-C, gives a posterior for each model all the same: of the
    waves that were made whole, its `guarantee` "prefix", and empty where a model had no particles yet.

    Raises:
        TypeError: for what is no model, no engine or no budget.
        Whatever the model raises, with a note naming the particle; the error's ``posterior`` holds the steps
        that were complete. Ctrl-C does not raise: it ends the run and returns what there is, flagged. (It does where
        no model has any particles yet, and in a run inside another one, which ends with it.)

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
    check_run("infer", models, engine, budget)
    session = Session(models, engine, seed, budget, watched=bool(callbacks))
    particles = len(models) * engine.chains * engine.particles

    def found() -> Posterior | list[Posterior]:
        return session.posteriors if many else session.posterior

    try:
        with patience(particles), noticing(session.interrupt), Progress(session.standing, progress) as bar:
            for step in session:
                bar.update()
                # Every callback sees every step, whoever asks to stop.
                votes = [callback(step) for callback in callbacks]
                if any(map(_is_true, votes)):
                    session.stop("callback")
        return found()
    except KeyboardInterrupt:
        # A run inside another one (in a function of fk.call) ends with it; a wave counts as a whole or not at all.
        if not session.begun or recorded():
            raise
        if not session.over:
            session.stop("interrupted")
    except Exception as error:
        if session.begun:
            session.stop("error")
            error.posterior = found()  # type: ignore[attr-defined]
            error.add_note("feynkac: the posterior of the steps before is in the error's attribute `posterior`")
        raise
    return found()


def _is_true(vote: Any) -> bool:
    """Whether a callback returned True itself: Python's, or that of NumPy, torch or JAX, alone or as one element."""
    if vote is True:
        return True
    kind = str(getattr(vote, "dtype", "")).removeprefix("torch.")
    return kind == "bool" and math.prod(vote.shape) == 1 and bool(vote)

"""The one entry point: run an engine on a model, or on many models that share batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

from ..ppl.cost import Budget, recorded
from ..ppl.model import FeynmanKac
from ..ppl.running.collector import patience
from ..ppl.values import recording
from .base.checks import check_run, each_engine, is_true
from .base.engine import Engine
from .base.interrupts import noticing
from .base.progress import Progress
from .base.step import Step
from .journal.journal import Journal, journalled
from .results.posterior import Posterior
from .session import Session

if TYPE_CHECKING:
    from .workers.folder import Posteriors
    from .workers.pool import Workers

Callback = Callable[[Step], Any]
"""Called after every step of every chain; returning True stops the run, which keeps what it has."""


def steps(
    model: FeynmanKac[Any],
    engine: Engine,
    *,
    seed: int,
    budget: Budget | None = None,
    journal: Journal | str | os.PathLike[str] | None = None,
) -> Session:
    """Run an engine step by step: iterate over its steps, and take ``.posterior`` at any time.

    A ``journal`` keeps what models answer, as in `infer`.

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
    with journalled(journal, [model], engine, seed):
        return Session([model], engine, seed, budget)


@overload
def infer(
    model: Iterable[FeynmanKac[Any]],
    engine: Engine | Sequence[Engine],
    *,
    seed: int,
    budget: Budget | None = ...,
    callbacks: Sequence[Callback] = ...,
    progress: bool | None = ...,
    workers: Workers | None = ...,
    save: None = ...,
    journal: Journal | str | os.PathLike[str] | None = ...,
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
    workers: Workers | None = ...,
    journal: Journal | str | os.PathLike[str] | None = ...,
) -> Posterior: ...
@overload
def infer(
    model: Iterable[FeynmanKac[Any]] | Callable[..., Iterable[FeynmanKac[Any]]],
    engine: Engine | Sequence[Engine],
    *,
    seed: int,
    budget: Budget | None = ...,
    callbacks: Sequence[Callback] = ...,
    progress: bool | None = ...,
    workers: Workers | None = ...,
    save: str | os.PathLike[str],
) -> Posteriors: ...
@overload
def infer(
    model: Callable[..., FeynmanKac[Any] | Iterable[FeynmanKac[Any]]],
    engine: Engine | Sequence[Engine],
    *,
    seed: int,
    budget: Budget | None = ...,
    callbacks: Sequence[Callback] = ...,
    progress: bool | None = ...,
    workers: Workers,
    save: None = ...,
) -> Any: ...
def infer(
    model: Any,
    engine: Engine | Sequence[Engine],
    *,
    seed: int,
    budget: Budget | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    workers: Workers | None = None,
    save: str | os.PathLike[str] | None = None,
    journal: Journal | str | os.PathLike[str] | None = None,
) -> Any:
    """Run an engine on a model and return its posterior; on a list of models, a list of posteriors.

    Many models (and the chains of each) advance in lockstep and share their batches.

    Args:
        model: a bound program, or any `FeynmanKac` model; or a sequence of them.
        engine: an engine with its settings, such as ``SMC(32)``; or a list of them, one for each of a list of models:
            the i-th posterior is what the i-th engine finds alone, and batches are shared all the same.
        seed: an integer. Same seed and arguments, same posterior.
        budget: limits on the cost of the whole call; the unfinished particles are kept and flagged.
        callbacks: functions of each `Step`; one that returns True (NumPy's, torch's and JAX's too) ends the run.
        progress: whether to show a progress line (needs rich); None: where somebody is watching.
        workers: who runs the models, in chunks: ``fk.Ray(num_workers=8)``, other processes on this machine or many. The
            posterior of a model does not depend on how many there are. `model` may then be a function that makes the
            models, called once by each worker (see `Ray`); the chains of one model are shared out as well. ``budget``
            is for each model. One that fails does not end the run of the others: the error of the first is raised at
            the end, and its ``failures`` has all by their numbers, its ``posterior`` the posteriors.
        save: a folder that posteriors are written into as they come, so that they may outgrow memory; a sequence that
            reads them on demand, `Posteriors`, is returned. A run that was cut short is gone on with by the same line.
            Without ``workers`` this process works, as ``fk.InProcess()``.
        journal: a file, or a `Journal`, in which all that models, rewards and functions answer is kept. A run that was
            killed is taken up by the same line: it plays what is in the file, and loses at most a wave.

    A run that is cut short, by the budget, a callback or Ctrl-C, gives a posterior for each model all the same: of the
    waves that were made whole, its `guarantee` "prefix", and empty where a model had no particles yet.

    Raises:
        TypeError: for what is no model, no engine or no budget. ValueError: for another number of engines than models.
        CannotSend: for models that workers cannot be sent. FileExistsError: for a folder that holds something else.
        JournalError: where the journal cannot be used, see `Journal`.
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
    if workers is not None and (journal is not None or recording.current() is not None):
        raise ValueError("a journal is of one process: leave out workers=, or journal=; with workers, save= goes on")
    with journalled(journal, models, engine, seed):
        if workers is not None or save is not None:
            from .workers.dispatch import infer_apart

            return infer_apart(models if many else model, engine, seed, budget, callbacks, progress, workers, save)
        engines = each_engine("infer", models, engine, budget, many)
        if not models:
            return []
        session = Session(models, engines, seed, budget, watched=bool(callbacks))
        particles = sum(one.chains * one.particles for one in engines)
        return _finish(session, many, particles, callbacks, progress)


def _finish(
    session: Session, many: bool, particles: int, callbacks: Sequence[Callback], progress: bool | None
) -> Posterior | list[Posterior]:
    """Drive a session of so many particles to its end, and return the posteriors."""

    def found() -> Posterior | list[Posterior]:
        return session.posteriors if many else session.posterior

    try:
        with patience(particles), noticing(session.interrupt), Progress(session.standing, progress) as bar:
            for step in session:
                bar.update()
                # Every callback sees every step, whoever asks to stop.
                votes = [callback(step) for callback in callbacks]
                if any(map(is_true, votes)):
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

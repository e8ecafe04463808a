"""Settings of an engine chosen on problems, and scored on others."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...ppl import keys as _keys
from ...ppl.cost import Budget
from ...ppl.memory import afresh
from ..base.checks import fraction
from ..base.engine import Engine
from ..infer import infer
from ..results.posterior import Posterior
from .search import HeldOut, Settings, Tuned, search


def tune(
    models: Sequence[Any],
    engine: Callable[..., Engine],
    space: Mapping[str, Any] | Callable[[Any], Settings],
    objective: Callable[[Posterior, Any], float],
    *,
    trials: int,
    seed: int,
    problems: Sequence[Any] | None = None,
    budget: Budget | None = None,
    hold_out: float = 0.3,
    sampler: Any = None,
    save: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Tuned:
    """Choose the settings of an engine by trying them on problems, with Optuna; score the best on other problems.

    Each trial runs ``engine(**settings)`` on all problems but those that are held out, with the same seed, and its
    score is the mean of the objective. The best trial is the luckiest, too: believe ``held_out``, not ``score``. The
    problems that are held out are run once, with the best settings and another seed. Models and rewards forget between
    trials, so that none is spared what another one has computed.

    Args:
        models: a model for each problem.
        engine: makes the engine from settings: a class such as ``fk.SMC``, or a function such as
            ``lambda n, t: fk.SMC(n, ess_threshold=t)``.
        space: what its settings may be: ``{"particles": (2, 64), "ess_threshold": (0.1, 1.0)}``, a range whole
            where both ends are, or ``{"resampling": ["systematic", "ssp"]}``, a list of any objects; see `bayes`.
        objective: gives the score of a posterior on a problem; larger is better.
        trials: how many in all, those in ``save`` included.
        seed: an integer. Same seed and arguments, same trials.
        problems: what ``objective`` gets beside the posterior, one for each model; None gives the models.
        budget: limits of each trial's run over all problems.
        hold_out: the share of problems, drawn at random, that no trial sees, rounded down; 0 keeps none, and then
            ``held_out`` is None.
        sampler: who draws settings: None is Optuna's TPE, whose first ten trials are random; for fewer trials
            ``fk.tuning.Bayes()``, a Gaussian process. Or a class of Optuna's, as ``optuna.samplers.GPSampler``; it is
            made anew for each trial with a seed, or a sampler that is made, which keeps its own.
        save: a file in which trials are kept: the same line goes on where it stopped.
        progress: whether to show a progress line, as in `infer`.

    Ctrl-C ends the search: the trial under way is dropped, what was made whole is kept, and ``held_out`` is None.

    Raises:
        ValueError: for problems that are not as many as models, too few to hold some out, a score that is no number.
        ImportError: where Optuna is not installed (``pip install 'feynkac[tune]'``).

    Source: Optuna (2019), arXiv:1907.10902; TPE: Algorithms for Hyper-Parameter Optimization (2011), NIPS 24.
    Guarantee: heuristic search; ``held_out`` is unbiased for problems like these.
    Engines: any.
    Not shown here: the reasoner has few settings that matter; `bayes` is what was tried on it.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def die(wish):
    ...     face = await fk.sample("face", fk.dist.DiscreteUniform(1, 6))
    ...     await fk.factor("near", -abs(face - wish))
    ...     return face
    >>> wishes = [1, 2, 3, 4, 5, 6, 2, 5]
    >>> found = tune([die(w) for w in wishes], fk.SMC, {"particles": (1, 16)}, lambda p, w: p.best() == w,
    ...     problems=wishes, trials=8, seed=0)
    >>> found.engine == fk.SMC(**found.best), found.best["particles"] > 4, found.held_out.problems
    (True, True, 2)
    """
    listed, asked = list(models), list(models if problems is None else problems)
    fraction("hold_out", hold_out)
    if len(listed) != len(asked):
        raise ValueError(f"there are {len(listed)} models and {len(asked)} problems: give one for each")
    kept = math.floor(hold_out * len(listed))
    if not listed or kept == len(listed) or (hold_out > 0 and kept < 2):
        raise ValueError(
            f"of {len(listed)} problems {kept} would be held out, and two or more are needed, and some to tune on: "
            "give more problems, or hold_out=0"
        )
    order = np.argsort(_keys.uniform(_keys.fold(_keys.root(seed), _keys.tag("hold out")), len(listed))[0])
    held, used = np.sort(order[:kept]).tolist(), np.sort(order[kept:]).tolist()

    def scores(settings: Settings, which: list[int], draw: int) -> list[float]:
        with afresh():
            found = infer([listed[i] for i in which], engine(**settings), seed=draw, budget=budget, progress=False)
        if any(posterior.stopped == "interrupted" for posterior in found):
            raise KeyboardInterrupt
        return [float(objective(posterior, asked[i])) for posterior, i in zip(found, which)]

    found = search(
        space,
        lambda settings: float(np.mean(scores(settings, used, seed))),
        trials,
        seed=seed,
        sampler=sampler,
        save=save,
        progress=progress,
    )
    found = replace(found, engine=engine(**found.best))
    if not held or found.stopped:
        return found
    other = _keys.as_seed(_keys.fold(_keys.root(seed), _keys.tag("held out")))
    try:
        values = scores(found.best, held, other)
    except KeyboardInterrupt:
        return replace(found, stopped="interrupted")
    error = float(np.std(values, ddof=1) / math.sqrt(kept))
    return replace(found, held_out=HeldOut(float(np.mean(values)), error, kept))

"""Bayesian optimisation: the next settings are where a surrogate expects the largest improvement."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ...ppl.lazy import needing
from ..base.checks import positive
from .search import Settings, Space, Tuned, search
from .surrogates import Surrogate, gp

if TYPE_CHECKING:
    from .sampler import ExpectedImprovement


@dataclass(frozen=True)
class Bayes:
    """A sampler for Optuna, made for each trial: the largest expected improvement under a surrogate.

    Give it to `tune` as ``sampler=fk.tuning.Bayes()``. The improvement is over the largest mean among the settings that
    were tried, so that noise in the scores is not taken for improvement. Settings of a list are points at equal
    distance; settings that not all trials have are drawn at random.

    Args:
        surrogate: gives means and variances of standardised scores from points in the unit cube, see `Surrogate`.
        starts: trials at random before it is asked.
        candidates: random settings, of which the best is taken.
    """

    surrogate: Surrogate = gp
    starts: int = 4
    candidates: int = 256

    def __post_init__(self) -> None:
        positive("starts", self.starts)
        positive("candidates", self.candidates)
        if not callable(self.surrogate):
            raise ValueError(f"surrogate is a function of points, scores and other points, not {self.surrogate!r}")

    def __call__(self, seed: int) -> ExpectedImprovement:
        """Return a sampler with this seed."""
        with needing("fk.tuning.Bayes", "tune"):
            from .sampler import ExpectedImprovement
        return ExpectedImprovement(self, seed)


def bayes(
    space: Space,
    score: Callable[[Settings], float],
    trials: int,
    *,
    seed: int,
    surrogate: Surrogate = gp,
    noisy: bool = False,
    starts: int = 4,
    save: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Tuned:
    """Look for the settings of largest score by Bayesian optimisation, of anything that has settings.

    Model: scores are a random function, known by a surrogate (a Gaussian process with a squared-exponential kernel, or
    any function that gives means and variances); the next settings have the largest expected improvement. It costs
    `trials` scores. For settings of an engine see `tune`, which also keeps problems aside: ``score`` sees what it sees,
    and the best of many noisy scores is too good; score the winner again, on other problems.

    Args:
        space: names with what each may be: a range ``(low, high)``, whole where both ends are, a list of any objects,
            or a distribution of Optuna's; or, for settings that depend on each other, a function of Optuna's trial
            that returns a dictionary of settings, such as layers of which there may be one or three.
        score: gives the score of a dictionary of settings; larger is better.
        trials: how many in all, those in ``save`` included.
        seed: an integer. Same seed and scores, same trials.
        surrogate: see `Surrogate`; `gp` and `network` are here.
        noisy: the best is then that of the largest mean under the surrogate among what was tried, and its score is this
            mean, since the largest score is also the luckiest. Not for a space that is a function.
        starts: trials at random before the surrogate is asked.
        save: a file in which trials are kept (Optuna's journal): the same line goes on where it stopped.
        progress: whether to show a progress line, as in `infer`.

    Ctrl-C ends the search, and what was made whole is kept. An error of ``score`` is raised, its settings named.

    Raises ValueError for a score that is no finite number.

    Source: A Tutorial on Bayesian Optimization (2018), arXiv:1807.02811; surrogates that are networks: A Study of
        Bayesian Neural Network Surrogates for Bayesian Optimization (2023), arXiv:2305.20028.
    Guarantee: heuristic. The closed forms (posterior of the process, expected improvement) are exact.
    Engines: any, and anything that has settings: the layers of `fk.programs.archon`, ``max_batch`` of a model.
    Measured: number of particles and engine on a tape of Countdown, share solved less .01 a particle, 12 trials on
        100 problems: .552 ± .007 on 100 others, and 12 trials at random .553 ± .007 (six seeds of each search,
        difference −.001 ± .011): no difference, for the best settings lie on a plateau.

    >>> found = bayes({"x": (0.0, 1.0)}, lambda s: -((s["x"] - 0.3) ** 2), 12, seed=0)
    >>> len(found), abs(found.best["x"] - 0.3) < 0.02
    (12, True)
    """
    if noisy and not isinstance(space, Mapping):
        raise ValueError("noisy=True needs a space of names, in which all trials are points")
    sampler = Bayes(surrogate, starts)
    found = search(space, score, trials, seed=seed, sampler=sampler, save=save, progress=progress)
    if not noisy:
        return found
    from .sampler import beliefs

    mean = beliefs(found.study, surrogate)
    best = int(np.argmax(mean))
    return replace(found, best=found.trials[best].settings, score=float(mean[best]))

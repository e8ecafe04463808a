"""Particle Gibbs: sweeps of conditional SMC."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats
from ..base.checks import fraction, one_of, positive
from ..base.engine import Growing, Guarantee, Ranking, Run, check_alive
from ..base.paths import Asking, Path, describe_paths, growing
from ..base.resampling import CONDITIONAL, resample
from ..particles.path_filter import Filtering, path_filter
from ..particles.smc import SMC
from .chain import alive, check_schedule, draw_chain, kept


@dataclass(frozen=True)
class ParticleGibbs:
    """Particle Gibbs: SMC again and again, in which one particle repeats the run that was drawn the time before.

    Feynman–Kac mapping: the chain walks over whole runs and leaves π invariant. A sweep is an SMC of n particles of
    which one, the reference, repeats the present run; it takes part in resampling, but is always kept itself (the
    others are drawn by the scheme's law given that). After the sweep a particle is drawn ∝ its weight: the next run.
    The first sweep is a plain SMC. Draws after ``burn_in`` weigh the same. The chain is exact in the limit of many
    sweeps at any n ≥ 2, and gives no evidence (that of a sweep is biased up). ``info["acceptance"]`` is the share of
    sweeps that changed the run, ``info["renewed"]`` the mean share of its steps that were changed.

    Where the particles share their early steps, so do the draws. With ``ancestor_sampling`` the reference first draws
    its past anew at each resampling, from all particles, ∝ weight · p·∏G of its future with that past; the others are
    drawn given that. It needs a model that scores forced choices, and whose choices fit another past (a token does; a
    text that holds its whole past fits no other, and the sweep is then as without); a past on which the program asks
    for others has no chance. It costs up to n·T²/2 forced steps a sweep of T steps.

    Args:
        particles_per_sweep: n, at least 2.
        sweeps: SMC runs after the first.
        ancestor_sampling: whether to draw the reference's past anew.
        ess_threshold: resample when ESS ≤ this fraction of n; 1.0 at every step.
        resampling: "multinomial", "stratified", "systematic" or "residual", each in its conditional form.
        burn_in: sweeps thrown away first; None: a fifth.
        thin: every so many of the rest is kept.
        chains: independent chains, of equal weight.
        all_dead: "error" raises `AllParticlesDead` when the first sweep finds none of positive weight; "zero" goes on.

    Raises:
        Unsupported: for ancestor sampling on a model without log-probabilities.

    Cost: N runs of the model for each sweep.
    When it pays: To draw from a posterior of long runs, where one pass of SMC leaves few founders.

    Source: Andrieu, Doucet and Holenstein (2010), doi:10.1111/j.1467-9868.2009.00736.x; ancestor sampling: Lindsten,
    Jordan and Schön (2014), arXiv:1401.0604; for reasoning: Puri et al. (2025), arXiv:2502.01618.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coins():
    ...     a = await fk.sample("a", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("Ga", 1.0 * a)
    ...     b = await fk.sample("b", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("Gb", 1.0 * (a == b))
    ...     return a + b
    >>> posterior = fk.infer(coins(), fk.ParticleGibbs(8, sweeps=400), seed=0)
    >>> abs(posterior.expect(float) - fk.enumerate_program(coins()).expect(float)) < 0.1
    True
    """

    particles_per_sweep: int
    sweeps: int
    ancestor_sampling: bool = False
    ess_threshold: float = 1.0
    resampling: Literal["multinomial", "stratified", "systematic", "residual"] = "multinomial"
    burn_in: int | None = None
    thin: int = 1
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "consistent"
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        positive("sweeps", self.sweeps)
        positive("particles_per_sweep", self.particles_per_sweep)
        if self.particles_per_sweep < 2:
            raise ValueError("particles_per_sweep must be at least 2: the reference alone stays where it is")
        fraction("ess_threshold", self.ess_threshold, "the particles")
        one_of("resampling", self.resampling, CONDITIONAL)
        check_schedule(self)

    @property
    def particles(self) -> int:
        """Draws of a chain."""
        return kept(self)

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        return draw_chain(model, key, self, self._begin(model, key), lambda paths, k: self._sweep(model, paths[0], k))

    def at_once(self, model: Any, key: Keys) -> Run | None:
        """Return the run of a compiled scan, each sweep one program of XLA; None where that cannot be."""
        from .fused_gibbs import fused_gibbs, fuses

        return fused_gibbs(self, model, key) if fuses(self, model) else None

    def _settings(self) -> SMC:
        return SMC(self.particles_per_sweep, self.ess_threshold, self.resampling)

    def _begin(self, model: FeynmanKac[Any], key: Keys) -> Filtering[list[Path]]:
        def watch(depth: int, paths: list[Path], log_weights: Floats, *_: Any) -> Growing:
            step = describe_paths(depth, paths, log_weights)
            check_alive(step, self.all_dead)
            return growing(model, step, paths, log_weights, math.nan)

        paths, log_weights = yield from path_filter(model, key, self._settings(), watch)
        if np.isneginf(log_weights).all():
            return paths[:1]
        return [_pick(paths, log_weights, key)]

    def _sweep(self, model: FeynmanKac[Any], path: Path, key: Keys) -> Asking[tuple[list[Path], dict[str, float]]]:
        reference = path if alive(path) else None  # what has no weight is no draw: the chain has not begun
        run = path_filter(model, key, self._settings(), None, reference, self.ancestor_sampling)
        paths, log_weights = yield from run  # type: ignore[misc]  # without a watch it reports nothing
        if np.isneginf(log_weights).all():
            return [path], {"acceptance": 0.0, "renewed": 0.0}
        new = _pick(paths, log_weights, key)
        same = {id(step) for step in path.steps()}
        renewed = float(np.mean([id(step) not in same for step in new.steps()]))
        return [new], {"acceptance": float(renewed > 0), "renewed": renewed}


def _pick(paths: list[Path], log_weights: Floats, key: Keys) -> Path:
    return paths[int(resample(log_weights, 1, _keys.fold(key, _keys.tag("pick")), "multinomial")[0])]

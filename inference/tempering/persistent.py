"""Persistent sampling: tempered SMC whose populations stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats
from ..base.engine import Guarantee, Ranking, Run
from ..base.paths import MarkovKernel, Path, promise
from ..base.resampling import Scheme, resample
from ..base.weights import ess, logmeanexp
from .ladder import next_inverse, reweighted
from .stages import Tempered, check_settings, potentials, prior_weights


@dataclass(frozen=True)
class PersistentSampling:
    """Persistent sampling: tempered SMC that keeps the runs of all stages, weighed as draws of their mixture.

    Feynman–Kac mapping: as `TemperedSMC`, targets p(y)·∏G(y)^λ on a rising ladder. The N runs of each stage s are draws
    of its target, and the t·N of all stages before t together are draws of the mixture of their targets. So at λ_t

        log w = λ_t·log G − log[(1/t) Σ_{s<t} exp(λ_s·log G − log Ẑ_s)],    log Ẑ_t = log of the mean w,

    N runs are resampled from all, moved by a kernel at λ_t, and added. The posterior has the runs of all stages,
    weighed with the last one in the mixture. No run is thrown away, so that evidence and means have less variance than
    those of tempered SMC by as many moves; the pool needs memory for all of them. Consistent: a biased Ẑ_s is in the
    weights.

    Args:
        particles: N, runs of each stage.
        kernel: moves a run, tempered; see `TemperedSMC`.
        moves: how often it is applied at each stage.
        ess: a stage's target is the farthest where the pool has an effective sample size of this fraction of N.
        ladder: inverse temperatures, from 0 to 1; None: found on the way.
        resampling: "systematic", "stratified", "residual", "ssp" or "multinomial".
        chains: independent runs, pooled in proportion to their evidence; several give a standard error.
        all_dead: "error" raises `AllParticlesDead` when all runs have weight zero; "zero" returns log Z = −inf.

    Raises:
        LadderStuck: where the next rung would be closer than 1e-10.

    Cost: That of `TemperedSMC`; memory grows with the rungs.
    When it pays: As `TemperedSMC`, where evaluations are dear: the draws of all rungs are weighed anew at the end.

    Source: Karamanis and Seljak (2024), arXiv:2407.20722.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def measured():
    ...     z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
    ...     await fk.observe("y", fk.dist.Normal(z, 0.5), 1.5)
    ...     return z
    >>> posterior = fk.infer(measured(), fk.PersistentSampling(200, fk.SuffixMH(3)), seed=0)
    >>> abs(posterior.expect(float) - 1.2) < 0.15, abs(posterior.log_evidence + 1.931) < 0.3
    (True, True)
    """

    particles: int
    kernel: MarkovKernel
    moves: int = 5
    ess: float = 0.5
    ladder: tuple[float, ...] | None = None
    resampling: Scheme = "systematic"
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        check_settings(self, "moves")

    @property
    def guarantee(self) -> Guarantee:
        """What it promises."""
        return promise(self.kernel, "consistent")

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        now, n = Tempered(model, key, self), self.particles
        yield from now.begin()
        pool = _Pool(now.paths)
        ancestors = np.arange(n)
        while now.stages[-1].ess and now.inverse < 1.0:
            now.inverse = self._next_rung(pool, now.inverse)
            now.log_weights = pool.weights(now.inverse)
            yield now.report(ancestors, "persistent" if len(now.stages) > 1 else None)
            now.tune()
            number = len(now.stages)
            drawn = resample(now.log_weights, n, _keys.fold(key, _keys.tag("resample"), number), self.resampling)
            kicks = _keys.fold(key, _keys.tag("move"), number, np.arange(n))
            fresh = [now.paths[a] for a in drawn.tolist()]
            for k in range(self.moves):
                fresh = yield from now.move(fresh, _keys.fold(kicks, k))
            ancestors = np.concatenate([np.arange(len(now.paths)), drawn])
            pool.add(fresh, now.inverse, logmeanexp(now.log_weights))
            now.paths, now.log_potential = pool.paths, pool.log_potential
        if now.stages[-1].ess:
            # The evidence is that of the stages before the last; the weights know this one, too.
            last = pool.weights(1.0)
            now.log_weights = last - logmeanexp(last) + pool.log_evidence
            yield now.report(ancestors, "persistent")

    def _next_rung(self, pool: _Pool, at: float) -> float:
        if self.ladder is not None:
            return next(rung for rung in self.ladder if rung > at)
        # Runs of weight zero at any λ, and uneven weights of the first, are no reason to stand still.
        most = min(float(self.particles), ess(pool.weights(at)))
        return next_inverse(lambda gap: ess(pool.weights(at + gap)) / (self.ess * most), at)


class _Pool:
    """The runs of all stages, with the mixture of their targets, relative to the law that the first were drawn from."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = list(paths)
        self.log_prior, self.log_potential = prior_weights(paths), potentials(paths)
        self.log_evidence = 0.0
        self._mixture: list[tuple[float, float]] = []

    def add(self, paths: list[Path], inverse: float, log_evidence: float) -> None:
        """Add the runs of a stage, and its target."""
        self.paths = [*self.paths, *paths]
        self.log_prior = np.concatenate([self.log_prior, prior_weights(paths)])
        self.log_potential = np.concatenate([self.log_potential, potentials(paths)])
        self._mixture.append((inverse, log_evidence))
        self.log_evidence = log_evidence

    def weights(self, inverse: float) -> Floats:
        """Return the log-weights of all runs, for the target at an inverse temperature."""
        shares = [self._target(rung) - log_z for rung, log_z in self._mixture]
        parts = np.stack([np.zeros(len(self.paths)), *shares])
        log_mixture = np.logaddexp.reduce(parts, axis=0) - np.log(len(parts))
        out: Floats = self._target(inverse) - log_mixture
        return out

    def _target(self, inverse: float) -> Floats:
        return reweighted(self.log_prior, self.log_potential, inverse)

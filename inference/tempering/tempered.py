"""Tempered sequential Monte Carlo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac
from ..base.engine import Guarantee, Ranking, Run
from ..base.paths import Asking, MarkovKernel, Path
from ..base.resampling import Scheme, resample
from ..base.weights import logmeanexp
from .ladder import conditional_ess, next_inverse, reweighted
from .stages import Settings, Tempered, check_settings, potentials, promised


@dataclass(frozen=True)
class TemperedSMC:
    """Tempered SMC: whole runs, whose potentials are turned on by and by while a Markov kernel moves them.

    It is for static targets: a prior with a likelihood, where SMC along the program would draw all that there is to
    draw at its first step, and then only weigh it. On texts with a late reward it does the same for whole texts.

    Feynman–Kac mapping: step t moves a run y by a kernel that leaves p(y)·∏G(y)^λ_t invariant, and its potential is
    ∏G(y)^(λ_{t+1} − λ_t), on a ladder 0 = λ_0 < λ_1 < … < λ_T = 1. The first runs are drawn from the program (or its
    proposals, weighed p/q). At each rung all are weighed, resampled and moved, at λ = 1 once more, so that the draws
    of the posterior weigh the same. Ẑ is the product of the mean weights, and the posterior's history has a step for
    each rung: its effective sample size, ``temperature`` 1/λ, ``acceptance``, and log Ẑ of the tempered target.

    Without a ladder the next λ is the one whose conditional effective sample size is ``ess``. On a fixed ladder, by a
    kernel that does not learn, Ẑ is unbiased at any number of particles; else consistent, and `guarantee` says which.
    A kernel that learns (a step size that is not given) does so at each rung. A run that is cut short is that of its
    last rung.

    ``info`` has the number of ``stages``, the mean ``acceptance``, how many runs are ``distinct`` at the end, the log
    evidence by thermodynamic integration (``thermodynamic``), and the ``difference`` of log Ẑ from it; see
    `Posterior.thermodynamic` and ``fk.plots.tempering``.

    Args:
        particles: n, the number of runs.
        kernel: moves a run, tempered: ``SuffixMH(1)`` for any program, or one that moves continuous sites.
        moves: how often it is applied at each rung.
        ess: the conditional effective sample size that a rung leaves, as a fraction of the particles. Higher takes more
            rungs. The first runs are resampled, too, where theirs is below it.
        ladder: inverse temperatures, from 0 to 1; None: found on the way.
        resampling: "systematic", "stratified", "residual", "ssp" or "multinomial" (with which one chain gives standard
            errors).
        chains: independent runs, pooled in proportion to their evidence; several give a standard error.
        all_dead: "error" raises `AllParticlesDead` when all runs have weight zero; "zero" returns log Z = −inf.

    Raises:
        LadderStuck: where the next rung would be closer than 1e-10.

    Cost: N whole runs, and for each rung of the ladder n moves.
    When it pays: For a prior with a likelihood, where all is drawn before it is weighed; posteriors with several
    modes; the evidence.

    Source: Neal (2001), doi:10.1023/A:1008923215028; Del Moral, Doucet and Jasra (2006),
    doi:10.1111/j.1467-9868.2006.00553.x; the ladder: Zhou, Johansen and Aston (2016),
    doi:10.1080/10618600.2015.1060885.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def measured():
    ...     z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
    ...     await fk.observe("y", fk.dist.Normal(z, 0.5), 1.5)
    ...     return z
    >>> posterior = fk.infer(measured(), fk.TemperedSMC(200, fk.SuffixMH(3)), seed=0)
    >>> abs(posterior.expect(float) - 1.2) < 0.15, abs(posterior.log_evidence + 1.931) < 0.3
    (True, True)
    >>> [round(1 / step.temperature, 1) for step in posterior.steps]  # the last with the draws, which were moved
    [0.0, 0.4, 1.0, 1.0]
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
        return promised(self)

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""

        def renew(now: Tempered, paths: list[Path], keys: Keys) -> Asking[list[Path]]:
            for k in range(self.moves):
                paths = yield from now.move(paths, _keys.fold(keys, k))
            return paths

        return temper(model, key, self, self.particles, self.resampling, renew)


def temper(
    model: FeynmanKac[Any],
    key: Keys,
    settings: Settings,
    survivors: int,
    scheme: str,
    renew: Callable[[Tempered, list[Path], Keys], Asking[list[Path]]],
    info: Mapping[str, float] = MappingProxyType({}),
) -> Run:
    """Run a tempered chain.

    Args:
        model: a Feynman–Kac model.
        key: (1,)
        settings: of the engine.
        survivors: m, how many runs are left by a resampling.
        scheme: what the history calls it.
        renew: makes n runs of the m survivors, those of each side by side, by moves of its first argument.
        info: what else the posterior's is to hold.
    """
    now = Tempered(model, key, settings, info)
    yield from now.begin()
    n, themselves = settings.particles, np.arange(settings.particles)
    while now.stages[-1].ess:
        number = len(now.stages)
        last = now.stages[-1]
        if now.inverse or last.ess <= settings.ess * n:
            now.tune()
            draw = _keys.fold(key, _keys.tag("resample"), number)
            ancestors = resample(now.log_weights, survivors, draw, settings.resampling)
            kicks = _keys.fold(key, _keys.tag("move"), number, np.arange(survivors))
            now.paths = yield from renew(now, [now.paths[a] for a in ancestors.tolist()], kicks)
            now.log_weights = np.full(n, logmeanexp(now.log_weights))
            now.log_potential = potentials(now.paths)
            ancestors, drawn = np.repeat(ancestors, n // survivors), scheme
        else:
            ancestors, drawn = themselves, None
        final = now.inverse == 1.0
        if not final:
            rung = _next_rung(now, settings)
            now.log_weights = reweighted(now.log_weights, now.log_potential, rung - now.inverse)
            now.inverse = rung
        yield now.report(ancestors, drawn)
        if final:
            return


def _next_rung(now: Tempered, settings: Settings) -> float:
    if settings.ladder is not None:
        return next(rung for rung in settings.ladder if rung > now.inverse)
    share = conditional_ess(now.log_weights, now.log_potential)
    return next_inverse(lambda gap: share(gap) / settings.ess, now.inverse)

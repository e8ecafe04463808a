"""Waste-free sequential Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac
from ..base.checks import positive
from ..base.engine import Guarantee, Ranking, Run
from ..base.paths import Asking, MarkovKernel, Path
from ..base.resampling import Scheme
from .stages import Tempered, check_settings, promised
from .tempered import temper


@dataclass(frozen=True)
class WasteFreeSMC:
    """Waste-free tempered SMC: few runs survive each resampling, and every state of the chains that they begin is kept.

    Feynman–Kac mapping: as `TemperedSMC`, but at each rung M = n/``length`` runs are resampled, each begins a Markov
    chain of ``length`` states at its temperature, and all n states are the population, of equal weight: a move costs
    the same and none is thrown away. Ẑ is the product of the mean weights, unbiased on a fixed ladder by a kernel that
    does not learn, else consistent. The states of the final chains are the draws of the posterior, and a single run has
    a standard error of log Ẑ: from the autocovariances of its M chains, which asks for long ones (and says too little
    where they are shorter than what they forget in).

    Args:
        particles: n, the runs at the start, and the states at each rung.
        kernel: moves a run, tempered; see `TemperedSMC`.
        length: states of a chain, its start included; it divides n. A rung makes n − n/length moves.
        ess: the conditional effective sample size that a rung leaves, as a fraction of the particles.
        ladder: inverse temperatures, from 0 to 1; None: found on the way.
        resampling: "systematic", "stratified", "residual", "ssp" or "multinomial".
        chains: independent runs of all this, pooled in proportion to their evidence.
        all_dead: "error" raises `AllParticlesDead` when all runs have weight zero; "zero" returns log Z = −inf.

    Cost: N whole runs, and as many moves for each rung, all of which are kept.
    When it pays: As `TemperedSMC`, where the kernel moves little at a time: no state of its chains is thrown away.

    Source: Dau and Chopin (2022), doi:10.1111/rssb.12475, arXiv:2011.02328.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def measured():
    ...     z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
    ...     await fk.observe("y", fk.dist.Normal(z, 0.5), 1.5)
    ...     return z
    >>> posterior = fk.infer(measured(), fk.WasteFreeSMC(1000, fk.SuffixMH(1), length=50), seed=0)
    >>> abs(posterior.log_evidence + 1.931) < 3 * posterior.log_evidence_se < 0.6
    True
    """

    particles: int
    kernel: MarkovKernel
    length: int
    ess: float = 0.5
    ladder: tuple[float, ...] | None = None
    resampling: Scheme = "systematic"
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        check_settings(self)
        positive("length", self.length)
        if self.length < 2 or self.particles % self.length:
            raise ValueError(f"length must be 2 or more and divide the {self.particles} particles, not {self.length!r}")

    @property
    def guarantee(self) -> Guarantee:
        """What it promises."""
        return promised(self)

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        m = self.particles // self.length

        def renew(now: Tempered, paths: list[Path], keys: Keys) -> Asking[list[Path]]:
            states = [paths]
            for k in range(self.length - 1):
                states.append((yield from now.move(states[-1], _keys.fold(keys, k))))
            return [state[i] for i in range(m) for state in states]

        return temper(model, key, self, m, "waste_free", renew, {"length": float(self.length)})

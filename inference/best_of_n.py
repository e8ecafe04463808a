"""Best-of-N."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ..ppl.keys import Keys
from ..ppl.model import FeynmanKac, Floats
from .engine import Guarantee, Report, Run
from .smc import SMC


@dataclass(frozen=True)
class BestOfN:
    """Draw N runs from the model and select by their total potential: the best, or softly.

    Feynman–Kac mapping: each particle runs to its end under M (or its proposal), and is ranked by
    log G = Σ_t log G_t alone. Without a temperature all weight goes to the best (to all of them, where several
    tie); with temperature T, a particle is selected with probability ∝ exp(log G / T). It is a heuristic for
    finding good samples: neither law is the posterior at finite N (soft selection at T = 1, with no proposal, is
    importance sampling). The evidence that it reports is that of importance sampling on the same draws.

    Args:
        particles: N, the number of runs.
        temperature: None for the best; a positive number for soft selection.
        chains: independent batches of N; each selects its own.
        all_dead: "error" raises `AllParticlesDead` when all potentials are zero; "zero" keeps the dead.

    Source: Stiennon et al. (2020), arXiv:2009.01325; soft selection, Verdun et al. (2025), arXiv:2505.03156.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def die():
    ...     face = await fk.sample("face", fk.dist.DiscreteUniform(1, 6))
    ...     await fk.factor("high", float(face))
    ...     return face
    >>> fk.infer(die(), fk.BestOfN(50), seed=0).best()
    6
    """

    particles: int
    temperature: float | None = None
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "heuristic"

    def __post_init__(self) -> None:
        self._as_smc()
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature must be positive, or None for the best, not {self.temperature!r}")

    def _as_smc(self) -> SMC:
        return SMC(self.particles, ess_threshold=0.0, chains=self.chains, all_dead=self.all_dead)

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        log_potential = np.zeros(self.particles)
        inner = self._as_smc().run(model, key)
        request = next(inner)
        while True:
            if not isinstance(request, Report):
                request = inner.send((yield request))
                continue
            assert request.step is not None
            log_potential = log_potential + request.step.log_potential
            yield Report(request.state, self._select(log_potential), request.step, request.step.log_evidence)
            try:
                request = next(inner)
            except StopIteration:
                return

    def _select(self, log_potential: Floats) -> Floats:
        if self.temperature is not None:
            return log_potential / self.temperature
        best = log_potential.max()
        return np.where((log_potential == best) & (best > -np.inf), 0.0, -np.inf)

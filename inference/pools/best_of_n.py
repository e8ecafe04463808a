"""Best-of-N."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats
from ..base.checks import function_or_none, temperature_or_none
from ..base.engine import Guarantee, Run
from ..base.selection import Ballot, choose
from ..base.step import Step
from ..particles.importance import ImportanceSampling, reweighted


@dataclass(frozen=True)
class BestOfN:
    """Draw N runs from the model and select by their total potential: the best, or softly.

    Feynman–Kac mapping: each particle runs to its end under M (or its proposal), and is ranked by
    log G = Σ_t log G_t alone. Without a temperature all weight goes to the best (to all of them, where several
    tie); with temperature T, a particle is selected with probability ∝ exp(log G / T). It is a heuristic for
    finding good samples: neither law is the posterior at finite N (soft selection at T = 1, with no proposal, is
    importance sampling). With ``by``, the potentials G are summed over the runs of equal answer ``by(value)``, and all
    weight goes to the best run of the answer with the largest sum (weighted best-of-N). The evidence that it reports
    is that of importance sampling on the same draws. A run that is cut short selects among the particles that
    finished, where there are any.

    Args:
        particles: N, the number of runs.
        temperature: None for the best; a positive number for soft selection.
        chains: independent batches of N; each selects its own.
        all_dead: "error" raises `AllParticlesDead` when all potentials are zero; "zero" keeps the dead.
        by: the answer of a value, for weighted best-of-N; it must return something hashable. None abstains; where all
            do, the best run wins.

    Cost: N runs of the model, each scored once.
    When it pays: Where only whole runs can be judged; hard to beat where runs are short.

    Source: Stiennon et al. (2020), arXiv:2009.01325; soft selection, Verdun et al. (2025), arXiv:2505.03156; weighted,
    Li et al. (2023), arXiv:2206.02336, and Snell et al. (2024), arXiv:2408.03314.

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
    by: Callable[[Any], Hashable] | None = field(default=None, repr=False)
    guarantee: ClassVar[Guarantee] = "heuristic"

    def __post_init__(self) -> None:
        self._runs()
        temperature_or_none(self.temperature)
        function_or_none("by", self.by)
        if self.by is not None and self.temperature is not None:
            raise ValueError("by= picks the best answer, and temperature= selects softly: give one of them")

    def _runs(self) -> ImportanceSampling:
        return ImportanceSampling(self.particles, self.chains, self.all_dead)

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        ballot = Ballot(self.particles, self.by, "BestOfN", "by")

        def select(state: Any, step: Step, log_potential: Floats) -> tuple[Floats, None]:
            finished = step.done & (log_potential > -np.inf)
            if self.by is not None and finished.any():
                ballot.ask(lambda: model.values(state), finished)
                won = ballot.winner(np.where(finished, log_potential, -np.inf))
                log_potential = np.where(won | ~won.any(), log_potential, -np.inf)  # where all abstain, the best run
            return choose(log_potential, step.done, self.temperature), None

        return reweighted(model, key, self._runs(), select)

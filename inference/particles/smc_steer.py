"""SMC steering: a beam that samples without replacement."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac
from ..base.checks import one_of, positive
from ..base.engine import Guarantee, Move, Ranking, Report, Run, Start, check_alive, describe
from ..base.resampling import optimal
from ..base.weights import logmeanexp, normalize


@dataclass(frozen=True)
class SMCSteer:
    """SMC steering: each of n particles is continued ``beam`` times, and n of all are kept, without replacement.

    Feynman–Kac mapping: every unfinished particle is copied ``beam`` times, each copy with an equal share of its
    weight, and moved and weighed as in `SMC`. Where more than n are left, n are kept by optimal resampling of w·ψ,
    where ψ is the twist's level: with c such that Σ min(1, c·w·ψ) = n, those of c·w·ψ ≥ 1 are kept as they are, and
    the others with probability c·w·ψ each, then with the weight 1/(c·ψ). So no particle is copied for its weight alone,
    the best are never lost, and the evidence stays unbiased. There is no selection after the last step: a posterior may
    hold up to n·``beam`` particles.

    Args:
        particles: n.
        beam: continuations of each.
        chains: independent runs, pooled in proportion to their evidence; several give a standard error.
        all_dead: "error" raises `AllParticlesDead` when all weights are zero; "zero" returns log Z = −inf.

    Cost: ``beam`` × n continuations a step, n of which are kept.
    When it pays: Where steps have few likely continuations, and copies of the same one would be a waste.

    Source: Lew et al. (2023), arXiv:2306.03081; the resampling: Fearnhead and Clifford (2003),
    doi:10.1111/1467-9868.00421.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coins():
    ...     a = await fk.sample("a", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("Ga", 1.0 * a)
    ...     b = await fk.sample("b", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("Gb", 1.0 * (a == b))
    ...     return a, b
    >>> posterior = fk.infer(coins(), fk.SMCSteer(200, beam=3), seed=0)
    >>> abs(posterior.log_evidence - fk.enumerate_program(coins()).log_evidence) < 0.1
    True
    """

    particles: int
    beam: int = 3
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "unbiased"
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        for name in ("particles", "beam", "chains"):
            positive(name, getattr(self, name))
        one_of("all_dead", self.all_dead, ("error", "zero"))

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        n, depth, scheme = self.particles, 0, None
        ancestors = np.arange(n * self.beam)
        lineage = _keys.fold(key, _keys.tag("particle"), ancestors)
        advance = yield Start(_keys.fold(lineage, 0))
        # On the scale of n particles, however many there are, so that chains are pooled by their evidence.
        log_weights = advance.log_increment - math.log(self.beam)
        while True:
            evidence = logmeanexp(log_weights) + math.log(len(log_weights) / n)
            step = replace(describe(depth, advance, log_weights, ancestors, scheme), log_evidence=evidence)
            yield Report(advance.state, log_weights, step, evidence)
            check_alive(step, self.all_dead)
            if advance.done.all() or step.ess == 0.0:
                return
            kept, chance = optimal(
                normalize(log_weights + advance.log_twist), n, _keys.fold(key, _keys.tag("resample"), depth)
            )
            copies = np.where(advance.done[kept], 1, self.beam)
            ancestors = np.repeat(kept, copies)
            log_weights = (log_weights[kept] - np.log(chance * copies))[np.repeat(np.arange(len(kept)), copies)]
            scheme = "optimal"
            lineage = _keys.inherit(lineage, ancestors, depth)
            depth += 1
            advance = yield Move(model.select(advance.state, ancestors), _keys.fold(lineage, depth))
            log_weights = log_weights + advance.log_increment

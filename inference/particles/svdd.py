"""Soft value-based decoding."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac, Floats, Index
from ..base.checks import one_of, positive, temperature_or_none
from ..base.engine import Guarantee, Move, Ranking, Report, Run, Start, check_alive, describe, pick, without_evidence
from ..base.weights import logmeanexp, normalize


@dataclass(frozen=True)
class SVDD:
    """Soft value-based decoding (SVDD): each line tries several children at every step, and goes on with one of them.

    Feynman–Kac mapping: of each particle's children, drawn from M (or its proposal), one is kept with probability
    ∝ (G·ψ·p/q)^(1/T), ψ being the twist. Lines do not compete: there is no resampling between them, and all that are
    alive weigh the same at the end. So it is a heuristic whose law tends to the target only as the children become
    many and ψ the exact value; with one child it is the model itself, without its potentials. No evidence.

    Potentials that telescope, such as those of an estimate's reward, say which child is better than its parent.

    Args:
        particles: n, the number of lines.
        children: how many each tries at every step.
        temperature: T; None keeps the best child.
        chains: independent batches of n.
        all_dead: "error" raises `AllParticlesDead` when all lines are dead; "zero" keeps the dead.

    Cost: ``children`` tries of each line at every step.
    When it pays: For images with a reward of the estimate; greedy, so that diversity is lost.

    Source: Li et al. (2024), arXiv:2408.08252.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def climb():
    ...     x = 0.0
    ...     for _ in range(3):
    ...         before, x = x, await fk.sample("x", fk.dist.Normal(x, 1.0))
    ...         await fk.factor("G", x - before)
    ...     return x
    >>> posterior = fk.infer(climb(), fk.SVDD(50, children=8, temperature=None), seed=0)
    >>> posterior.expect(float) > 3.0
    True
    """

    particles: int
    children: int = 4
    temperature: float | None = 1.0
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "heuristic"
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        for name in ("particles", "children", "chains"):
            positive(name, getattr(self, name))
        temperature_or_none(self.temperature)
        one_of("all_dead", self.all_dead, ("error", "zero"))

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        n, depth = self.particles, 0
        parents = np.repeat(np.arange(n), self.children)
        lineage = _keys.inherit(_keys.fold(key, _keys.tag("particle"), np.arange(n)), parents, -1)
        advance = yield Start(_keys.fold(lineage, 0))
        log_weights = np.zeros(n)
        while True:
            chosen = self._choose(advance, parents, _keys.fold(key, _keys.tag("pick"), depth, np.arange(n)))
            advance, lineage = pick(model, advance, chosen), lineage[chosen]
            log_weights = np.where(np.isneginf(advance.log_increment), -np.inf, log_weights)
            step = without_evidence(describe(depth, advance, log_weights, np.arange(n), None))
            yield Report(advance.state, log_weights, step, step.log_evidence)
            check_alive(step, self.all_dead)
            going = ~advance.done & (log_weights > -np.inf)
            if not going.any():
                return
            parents = np.repeat(np.arange(n), np.where(going, self.children, 1))
            lineage = _keys.inherit(lineage, parents, depth)
            depth += 1
            advance = yield Move(model.select(advance.state, parents), _keys.fold(lineage, depth))

    def _choose(self, advance: Advance[Any], parents: Index, keys: Keys) -> Index:
        """Return the child (its row) that each of n parents goes on with; parents are sorted."""
        scores: Floats = np.asarray(advance.log_increment + advance.log_twist, float)
        logmeanexp(scores)  # refuses NaN, which would be taken for the best
        start = np.searchsorted(parents, np.arange(len(keys) + 1))
        draws, chosen = _keys.uniform(keys), np.empty(len(keys), np.intp)
        for i, (a, b) in enumerate(pairwise(start)):
            if self.temperature is None:
                chosen[i] = a + scores[a:b].argmax()
            else:
                ends = np.cumsum(normalize(scores[a:b] / self.temperature))
                chosen[i] = a + np.searchsorted(ends, draws[i] * ends[-1], side="right") if ends[-1] > 0 else a
        return chosen

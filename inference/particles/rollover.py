"""Rollover budget forcing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac
from ..base.checks import one_of, positive
from ..base.engine import Guarantee, Move, Ranking, Report, Run, Start, check_alive, describe, without_evidence
from ..base.weights import logmeanexp


@dataclass(frozen=True)
class RolloverBudget:
    """Rollover budget forcing (RBF): a line tries a step until it gains, and saves the tries that it did not need.

    Feynman–Kac mapping: the score of a particle is Σ log G so far, plus its twist. At each step up to ``quota``
    particles are drawn from M (or its proposal), one at a time; the first that scores above the particle it comes from
    is gone on with, and what is left of the quota is added to that of the next step. Where none does, the best of
    them goes on. A heuristic for finding one good sample, without evidence. It is made for potentials that telescope
    (the reward of an estimate of the result), where the score is the reward now.

    Draws are made one by one, so that there is nothing to batch but ``chains`` and problems.

    Args:
        quota: draws of each step; unused ones roll over, and those left at the end are saved.
        chains: independent lines; each has a vote of the same weight.
        all_dead: "error" raises `AllParticlesDead` when all draws of a step have weight zero; "zero" keeps the dead.

    Cost: The quota of tries for each step, what is saved going to later ones.
    When it pays: For images with few steps, whose gains come at steps that are not known beforehand.

    Source: Kim, Yoon, Hwang and Sung (2025), arXiv:2503.19385.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def climb():
    ...     x = 0.0
    ...     for _ in range(4):
    ...         before, x = x, await fk.sample("x", fk.dist.Normal(x, 1.0))
    ...         await fk.factor("G", x - before)
    ...     return x
    >>> fk.infer(climb(), fk.RolloverBudget(10), seed=0).best() > 0.0
    True
    """

    quota: int
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "heuristic"
    ranking: ClassVar[Ranking] = "reward"
    particles: ClassVar[int] = 1

    def __post_init__(self) -> None:
        positive("quota", self.quota)
        positive("chains", self.chains)
        one_of("all_dead", self.all_dead, ("error", "zero"))

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        line = _keys.fold(key, _keys.tag("particle"), 0)
        state, depth, saved = None, 0, 0
        reward, score = 0.0, -math.inf
        while True:
            allowed = self.quota + saved
            best: tuple[float, Advance[Any], Keys] | None = None
            for draw in range(allowed):
                # The first keeps the line, as the first child does in any engine.
                own = line if draw == 0 else _keys.fold(line, _keys.tag("twin"), depth - 1, draw)
                drawn = _keys.fold(own, depth)
                advance = yield Start(drawn) if state is None else Move(state, drawn)
                found = logmeanexp(reward + advance.log_potential + advance.log_twist)  # of one; it refuses NaN
                if best is None or found > best[0]:
                    best = found, advance, own
                saved = allowed - draw - 1
                if found > score:
                    break
            assert best is not None
            score, advance, line = best
            reward += float(advance.log_potential[0])
            state, log_weights = advance.state, np.array([0.0 if reward > -math.inf else -math.inf])
            step = without_evidence(describe(depth, advance, log_weights, np.arange(1), None))
            yield Report(state, log_weights, step, step.log_evidence)
            check_alive(step, self.all_dead)
            if advance.done.all() or reward == -math.inf:
                return
            depth += 1

"""SMC that looks ahead: rollouts say which particles are worth keeping."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac, Floats
from ..base.checks import one_of, positive
from ..base.engine import Guarantee, Move, Ranking, Report, Run, Start, check_alive
from ..base.resampling import SCHEMES, Scheme, resample
from ..base.weights import logmeanexp
from .smc import describe

_DEAD = 0.1
"""What a look-ahead of weight zero counts for, as a share of the mean: its particle may have better children."""


@dataclass(frozen=True)
class LookAheadSMC:
    """SMC that looks ahead: before each resampling every particle makes trial runs, which are then forgotten.

    Feynman–Kac mapping: as `SMC` with resampling after every step, but ancestors are drawn ∝ w·ψ̂, where ψ̂ is the mean
    weight of ``rollouts`` trial runs of up to ``ahead`` steps from the particle (with the twist's level where they
    stop), and each copy gets the weight mean(w·ψ̂)/ψ̂. So ψ̂ is a twist that is estimated by simulation: it changes the
    variance and never the target, and the evidence is unbiased. Trial runs cost as much as real ones; they pay where
    a potential that comes late decides, and no twist is known.

    Args:
        particles: n.
        rollouts: trial runs from each particle.
        ahead: steps of each; None: to its end.
        resampling: "systematic", "stratified", "residual", "ssp" or "multinomial".
        chains: independent runs, pooled in proportion to their evidence; several give a standard error.
        all_dead: "error" raises `AllParticlesDead` when all weights are zero; "zero" returns log Z = −inf.

    Source: Lin, Chen and Liu (2013), doi:10.1214/12-STS401, arXiv:1302.5206.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def late():
    ...     a = await fk.sample("a", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("nothing yet", 0.0)
    ...     b = await fk.sample("b", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("G", 3.0 * (a and b))
    ...     return a, b
    >>> posterior = fk.infer(late(), fk.LookAheadSMC(200, rollouts=4), seed=0)
    >>> abs(posterior.log_evidence - fk.enumerate_program(late()).log_evidence) < 0.2
    True
    """

    particles: int
    rollouts: int = 1
    ahead: int | None = None
    resampling: Scheme = "systematic"
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "unbiased"
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        for name in ("particles", "rollouts", "chains"):
            positive(name, getattr(self, name))
        if self.ahead is not None:
            positive("ahead", self.ahead)
        one_of("resampling", self.resampling, SCHEMES)
        one_of("all_dead", self.all_dead, ("error", "zero"))

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        n, depth, scheme = self.particles, 0, None
        ancestors = np.arange(n)
        lineage = _keys.fold(key, _keys.tag("particle"), ancestors)
        advance = yield Start(_keys.fold(lineage, 0))
        log_weights = advance.log_increment
        while True:
            step = describe(depth, advance, log_weights, ancestors, scheme)
            yield Report(advance.state, log_weights, step)
            check_alive(step, self.all_dead)
            if advance.done.all() or step.ess == 0.0:
                return
            looks = _keys.fold(lineage, _keys.tag("look"), depth)
            level = yield from look_ahead(model, advance, looks, self.rollouts, self.ahead)
            guided, scheme = log_weights + level, self.resampling
            ancestors = resample(guided, n, _keys.fold(key, _keys.tag("resample"), depth), scheme)
            log_weights = logmeanexp(guided) - level[ancestors]
            lineage = _keys.inherit(lineage, ancestors, depth)
            depth += 1
            advance = yield Move(model.select(advance.state, ancestors), _keys.fold(lineage, depth))
            log_weights = log_weights + advance.log_increment


def look_ahead(
    model: FeynmanKac[Any], advance: Advance[Any], keys: Keys, rollouts: int, ahead: int | None
) -> Generator[Move, Advance[Any], Floats]:
    """Return the log of the mean weight of trial runs from each of n particles, (n,), finite."""
    n = len(keys)
    state, lines = advance.state, keys
    if rollouts > 1:
        state = model.select(state, np.repeat(np.arange(n), rollouts))
        lines = _keys.fold(np.repeat(keys, rollouts), np.tile(np.arange(rollouts), n))
    total, made = np.zeros(n * rollouts), 0
    while True:
        trial = yield Move(state, _keys.fold(lines, made))
        total, made = total + trial.log_increment, made + 1
        if trial.done.all() or made == ahead:
            break
        state = trial.state
    found = np.array([logmeanexp(row) for row in (total + trial.log_twist).reshape(n, rollouts)])
    least = logmeanexp(found) + math.log(_DEAD)
    # A level must be finite: a particle whose trials all died may have children that live.
    return np.maximum(found, least) if least > -np.inf else np.zeros(n)

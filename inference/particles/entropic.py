"""Entropic particle filtering."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats
from ..base.checks import fraction, one_of, positive
from ..base.engine import Guarantee, Move, Ranking, Report, Run, Start, check_alive, describe
from ..base.resampling import SCHEMES, Scheme
from ..base.weights import logmeanexp, normalize, spread
from .look_ahead import check_floor, fruitless, look_ahead, mixed, told

RULES = ("ess", "entropy", "base")


@dataclass(frozen=True)
class EntropicParticleFilter:
    """Entropic particle filtering (ePF): a particle filter that resamples more evenly while it is early and in doubt.

    Feynman–Kac mapping: as in `SMC` with resampling after every step, but ancestors are drawn ∝ (w·ψ)^(1/τ), where ψ
    is the twist's level. With ρ = ESS/n and progress u = t/``max_steps`` (t counts steps from 1), τ = 1 unless
    ρ < ``ess_threshold`` and u < ``early``; then τ is at least 1 and

        "ess"      (1 − u)/ρ
        "entropy"  1/(h + (1 − h)·u), with h the entropy of the weights over log n
        "base"     2 − u

    A copy of particle a, which is drawn with probability p̃_a, gets the weight w_a/(n·p̃_a). So tempering changes the
    variance and never the target, and the evidence is unbiased. With ``exact=False`` all copies weigh the same, as
    published: the target is then another one, flatter where it was tempered, and the engine a heuristic.

    With ``look_ahead``, each particle makes one trial step before resampling, and ancestors are drawn ∝ (w·ψ·G')^(1/τ),
    with G' the weight of that step; it is then forgotten, and the step made afresh (an auxiliary particle filter,
    whose second-stage weights the correction above gives). A share of ``floor`` is drawn as without, since one trial
    may find nothing where others would: so no copy weighs more than 1/floor times what it would weigh without. It costs
    a second call to the models at every step, and is noise where a trial says little of the next:
    ``info["fruitless"]`` is the share of the weight whose trials found less than a tenth of the mean. To keep the trial
    step as the child would be resampling one step later, which `SMC` does.

    Args:
        particles: n.
        max_steps: the number of steps that counts as the whole way.
        rule: "ess", "entropy" or "base".
        ess_threshold: of ρ, in [0, 1].
        early: of u, in [0, 1].
        look_ahead: whether to look a step ahead.
        exact: whether to correct the weights for the tempering.
        resampling: "systematic", "stratified", "residual", "ssp" or "multinomial".
        chains: independent runs, pooled in proportion to their evidence; several give a standard error.
        all_dead: "error" raises `AllParticlesDead` when all weights are zero; "zero" returns log Z = −inf.
        floor: the share of ancestors that is drawn without looking ahead, in (0, 1].

    Cost: That of `ParticleFilter`.
    When it pays: Where the process reward is too sure of first steps, so that a filter would commit to few
    particles too soon.

    Source: Giannone et al. (2025), arXiv:2510.05825; auxiliary filters: Pitt and Shephard (1999),
    doi:10.1080/01621459.1999.10474153. The correction, and the form of the look-ahead, are ours.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coins():
    ...     a = await fk.sample("a", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("Ga", 4.0 * a)
    ...     b = await fk.sample("b", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("Gb", 1.0 * (a == b))
    ...     return a, b
    >>> posterior = fk.infer(coins(), fk.EntropicParticleFilter(500, max_steps=4), seed=0)
    >>> abs(posterior.log_evidence - fk.enumerate_program(coins()).log_evidence) < 0.15
    True
    """

    particles: int
    max_steps: int
    rule: Literal["ess", "entropy", "base"] = "ess"
    ess_threshold: float = 0.5
    early: float = 0.5
    look_ahead: bool = False
    exact: bool = True
    resampling: Scheme = "systematic"
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    floor: float = 0.5
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        for name in ("particles", "max_steps", "chains"):
            positive(name, getattr(self, name))
        for name in ("ess_threshold", "early"):
            fraction(name, getattr(self, name))
        one_of("rule", self.rule, RULES)
        one_of("resampling", self.resampling, SCHEMES)
        one_of("all_dead", self.all_dead, ("error", "zero"))
        check_floor(self.floor)

    @property
    def guarantee(self) -> Guarantee:
        """Unbiased, or heuristic as published."""
        return "unbiased" if self.exact else "heuristic"

    def temperature(self, log_weights: Floats, step: int) -> float:
        """Return τ ≥ 1 for log-weights (n,) after a step, counted from 1.

        >>> engine = EntropicParticleFilter(4, max_steps=10)
        >>> round(engine.temperature(np.log([0.97, 0.01, 0.01, 0.01]), 1), 5)
        3.38832
        """
        n, found, progress = len(log_weights), spread(log_weights), min(step / self.max_steps, 1.0)
        if n == 1 or found.ess >= self.ess_threshold * n or progress >= self.early or found.ess == 0.0:
            return 1.0
        if self.rule == "ess":
            return max(1.0, (1.0 - progress) * n / found.ess)
        if self.rule == "base":
            return max(1.0, 2.0 - progress)
        evenness = found.entropy / math.log(n)
        return 1.0 / min(1.0, evenness + (1.0 - evenness) * progress)

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        n = self.particles
        ancestors = np.arange(n)
        lineage = _keys.fold(key, _keys.tag("particle"), ancestors)
        tau, depth = 1.0, 0
        scheme: str | None = None
        lost: list[float] = []
        advance = yield Start(_keys.fold(lineage, 0))
        log_weights = advance.log_increment
        while True:
            step = replace(describe(depth, advance, log_weights, ancestors, scheme), temperature=tau)
            yield Report(advance.state, log_weights, step, info=told(lost))
            check_alive(step, self.all_dead)
            if advance.done.all() or step.ess == 0.0:
                return
            guided = log_weights + advance.log_twist
            tau = self.temperature(guided, depth + 1)
            chances = normalize(guided / tau)
            if self.look_ahead:
                looks = _keys.fold(lineage, _keys.tag("look"), depth)
                found = normalize((log_weights + (yield from look_ahead(model, advance, looks, 1, 1))) / tau)
                lost.append(fruitless(chances, found))
                chances = mixed(chances, found, self.floor)
            # Where copies do not make up for how they were drawn, their genealogy does not tell the error.
            scheme = self.resampling if self.exact else f"uncorrected {self.resampling}"
            ancestors = SCHEMES[self.resampling](chances, n, _keys.fold(key, _keys.tag("resample"), depth))
            if self.exact:
                log_weights = log_weights[ancestors] - np.log(n * chances[ancestors])
            else:
                log_weights = np.full(n, logmeanexp(log_weights))
            lineage = _keys.inherit(lineage, ancestors, depth)
            depth += 1
            advance = yield Move(model.select(advance.state, ancestors), _keys.fold(lineage, depth))
            log_weights = log_weights + advance.log_increment

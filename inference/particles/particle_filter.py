"""The particle filter for process rewards, as published."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac
from ..base.checks import one_of, positive
from ..base.engine import Guarantee, Move, Ranking, Report, Run, Start, check_alive, describe, without_evidence
from ..base.resampling import resample
from ..base.step import Step
from ..base.weights import spread
from .smc import SMC


@dataclass(frozen=True)
class ParticleFilter:
    """The particle filter for process rewards: `SMC` that resamples multinomially after every step.

    Feynman–Kac mapping: that of `SMC`, with the evidence unbiased. What is weighed is said by the program. The paper
    multiplies the odds of a process reward at each step, so that the target is p·∏ r/(1 − r):

        for _ in range(steps):
            text = await fk.sample("step", lm.line(text))
            await fk.factor("prm", prm(text).logit())

    In the telescoping form the reward guides, and only that of the whole answer is weighed: the target is p·r/(1 − r).

        for _ in range(steps):
            text = await fk.sample("step", lm.line(text))
            await fk.twist("prm", prm(text).logit())
        await fk.factor("prm", prm(text).logit())

    ``compat="its_hub"`` does what the authors' code does (its_hub 1.2.0): particles are resampled by the odds of their
    last step alone, those that have stopped keep theirs, so that it counts again at every later resampling; and after
    the last step all are resampled once more, and then selected by the same odds (``best``, or ``sample``). With texts
    of unequal length it has no fixed target; in one step it tends to p·G² rather than p·G. It is a heuristic, for
    comparison.

    Args:
        particles: n.
        compat: None, or "its_hub".
        chains: independent runs; several give a standard error.
        all_dead: "error" raises `AllParticlesDead` when all weights are zero; "zero" returns log Z = −inf.

    Cost: N runs of the model, and a score of each step.
    When it pays: Where a process reward knows early which runs are good, and the number of steps is moderate.

    Source: Puri et al. (2025), arXiv:2502.01618.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def one():
    ...     x = await fk.sample("x", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("odds", fk.dist.Bernoulli(0.9).log_prob(x) - fk.dist.Bernoulli(0.9).log_prob(1 - x))
    ...     return x
    >>> engines = fk.ParticleFilter(4000), fk.ParticleFilter(4000, compat="its_hub")
    >>> [round(fk.infer(one(), engine, seed=0).expect(float), 2) for engine in engines]
    [0.99, 1.0]
    """

    particles: int
    compat: Literal["its_hub"] | None = None
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"

    def __post_init__(self) -> None:
        positive("particles", self.particles)
        positive("chains", self.chains)
        if self.compat not in (None, "its_hub"):
            raise ValueError(f'compat must be None or "its_hub", not {self.compat!r}')
        one_of("all_dead", self.all_dead, ("error", "zero"))

    @property
    def guarantee(self) -> Guarantee:
        """Unbiased, or heuristic as its_hub."""
        return "unbiased" if self.compat is None else "heuristic"

    @property
    def ranking(self) -> Ranking:
        """The reward of the whole run; as its_hub, the odds of its last step."""
        return "reward" if self.compat is None else "weight"

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        if self.compat is None:
            return SMC(self.particles, 1.0, "multinomial", self.chains, self.all_dead).run(model, key)
        return self._its_hub(model, key)

    def _its_hub(self, model: FeynmanKac[Any], key: Keys) -> Run:
        n = self.particles
        ancestors = np.arange(n)
        lineage = _keys.fold(key, _keys.tag("particle"), ancestors)
        depth, scheme = 0, None
        advance = yield Start(_keys.fold(lineage, 0))
        last = np.asarray(advance.log_potential, float)
        while True:
            step = without_evidence(describe(depth, advance, last, ancestors, scheme))
            yield Report(advance.state, last, step, step.log_evidence)
            check_alive(step, self.all_dead)
            if step.ess == 0.0:
                return
            ancestors = resample(last, n, _keys.fold(key, _keys.tag("resample"), depth), "multinomial")
            state, last, scheme = model.select(advance.state, ancestors), last[ancestors], "multinomial"
            lineage = _keys.inherit(lineage, ancestors, depth)
            depth += 1
            done = np.asarray(state.done, bool)
            if done.all():
                again = _again(step, depth, ancestors)
                yield Report(state, last, again, math.nan)
                return
            advance = yield Move(state, _keys.fold(lineage, depth))
            last = np.where(done, last, advance.log_potential)


def _again(step: Step, depth: int, ancestors: Any) -> Step:
    """Describe the resampling after the last step, in which nothing is drawn and nothing weighed."""
    log_weights = step.log_weights[ancestors]
    found, none = spread(log_weights), np.zeros(len(ancestors))
    return Step(
        depth=depth,
        ess=found.ess,
        entropy=found.entropy,
        log_evidence=math.nan,
        resampled=True,
        ancestors=ancestors,
        log_weights=log_weights,
        log_potential=none,
        log_twist=none,
        done=np.ones(len(ancestors), bool),
        choices=[()] * len(ancestors),
        scheme="multinomial",
    )

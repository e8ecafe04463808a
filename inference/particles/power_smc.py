"""Power-SMC: a sharpened model by one pass of particles, where Markov chains take many."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import numpy as np

from ...ppl.errors import Unsupported
from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac, Floats, Index
from ...ppl.values.reals import whole_number
from ..base.checks import check_power, finite
from ..base.engine import Guarantee, Move, Ranking, Report, Run, Start
from ..base.resampling import Scheme
from .smc import SMC


@dataclass(frozen=True)
class PowerSMC:
    """Power-SMC: draw runs ∝ p^α·∏G, with no reward but the model's own likelihood, by one pass of particles.

    Feynman–Kac mapping: `SMC` whose potential at step t is G_t·p_t^(α−1), so that weights are those of p^α·∏G and Ẑ is
    unbiased for Σ p^α·∏G. While α is bridged, resampling is guided by p^(α_t−α), a twist with α_t rising from 1 to α:
    it changes which particles are copied, and not what their weights stand for. It is the law of `PowerSampling`,
    without its moves: n runs of the model in all.

    It is not sampling at a low temperature, which sharpens each step by itself. A proposal at temperature 1/α makes the
    weight of a step the same whatever it draws (over whole runs another may vary less), and is said by the program:

        text = await fk.sample("step", lm.tokens(text, 8), proposal=lm.tokens(text, 8, temperature=0.25))

    Resampling is looked at after each step; ``fk.Blocks(model, 8)`` makes steps of eight. Runs that have ended weigh
    p^α at once, and the others by α_t, so that a bridge serves runs of about one length. It does not serve a power
    below 0, for its guide keeps what is likely and the target wants what is rare: Ẑ stays unbiased, and reads far too
    low but for once in very many runs.

    Args:
        particles: n.
        power: α; the paper's is 4.
        bridge: steps in which α_t rises from 1 to α, evenly; 0: all at once.
        ess_threshold: resample when ESS ≤ this fraction of n.
        resampling: see `SMC`.
        chains: independent runs, pooled in proportion to their evidence; several give a standard error.
        all_dead: "error" raises `AllParticlesDead` when all weights are zero; "zero" returns log Z = −inf.

    Raises:
        Unsupported: for a model without log-probabilities.

    Cost: N runs of the model.
    When it pays: For sharper answers without a reward, in one pass; where weights of long runs degenerate, give it
    a proposal of lower temperature.

    Source: Azizi et al. (2026), arXiv:2602.10273; the target: Karan and Du (2025), arXiv:2510.14901.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coins():
    ...     a = await fk.sample("a", fk.dist.Bernoulli(0.6))
    ...     await fk.factor("step", 0.0)
    ...     return a, await fk.sample("b", fk.dist.Bernoulli(0.5 + 0.4 * a))
    >>> posterior = fk.infer(coins(), fk.PowerSMC(400, power=4.0), seed=0)
    >>> abs(posterior.expect(lambda v: v == (1, 1)) - 0.54**4 / (2 * 0.2**4 + 0.54**4 + 0.06**4)) < 0.06
    True
    """

    particles: int
    power: float = 4.0
    bridge: int = 0
    ess_threshold: float = 0.5
    resampling: Scheme = "systematic"
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "unbiased"
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        finite("power", self.power)
        whole_number("bridge", self.bridge, 0)
        _ = self._plain  # which checks the others

    @property
    def _plain(self) -> SMC:
        """The filter that is run on sharpened steps; making it checks its settings."""
        return SMC(self.particles, self.ess_threshold, self.resampling, self.chains, self.all_dead)

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        if self.power != 1.0:
            check_power("PowerSMC", model)
        sharpened = self._plain.run(cast(FeynmanKac[Any], _Sharp(model)), key)
        answer: Any = None
        while True:
            try:
                asked = sharpened.send(answer)
            except StopIteration:
                return
            if isinstance(asked, Start):
                answer = self._sharpen((yield asked), np.zeros(self.particles), 0)
            elif isinstance(asked, Move):
                state = asked.state
                answer = self._sharpen((yield replace(asked, state=state.inner)), state.log_prob, state.steps + 1)
            else:
                assert isinstance(asked, Report)
                answer = yield replace(asked, state=asked.state.inner)

    def _sharpen(self, advance: Advance[Any], log_prob: Floats, steps: int) -> Advance[Any]:
        """Return a step with the weights and the twist of the power."""
        if not advance.scored.all():
            raise Unsupported(
                "PowerSMC raises probabilities to a power, and some choice of the model has none: particle "
                f"{int(np.argmin(advance.scored))} made it at step {steps}. Use SMC, or draw it from what gives log p"
            )
        with np.errstate(invalid="ignore"):
            gain = np.where(np.isneginf(advance.log_prob), -np.inf, (self.power - 1) * advance.log_prob)
        total = log_prob + np.where(np.isneginf(gain), 0.0, advance.log_prob)
        short = (self.power - 1) * max(0.0, 1 - steps / self.bridge) if self.bridge else 0.0
        return replace(
            advance,
            state=_Tracked(advance.state, total, steps),
            log_potential=advance.log_potential + gain,
            log_twist=advance.log_twist - np.where(advance.done, 0.0, short * total),
        )


@dataclass(frozen=True)
class _Tracked:
    """Particles with the log-probability of what they have drawn, (n,)."""

    inner: Any
    log_prob: Floats
    steps: int


class _Sharp:
    """What `SMC` asks of a model besides steps, for tracked particles."""

    def __init__(self, model: FeynmanKac[Any]) -> None:
        self._model = model

    def select(self, state: _Tracked, index: Index) -> _Tracked:
        """Keep, duplicate or reorder particles."""
        return _Tracked(self._model.select(state.inner, index), state.log_prob[index], state.steps)

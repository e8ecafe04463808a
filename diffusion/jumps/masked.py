"""Correctors of masked diffusion as a jump process: many positions a step, with rates that never grow without bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..generator import Moved
from ..latents import Latents
from ..masked.correctors import OfMasks
from ..masked.generator import MaskedDiffusion
from ..masked.rules import Ancestral
from ..masked.site import Site
from ..products import Factor, Lean
from .step import jump


class MaskedJumps(OfMasks):
    """A product of powers of masked-diffusion models, tilted by rewards, as a jump process that reveals positions.

    Feynman–Kac mapping: with α the share of tokens that are kept, the process has at each time the law

        α^revealed · (1 − α)^masked · Π p_i(revealed tokens)^β_i · e^{b·φ}

    where φ is the reward, of the tokens as they are or of the estimate, and reveals position l as v at the rate
    α̇/(1 − α)·Π μ_{i,l}(v)^β_i·e^{Δ(v)}, Δ what v adds to b·φ. S_l being the sum of the latter, its weight grows by
    b′·φ + α̇/(1 − α)·Σ_{masked} (S_l − 1). It is a discrete Feynman–Kac corrector by other laws than those of
    arXiv:2601.10403 on the way to the same end: there α^revealed and (1 − α)^masked are raised to Σβ_i, too, so that
    rates grow as (1 − α)^−Σβ_i, and are clamped.

    A step freezes μ and Δ, and is then solved exactly: with u = (α_s − α_t)/(1 − α_t) each masked position is left
    alone, or becomes v, in proportion to 1 − u and u·Π μ^β·e^Δ, so that the weight of a step is

        G_t = Π_{masked} (1 − u + u·S_l) · e^{change of b·φ − Σ_{revealed} Δ}

    Its steps are those of `Ancestral`, at any power: of β = 1 without a reward they are the model's own, and G = 1.
    Positions that are revealed in one step do not see each other, so that the target is reached as steps get smaller
    (the posterior's guarantee says "discretised"). Ẑ estimates Σ Π p_i^β_i · e^{b·r}, as that of `MaskedProduct`, which
    is exact and takes as many steps as there are positions.

    A step costs an evaluation of each network, and of each reward V for every masked position.

    Raises ValueError for a rule that masks again and for powers that are not finite, and InvalidWeight as
    `MaskedProduct`.
    """

    guarantee = "discretised"

    def __init__(self, model: MaskedDiffusion, factors: Sequence[Factor], leans: Sequence[Lean] = ()) -> None:
        super().__init__(model, factors, leans)
        self.schedule = _without_masking(model.rule)

    def move(self, latents: Latents, noise: Any, given: Any) -> Moved:
        """Reveal positions of unfinished particles."""
        site = self.site(latents)
        gain = self.gains(latents, site.open[..., None] & self.words)
        law = self.laws(site, latents.fields["mix"] + gain)
        made = jump(law, site.x, site.open, noise[:, 1], given)
        there = self.look(Latents(made.x, latents.step + 1, latents.steps, latents.condition))
        change = there.fields["value"] - latents.fields["value"]
        log_g, log_prob = made.log_weight(gain, site.open, change).cpu().numpy(), made.log_prob.cpu().numpy()
        return Moved(made.x, log_prob, log_prob, log_g, there.fields)

    def laws(self, site: Site, mix: Any) -> Any:
        """Return the log-laws (n, L, V) of what a step does to masked positions, not normalised, from Π μ^β·e^Δ."""
        reveal, _ = self.schedule.chances(site)
        return torch.where(self.words, reveal.log()[..., None] + mix, torch.log1p(-reveal)[..., None])


def _without_masking(rule: Any) -> Ancestral:
    if not isinstance(rule, Ancestral) or rule.remask:
        raise ValueError(f"a product reveals positions by Ancestral(steps), and masks none again, not by {rule!r}")
    return rule

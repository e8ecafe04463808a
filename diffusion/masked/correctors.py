"""Correctors of masked diffusion: products of powers of models, tilted by rewards, without steps in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..generator import Moved
from ..latents import Latents, replace_fields
from ..products import Factor, Lean, TokenProduct, normalised, times
from .generator import MaskedDiffusion
from .rules import InOrder, Rule
from .site import chosen, put


class OfMasks(TokenProduct, MaskedDiffusion):
    """What products of masked diffusion share: the product of their laws at each masked position, and its rewards."""

    renoise = None  # type: ignore[assignment]  # a mask put on again would undo weights that are of one path

    def __init__(self, model: MaskedDiffusion, factors: Sequence[Factor], leans: Sequence[Lean] = ()) -> None:
        super().__init__(
            model.denoiser, model.shape[0], model.rule, vocabulary=model.vocabulary, mask=model.mask,
            template=model.template.cpu().numpy(), block=model.block, temperature=model.temperature,
            condition=model.condition, decode=model.decode, device=str(model.device),
        )  # fmt: skip
        self.hold(factors, leans)

    def __repr__(self) -> str:
        return self.described(repr(self.rule))

    def begin(self, latents: Latents) -> tuple[Any, Latents]:
        """Return log G_0 (n,), the rewards of the first estimate, and the particles."""
        latents = self.look(latents)
        return latents.fields["value"], latents

    def look(self, latents: Latents) -> Latents:
        """Return particles with the product of their laws (not normalised), the estimate, and its rewards."""
        mix = torch.zeros((), device=self.device)
        masked = latents.x == self.mask
        asked = masked[..., None] & self.words  # what networks say of the mask, and of tokens that are there, is not
        for i, factor in sorted(enumerate(self.factors), key=lambda one: -one[1].beta):
            mine = Latents(latents.x, latents.step, latents.steps, latents.condition[i], {})
            log_mu = self.log_laws(mine, factor.denoiser)[...].double()
            mix = times(mix, torch.where(asked, log_mu, 0.0), factor.beta)
        mix[..., self.mask] = -torch.inf
        looked = replace_fields(latents, mix=mix, log_mu=normalised(mix, 0.0))  # so that the order sees no NaN
        estimate = torch.where(masked, mix.argmax(-1), latents.x)
        value = self.value(latents.x, estimate, latents.step, np.arange(len(latents)))
        return replace_fields(looked, estimate=estimate, value=value)


class MaskedProduct(OfMasks):
    """A product of powers of masked-diffusion models, tilted by rewards; made by the transforms of `correctors`.

    Feynman–Kac mapping: positions are revealed one at a time. With S_l(x) = Σ_v Π_i μ_{i,l}(v)^β_i · e^{Δ(v)} at the
    position l that comes next, and Δ(v) what v adds to the reward of the estimate, M_t draws v in proportion to the
    summand, and G_t = S_l(x) (times what the estimate of all else changes the reward by, once the networks have seen
    v). The product of all weights and probabilities is Π p_i(x)^β_i · e^{b·r(x)}, so that Ẑ is unbiased for its sum: no
    time is discretised and nothing is clamped, unlike where positions are revealed together (`MaskedJumps`). Where the
    networks are not the conditionals of one law, the law is that of the order and the tokens together.

    A step costs an evaluation of each network, and V of each reward.

    A position for which the factors have no token in common stays masked, and its particle dies.

    Raises ValueError for a rule that is not `InOrder` and for powers that are not finite, and InvalidWeight, in a run,
    where a factor with a negative power rules a token out that the others allow, or a reward is not finite.
    """

    def __init__(self, model: MaskedDiffusion, factors: Sequence[Factor], leans: Sequence[Lean] = ()) -> None:
        super().__init__(model, factors, leans)
        self.order = _one_at_a_time(model.rule)

    def move(self, latents: Latents, noise: Any, given: Any) -> Moved:
        """Reveal a position of unfinished particles."""
        site = self.site(latents)
        place = self.order.place(site, noise)
        if given is not None and len(given[1]):  # their position is where they differ; none, or several, cannot be
            place[given[1]] = (given[0] != site.x[given[1]]) & site.open[given[1]]
        place &= (latents.fields["mix"] > -torch.inf).any(-1)
        gain = self.gains(latents, place[..., None] & self.words)
        law = latents.fields["mix"] + gain
        tilted = replace(site, log_mu=normalised(law, -torch.inf))
        x = put(tilted, place, noise[:, 1])
        if given is not None and len(given[1]):
            x[given[1]] = given[0]
        changed = x != site.x
        log_prob = self.order.log_place(site, changed) + chosen(tilted, x, changed).sum(-1)
        log_s = torch.where(place, law.logsumexp(-1), 0.0).sum(-1)
        there = self.look(Latents(x, latents.step + 1, latents.steps, latents.condition))
        promised = latents.fields["value"] + torch.where(place, gain.gather(-1, x[..., None])[..., 0], 0.0).sum(-1)
        log_potential = torch.where(log_prob > -torch.inf, log_s + there.fields["value"] - promised, -torch.inf)
        return Moved(x, log_prob.cpu().numpy(), log_prob.cpu().numpy(), log_potential.cpu().numpy(), there.fields)


def _one_at_a_time(rule: Rule) -> InOrder:
    if not isinstance(rule, InOrder):
        raise ValueError(
            f"a product reveals one position at a time, by InOrder(), or as its masks' schedule says, by "
            f"Ancestral(steps); not by {rule!r}"
        )
    return rule

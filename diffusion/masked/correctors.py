"""Correctors of masked diffusion: products of powers of models, tilted by rewards, without steps in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ...ppl.errors import InvalidWeight, Unsupported
from ..denoiser import Denoiser
from ..generator import Moved, check_condition, check_decode, spread
from ..latents import Latents, replace_fields
from ..rewards.base import as_reward
from .generator import MaskedDiffusion
from .rules import InOrder, Site, chosen, put


class Factor(NamedTuple):
    """A power p(x)^β of a masked-diffusion model's law."""

    denoiser: Denoiser
    beta: float
    condition: Any


class Lean(NamedTuple):
    """A factor exp(b·r(x)); ``schedule`` is b by the share of steps made, ``noisy`` whether r reads masks itself."""

    reward: Any
    schedule: Callable[[float], float]
    noisy: bool


class MaskedProduct(MaskedDiffusion):
    """A product of powers of masked-diffusion models, tilted by rewards; made by the transforms of `correctors`.

    Feynman–Kac mapping: positions are revealed one at a time. With S_l(x) = Σ_v Π_i μ_{i,l}(v)^β_i · e^{Δ(v)} at the
    position l that comes next, and Δ(v) what v adds to the reward of the estimate, M_t draws v in proportion to the
    summand, and G_t = S_l(x) (times what the estimate of all else changes the reward by, once the networks have seen
    v). The product of all weights and probabilities is Π p_i(x)^β_i · e^{b·r(x)}, so that Ẑ is unbiased for its sum: no
    time is discretised and nothing is clamped, unlike where the rates of a Markov chain are frozen over a step, as in
    discrete Feynman–Kac correctors, arXiv:2601.10403. Where the networks are not the conditionals of one law, the law
    is that of the order and the tokens together.

    A step costs an evaluation of each network, and V of each reward.

    A position for which the factors have no token in common stays masked, and its particle dies.

    Raises ValueError for a rule that is not `InOrder` and for powers that are not finite, and InvalidWeight, in a run,
    where a factor with a negative power rules a token out that the others allow, or a reward is not finite.
    """

    renoise = None  # type: ignore[assignment]  # a mask put on again would undo weights that are of one path

    def __init__(self, model: MaskedDiffusion, factors: Sequence[Factor], leans: Sequence[Lean] = ()) -> None:
        if not isinstance(model.rule, InOrder):
            raise ValueError(f"a product reveals one position at a time: give its models InOrder(), not {model.rule!r}")
        for factor in factors:
            if not math.isfinite(factor.beta):
                raise ValueError(f"the powers of a product must be finite numbers, not {factor.beta}")
        super().__init__(
            model.denoiser, model.shape[0], model.rule, vocabulary=model.vocabulary, mask=model.mask,
            template=model.template.cpu().numpy(), block=model.block, temperature=model.temperature,
            condition=model.condition, decode=model.decode, device=str(model.device),
        )  # fmt: skip
        self.order: InOrder = model.rule
        self.factors = tuple(factors)
        self.leans = tuple(leans)

    def __repr__(self) -> str:
        betas = ", ".join(f"{factor.beta:g}" for factor in self.factors)
        leaning = f", {len(self.leans)} reward(s)" if self.leans else ""
        return f"MaskedProduct({self.shape[0]} positions, betas=[{betas}]{leaning}, {self.rule!r})"

    def _conditions(self, n: int) -> Any:
        return tuple(spread(factor.condition, n) for factor in self.factors)

    def begin(self, latents: Latents) -> tuple[Any, Latents]:
        """Return log G_0 (n,), the rewards of the first estimate, and the particles."""
        latents = self.look(latents)
        return latents.fields["value"], latents

    def look(self, latents: Latents) -> Latents:
        """Return particles with the product of their laws (not normalised), the estimate, and its rewards."""
        mix = torch.zeros((), device=self.device)
        masked = latents.x == self.mask
        for i, factor in sorted(enumerate(self.factors), key=lambda one: -one[1].beta):
            mine = Latents(latents.x, latents.step, latents.steps, latents.condition[i], {})
            log_mu = self.log_laws(mine, factor.denoiser).double()  # what it says of tokens that are there is not asked
            mix = self._times(mix, torch.where(masked[..., None], log_mu, 0.0), factor.beta)
        mix[..., self.mask] = -torch.inf
        looked = replace_fields(latents, mix=mix, log_mu=_normalised(mix, 0.0))  # so that the order sees no NaN
        estimate = torch.where(masked, mix.argmax(-1), latents.x)
        looked = replace_fields(looked, estimate=estimate)
        owners = np.arange(len(latents))
        return replace_fields(looked, value=self._value(latents.x, estimate, latents.step, owners))

    def move(self, latents: Latents, noise: Any, given: Any) -> Moved:
        """Reveal a position of unfinished particles."""
        site = self.site(latents)
        place = self.order.place(site, noise)
        if given is not None and len(given[1]):  # their position is where they differ; none, or several, cannot be
            place[given[1]] = (given[0] != site.x[given[1]]) & site.open[given[1]]
        place &= (latents.fields["mix"] > -torch.inf).any(-1)
        law, gain = self._leaning(latents, site, place)
        tilted = replace(site, log_mu=_normalised(law, -torch.inf))
        x = put(tilted, place, noise[:, 1])
        if given is not None and len(given[1]):
            x[given[1]] = given[0]
        changed = x != site.x
        log_prob = self.order.log_place(site, changed) + torch.where(changed, chosen(tilted, x), 0.0).sum(-1)
        log_s = torch.where(place, law.logsumexp(-1), 0.0).sum(-1)
        there = self.look(Latents(x, latents.step + 1, latents.steps, latents.condition))
        promised = latents.fields["value"] + torch.where(place, gain.gather(-1, x[..., None])[..., 0], 0.0).sum(-1)
        log_potential = torch.where(log_prob > -torch.inf, log_s + there.fields["value"] - promised, -torch.inf)
        return Moved(x, log_prob.cpu().numpy(), log_prob.cpu().numpy(), log_potential.cpu().numpy(), there.fields)

    def _times(self, mix: Any, log_mu: Any, beta: float) -> Any:
        """Return the log of a product with one more power. Raises InvalidWeight where 0 is raised to less than 0."""
        bad = (log_mu == -torch.inf) & (mix > -torch.inf)
        bad[..., self.mask] = False
        if beta < 0 and bool(bad.any()):
            particle, position, token = bad.nonzero()[0].tolist()
            raise InvalidWeight(
                f"particle {particle}: the power {beta:g} of a law that has no probability of token {token} at "
                f"position {position}, which the others allow: the product has no sum"
            )
        return torch.where(mix == -torch.inf, mix, mix + (beta * log_mu if beta else torch.zeros_like(log_mu)))

    def _leaning(self, latents: Latents, site: Site, place: Any) -> tuple[Any, Any]:
        """Return the law (n, L, V) of tokens at the next position, not normalised, and what each adds to the reward."""
        mix = latents.fields["mix"]
        gain = torch.zeros_like(mix)
        if self.leans and bool(place.any()):
            row, position = place.nonzero(as_tuple=True)
            tokens = torch.arange(self.vocabulary, device=self.device)
            owner, token = row.repeat_interleave(len(tokens)), tokens.repeat(len(row))
            x, estimate = site.x[owner], latents.fields["estimate"][owner]
            where = position.repeat_interleave(len(tokens))[:, None] == torch.arange(x.shape[1], device=self.device)
            allowed = token != self.mask
            x, estimate = torch.where(where, token[:, None], x), torch.where(where, token[:, None], estimate)
            owners = owner[allowed].cpu().numpy()
            value = torch.zeros(len(owner), dtype=torch.float64)
            value[allowed] = self._value(x[allowed], estimate[allowed], latents.step[owners], owners)
            gain[row, position] = value.reshape(len(row), -1) - latents.fields["value"][row][:, None]
        return mix + gain, gain

    def _value(self, x: Any, estimate: Any, step: Any, owners: Any) -> Any:
        """Return Σ b·r (n,) of particles with these tokens and this estimate."""
        total = torch.zeros(len(x), dtype=torch.float64)
        for lean in self.leans:
            strength = [float(lean.schedule(float(share))) for share in step / self.steps]
            found = as_reward(lean.reward)(self.decoded(x if lean.noisy else estimate), None, owners)
            total += torch.tensor(strength, dtype=torch.float64) * found
        if not bool(torch.isfinite(total).all()):
            bad = int((~torch.isfinite(total)).nonzero()[0, 0])
            raise InvalidWeight(f"particle {owners[bad]}: a tilt must be finite, and is {float(total[bad])}")
        return total


def _normalised(law: Any, without: float) -> Any:
    """Return the log of a law (…, V) that sums to 1; ``without`` where it has no token."""
    return torch.where((law > -torch.inf).any(-1, keepdim=True), law.log_softmax(-1), without)


def factors_of(model: MaskedDiffusion, beta: float) -> tuple[tuple[Factor, ...], tuple[Lean, ...]]:
    """Return the factors and tilts of a model to the power β."""
    if isinstance(model, MaskedProduct):
        factors = tuple(factor._replace(beta=beta * factor.beta) for factor in model.factors)
        return factors, tuple(lean._replace(schedule=scaled(lean.schedule, beta)) for lean in model.leans)
    if model.steering is not None:
        raise Unsupported("correctors replace steering: take the model without it, and use `tilt`")
    return (Factor(model.denoiser, beta, model.condition),), ()


def scaled(schedule: Callable[[float], float], beta: float) -> Callable[[float], float]:
    """Return a tilt's schedule times the power that it is raised to."""
    return schedule if beta == 1.0 else lambda share: beta * schedule(share)


def product(models: Sequence[MaskedDiffusion], betas: Sequence[float]) -> MaskedProduct:
    """Return the model of Π p_i(x)^β_i. Raises ValueError where the models differ in more than their networks."""
    first = models[0]
    for other in models[1:]:
        if (other.vocabulary, other.mask, other.block, other.rule, other.temperature) != (
            first.vocabulary, first.mask, first.block, first.rule, first.temperature,
        ) or not torch.equal(other.template, first.template):  # fmt: skip
            raise ValueError("the models of a product must have one template, vocabulary, block, rule and temperature")
        check_decode(first, other, getattr(other, "leans", ()))
    raised = [factors_of(model, beta) for model, beta in zip(models, betas)]
    factors, leans = ([one for many in kind for one in many] for kind in zip(*raised))
    return MaskedProduct(first, factors, leans)


def guide(model: MaskedDiffusion, gamma: float, unconditional: Any) -> MaskedProduct:
    """Return the model of p(x)^(1−γ)·p(x|c)^γ; ``unconditional`` is a batch of one empty condition."""
    factors, leans = factors_of(model, 1.0)
    check_condition([factor.condition for factor in factors])
    both = [factor._replace(beta=gamma * factor.beta) for factor in factors]
    both += [factor._replace(beta=(1.0 - gamma) * factor.beta, condition=unconditional) for factor in factors]
    return MaskedProduct(model, both, leans)


def tilt(model: MaskedDiffusion, reward: Any, schedule: Callable[[float], float], noisy: bool) -> MaskedProduct:
    """Return the model of p(x)·exp(b·r(x))."""
    factors, leans = factors_of(model, 1.0)
    return MaskedProduct(model, factors, (*leans, Lean(reward, schedule, noisy)))

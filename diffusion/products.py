"""Products of powers of models of tokens, tilted by rewards: what all of them have in common, whatever their noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..ppl.errors import InvalidWeight, Unsupported
from .denoiser import Denoiser
from .generator import Generator, check_condition, check_decode, spread
from .latents import Latents
from .rewards.base import as_reward


class Factor(NamedTuple):
    """A power p(x)^β of a model's law."""

    denoiser: Denoiser
    beta: float
    condition: Any


class Lean(NamedTuple):
    """A factor exp(b·r(x)); ``schedule`` is b by the share of steps made, ``noisy`` whether r reads noisy tokens."""

    reward: Any
    schedule: Callable[[float], float]
    noisy: bool


class TokenProduct(Generator):
    """The base of products: their factors, and what rewards say of the tokens that a step may put somewhere."""

    factors: tuple[Factor, ...]
    leans: tuple[Lean, ...]

    def hold(self, factors: Sequence[Factor], leans: Sequence[Lean]) -> None:
        """Keep what the product is of. Raises ValueError for powers that are not finite."""
        for factor in factors:
            if not math.isfinite(factor.beta):
                raise ValueError(f"the powers of a product must be finite numbers, not {factor.beta}")
        self.factors = tuple(factors)
        self.leans = tuple(leans)

    def described(self, rule: str) -> str:
        """Return what it is, for people."""
        betas = ", ".join(f"{factor.beta:g}" for factor in self.factors)
        leaning = f", {len(self.leans)} reward(s)" if self.leans else ""
        return f"{type(self).__name__}({self.shape[0]} positions, betas=[{betas}]{leaning}, {rule})"

    def _conditions(self, n: int) -> Any:
        return tuple(spread(factor.condition, n) for factor in self.factors)

    def value(self, x: Any, estimate: Any, step: Any, owners: Any) -> Any:
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

    def gains(self, latents: Latents, asked: Any) -> Any:
        """Return what tokens add to the rewards where they are put, (n, L, V); 0 where that is not ``asked``."""
        gain = torch.zeros(asked.shape, dtype=torch.float64, device=self.device)
        if self.leans and bool(asked.any()):
            row, position, token = asked.nonzero(as_tuple=True)
            where = position[:, None] == torch.arange(asked.shape[1], device=self.device)
            x, estimate = (
                torch.where(where, token[:, None], one[row]) for one in (latents.x, latents.fields["estimate"])
            )
            owners = row.cpu().numpy()
            gain[asked] = self.value(x, estimate, latents.step[owners], owners) - latents.fields["value"][row]
        return gain


def times(mix: Any, log_p: Any, beta: float) -> Any:
    """Return the log of a product (n, L, V) with one more power. Raises InvalidWeight where 0 is raised to less."""
    bad = (log_p == -torch.inf) & (mix > -torch.inf)
    if beta < 0 and bool(bad.any()):
        particle, position, token = bad.nonzero()[0].tolist()
        raise InvalidWeight(
            f"particle {particle}: the power {beta:g} of a law that has no probability of token {token} at "
            f"position {position}, which the others allow: the product has no sum"
        )
    return torch.where(mix == -torch.inf, mix, mix + (beta * log_p if beta else torch.zeros_like(log_p)))


def normalised(law: Any, without: float) -> Any:
    """Return the log of a law (…, V) that sums to 1; ``without`` where it has no token."""
    return torch.where((law > -torch.inf).any(-1, keepdim=True), law.log_softmax(-1), without)


Parts = tuple[list[Factor], list[Lean]]


def raised(model: Any, beta: float) -> Parts:
    """Return the factors and tilts of a model to the power β."""
    if isinstance(model, TokenProduct):
        factors = [factor._replace(beta=beta * factor.beta) for factor in model.factors]
        return factors, [lean._replace(schedule=scaled(lean.schedule, beta)) for lean in model.leans]
    if any(getattr(model, name, None) is not None for name in ("steering", "twist", "optimal")):
        raise Unsupported("correctors replace steering, twists and proposals: take the model without, and use `tilt`")
    return [Factor(model.denoiser, beta, model.condition)], []


def scaled(schedule: Callable[[float], float], beta: float) -> Callable[[float], float]:
    """Return a tilt's schedule times the power that it is raised to."""
    return schedule if beta == 1.0 else lambda share: beta * schedule(share)


def joined(models: Sequence[Any], betas: Sequence[float]) -> Parts:
    """Return the parts of Π p_i(x)^β_i. Raises ValueError where a tilted one decodes otherwise than the first."""
    for other in models[1:]:
        check_decode(models[0], other, getattr(other, "leans", ()))
    parts = [raised(model, beta) for model, beta in zip(models, betas)]
    return [one for factors, _ in parts for one in factors], [one for _, leans in parts for one in leans]


def guided(model: Any, gamma: float, unconditional: Any) -> Parts:
    """Return the parts of p(x)^(1−γ)·p(x|c)^γ; ``unconditional`` is a batch of one empty condition."""
    factors, leans = raised(model, 1.0)
    check_condition([factor.condition for factor in factors])
    both = [factor._replace(beta=gamma * factor.beta) for factor in factors]
    both += [factor._replace(beta=(1.0 - gamma) * factor.beta, condition=unconditional) for factor in factors]
    return both, leans


def tilted(model: Any, reward: Any, schedule: Callable[[float], float], noisy: bool) -> Parts:
    """Return the parts of p(x)·exp(b·r(x))."""
    factors, leans = raised(model, 1.0)
    return factors, [*leans, Lean(reward, schedule, noisy)]

"""Steering by a reward: potentials on the way to the data, proposals by its gradient, tempering."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..ppl.errors import InvalidWeight
from .latents import Latents, replace_fields
from .rewards.base import as_reward, check_gradient, slope

if TYPE_CHECKING:
    from .generator import Generator

Floats = NDArray[np.float64]
Potential = Literal["difference", "max", "sum", "current"]


@dataclass(frozen=True)
class Steering:
    """Turns a reward r into potentials whose product along a whole path is exp(scale · r(x)), x the data.

    On the way, r_t is the reward of the estimate of the data at x_t. With λ_t the tempered scale, the potentials are

        difference  exp(λ_t·r_t − λ_{t−1}·r_{t−1})    a telescoping product
        max         exp(max_{s≤t} λ_s·r_s)            keeps what was once promising
        sum         exp(Σ_{s≤t} λ_s·r_s)
        current     exp(λ_t·r_t)

    and the last step divides by all that was multiplied before, so that the four share one target and one E[Ẑ] and
    differ in variance alone: FK steering, Singhal et al. (2025), arXiv:2501.06848. That of "sum", and at large scales
    that of "max", can be very large: what the last step divides by then leaves few particles with weight, Ẑ is mostly
    far too small, and its standard error does not show it. `Posterior.warnings` does, by k-hat.

    With ``gradient``, steps are proposed around the estimate moved by σ²/α·∇λr, and weighed by p/q: the twisted
    diffusion sampler, Wu et al. (2023), arXiv:2306.17775. With ``temper`` as well, it is DAS, Kim et al. (2025),
    arXiv:2501.05803.

    Args:
        reward: of finished data, decoded where the generator decodes: a function of a batch (n, …) to (n,),
            differentiable where gradients are asked for, or a `feynkac.reward`. It may be −inf for finished data
            alone: what is impossible on the way may still become possible.
        scale: λ.
        potential: which of the four.
        every: steps between rewards on the way; the last step always has one.
        gradient: whether to propose by the reward's gradient (which goes through the network).
        temper: from the share of steps made, in [0, 1], to the share of λ that is in force there; 1 throughout by
            default. The last step has all of it.

    Raises ValueError for an unknown potential or a setting out of range; TypeError for what is no reward; Unsupported
    where a gradient is asked of a reward that has none (in the run, if it does not say so before); and InvalidWeight in
    a run where a reward is −inf on the way.

    >>> Steering(lambda x: x.sum(-1), scale=2.0, potential="max").every
    1
    """

    reward: Any
    scale: float = 1.0
    potential: Potential = "difference"
    every: int = 1
    gradient: bool = False
    temper: Callable[[float], float] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        as_reward(self.reward)
        if self.potential not in ("difference", "max", "sum", "current"):
            raise ValueError(f"potential must be difference, max, sum or current, not {self.potential!r}")
        if not isinstance(self.every, int | np.integer) or self.every < 1:
            raise ValueError(f"every must be a positive number of steps, not {self.every}")
        if not math.isfinite(self.scale):
            raise ValueError(f"scale must be a finite number, not {self.scale}")
        if self.gradient:
            check_gradient(self.reward, "Steering(gradient=True)")
        if self.gradient and self.every != 1:
            raise ValueError("a gradient is used at every step: leave every=1")

    def begin(self, generator: Generator, latents: Latents) -> tuple[Any, Latents]:
        """Weigh pure noise: log G_0, a tensor (n,), and the particles with their fields."""
        latents = self._look(generator, latents, torch.zeros(len(latents), dtype=torch.float64))
        return self._weigh(latents, None)

    def weigh(self, generator: Generator, before: Latents, there: Latents) -> tuple[Any, Latents]:
        """Weigh particles that have moved: log G_t, a tensor (n,), and the particles with their fields."""
        there = self._look(generator, there, before.fields["reward"])
        return self._weigh(there, before)

    def shift(self, latents: Latents, data: Any, level: Any) -> Any:
        """Return the estimate of the data moved up the gradient of the reward."""
        alpha, sigma = level
        gain = torch.where(alpha > 0, sigma**2 / alpha.clamp(min=1e-12), 0.0)  # pure noise says nothing of the data
        return data + gain * latents.fields["gradient"].to(data.dtype)

    def _strength(self, latents: Latents) -> Any:
        """Return λ_t (n,)."""
        share = latents.step / latents.steps
        if self.temper is None:
            return self.scale * torch.ones(len(share), dtype=torch.float64)
        tempered = [1.0 if s >= 1.0 else float(self.temper(float(s))) for s in share]
        if not np.isfinite(tempered).all():
            raise ValueError(f"temper must give finite shares of the scale, and gave {tempered}")
        return self.scale * torch.tensor(tempered, dtype=torch.float64)

    def _look(self, generator: Generator, latents: Latents, last: Any) -> Latents:
        """Add the estimate, λ_t·r_t where a reward is due (else the last one) and its gradient."""
        due = latents.done | (latents.step % self.every == 0)
        reward = as_reward(self.reward)
        strength = self._strength(latents)
        if not self.gradient:
            latents = generator.look(latents)
            value = last.clone()
            at = np.flatnonzero(due)
            if len(at):
                found = reward(generator.decoded(latents.fields["estimate"][at]), latents, at)
                value[at] = strength[at] * _finite_on_the_way(found, latents, at)
            return replace_fields(latents, reward=value)
        with torch.enable_grad():
            x = latents.x.detach().requires_grad_(True)
            looked = generator.look(Latents(x, latents.step, latents.steps, latents.condition, latents.fields))
            found = reward(generator.decoded(looked.fields["estimate"]), latents, np.arange(len(latents)))
            value = strength * _finite_on_the_way(found, latents, np.arange(len(latents)))
            gradient = slope(value, x, reward, ~latents.done)
        return replace_fields(
            latents, estimate=looked.fields["estimate"].detach(), reward=value.detach(), gradient=gradient.detach()
        )

    def _weigh(self, latents: Latents, before: Latents | None) -> tuple[Any, Latents]:
        """Apply the potential; ``given`` is the log of the product so far, ``trace`` the running max or sum."""
        reward = latents.fields["reward"]
        nothing = torch.zeros_like(reward)
        due = torch.as_tensor(latents.step % self.every == 0)
        past = before.fields if before is not None else {"given": nothing, "trace": nothing, "reward": nothing}
        if self.potential == "max":
            trace = reward if before is None else torch.maximum(past["trace"], reward)
        elif self.potential == "sum":
            trace = past["trace"] + torch.where(due, reward, 0.0)
        else:
            trace = reward
        done = torch.as_tensor(latents.done)
        log_g = trace - past["reward"] if self.potential == "difference" else trace
        log_g = torch.where(due, log_g, 0.0)
        log_g = torch.where(done, reward - past["given"], log_g)
        latents = replace_fields(latents, given=past["given"] + log_g, trace=trace)
        return log_g, latents


def _finite_on_the_way(reward: Any, latents: Latents, owners: NDArray[np.intp]) -> Any:
    """Return rewards of the particles ``owners``. Raises InvalidWeight where one is −inf before it has finished."""
    bad = np.isneginf(reward.detach().numpy()) & ~latents.done[owners]
    if bad.any():
        i = owners[np.flatnonzero(bad)[0]]
        raise InvalidWeight(
            f"the reward is -inf for the estimate of particle {i} at step {latents.step[i]}, which would "
            "end a path that may still come right: give the reward a floor, and leave -inf to finished data"
        )
    return reward

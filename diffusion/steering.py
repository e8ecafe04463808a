"""Steering by a reward: potentials on the way to the data, proposals by its gradient, tempering."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..ppl.errors import InvalidWeight, Unsupported
from ..ppl.values.reals import whole_number
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

    With ``samples``, in place of λ_t·r_t stands log ψ_t, ψ_t the mean of exp(λ_t·r) over samples of the data given x_t.
    They are part of what a step chose and recorded, so that forced choices weigh what they weighed before; the target
    is the same. Engines that raise probabilities to a power refuse them.

    With ``gradient``, steps are proposed around the estimate moved by σ²/α·∇λr, and weighed by p/q: the twisted
    diffusion sampler, Wu et al. (2023), arXiv:2306.17775. With ``temper`` as well, it is DAS, Kim et al. (2025),
    arXiv:2501.05803. Of tokens, those of a step are proposed by log μ + ∇ log ψ_t; see `MaskedDiffusion`.

    Args:
        reward: of finished data, decoded where the generator decodes: a function of a batch (n, …) to (n,),
            differentiable where gradients are asked for, or a `feynkac.reward`. It may be −inf for finished data
            alone: what is impossible on the way may still become possible.
        scale: λ.
        potential: which of the four.
        every: steps between rewards on the way; the last step always has one.
        gradient: whether to propose by the reward's gradient (which goes through the network).
        samples: how many samples of the data; 0: the reward of the estimate alone. For masked diffusion.
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
    samples: int = 0
    temper: Callable[[float], float] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        as_reward(self.reward)
        if self.potential not in ("difference", "max", "sum", "current"):
            raise ValueError(f"potential must be difference, max, sum or current, not {self.potential!r}")
        if not isinstance(self.every, int | np.integer) or self.every < 1:
            raise ValueError(f"every must be a positive number of steps, not {self.every}")
        whole_number("samples", self.samples, 0)
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
        everyone = np.arange(len(latents))
        if self.gradient:
            with torch.enable_grad():
                x, data, looked = generator.sloping(latents)
                value = self._log_psi(data, latents, everyone)
                gradient = slope(value, x, as_reward(self.reward), ~latents.done)
            return replace_fields(looked, reward=value.detach(), gradient=gradient.detach())
        looked = generator.look(latents)
        value, due = last.clone(), latents.done | (latents.step % self.every == 0)
        for at, data in self._data(looked, everyone[due]):
            if len(at):
                value[at] = self._log_psi(generator.decoded(data), latents, at)
        return replace_fields(looked, reward=value)

    def _data(self, latents: Latents, due: NDArray[np.intp]) -> list[tuple[NDArray[np.intp], Any]]:
        """Return particles with the data that their rewards are of, one for each or several."""
        if not self.samples:
            return [(due, latents.fields["estimate"][due])]
        guesses = latents.fields["guesses"]
        alike = (guesses == guesses[:, :1]).flatten(1).all(1).cpu().numpy()[due]  # as where nothing is left to guess
        one, several = due[alike], due[~alike]
        return [(one, guesses[one, 0]), (several, guesses[several].flatten(0, 1))]

    def _log_psi(self, data: Any, latents: Latents, at: NDArray[np.intp]) -> Any:
        """Return log ψ (m,) of the particles ``at`` (m,) from data, as many for each."""
        many = len(data) // len(at) if len(at) else 1
        found = as_reward(self.reward)(data, latents, np.repeat(at, many)).reshape(len(at), many)
        _check_on_the_way(found.amax(1), latents, at)
        strength = self._strength(latents)[at][:, None]
        never = torch.isneginf(found) & (strength >= 0)  # which 0 · ∞ would not say
        terms = torch.where(never, -math.inf, strength * found)
        return terms[:, 0] if many == 1 else terms.logsumexp(1) - math.log(many)

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


def _check_on_the_way(reward: Any, latents: Latents, owners: NDArray[np.intp]) -> None:
    """Raise InvalidWeight where the reward of one of the particles ``owners`` is −inf before it has finished."""
    bad = np.isneginf(reward.detach().numpy()) & ~latents.done[owners]
    if bad.any():
        i = owners[np.flatnonzero(bad)[0]]
        raise InvalidWeight(
            f"the reward is -inf for the estimate of particle {i} at step {latents.step[i]}, which would "
            "end a path that may still come right: give the reward a floor, and leave -inf to finished data"
        )


def check_samples(steering: Any) -> None:
    """Raise Unsupported where a generator that draws no samples of the data is steered by them."""
    if getattr(steering, "samples", 0):
        raise Unsupported("samples of the data on the way are drawn by MaskedDiffusion alone: use Steering(samples=0)")

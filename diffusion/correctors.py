"""Feynman–Kac correctors: another target from the same scores, with weights that make it right.

Mixing scores (annealing, guidance, products) or adding a gradient does not sample the law that one has in mind, since
noising does not commute with powers and products. A corrector keeps the mixed score as the drift and adds the weight
that is missing, after Skreta et al. (2025), arXiv:2503.02819. `anneal`, `guide`, `product` and `tilt` each turn a model
into another; SMC runs the result like any other model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..ppl.errors import Unsupported
from .denoiser import Denoiser
from .generator import Floats, Generator, Moved, log_normal, replace_fields
from .latents import Latents
from .rewards import as_reward

_SAME = object()


@dataclass(frozen=True)
class Part:
    """One factor q^β of a product: a denoiser, its condition (by default that of the model) and the power β."""

    denoiser: Denoiser
    beta: float
    condition: Any = _SAME


@dataclass(frozen=True)
class Tilt:
    """A factor exp(b_t·r): the reward r of a noisy batch, and b as a function of the share of steps made."""

    reward: Any
    schedule: Callable[[float], float]


class Corrected(Generator):
    """A product of powers of diffusion models, tilted by a reward; made by the transforms below.

    Feynman–Kac mapping, with p_t ∝ Π q_{i,t}^β_i · exp(b_t·r) and S = Σ β_i s_i the mixed score: M_t is a step of

        dx = [−f + σ²/2·S + ζ²σ²/2·(S + b∇r)] dt + ζσ dW

    and log G_t the step of

        dw = [(Σβ_i − 1)·∇f + σ²/2·(‖S‖² − Σβ_i‖s_i‖²) + b′r + b⟨∇r, σ²/2·S − f⟩] dt,

    t from noise to data, for any ζ. Steps are Euler steps, so the guarantee of an engine holds up to the step size, and
    Ẑ estimates the ratio of the constants of data and noise. A larger ζ lowers the error at a given number of
    particles, and wants smaller steps.

    Args:
        model: a model whose schedule, shape and so on are taken over.
        parts: the factors.
        tilts: the rewards.
        zeta: ζ, how much noise.
        interval: weights count only while the share of steps made is within it.

    Raises ValueError for a schedule that begins without any data (use ``Schedule.flow(steps, start=0.99)``) and
    Unsupported for ζ = 0, where copies of a particle never part: use `ImportanceSampling` with a small ζ instead.
    """

    def __init__(
        self,
        model: Generator,
        parts: Sequence[Part],
        tilts: Sequence[Tilt] = (),
        *,
        zeta: float = 2.0,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__(
            model.denoiser, model.schedule, model.shape,
            condition=model.condition, decode=model.decode, dtype=model.dtype, device=model.device,
        )  # fmt: skip
        if not zeta > 0:
            raise Unsupported(
                "at zeta=0 a step is deterministic, so copies made by resampling never part; use zeta > 0"
            )
        if not self.schedule.alpha[0] > 0:
            raise ValueError("a corrector needs some data in its first level: use Schedule.flow(steps, start=0.99)")
        self.parts = tuple(parts)
        self.tilts = tuple(tilts)
        self.zeta = zeta
        self.interval = interval

    def __repr__(self) -> str:
        betas = ", ".join(f"{part.beta:g}" for part in self.parts)
        tilted = f", {len(self.tilts)} tilt(s)" if self.tilts else ""
        return f"Corrected(betas=[{betas}]{tilted}, zeta={self.zeta:g}, {len(self.schedule)} steps)"

    @property
    def power(self) -> float:
        """Σβ_i."""
        return sum(part.beta for part in self.parts)

    @property
    def scale(self) -> float:
        """Standard deviation of the noise that it begins with: that of the product of the parts' noises."""
        if not self.power > 0:
            raise ValueError(f"the powers add up to {self.power:g}: the product of the noises has no law")
        scale: float = super().scale / self.power**0.5
        return scale

    def begin(self, latents: Latents) -> tuple[Floats, Latents]:
        """Return log G_0 (n,), 0 where the tilt begins at 0, and the particles with their scores."""
        latents = self.look(latents)
        log_g = sum(
            (tilt.schedule(0.0) * latents.fields[f"r{k}"] for k, tilt in enumerate(self.tilts)),
            torch.zeros(len(latents)),
        )
        return log_g.double().cpu().numpy(), latents

    def look(self, latents: Latents) -> Latents:
        """Return particles with the score of each part and the estimate of the first, and rewards with gradients."""
        going = np.flatnonzero(~latents.done)
        fields: dict[str, Any] = {}
        blank = torch.zeros_like(latents.x)
        scores = []
        data = latents.x
        if len(going):
            alpha, sigma = self.levels(latents.step)
            for i, part in enumerate(self.parts):
                denoised = self._denoise(part, latents)
                if not i:
                    data = denoised
                safe = torch.where(sigma > 0, sigma, 1.0)
                scores.append(torch.where(sigma > 0, (alpha * denoised - latents.x) / safe**2, 0.0))
        fields["estimate"] = data
        fields["scores"] = torch.stack(scores, 1) if scores else torch.stack([blank] * len(self.parts), 1)
        for k, tilt in enumerate(self.tilts):
            fields[f"r{k}"], fields[f"g{k}"] = _gradient(tilt.reward, latents)
        return replace_fields(latents, **fields)

    def _denoise(self, part: Part, latents: Latents) -> Any:
        condition = latents.condition if part.condition is _SAME else self._spread(part.condition, len(latents))
        own = replace(latents, condition=condition)
        return _Borrowed(self, part.denoiser).denoise(own)

    def _spread(self, condition: Any, n: int) -> Any:
        from .denoiser import repeat

        return None if condition is None else repeat(condition, n)

    def move(self, latents: Latents, noise: Any, given: Any) -> Moved:
        """Move unfinished particles by one Euler step, and weigh them by what the step leaves out."""
        n, d = len(latents), latents.x[0].numel()
        (alpha, sigma), (alpha2, sigma2) = self.levels(latents.step), self.levels(latents.step + 1)
        growth = (alpha2 / alpha).log()  # −f dt = growth·x
        heat = sigma**2 - sigma2**2 + growth * (sigma**2 + sigma2**2)  # σ² dt
        scores = latents.fields["scores"]
        betas = torch.as_tensor([part.beta for part in self.parts], dtype=self.dtype, device=self.device)
        weights = betas.reshape(1, -1, *[1] * len(self.shape))
        mixed = (weights * scores).sum(1)
        share, share2 = latents.step / latents.steps, (latents.step + 1) / latents.steps
        push = mixed
        for k, tilt in enumerate(self.tilts):
            push = push + self._b(tilt, share) * latents.fields[f"g{k}"]
        mean = latents.x * (1.0 + growth) + 0.5 * heat * (mixed + self.zeta**2 * push)
        std = self.zeta * heat.clamp(min=0.0).sqrt()
        x = mean + std * noise
        if given is not None and len(given[1]):
            x[given[1]] = given[0]
        dw = -(self.power - 1.0) * d * growth.reshape(n)
        flat = (n, -1)
        squares = mixed.reshape(flat).square().sum(1) - (
            betas * scores.reshape(n, len(self.parts), -1).square().sum(2)
        ).sum(1)
        dw = dw + 0.5 * heat.reshape(n) * squares
        for k, tilt in enumerate(self.tilts):
            b, rate = self._b(tilt, share), self._b(tilt, share2) - self._b(tilt, share)
            drift = 0.5 * heat * mixed + growth * latents.x
            dw = dw + rate.reshape(n) * latents.fields[f"r{k}"]
            dw = dw + b.reshape(n) * (latents.fields[f"g{k}"] * drift).reshape(flat).sum(1)
        inside = (share >= self.interval[0]) & (share <= self.interval[1])
        log_g = np.where(inside, dw.double().cpu().numpy(), 0.0)
        log_prob = log_normal(x, mean, std.reshape(n))
        there = self.look(Latents(x, latents.step + 1, latents.steps, latents.condition))
        return Moved(x, log_prob, log_prob, log_g, there.fields)

    def _b(self, tilt: Tilt, share: Any) -> Any:
        return self.levels_of([tilt.schedule(float(s)) for s in share])

    def levels_of(self, numbers: Sequence[float]) -> Any:
        """Return numbers (n,) as a tensor that broadcasts against a batch."""
        return self.tensor(numbers).reshape(-1, *[1] * len(self.shape))


class _Borrowed(Generator):
    """Another denoiser under the levels of a generator."""

    def __init__(self, host: Generator, denoiser: Denoiser) -> None:
        super().__init__(denoiser, host.schedule, host.shape, dtype=host.dtype, device=host.device)


def _gradient(reward: Any, latents: Latents) -> tuple[Any, Any]:
    """Return the reward (n,) of noisy data and its gradient (n, …)."""
    with torch.enable_grad():
        x = latents.x.detach().requires_grad_(True)
        value = as_reward(reward)(x, latents, np.arange(len(latents)))
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach().to(latents.x.dtype), gradient.detach()


def _parts(model: Generator) -> tuple[Part, ...]:
    return model.parts if isinstance(model, Corrected) else (Part(model.denoiser, 1.0, model.condition),)


def anneal(model: Generator, beta: float, **settings: Any) -> Corrected:
    """Return the model of p(x)^β, normalised: β > 1 is colder, that is, sharper.

    >>> import feynkac as fk, torch
    >>> from feynkac.diffusion import Diffusion, Mixture, Schedule, anneal
    >>> schedule = Schedule.vp(100)
    >>> normal = Mixture([1.0], [[0.0]], [1.0])
    >>> cold = anneal(Diffusion(normal.denoiser(schedule), schedule, (1,), dtype=torch.float64), 2.0)
    >>> posterior = fk.infer(cold, fk.SMC(1000), seed=0)
    >>> abs(posterior.expect(lambda x: x[0] ** 2) - 0.5) < 0.1
    True
    """
    tilts = model.tilts if isinstance(model, Corrected) else ()
    if tilts:
        raise Unsupported("anneal the model first, and tilt it afterwards")
    return Corrected(
        model, [replace(part, beta=beta * part.beta) for part in _parts(model)], **_inherit(model, settings)
    )


def product(models: Sequence[Generator], betas: Sequence[float] | None = None, **settings: Any) -> Corrected:
    """Return the model of Π p_i(x)^β_i, normalised (β_i = 1 by default), of models with one schedule and shape.

    Raises ValueError where their levels or shapes differ.
    """
    first = models[0]
    for other in models[1:]:
        same = other.shape == first.shape and np.array_equal(other.schedule.alpha, first.schedule.alpha)
        if not (same and np.array_equal(other.schedule.sigma, first.schedule.sigma)):
            raise ValueError("the models of a product must have one schedule and one shape")
    powers = [1.0] * len(models) if betas is None else list(betas)
    if len(powers) != len(models):
        raise ValueError(f"{len(models)} models need as many betas, not {len(powers)}")
    parts = [replace(part, beta=beta * part.beta) for model, beta in zip(models, powers) for part in _parts(model)]
    return Corrected(first, parts, **_inherit(first, settings))


def guide(model: Generator, gamma: float, unconditional: Any, **settings: Any) -> Corrected:
    """Return the model of p(x)^(1−γ)·p(x|c)^γ, normalised: classifier-free guidance that samples what it says.

    ``unconditional`` is a batch of one empty condition, or another model of the unconditional law.
    """
    if isinstance(unconditional, Generator):
        return product([model, unconditional], [gamma, 1.0 - gamma], **settings)
    parts = [Part(model.denoiser, gamma, model.condition), Part(model.denoiser, 1.0 - gamma, unconditional)]
    return Corrected(model, parts, **_inherit(model, settings))


def tilt(model: Generator, reward: Any, schedule: Callable[[float], float] = float, **settings: Any) -> Corrected:
    """Return the model of p(x)·exp(b·r(x)), normalised.

    ``reward`` is a differentiable function of a noisy batch (n, …) to (n,), ``schedule`` gives b by the share of
    steps made (b_t = t by default; its last value is b).
    """
    tilts = (*model.tilts, Tilt(reward, schedule)) if isinstance(model, Corrected) else (Tilt(reward, schedule),)
    return Corrected(model, _parts(model), tilts, **_inherit(model, settings))


def _inherit(model: Generator, settings: dict[str, Any]) -> dict[str, Any]:
    if isinstance(model, Corrected):
        return {"zeta": model.zeta, "interval": model.interval, **settings}
    return settings

"""Feynman–Kac correctors: another target from the same scores, with weights that make it right.

Mixing scores (annealing, guidance, products) or adding a gradient does not sample the law that one has in mind, since
noising does not commute with powers and products. A corrector keeps the mixed score as the drift and adds the weight
that is missing, after Skreta et al. (2025), arXiv:2503.02819. `anneal`, `guide`, `product` and `tilt` each turn a model
into another; SMC runs the result like any other model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from ..ppl.errors import InvalidWeight, Unsupported
from .denoiser import Denoiser, join
from .gaussian.gaussian import Diffusion, Gaussian
from .gaussian.schedule import Schedule
from .gaussian.transitions import log_normal
from .generator import Floats, Moved, check_condition, check_decode, impose, spread
from .jumps.generator import JumpDiffusion, JumpProduct
from .jumps.masked import MaskedJumps
from .latents import Latents, replace_fields
from .masked.correctors import MaskedProduct
from .masked.generator import MaskedDiffusion
from .masked.rules import Ancestral
from .products import Parts, guided, joined, scaled, tilted
from .rewards.base import as_reward, check_gradient, slope


@dataclass(frozen=True)
class Part:
    """One factor q^β of a product: a denoiser, a batch of conditions for it (1 or n, or None) and the power β."""

    denoiser: Denoiser
    beta: float
    condition: Any = None


@dataclass(frozen=True)
class Tilt:
    """A factor exp(b·r), b a function of the share of steps made, r the reward of noisy data or of the estimate."""

    reward: Any
    schedule: Callable[[float], float]
    of: Literal["noisy", "estimate"] = "noisy"


class Corrected(Gaussian):
    """A product of powers of diffusion models, tilted by a reward; made by the transforms below.

    Feynman–Kac mapping, with p_t ∝ Π q_{i,t}^β_i · exp(b_t·r) and S = Σ β_i s_i the mixed score: M_t is a step of

        dx = [−f + σ²/2·S + ζ²σ²/2·(S + b∇r)] dt + ζσ dW

    and log G_t the step of

        dw = [(Σβ_i − 1)·∇·f + σ²/2·(‖S‖² − Σβ_i‖s_i‖²) + b′r + b·∂_t r + b⟨∇r, σ²/2·S − f⟩] dt,

    t from noise to data, for any ζ. Nothing is clamped. Steps are Euler steps, so that the weights are right up to the
    step size (the posterior's guarantee says "discretised"), and Ẑ estimates the ratio of the constants of data and
    noise. A larger ζ lowers the error at a given number of particles, and wants smaller steps: where all is noise they
    are stable while (1 + ζ²)·Σβ_i·σ²dt < 4 times the variance σ_t² there (a ``shift`` helps flows). A small one lets
    errors grow: N(0, 1) annealed by β needs ζ² > (β − 1)/β.

    Args:
        model: whose schedule, shape and so on are taken over.
        parts: the factors.
        tilts: the rewards.
        zeta: ζ, how much noise; `zeta_for` gives the values that have names.
        interval: weights count only while the share of steps made is within it.

    Raises ValueError for a schedule that begins without any data (use ``Schedule.flow(steps, start=0.99)``), for powers
    that do not add up to a positive number and for settings out of range, and Unsupported for ζ = 0, where copies of a
    particle never part.
    The transforms raise Unsupported for powers that vary in time, whose weights need log q_t and not scores alone.
    """

    guarantee = "discretised"

    def __init__(
        self,
        model: Gaussian,
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
        if not math.isfinite(zeta):
            raise ValueError(f"zeta must be a finite number, not {zeta}")
        if not interval[0] <= interval[1]:
            raise ValueError(f"interval goes from one share of the steps to a later one, not {interval}")
        if not self.schedule.alpha[0] > 0:
            raise ValueError("a corrector needs some data in its first level: use Schedule.flow(steps, start=0.99)")
        self.parts = tuple(parts)
        self.tilts = tuple(tilts)
        self.zeta = zeta
        self.interval = interval
        if not 0 < self.power < math.inf:
            raise ValueError(f"the powers add up to {self.power:g}: the product of the noises has no law")

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
        return float(super().scale) / math.sqrt(self.power)

    def begin(self, latents: Latents) -> tuple[Floats, Latents]:
        """Return log G_0 (n,), 0 where the tilts begin at 0, and the particles with their scores."""
        latents = self.look(latents)
        log_g = np.zeros(len(latents))
        for k, tilt in enumerate(self.tilts if self.interval[0] <= 0.0 else ()):
            log_g = log_g + tilt.schedule(0.0) * latents.fields[f"r{k}"].double().cpu().numpy()
        return log_g, latents

    def _conditions(self, n: int) -> Any:
        return tuple(spread(part.condition, n) for part in self.parts)

    def look(self, latents: Latents) -> Latents:
        """Return particles with the score of each part, the estimate of the first, and rewards with gradients."""
        data = self._denoised(latents)
        alpha, sigma = self.levels(latents.step)
        noisy = self.tensor(~latents.done).reshape(sigma.shape) > 0
        safe = torch.where(noisy, sigma, 1.0)
        scores = [torch.where(noisy, (alpha * one - latents.x) / safe**2, 0.0) for one in data]
        latents = replace_fields(latents, estimate=data[0], scores=torch.stack(scores, 1))
        for k, tilt in enumerate(self.tilts):
            latents = replace_fields(latents, **self._reward(tilt, k, latents))
        return latents

    def _denoised(self, latents: Latents) -> list[Any]:
        """Return what each part estimates; parts that share a denoiser share its call."""
        found: list[Any] = [None] * len(self.parts)
        n = len(latents)
        for denoiser in {id(part.denoiser): part.denoiser for part in self.parts}.values():
            mine = [i for i, part in enumerate(self.parts) if part.denoiser is denoiser]
            conditions = [latents.condition[i] for i in mine]
            if len({condition is None for condition in conditions}) > 1:
                raise ValueError("a denoiser has a condition in all factors or in none: give an empty condition")
            if conditions[0] is None:  # all the same
                data = self.denoise(replace(latents, condition=None), denoiser)
                found = [data if i in mine else one for i, one in enumerate(found)]
                continue
            x, step, owners = (
                torch.cat([latents.x] * len(mine)),
                *(np.tile(array, len(mine)) for array in (latents.step, np.arange(n))),
            )
            stacked = Latents(x, step, latents.steps, join(conditions))
            for i, data in zip(mine, self.denoise(stacked, denoiser, owners).split(n)):
                found[i] = data
        return found

    def _reward(self, tilt: Tilt, k: int, latents: Latents) -> dict[str, Any]:
        """Return the reward, its gradient and how much it changes to the next level, where particles are not done."""
        value, change = torch.zeros(2, len(latents), dtype=self.dtype, device=self.device)
        gradient = torch.zeros_like(latents.x)
        going = np.flatnonzero(~latents.done)
        if len(going):
            at = torch.as_tensor(going, device=self.device)
            reward = as_reward(tilt.reward)
            part = latents.select(going)
            with torch.enable_grad():
                x = part.x.detach().requires_grad_(True)
                seen = x if tilt.of == "noisy" else self._estimate(replace(part, x=x), going)
                found = reward(self.decoded(seen), latents, going)
                gradient[at] = slope(found, x, reward, ~part.done)
            if tilt.of == "estimate":
                later = self.decoded(self._estimate(replace(part, step=part.step + 1), going))
                change[at] = (reward(later, latents, going) - found.detach()).to(value)
            value[at] = found.detach().to(value)
            if not bool(torch.isfinite(value).all()):
                raise InvalidWeight("the reward of a tilt must be finite on the way: give it a floor")
        return {f"r{k}": value, f"g{k}": gradient, f"c{k}": change}

    def _estimate(self, latents: Latents, owners: Any) -> Any:
        return self.denoise(replace(latents, condition=latents.condition[0]), self.parts[0].denoiser, owners)

    def move(self, latents: Latents, noise: Any, given: Any) -> Moved:
        """Move unfinished particles by one Euler step, and weigh them by what the step leaves out."""
        (alpha, sigma), (alpha2, sigma2) = self.levels(latents.step), self.levels(latents.step + 1)
        growth = (alpha2 / alpha).log()  # −f dt = growth·x
        heat = sigma**2 - sigma2**2 + growth * (sigma**2 + sigma2**2)  # σ² dt, exact for VE
        betas = self.tensor([part.beta for part in self.parts])
        scores = latents.fields["scores"]
        mixed = torch.einsum("k,nk...->n...", betas, scores)
        flow = growth * latents.x + 0.5 * heat * mixed
        squares = mixed.flatten(1).square().sum(1) - scores.flatten(2).square().sum(2) @ betas
        size = latents.x[0].numel()
        dw = (1.0 - self.power) * size * growth.flatten() + 0.5 * heat.flatten() * squares
        share, later = latents.step / latents.steps, (latents.step + 1) / latents.steps
        push = mixed
        for k, tilt in enumerate(self.tilts):
            b, b2 = (self.tensor([tilt.schedule(float(s)) for s in at]) for at in (share, later))
            reward, change = latents.fields[f"r{k}"], latents.fields[f"c{k}"]
            slopes = torch.einsum("n,n...->n...", b, latents.fields[f"g{k}"])
            push = push + slopes
            dw = dw + (b2 - b) * reward + b * change + (slopes * flow).flatten(1).sum(1)
        mean = latents.x + flow + 0.5 * self.zeta**2 * heat * push
        std = self.zeta * heat.clamp(min=0.0).sqrt()
        x = mean + std * noise
        impose(x, given)
        inside = (share >= self.interval[0]) & (share <= self.interval[1])
        log_g = np.where(inside, dw.double().cpu().numpy(), 0.0)
        log_prob = log_normal(x, mean, std.flatten())
        there = self.look(Latents(x, latents.step + 1, latents.steps, latents.condition))
        return Moved(x, log_prob, log_prob, log_g, there.fields)


def zeta_for(beta: float, a: float) -> float:
    """Return the ζ of annealing by β that Skreta et al. (2025) describe by a: ζ² = (β + (1 − β)·2a)/β.

    a = 0 is their "target score", ζ = 1; a = ½ their "tempered noise", ζ = 1/√β. Raises ValueError where ζ² ≤ 0.

    >>> zeta_for(4.0, a=0.0), zeta_for(4.0, a=0.5)
    (1.0, 0.5)
    """
    squared = (beta + (1.0 - beta) * 2.0 * a) / beta
    if not squared > 0:
        raise ValueError(f"a={a} at beta={beta} leaves no noise: take a smaller a")
    return math.sqrt(squared)


def _raised(model: Gaussian, beta: float) -> tuple[tuple[Part, ...], tuple[Tilt, ...]]:
    """Return the parts and tilts of a model to the power β."""
    _check_constant(beta)
    if isinstance(model, Corrected):
        parts = tuple(replace(part, beta=beta * part.beta) for part in model.parts)
        return parts, tuple(replace(tilt, schedule=scaled(tilt.schedule, beta)) for tilt in model.tilts)
    if not isinstance(model, Diffusion):
        raise Unsupported(
            "correctors transform a Diffusion, a MaskedDiffusion or a JumpDiffusion (of a network of uniform noise, "
            f"JumpDiffusion(Ratios(network), …)), or what they made of one, not a {type(model).__name__}"
        )
    if model.steering is not None:
        raise Unsupported("correctors replace steering: take the model without it, and use `tilt`")
    return (Part(model.denoiser, beta, model.condition),), ()


def _check_constant(power: float) -> None:
    """Raise Unsupported for a power that is a function of time."""
    if callable(power):
        raise Unsupported(
            "a power that varies in time needs the log-densities of the noisy data, and a denoiser has scores alone: "
            "give a number, and let `tilt` vary"
        )


def _same_levels(one: Schedule, other: Schedule) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("alpha", "sigma", "time"))


OF_TOKENS = (MaskedDiffusion, JumpDiffusion)
"""Models whose data are tokens."""


def _noise(model: Any) -> str:
    """Return what a model's noise is."""
    known = {MaskedDiffusion: "masks", JumpDiffusion: "tokens drawn anew", Gaussian: "Gaussian noise"}
    return next((noise for kind, noise in known.items() if isinstance(model, kind)), type(model).__name__)


def _of_tokens(model: Any, parts: Parts, settings: dict[str, Any]) -> Any:
    """Return the product of models of tokens in the form that the model's steps have."""
    if settings:
        raise TypeError(f"products of tokens have no settings, not {', '.join(settings)}")
    if isinstance(model, JumpDiffusion):
        return JumpProduct(model, *parts)
    return (MaskedJumps if isinstance(model.rule, Ancestral) else MaskedProduct)(model, *parts)


def anneal(model: Any, beta: float, **settings: Any) -> Any:
    """Return the model of p(x)^β, normalised: β > 1 is colder, that is, sharper; tilts are raised as well.

    Here and below, models are `Diffusion`, which gives a `Corrected`; `MaskedDiffusion`, which gives a `MaskedProduct`
    where it reveals one position at a time (exact), and `MaskedJumps` where its rule is `Ancestral`; `JumpDiffusion`,
    which gives a `JumpProduct`; or what a corrector made of them. ``settings`` are ``zeta`` and ``interval`` of
    `Corrected`, by default those of the model if it is one; of tokens there are none.

    >>> import feynkac as fk, torch
    >>> from feynkac.diffusion import Diffusion, Mixture, Schedule, anneal
    >>> schedule = Schedule.vp(100)
    >>> normal = Mixture([1.0], [[0.0]], [1.0])
    >>> cold = anneal(Diffusion(normal.denoiser(schedule), schedule, (1,), dtype=torch.float64), 2.0)
    >>> posterior = fk.infer(cold, fk.SMC(1000), seed=0)
    >>> abs(posterior.expect(lambda x: x[0] ** 2) - 0.5) < 0.1
    True
    """
    if isinstance(model, OF_TOKENS):
        return product([model], [beta], **settings)
    return Corrected(model, *_raised(model, beta), **_inherit([model], settings))


def product(models: Sequence[Any], betas: Sequence[float] | None = None, **settings: Any) -> Any:
    """Return the model of Π p_i(x)^β_i, normalised (β_i = 1 by default), of models with one schedule and shape.

    Raises ValueError where their levels or shapes differ, where one of the others is tilted and decodes otherwise than
    the first, for models of both kinds, and for none.
    """
    if not models:
        raise ValueError("a product needs at least one model")
    first = models[0]
    powers = [1.0] * len(models) if betas is None else list(betas)
    if len(powers) != len(models):
        raise ValueError(f"{len(models)} models need as many betas, not {len(powers)}")
    kinds = {_noise(model) for model in models}
    if len(kinds) > 1:
        raise ValueError(f"a product is of one kind of diffusion: of {' or '.join(sorted(kinds))}, not of both")
    if isinstance(first, OF_TOKENS):
        for power in powers:
            _check_constant(power)
        if any(other.form != first.form for other in models):
            raise ValueError(
                "the models of a product must have one length, vocabulary and schedule, and where they have masks one "
                "template, block, rule and temperature"
            )
        return _of_tokens(first, joined(models, powers), settings)
    raised = [_raised(model, beta) for model, beta in zip(models, powers)]
    if any(other.shape != first.shape or not _same_levels(other.schedule, first.schedule) for other in models):
        raise ValueError("the models of a product must have one schedule and one shape")
    for other, (_, leaning) in zip(models[1:], raised[1:]):
        check_decode(first, other, leaning)
    parts, tilts = ([one for many in kind for one in many] for kind in zip(*raised))
    return Corrected(first, parts, tilts, **_inherit(models, settings))


def guide(model: Any, gamma: float, unconditional: Any, **settings: Any) -> Any:
    """Return the model of p(x)^(1−γ)·p(x|c)^γ, normalised: classifier-free guidance that samples what it says.

    ``unconditional`` is a batch of one empty condition, or another model of the unconditional law. Where the
    conditional law is narrower than γ/(γ − 1) times the other, as it should be, the result has finite mass.

    Raises ValueError for an empty condition where the model has none.
    """
    _check_constant(gamma)
    if isinstance(unconditional, (Gaussian, *OF_TOKENS)):
        return product([model, unconditional], [gamma, 1.0 - gamma], **settings)
    if isinstance(model, OF_TOKENS):
        return _of_tokens(model, guided(model, gamma, unconditional), settings)
    parts, tilts = _raised(model, 1.0)
    check_condition([part.condition for part in parts])
    both = [replace(part, beta=gamma * part.beta) for part in parts]
    both += [replace(part, beta=(1.0 - gamma) * part.beta, condition=unconditional) for part in parts]
    return Corrected(model, both, tilts, **_inherit([model], settings))


def tilt(
    model: Any,
    reward: Any,
    schedule: Callable[[float], float] = float,
    *,
    of: Literal["noisy", "estimate"] = "noisy",
    **settings: Any,
) -> Any:
    """Return the model of p(x)·exp(b·r(x)), normalised.

    Args:
        model: see `anneal`.
        reward: a function of a batch (n, …) to (n,), finite everywhere; of Gaussian noise one that torch can
            differentiate. Of masked diffusion "noisy" data are tokens with masks among them.
        schedule: b by the share of steps made; the last value is b. By default it grows from 0 to 1.
        of: "noisy": the reward is that of the noisy data themselves on the way; "estimate": that of the (first)
            model's estimate of the data, at one evaluation more for the gradient and one for ∂_t r, which is taken
            as a difference between levels.
        settings: as in `anneal`.

    Raises Unsupported for a reward that is not differentiable.
    """
    if not callable(schedule):
        raise ValueError(f"schedule is a function of the share of steps made, such as lambda s: 2 * s, not {schedule}")
    if of not in ("noisy", "estimate"):
        raise ValueError(f"of must be noisy or estimate, not {of!r}")
    if isinstance(model, OF_TOKENS):
        return _of_tokens(model, tilted(model, reward, schedule, of == "noisy"), settings)
    check_gradient(reward, "tilt")
    parts, tilts = _raised(model, 1.0)
    return Corrected(model, parts, (*tilts, Tilt(reward, schedule, of)), **_inherit([model], settings))


def _inherit(models: Sequence[Gaussian], settings: dict[str, Any]) -> dict[str, Any]:
    for model in models:
        if isinstance(model, Corrected):
            return {"zeta": model.zeta, "interval": model.interval, **settings}
    return settings

"""Generators: Feynman–Kac models over noisy data, from pure noise to an image, a clip, or any tensor.

What all of them share is here: keys become noise, particles at different levels share a batch, finished ones are
left alone, and the parts of a weight are kept apart. A generator says how a batch begins and how it moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..models.local.weights.devices import find
from ..ppl import keys as _keys
from ..ppl.cost import rows
from ..ppl.density import Density
from ..ppl.errors import FeynkacError
from ..ppl.keys import Keys
from ..ppl.model import Advance, Index
from .denoiser import Denoiser, estimate, predict, repeat
from .increments import densities
from .latents import Latents, replace_fields
from .schedule import Schedule
from .transitions import log_normal, transition

Floats = NDArray[np.float64]


class InvalidOutput(FeynkacError, ValueError):
    """A network returned what is no prediction: another shape, NaN or infinity."""


@dataclass(frozen=True)
class Moved:
    """Where a batch of n particles has gone, with the parts of its weight; each (n,) but ``x`` and ``fields``.

    ``log_potential`` may be a tensor, through which there is a gradient.
    """

    x: Any
    log_prob: Floats
    log_proposal: Floats
    log_potential: Any
    fields: dict[str, Any] = field(default_factory=dict)


class Generator:
    """A diffusion model as a Feynman–Kac model: the base of all that generate by denoising.

    Args:
        denoiser: what predicts the data.
        schedule: its levels, T steps.
        shape: of one particle, such as (1, 28, 28).
        condition: a batch of one condition for all particles, or of as many as there are particles; or None.
        decode: from data (n, …) to what `values` returns and rewards see, such as a latent decoder.
        dtype: of the particles.
        device: where they are.

    The choices recorded at each step are the particles themselves, so ``given`` forces noise at the start, and
    noisy data after it; one that cannot come about has log-probability −inf.

    Raises ValueError where ε is predicted at a level without data (α = 0), which says nothing of the data, and for a
    device that is not there.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        shape: Sequence[int],
        *,
        condition: Any = None,
        decode: Any = None,
        dtype: Any = torch.float32,
        device: str = "cpu",
    ) -> None:
        if denoiser.prediction == "epsilon" and not schedule.alpha[0] > 0:
            raise ValueError("a prediction of ε needs some data in the first level: Schedule.flow(steps, start=0.99)")
        self.denoiser = denoiser
        self.schedule = schedule
        self.shape = tuple(shape)
        self.condition = condition
        self.decode = decode
        self.dtype = dtype
        self.device = find(device)

    # What a generator is asked by its base

    @property
    def scale(self) -> float:
        """Standard deviation of the noise that a generation begins with: 1 where variance is preserved, else σ_0.

        A schedule may say otherwise, as those of diffusers do.
        """
        if self.schedule.initial is not None:
            return self.schedule.initial
        alpha, sigma = float(self.schedule.alpha[0]), float(self.schedule.sigma[0])
        return 1.0 if math.isclose(alpha**2 + sigma**2, 1.0) else sigma

    @property
    def steps(self) -> int:
        """How many steps a generation takes after its start."""
        return len(self.schedule)

    def begin(self, latents: Latents) -> tuple[Any, Latents]:
        """Return log G_0 (n,) of particles of pure noise, an array or tensor, and the particles with their fields."""
        return np.zeros(len(latents)), self.look(latents)

    def move(self, latents: Latents, noise: Any, given: Any) -> Moved:
        """Move unfinished particles one level on; ``given`` holds forced particles and their rows, or is None."""
        raise NotImplementedError

    def look(self, latents: Latents) -> Latents:
        """Return particles with what is computed where they are: here, the estimate of the data."""
        return replace_fields(latents, estimate=self.denoise(latents))

    # The network

    def levels(self, step: NDArray[np.int64]) -> tuple[Any, Any]:
        """Return α and σ at levels (n,), as tensors that broadcast against a batch."""
        width = (len(step),) + (1,) * len(self.shape)
        alpha, sigma = self.schedule.alpha[step], self.schedule.sigma[step]
        return self.tensor(alpha).reshape(width), self.tensor(sigma).reshape(width)

    def denoise(
        self, latents: Latents, denoiser: Denoiser | None = None, owners: NDArray[np.intp] | None = None
    ) -> Any:
        """Return the estimate of the data for each particle, from one call of the network for all unfinished ones.

        ``denoiser`` is the model's own by default; ``owners`` tells whose each row is, where it is not row i of the
        particles. Raises InvalidOutput where the network returns another shape, or numbers that are not finite.
        """
        denoiser = self.denoiser if denoiser is None else denoiser
        going = np.flatnonzero(~latents.done)
        if not len(going):
            return latents.x
        part = latents if len(going) == len(latents) else latents.select(going)
        alpha, sigma = self.levels(part.step)
        mine = going if owners is None else owners[going]
        with rows(mine.tolist()):
            out = predict(denoiser, part.x, self.tensor(self.schedule.time[part.step]), part.condition)
        check_output(out, part.x, mine)
        found = estimate(denoiser.prediction, out, part.x, alpha, sigma)
        if part is latents:
            return found
        whole = latents.x.clone()
        whole[torch.as_tensor(going, device=whole.device)] = found
        return whole

    def tensor(self, array: Any) -> Any:
        """Return an array as a tensor of the particles' type and place."""
        return torch.as_tensor(np.asarray(array), dtype=self.dtype, device=self.device)

    # The contract

    def start(self, keys: Keys, given: Sequence[Any] | None = None) -> Advance[Latents]:
        """Draw pure noise for each key."""
        n = len(keys)
        x = self._noise(keys) * self.scale
        impose(x, self._given(given, n))
        log_prob = log_normal(x, 0.0, self.scale)
        latents = Latents(x, np.zeros(n, np.int64), self.steps, self._conditions(n))
        with torch.no_grad():
            log_potential, latents = self.begin(latents)
        return self._advance(latents, log_prob, log_prob, log_potential)

    def advance(self, state: Latents, keys: Keys, given: Sequence[Any] | None = None) -> Advance[Latents]:
        """Move each particle that has not finished one level on."""
        n = len(state)
        log_prob, log_proposal, log_potential = np.zeros(n), np.zeros(n), np.zeros(n)
        going = np.flatnonzero(~state.done)
        if len(going):
            part = state if len(going) == n else state.select(going)
            noise = self._noise(keys[going])
            forced = None if given is None else self._given([given[i] for i in going.tolist()], len(going))
            with torch.no_grad(), rows(going.tolist()):
                moved = self.move(part, noise, forced)
            log_prob[going], log_proposal[going] = moved.log_prob, moved.log_proposal
            log_potential[going] = moved.log_potential
            there = Latents(moved.x, part.step + 1, part.steps, part.condition, moved.fields)
            state = there if len(going) == n else state.put(going, there)
        return self._advance(state, log_prob, log_proposal, log_potential)

    def select(self, state: Latents, index: Index) -> Latents:
        """Keep, duplicate or reorder particles, with all that belongs to them."""
        return state.select(index)

    def concat(self, states: Sequence[Latents]) -> Latents:
        """Join batches of particles."""
        return Latents.concat(states)

    def values(self, state: Latents) -> list[Any]:
        """Return the data of each particle, an array; for one that has not finished, the estimate of it."""
        data = state.fields.get("estimate", state.x)
        if len(state) and state.done.any():
            data = data.clone()
            at = torch.as_tensor(np.flatnonzero(state.done), device=data.device)
            data[at] = state.x[at]
        with torch.no_grad():
            data = self.decoded(data)
        return list(data.detach().cpu().numpy().copy())

    def decoded(self, data: Any) -> Any:
        """Return what rewards see and `values` returns, of data (n, …)."""
        return data if self.decode is None or not len(data) else self.decode(data)

    def _advance(
        self, latents: Latents, log_prob: Floats, log_proposal: Floats, log_potential: Any
    ) -> Advance[Latents]:
        n, weighed = len(latents), np.asarray(log_potential)
        choices: Any = latents.x.detach().cpu().numpy()
        return Advance(latents, choices, log_prob, log_proposal, weighed, np.zeros(n), latents.done, np.ones(n, bool))

    def _noise(self, keys: Keys) -> Any:
        """Return standard normal noise, one key per particle."""
        size = math.prod(self.shape)
        return self.tensor(_keys.normal(keys, size)).reshape(len(keys), *self.shape)

    def _given(self, given: Sequence[Any] | None, n: int) -> tuple[Any, Any]:
        """Return forced particles as a tensor, and their rows."""
        rows = [] if given is None else [i for i in range(n) if given[i] is not None]
        forced = [np.asarray(given[i]) for i in rows]  # type: ignore[index]
        for i, one in zip(rows, forced):
            if one.shape != self.shape:
                raise ValueError(f"particle {i} was given an array of shape {one.shape}, not {self.shape}")
        return (self.tensor(np.stack(forced)) if rows else None), torch.as_tensor(rows, device=self.device)

    def _conditions(self, n: int) -> Any:
        return spread(self.condition, n)


def spread(condition: Any, n: int) -> Any:
    """Return a batch of n conditions, of one of 1 or n, or of None."""
    held = [len(leaf) for leaf in leaves(condition)]
    if not held or set(held) == {n}:
        return condition
    if set(held) != {1}:
        raise ValueError(f"the condition is a batch of {held[0]}, but there are {n} particles: give 1 or {n}")
    return repeat(condition, n)


def impose(x: Any, given: tuple[Any, Any] | None) -> None:
    """Put forced particles, where there are any, in their rows of a batch."""
    if given is not None and len(given[1]):
        x[given[1]] = given[0]


def check_eta(eta: float) -> float:
    """Return how stochastic steps are, or raise ValueError."""
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be between 0 (deterministic) and 1 (DDPM), not {eta}")
    return eta


def check_output(out: Any, x: Any, owners: NDArray[np.intp]) -> None:
    """Raise InvalidOutput unless a network's output fits its input and is finite."""
    if out.shape != x.shape:
        raise InvalidOutput(f"the network got {tuple(x.shape)} and returned {tuple(out.shape)}: a prediction fits x")
    if not bool(torch.isfinite(out).all()):
        bad = (~torch.isfinite(out.reshape(len(out), -1))).any(1).nonzero()
        raise InvalidOutput(f"the network returned NaN or infinite numbers for particle {owners[int(bad[0, 0])]}")


def leaves(batch: Any) -> Any:
    """Yield the tensors of a batch."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif batch is not None:
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from leaves(part)


class Diffusion(Generator):
    """Generation by DDPM, DDIM or a stochastic flow, in T steps, with an optional reward that steers it.

    Feynman–Kac mapping: M_0 is pure noise, M_t the step of `transition` with its exact density (none for a
    deterministic one), and G_t what ``steering`` makes of the reward; without one, G = 1. The last step reaches the
    data without noise.

    Args:
        eta: 1 is DDPM (or its counterpart for flows), 0 deterministic; for resampling to help it must be positive.
        steering: what weighs and guides particles; see `feynkac.diffusion.steering`.

    The others are those of `Generator`. Raises ValueError for an eta outside [0, 1].

    >>> import feynkac as fk
    >>> from feynkac.diffusion import Diffusion, Mixture, Schedule
    >>> data = Mixture(weights=[0.3, 0.7], means=[[-2.0], [1.0]], variances=[0.1, 0.1])
    >>> model = Diffusion(data.denoiser(Schedule.vp(60)), Schedule.vp(60), (1,), dtype=torch.float64)
    >>> posterior = fk.infer(model, fk.ImportanceSampling(2000), seed=0)
    >>> abs(posterior.expect(lambda x: x[0] > 0) - 0.7) < 0.05
    True
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        shape: Sequence[int],
        *,
        eta: float = 1.0,
        steering: Any = None,
        condition: Any = None,
        decode: Any = None,
        dtype: Any = torch.float32,
        device: str = "cpu",
    ) -> None:
        super().__init__(denoiser, schedule, shape, condition=condition, decode=decode, dtype=dtype, device=device)
        self.eta = check_eta(eta)
        self.steering = steering

    def __repr__(self) -> str:
        steered = f", {self.steering!r}" if self.steering is not None else ""
        return f"Diffusion({len(self.schedule)} steps, shape {self.shape}, eta={self.eta:g}{steered})"

    def begin(self, latents: Latents) -> tuple[Any, Latents]:
        """Return log G_0 (n,) and the particles with estimate and rewards."""
        if self.steering is None:
            return super().begin(latents)
        return self.steering.begin(self, latents)  # type: ignore[no-any-return]

    def move(self, latents: Latents, noise: Any, given: Any) -> Moved:
        """Move unfinished particles one level on."""
        level, following = self.levels(latents.step), self.levels(latents.step + 1)
        data = latents.fields["estimate"]
        mean, std = transition(latents.x, data, level, following, self.eta)
        guided = mean
        if self.steering is not None and "gradient" in latents.fields:
            shifted = self.steering.shift(latents, data, level)
            guided, _ = transition(latents.x, shifted, level, following, self.eta)
            guided = torch.where(std > 0, guided, mean)  # a step without noise cannot be proposed otherwise
        x = guided + std * noise
        impose(x, given)
        log_proposal = log_normal(x, guided, std.reshape(len(x)))
        log_prob = log_proposal if guided is mean else log_normal(x, mean, std.reshape(len(x)))
        there = Latents(x, latents.step + 1, latents.steps, latents.condition)
        if self.steering is None:
            return Moved(x, log_prob, log_proposal, np.zeros(len(x)), self.look(there).fields)
        log_potential, there = self.steering.weigh(self, latents, there)
        return Moved(x, log_prob, log_proposal, log_potential, there.fields)

    def unconstrained(self, paths: Sequence[Any], horizon: int | None) -> list[Density]:
        """Return the density of paths over their noise, with its gradient; see `feynkac.diffusion.increments`."""
        return densities(self, paths, horizon)

    def renoise(self, state: Latents, keys: Keys, depth: int) -> Advance[Latents]:
        """Take particles back to an earlier depth, by adding noise as the forward process does.

        x_j = (α_j/α_i)·x_i + √(σ_j² − (α_j·σ_i/α_i)²)·z. It is no step of the model, so that it has no density; it is
        weighed as a step is. Raises ValueError for a depth that is not before that of every particle.
        """
        if not 0 <= depth < int(state.step.min()):
            raise ValueError(f"noise takes particles back, from depth {state.step.min()} to one before it, not {depth}")
        n, step = len(state), np.full(len(state), depth)
        (alpha, sigma), (alpha2, sigma2) = self.levels(state.step), self.levels(step)
        ratio = alpha2 / alpha
        x = ratio * state.x + (sigma2**2 - (ratio * sigma) ** 2).clamp(min=0.0).sqrt() * self._noise(keys)
        there, log_potential = Latents(x, step, state.steps, state.condition), np.zeros(n)
        with torch.no_grad():
            if self.steering is None:
                there = self.look(there)
            else:
                log_potential, there = self.steering.weigh(self, state, there)
        return self._advance(there, np.zeros(n), np.zeros(n), log_potential)

"""Generators: Feynman–Kac models over tensors, from what says nothing to an image, a clip, a text, or any tensor.

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
from ..ppl.errors import FeynkacError
from ..ppl.keys import Keys
from ..ppl.model import Advance, Index
from .denoiser import repeat
from .latents import Latents, replace_fields

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
    """A model that generates step by step as a Feynman–Kac model: the base of all of them.

    Args:
        shape: of one particle, such as (1, 28, 28).
        condition: a batch of one condition for all particles, or of as many as there are particles; or None.
        decode: from data (n, …) to what `values` returns and rewards see, such as a latent decoder.
        dtype: of the particles.
        device: where they are.

    The choices recorded at each step are the particles themselves, so ``given`` forces noise at the start, and
    noisy data after it; one that cannot come about has log-probability −inf. Raises ValueError for a device that is
    not there.
    """

    steering: Any = None
    """What weighs particles by a reward, see `feynkac.diffusion.Steering`; None: nothing does."""
    remembers: bool = False
    """Whether a step depends on more than where a particle is and how far, so that one fits no past but its own."""

    def __init__(
        self,
        shape: Sequence[int],
        *,
        condition: Any = None,
        decode: Any = None,
        dtype: Any = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.shape = tuple(shape)
        self.condition = condition
        self.decode = decode
        self.dtype = dtype
        self.device = find(device)

    # What a generator says of itself

    @property
    def recorded(self) -> tuple[int, ...]:
        """The shape of what a particle's step records, and of what can be forced."""
        return self.shape

    def record(self, latents: Latents) -> Any:
        """Return what a step of particles records, a tensor (n, …)."""
        return latents.x

    @property
    def steps(self) -> int:
        """How many steps a generation takes after its start."""
        raise NotImplementedError

    def initial(self, keys: Keys) -> Any:
        """Draw where particles begin, (n, …), from a key each."""
        raise NotImplementedError

    def initial_log_prob(self, x: Any) -> Floats:
        """Return the log-probability (n,) of beginning at ``x`` (n, …)."""
        raise NotImplementedError

    def noise(self, keys: Keys) -> Any:
        """Draw what a step of unfinished particles is made from, a key each."""
        raise NotImplementedError

    def enter(self, keys: Keys, given: Any) -> tuple[Floats, Any, Latents]:
        """Return where particles begin, log M_0 and log G_0 (n,) of it; ``given`` holds forced ones and their rows."""
        x = self.initial(keys)
        impose(x, given)
        log_potential, latents = self.begin(self.unmoved(x))
        return self.initial_log_prob(x), log_potential, latents

    def unmoved(self, x: Any) -> Latents:
        """Return particles at ``x`` (n, …) that have made no step."""
        return Latents(x, np.zeros(len(x), np.int64), self.steps, self._conditions(len(x)))

    def begin(self, latents: Latents) -> tuple[Any, Latents]:
        """Return log G_0 (n,) of particles of pure noise, an array or tensor, and the particles with their fields."""
        if self.steering is None:
            return np.zeros(len(latents)), self.look(latents)
        return self.steering.begin(self, latents)  # type: ignore[no-any-return]

    def arrive(self, before: Latents, there: Latents) -> tuple[Any, Latents]:
        """Return log G_t (n,) of particles that were ``before`` and are ``there``, and the latter with their fields."""
        if self.steering is None:
            return np.zeros(len(there)), self.look(there)
        return self.steering.weigh(self, before, there)  # type: ignore[no-any-return]

    def move(self, latents: Latents, noise: Any, given: Any) -> Moved:
        """Move unfinished particles one level on; ``given`` holds forced particles and their rows, or is None."""
        raise NotImplementedError

    def look(self, latents: Latents) -> Latents:
        """Return particles with what is computed where they are, the estimate of the data among it."""
        raise NotImplementedError

    def sloping(self, latents: Latents) -> tuple[Any, Any, Latents]:
        """Return what a reward's gradient is taken by, data that depend on it, and the particles, looked at.

        As `Steering` asks it: the noisy data, and the decoded estimate; of tokens something else.
        """
        x = latents.x.detach().requires_grad_(True)
        looked = self.look(Latents(x, latents.step, latents.steps, latents.condition, latents.fields))
        estimate = looked.fields["estimate"]
        return x, self.decoded(estimate), replace_fields(latents, estimate=estimate.detach())

    def tensor(self, array: Any) -> Any:
        """Return an array as a tensor of the particles' type and place."""
        return torch.as_tensor(np.asarray(array), dtype=self.dtype, device=self.device)

    def uniforms(self, keys: Keys, *shape: int) -> Any:
        """Draw uniform numbers from a key each, (n, *shape)."""
        drawn = _keys.uniform(keys, math.prod(shape)).reshape(len(keys), *shape)
        return torch.as_tensor(drawn, device=self.device)

    def check_back(self, state: Latents, depth: int, how: str = "noise takes") -> None:
        """Raise ValueError for a depth to go back to that is not before that of every particle."""
        if not 0 <= depth < int(state.step.min()):
            raise ValueError(f"{how} particles back, from depth {state.step.min()} to one before it, not {depth}")

    def back(self, state: Latents, there: Latents) -> Advance[Latents]:
        """Weigh particles that were taken back, as a step is; it is no step of the model, and has no density."""
        with torch.no_grad():
            log_potential, there = self.arrive(state, there)
        return self._advance(there, np.zeros(len(there)), np.zeros(len(there)), log_potential)

    # The contract

    def start(self, keys: Keys, given: Sequence[Any] | None = None) -> Advance[Latents]:
        """Draw where each particle begins."""
        with torch.no_grad():
            log_prob, log_potential, latents = self.enter(keys, self._given(given, len(keys)))
        return self._advance(latents, log_prob, log_prob, log_potential)

    def advance(self, state: Latents, keys: Keys, given: Sequence[Any] | None = None) -> Advance[Latents]:
        """Move each particle that has not finished one level on."""
        n = len(state)
        log_prob, log_proposal, log_potential = np.zeros(n), np.zeros(n), np.zeros(n)
        going = np.flatnonzero(~state.done)
        if len(going):
            part = state if len(going) == n else state.select(going)
            noise = self.noise(keys[going])
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
        """Return the data of each particle, an array or what ``decode`` makes; of one on its way, the estimate."""
        data = state.fields.get("estimate", state.x)
        if len(state) and state.done.any():
            data = data.clone()
            at = torch.as_tensor(np.flatnonzero(state.done), device=data.device)
            data[at] = state.x[at]
        with torch.no_grad():
            data = self.decoded(data)
        return list(data.detach().cpu().numpy().copy() if isinstance(data, torch.Tensor) else data)

    def decoded(self, data: Any) -> Any:
        """Return what rewards see and `values` returns, of data (n, …). Raises ValueError for more or fewer than n."""
        if self.decode is None or not len(data):
            return data
        found = self.decode(data)
        if len(found) != len(data):
            raise ValueError(f"decode got {len(data)} samples and returned {len(found)}: it makes one of each")
        return found

    def _advance(
        self, latents: Latents, log_prob: Floats, log_proposal: Floats, log_potential: Any
    ) -> Advance[Latents]:
        n, weighed = len(latents), np.asarray(log_potential)
        choices: Any = self.record(latents).detach().cpu().numpy()
        twist = np.asarray(latents.fields["twist"]) if "twist" in latents.fields else np.zeros(n)
        return Advance(latents, choices, log_prob, log_proposal, weighed, twist, latents.done, np.ones(n, bool))

    def _given(self, given: Sequence[Any] | None, n: int) -> tuple[Any, Any]:
        """Return forced particles as a tensor, and their rows."""
        rows = [] if given is None else [i for i in range(n) if given[i] is not None]
        forced = [np.asarray(given[i]) for i in rows]  # type: ignore[index]
        for i, one in zip(rows, forced):
            if one.shape != self.recorded:
                raise ValueError(f"particle {i} was given an array of shape {one.shape}, not {self.recorded}")
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


def check_condition(conditions: Sequence[Any]) -> None:
    """Raise ValueError where a model to be guided has no condition."""
    if all(condition is None for condition in conditions):
        raise ValueError(
            "guidance needs a condition to guide to, and the model has none: give it one, or an unconditional model in "
            "place of the empty condition"
        )


def check_decode(first: Generator, other: Generator, tilts: Sequence[Any]) -> None:
    """Raise ValueError where the tilts of another model would read in a product what the first one decodes."""
    if tilts and other.decode != first.decode:
        raise ValueError(
            "a tilted model of a product decodes otherwise than the first, whose data its reward would read: give both "
            "one decode, or tilt the product"
        )


def impose(x: Any, given: tuple[Any, Any] | None) -> None:
    """Put forced particles, where there are any, in their rows of a batch."""
    if given is not None and len(given[1]):
        x[given[1]] = given[0]


def leaves(batch: Any) -> Any:
    """Yield the tensors of a batch."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif batch is not None:
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from leaves(part)

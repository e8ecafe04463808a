"""Denoising steps as kernels, for programs: noise, and one step towards the data."""

from __future__ import annotations

import base64
import copy
import math
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from ..ppl.keys import Keys
from ..ppl.model import Advance, Draws, Floats
from .denoiser import join
from .generator import Generator, leaves
from .latents import Latents


def begin(model: Generator, condition: Any = None) -> Step:
    """Return the kernel of pure noise, whose values are particles of ``model`` that have made no step.

    Args:
        model: without rewards of its own: the program's factors weigh.
        condition: a batch of one, for this particle; None: the model's own, which must be one for all.

    Raises ValueError where the model has conditions for several particles, or a reward.

    >>> import feynkac as fk
    >>> from feynkac.diffusion import Diffusion, Mixture, Schedule
    >>> data = Mixture(weights=[0.5, 0.5], means=[[-1.0], [1.0]], variances=[0.1, 0.1])
    >>> model = Diffusion(data.denoiser(Schedule.vp(10)), Schedule.vp(10), (1,))
    >>> @fk.program
    ... async def positive():
    ...     particle = await fk.sample("noise", begin(model))
    ...     while not particle.done:
    ...         particle = await fk.sample("step", denoise(particle))
    ...     await fk.factor("positive", 0.0 if particle.image[0] > 0 else -9.0)
    ...     return particle.image
    >>> posterior = fk.infer(positive(), fk.ImportanceSampling(100), seed=0)
    >>> bool(posterior.expect(lambda x: x[0] > 0) > 0.99)
    True
    """
    if getattr(model, "steering", None) is not None:
        raise ValueError("a model with steering weighs particles itself: give one without, and use fk.factor")
    condition = model.condition if condition is None else condition
    if any(len(leaf) != 1 for leaf in leaves(condition)):
        raise ValueError("the condition is a batch of several; give that of this particle: begin(model, condition=…)")
    return Step(model, None, condition)


def denoise(particle: Particle) -> Step:
    """Return the kernel of one denoising step of a particle; a finished one gives itself, with probability 1.

    Raises ValueError for a particle from a file, which has no model.
    """
    if particle.model is None:
        raise ValueError("a particle from a file has no model to go on with: begin again, from a seed")
    return Step(particle.model, particle)


@dataclass(frozen=True, eq=False)
class Particle:
    """One particle of a generator on its way, immutable.

    Attributes:
        model: the generator; None for one that was read from a file (a saved posterior's).
        latents: a population of one.
        past: a checksum of where it has been, for a generator that ``remembers``; else 0.
    """

    model: Generator | None
    latents: Latents
    past: int = 0

    @property
    def step(self) -> int:
        """Steps made so far."""
        return int(self.latents.step[0])

    @property
    def done(self) -> bool:
        """Whether it is data."""
        return bool(self.latents.done[0])

    @property
    def x(self) -> Any:
        """The noisy data, an array of the model's shape."""
        return _array(self.latents.x)

    @property
    def estimate(self) -> Any:
        """The estimate of the data, an array of the model's shape, not decoded; the data itself once done."""
        return _array(self.latents.x if self.done else self.latents.fields["estimate"])

    @cached_property
    def image(self) -> Any:
        """The data, decoded; of a particle on its way the estimate of it. Raises ValueError for one from a file."""
        if self.model is None:
            raise ValueError("a particle from a file has no model to decode it: see its estimate")
        return _array(self.model.values(self.latents))

    @cached_property
    def digest(self) -> int:
        """A checksum of the noisy data, and of the past."""
        return zlib.crc32(np.ascontiguousarray(self.x).tobytes(), self.past)

    def __repr__(self) -> str:
        return f"<particle of {'a file' if self.model is None else repr(self.model)} after {self.step} steps>"

    def to_json(self) -> dict[str, Any]:
        """Return what can be seen of the particle as plain data for JSON: where it is, and its estimate."""
        return {
            "step": self.step,
            "steps": self.latents.steps,
            "x": _packed(self.x),
            "estimate": _packed(self.estimate),
            "past": self.past,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Particle:
        """Return the particle that `to_json` described, without its model."""
        x, estimate = (torch.from_numpy(_unpacked(data[name])[None].copy()) for name in ("x", "estimate"))
        latents = Latents(x, np.array([data["step"]]), data["steps"], None, {"estimate": estimate})
        return cls(None, latents, data.get("past", 0))


@dataclass(frozen=True, eq=False)
class Step:
    """A request for noise (``particle`` None) or for one step of a particle; made by `begin` and `denoise`.

    All requests of one model share a call, of one batch for the network, whatever steps they have made.
    """

    model: Generator
    particle: Particle | None
    condition: Any = None
    expensive: ClassVar[bool] = True
    journalled: ClassVar[bool] = True

    @property
    def batch_key(self) -> Hashable:
        """All noise of a model shares a call, and so do all its steps."""
        return (Step, id(self.model), self.particle is None)

    @property
    def fingerprint(self) -> Hashable:
        """How far the particle is, and where."""
        return None if self.particle is None else (self.particle.step, self.particle.digest)

    def __repr__(self) -> str:
        return f"<noise for {self.model!r}>" if self.particle is None else f"<step of {self.particle!r}>"

    def sample_batch(self, requests: Sequence[Step], keys: Keys) -> Draws:
        """Draw the next particle for each request, from its own key alone."""
        moved = self._move(self.model, requests, keys, None)
        bare = replace(moved.state, condition=None)
        drawn = []
        for i, particle in enumerate(request.particle for request in requests):
            if particle is None:
                drawn.append(Particle(self.model, moved.state.select([i])))
            elif particle.done:
                drawn.append(particle)
            else:  # a condition stays as it is, so all particles of a line share it
                row = replace(bare.select([i]), condition=particle.latents.condition)
                drawn.append(Particle(self.model, row, self._past(particle)))
        return Draws(drawn, moved.log_prob)

    def log_prob_batch(self, requests: Sequence[Step], values: Sequence[Particle]) -> Floats:
        """Return the log-density of each particle under its request, (n,), without a call of the network.

        It is −inf for a particle under another condition; of a model that ``remembers``, for one with another past.
        """
        given = [value.x for value in values]
        moved = self._move(_unseeing(self.model), requests, np.zeros(len(requests), np.uint64), given)
        fits = [request._leads_to(value) for request, value in zip(requests, values)]
        return np.where(fits, moved.log_prob, -math.inf)

    def _leads_to(self, value: Particle) -> bool:
        """Whether a particle has the step, the past and the condition of what this step leads to."""
        before = self.particle
        if before is None:
            place, condition = (0, 0), self.condition
        elif before.done:  # it gives itself, and nothing else
            place, condition = (before.step, before.past), before.latents.condition
            if not np.array_equal(value.x, before.x):
                return False
        else:
            place, condition = (before.step + 1, self._past(before)), before.latents.condition
        return (value.step, value.past) == place and _alike(value.latents.condition, condition)

    def _past(self, particle: Particle | None) -> int:
        """Return the past of what a step of a particle leads to."""
        return particle.digest if particle is not None and self.model.remembers else 0

    def fits(self, value: Any) -> bool:
        """Whether a value is a particle of the same model."""
        return isinstance(value, Particle) and value.model is self.model

    @staticmethod
    def _move(model: Generator, requests: Sequence[Step], keys: Keys, given: Any) -> Advance[Latents]:
        if requests[0].particle is None:
            mine = copy.copy(model)
            mine.condition = join([request.condition for request in requests])
            moved = mine.start(keys, given)
        else:
            moved = model.advance(Latents.concat([r.particle.latents for r in requests if r.particle]), keys, given)
        if moved.log_increment.any():
            raise ValueError(f"{model!r} weighs particles itself, which a kernel cannot: use it as a model of its own")
        return moved


def _alike(one: Any, other: Any) -> bool:
    """Whether two conditions are the same."""
    if one is other:
        return True
    mine, theirs = list(leaves(one)), list(leaves(other))
    return len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))


def _array(batch: Any) -> Any:
    """Return the only row of a batch, a read-only array."""
    array = np.asarray(batch[0]).view()
    array.flags.writeable = False
    return array


def _packed(array: Any) -> dict[str, Any]:
    return {
        "dtype": str(array.dtype),
        "shape": array.shape,
        "bytes": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode(),
    }


def _unpacked(data: dict[str, Any]) -> Any:
    return np.frombuffer(base64.b64decode(data["bytes"]), data["dtype"]).reshape(data["shape"])


def _unseeing(model: Generator) -> Generator:
    """Return a model that takes steps from where the network has looked, but looks no further."""
    blind = copy.copy(model)
    blind.look = lambda latents: latents  # type: ignore[method-assign]
    return blind

"""A population of generations on their way: one tensor for all particles, at levels that may differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .denoiser import join, select


@dataclass(frozen=True, eq=False)
class Latents:
    """n particles, all that belongs to each of them in row i of everything.

    Attributes:
        x: (n, …) tensor, noisy data.
        step: (n,) how many steps each has made; ``steps`` is all of them.
        steps: T.
        condition: batch of n conditions, or None.
        fields: further batches by name: the estimate of the data, rewards, gradients, running sums.
    """

    x: Any
    step: NDArray[np.int64]
    steps: int
    condition: Any = None
    fields: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.step)

    @property
    def depth(self) -> NDArray[np.int64]:
        """Steps made by each particle, shape (n,)."""
        return self.step

    @property
    def done(self) -> NDArray[np.bool_]:
        """Whether each particle is data, shape (n,)."""
        return self.step >= self.steps

    def select(self, index: Any) -> Latents:
        """Return particles by index, with everything that is theirs."""
        index = np.require(index, None if len(index) else np.intp, ["C", "W"])  # the only arrays that torch takes
        return Latents(
            select(self.x, index),
            self.step[index],
            self.steps,
            select(self.condition, index),
            select(self.fields, index),
        )

    @staticmethod
    def concat(parts: Sequence[Latents]) -> Latents:
        """Join populations."""
        return Latents(
            join([part.x for part in parts]),
            np.concatenate([part.step for part in parts]),
            parts[0].steps,
            join([part.condition for part in parts]),
            join([part.fields for part in parts]),
        )

    def put(self, index: Any, rows: Latents) -> Latents:
        """Return the population with ``rows`` in the places ``index``."""
        order = np.arange(len(self))
        order[index] = len(self) + np.arange(len(rows))
        return Latents.concat([self, rows]).select(order)


def replace_fields(latents: Latents, **fields: Any) -> Latents:
    """Return particles with some of their fields replaced."""
    return Latents(latents.x, latents.step, latents.steps, latents.condition, {**latents.fields, **fields})

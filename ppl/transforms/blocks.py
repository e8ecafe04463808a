"""Several steps of a model as one: where a unit of meaning takes many steps, such as a frame or a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import keys as _keys
from ..keys import Keys
from ..model import Advance, FeynmanKac, Index


@dataclass(frozen=True)
class Blocked:
    """A batch of particles of another model, with the number of blocks that each has made."""

    inner: Any
    depth: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.depth)

    @property
    def done(self) -> NDArray[np.bool_]:
        """Whether each particle has finished, shape (n,)."""
        done: NDArray[np.bool_] = self.inner.done
        return done


class Blocks:
    """The same model in larger steps: each makes ``size`` steps of it, and the first its start and ``size`` − 1.

    The law of the finished particles, their weights and their cost are the same; an engine resamples, branches or
    judges less often. The choices of a block are the tuple of those of its steps.

    Args:
        model: any Feynman–Kac model.
        size: steps of it that make one; a particle that finishes within a block ends it there.

    Raises ValueError unless ``size`` is at least 1.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def walk():
    ...     x = 0.0
    ...     for _ in range(6):
    ...         x = await fk.sample("x", fk.dist.Normal(x, 1.0))
    ...         await fk.factor("G", -x * x)
    ...     return x
    >>> posterior = fk.infer(fk.Blocks(walk(), 3), fk.SMC(10), seed=0)
    >>> len(posterior.steps)
    2
    """

    def __init__(self, model: FeynmanKac[Any], size: int) -> None:
        if size < 1:
            raise ValueError(f"a block has at least one step, not {size}")
        self.model = model
        self.size = size
        self.guarantee = getattr(model, "guarantee", "unbiased")
        self.auxiliary = getattr(model, "auxiliary", False)

    def __repr__(self) -> str:
        return f"Blocks({self.model!r}, {self.size})"

    def start(self, keys: Keys, given: Sequence[Any] | None = None) -> Advance[Blocked]:
        """Start, and make the other steps of the first block."""
        first = self.model.start(_keys.fold(keys, 0), _part(given, 0))
        return self._go_on(first, keys, given, np.zeros(len(keys), np.int64))

    def advance(self, state: Blocked, keys: Keys, given: Sequence[Any] | None = None) -> Advance[Blocked]:
        """Make one block."""
        first = self.model.advance(state.inner, _keys.fold(keys, 0), _part(given, 0))
        return self._go_on(first, keys, given, state.depth + ~state.done)

    def select(self, state: Blocked, index: Index) -> Blocked:
        """Keep, duplicate or reorder particles."""
        return Blocked(self.model.select(state.inner, index), state.depth[index])

    def concat(self, states: Sequence[Blocked]) -> Blocked:
        """Join batches of particles."""
        return Blocked(
            self.model.concat([state.inner for state in states]), np.concatenate([state.depth for state in states])
        )

    def values(self, state: Blocked) -> list[Any]:
        """Return each particle's value."""
        return self.model.values(state.inner)

    def _go_on(
        self, last: Advance[Any], keys: Keys, given: Sequence[Any] | None, depth: NDArray[np.int64]
    ) -> Advance[Blocked]:
        total = last
        choices: list[tuple[Any, ...]] = [(chosen,) for chosen in last.choices]
        for j in range(1, self.size):
            if last.done.all():
                break
            last = self.model.advance(last.state, _keys.fold(keys, j), _part(given, j))
            choices = [(*so_far, chosen) for so_far, chosen in zip(choices, last.choices)]
            total = replace(
                last,
                log_prob=total.log_prob + last.log_prob,
                log_proposal=total.log_proposal + last.log_proposal,
                log_potential=total.log_potential + last.log_potential,
                scored=total.scored & last.scored,
            )
        return replace(total, state=Blocked(total.state, depth), choices=choices)


def _part(given: Sequence[Any] | None, j: int) -> list[Any] | None:
    """Return what was given for step j of a block."""
    if given is None:
        return None
    return [None if one is None or j >= len(one) else one[j] for one in given]

"""What is to be done in a run: models with their engines and keys, and the chains that come of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..ppl import keys as _keys
from ..ppl.compiled.deciding import prepare
from ..ppl.keys import Keys
from ..ppl.model import FeynmanKac
from .base.engine import Engine, Run


@dataclass(frozen=True)
class Problem:
    """A model and the engine that is run on it, with a seed and the key (1,) that its chains are numbered from."""

    model: FeynmanKac[Any]
    engine: Engine
    seed: int
    key: Keys
    compiled: str | None = field(default=None, kw_only=True)
    """What is to be said of a program with a scan: whether it is compiled, or why not."""
    chain: int | None = field(default=None, kw_only=True)
    """The one of the engine's chains that is run, by its number; None: all."""

    @property
    def chains(self) -> Sequence[int]:
        """The numbers of the chains that are run."""
        return range(self.engine.chains) if self.chain is None else (self.chain,)


@dataclass(frozen=True)
class Task:
    """One chain of one problem."""

    owner: int
    model: FeynmanKac[Any]
    run: Run


def pose(model: FeynmanKac[Any], engine: Engine, seed: int, number: int) -> Problem:
    """Return a model as a problem. Its keys are those of its number among all of a run, wherever the others are."""
    found = prepare(model, *work(engine))
    return Problem(found.model, engine, int(seed), _keys.fold(_keys.root(seed), number), compiled=found.note)


def work(engine: Any) -> tuple[int, str | None]:
    """Return how many particles an engine moves, all in all, and why it must have programs interpreted, if it must."""
    sweeps = getattr(engine, "sweeps", 1) if hasattr(engine, "particles_per_sweep") else 1
    count = getattr(engine, "particles_per_sweep", engine.particles) * sweeps * engine.chains
    moves = ("move", "move_above")
    kernels = [value for value in vars(engine).values() if any(callable(getattr(value, move, None)) for move in moves)]
    if any(getattr(kernel, "by_density", True) for kernel in kernels):
        return count, "moves by the density of a program are made on the interpreted one"
    return count, None

"""Particles of programs: what one is between two steps, and batches of them, which engines hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fibers import Run, Snapshot


class Particle:
    """One particle of a program: immutable, but for the live coroutine that its first child takes over."""

    __slots__ = (
        "cells", "dead", "depth", "done", "output", "overflow", "program", "relies", "result", "run", "snapshot",
        "stood",
    )  # fmt: skip

    def __init__(self, run: Run, depth: int) -> None:
        self.program = run.program
        self.depth = depth
        self.done = run.done
        self.dead = run.dead
        self.result = run.result
        self.output = run.output
        self.cells = run.cells
        self.overflow = run.overflow
        self.relies = run.relies
        self.stood: list[dict[str, Any]] | None = None  # see `Forks.stands`
        self.run: Run | None = None if run.done else run
        self.snapshot: Snapshot | None = None if run.done else run.root.snapshot()
        if run.done:
            run.drop()

    @staticmethod
    def ended(program: Any, depth: int, result: Any, output: Any) -> Particle:
        """Return a particle that has returned."""
        one = Particle.__new__(Particle)
        one.program, one.depth, one.done, one.dead, one.result, one.output = program, depth, True, False, result, output
        one.cells, one.overflow, one.relies, one.stood, one.run, one.snapshot = {}, None, False, None, None, None
        return one

    def __del__(self) -> None:
        # What a dropped particle holds (a text's cache, say) is freed now, not when garbage is next collected.
        try:
            run = self.run
        except AttributeError:
            return  # Ctrl-C came while it was made
        if run is not None:
            run.drop()


class Particles:
    """A batch of particles of one or more programs: the state that engines hold."""

    __slots__ = ("items",)

    def __init__(self, items: Sequence[Particle]) -> None:
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def depth(self) -> NDArray[np.int64]:
        """Steps made by each particle, shape (n,); after ``start`` it is 0."""
        return np.array([item.depth for item in self.items], np.int64)

    @property
    def done(self) -> NDArray[np.bool_]:
        """Whether each particle has returned or died, shape (n,)."""
        return np.array([item.done for item in self.items], bool)

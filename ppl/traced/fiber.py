"""Coroutines that are traced: the parts of `feynkac.ppl.running.fibers` that one run of a program's code needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..running.fibers import Fiber
from ..running.handling import Scope
from ..sites import MISSING, address, check_name, short
from .met import Listener, Loop, Met, Spot, dot


class Stop(Exception):
    """What a listener raises to end a trace where it is; the coroutines are closed, and it passes."""


class TracedRun:
    """What the fibers of one listener share: the parts of `Run` that effects use."""

    __slots__ = ("dropped", "last", "listener", "name", "relies", "unawaited")

    def __init__(self, listener: Listener, name: str) -> None:
        self.listener = listener
        self.name = name
        self.last: Spot | None = None
        self.unawaited = 0
        self.dropped: str | None = None
        self.relies = False

    def where(self) -> str:
        """Say how far the code has come."""
        after = "before its first site" if self.last is None else f"after site {self.last.slot!r}"
        return f"program {self.name!r}, {after}"


class TracedFiber(Fiber):
    """A coroutine that is traced, in the loops that it is in.

    ``step`` is the step of the program that it has come to, and ``twisted`` whether it has set the guide's level.
    """

    __slots__ = ("loops", "step", "twisted")
    traced: ClassVar[bool] = True
    step: int

    def __init__(
        self,
        run: TracedRun,
        coro: Any,
        handlers: list[Any],
        visits: dict[str, int],
        parent: TracedFiber | None = None,
        index: int = 0,
    ) -> None:
        super().__init__(run, coro, handlers, visits, parent, index)  # type: ignore[arg-type]
        self.loops: tuple[Loop, ...] = () if parent is None else parent.loops
        self.step = 0 if parent is None else parent.step
        self.twisted = False

    def record(self, name: str, value: Any) -> None:
        """Hand a deterministic quantity to the listener."""
        check_name(name, "a recorded quantity")
        full, visit, hidden = self.visited(name)
        self.listener.record(self.met(Spot("deterministic", full, visit, self.step, hidden=hidden), name, None, value))

    @property
    def listener(self) -> Listener:
        """What answers its sites."""
        return self.run.listener  # type: ignore[attr-defined, no-any-return]

    def met(self, spot: Spot, bare: str, effect: Any, value: Any = MISSING) -> Met:
        """Return a site, placed in the loops; ``bare`` is the name that the code gave it."""
        if self.loops:
            spot = spot._replace(
                lengths=tuple(loop.length for loop in self.loops),
                strides=tuple(loop.strides.get(spot.name, 0) for loop in self.loops),
                steps=tuple(loop.steps for loop in self.loops),
                names=self._names(bare, spot.name),
            )
        self.run.last = spot  # type: ignore[assignment]
        return Met(spot, tuple(loop.index for loop in self.loops), effect, value)

    def _names(self, bare: str, name: str) -> Any:
        """Return the full name by iteration, where a gather's number makes it differ, else None."""
        if not any(isinstance(handler, Branch) for handler in self.handlers):
            return None
        names = np.empty([loop.length for loop in self.loops], object)
        for at in np.ndindex(names.shape):
            names[at] = self.named(bare, at)[-1]
        return None if (names == name).all() else names

    def named(self, bare: str, at: Sequence[int]) -> list[str]:
        """Return the names that a site has from the innermost handler on, in an iteration of the loops."""
        names = [bare]
        for handler in reversed(self.handlers):
            names.append((handler.at(at) if isinstance(handler, Branch) else handler).rename(names[-1]))
        return names


@dataclass(frozen=True, eq=False)
class Branch(Scope):
    """The scope of a branch of a gather within loops: the gather's visit, and so the name, changes with them."""

    label: str
    number: int
    visit: int
    strides: tuple[int, ...]

    def at(self, index: Sequence[int]) -> Scope:
        """Return the scope in an iteration of the loops around the gather."""
        return Scope(f"{address(self.label, self.visit + dot(self.strides, index))}.{self.number}")


def first_lines(error: BaseException) -> str:
    """Return the first paragraph of an error's message, which says what JAX or torch could not do."""
    return short(_Plain(str(error).strip().partition("\n\n")[0].replace("\n", " ")), 400)


class _Plain(str):
    """A string that is shown without quotes."""

    __slots__ = ()
    __repr__ = str.__str__

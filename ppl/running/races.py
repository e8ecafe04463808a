"""Races: who has won, and how the other branches are closed; see `words.race`.

A race is decided where a step of the particle ends, or where all its branches have returned. Branches that return in
one step are placed in two rounds: first those that have returned before its end, for they have taken a step end less,
then those that return right at it; within a round by index. Nothing depends on how a batch was served.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..effects import Race
from .fibers import Fiber, Finished


class Wave(Protocol):
    """What races need of their wave."""

    ready: list[tuple[Fiber, Any]]

    def join(self, fiber: Fiber, results: Sequence[Finished]) -> None:
        """Hand on what branches wrote to cells."""

    def complete(self, fiber: Fiber, effect: Any, value: Any) -> None:
        """Go on with what a fiber waited for."""


class Races:
    """The races of one wave in which some branch has returned since they were last looked at.

    They are handed the wave and do not hold it: it would hold itself, with all that its particles have made.
    """

    def __init__(self) -> None:
        self._met: dict[Fiber, int] = {}  # those that wait for a race, and how deep they are

    def returned(self, wave: Wave, fiber: Fiber) -> None:
        """Take note that a branch of the race that a fiber waits for has returned."""
        if any(fiber.children):
            self._met[fiber] = _depth(fiber)
        else:
            self._settle(wave, fiber)

    def decide(self, wave: Wave, innermost: bool = False) -> bool:
        """End the races that enough branches have won; return whether there were any to look at.

        ``innermost``: look at those only that no other is inside of; what they end may decide the others.
        """
        if not self._met:
            return False
        deepest = max(self._met.values()) if innermost else 0
        now = [fiber for fiber, depth in self._met.items() if depth >= deepest]
        for fiber in now:
            del self._met[fiber]
        for fiber in now:
            if type(fiber.effect) is Race and any(fiber.children) and not fiber.run.dead:  # else it is over
                self._settle(wave, fiber)
        return True

    def _settle(self, wave: Wave, fiber: Fiber) -> None:
        """Place the branches that have returned, and end the race if there are enough."""
        effect, results = fiber.effect, fiber.results
        ended = [i for i, branch in enumerate(results) if branch is not None]
        place = sum(results[i].place is not None for i in ended)
        for i in ended:
            if results[i].place is None:
                results[i] = results[i]._replace(place=place)
                place += 1
        if place < effect.k:
            return
        for child in fiber.children:
            if child is not None:
                self._close(wave, child)
        first = sorted(ended, key=lambda i: results[i].place)[: effect.k]
        fiber.guide.level += sum(results[i].level for i in first)
        wave.join(fiber, [results[i] for i in first])
        wave.complete(fiber, effect, tuple([(i, results[i].value) for i in first]))

    def _close(self, wave: Wave, branch: Fiber) -> None:
        """Close a branch, which is at a step end, with all that is inside it."""
        run, gone = branch.run, set(_within(branch))
        run.waiting = [fiber for fiber in run.waiting if fiber not in gone]
        run.held = [(fiber, effect) for fiber, effect in run.held if fiber not in gone]
        wave.ready[:] = [(fiber, value) for fiber, value in wave.ready if fiber not in gone]
        branch.drop()
        run.unawaited = 0  # what it had made and not awaited yet is no mistake


def _depth(fiber: Fiber) -> int:
    return 0 if fiber.parent is None else 1 + _depth(fiber.parent)


def _within(fiber: Fiber) -> list[Fiber]:
    """Return a fiber and those that it waits for."""
    return [fiber, *(one for child in fiber.children if child is not None for one in _within(child))]

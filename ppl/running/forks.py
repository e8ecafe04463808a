"""Forks: a plain program starts again, is fed the recorded log, and must stand where the particle stood.

Each site is compared with the log as it comes, then what was recorded by `deterministic`, and where there is another
run at the same place, the variables of the two: a program that is not a function of its arguments and of what its
awaits returned is found by what it holds, too, and not by its sites alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from ..effects import Effect, Gather, Scan, fingerprint
from ..errors import NonDeterministicProgram
from ..sites import MISSING, address, short, shut
from ..values.guard import LEAVES
from ..values.pictures import awaiting, same, variables
from .fibers import Fiber, Finished, OpenScan, Run, Snapshot, fail, unroll

if TYPE_CHECKING:
    from .wave import Wave

_FEW = 8
"""How many runs of a wave are looked at for what only their variables show: chance in a program shows in few."""


class Forks:
    """The forks of one wave."""

    def __init__(self, wave: Wave) -> None:
        self._wave = wave
        self._first: dict[int, Run] = {}
        self.few = _FEW
        """How many runs are still to be compared."""

    def stands(self, particle: Any, run: Run) -> None:
        """Compare a run that stands where a particle does with another that does, or did when it was taken up first.

        Raises `NonDeterministicProgram` where they differ in a variable.
        """
        first = self._first.setdefault(id(particle), run)
        self.few -= 1
        if first is not run:
            _compare(first.root, run.root)
        elif particle.stood is None:
            particle.stood = _plain(run.root)
        else:
            for was, now in zip(particle.stood, _plain(run.root)):
                _compare_variables(run.root, was, now)

    def restore(self, run: Run, snapshot: Snapshot) -> None:
        """Bring a fresh run to the step end that a snapshot was taken at, by replaying its log.

        Raises `NonDeterministicProgram` where the program does not repeat what it did.
        """
        run.replaying = True
        self._replay(run.root, snapshot)
        run.replaying = False

    def _replay(self, fiber: Fiber, snapshot: Snapshot) -> None:
        value: Any = None
        for kind, name, request, entry in unroll(snapshot.log):
            effect = self._wave.next(fiber, value)
            if (
                effect is None
                or effect.kind != kind
                or effect.name != name
                or (effect.request is not request and fingerprint(effect.request) != fingerprint(request))
            ):
                _strays(fiber, _told(kind, name, request), effect)
            value = entry
            if type(effect) is Scan:
                value, visits = entry
                fiber.visits.clear()
                fiber.visits.update(visits)
            elif isinstance(effect, Gather):
                effect.close()
        fiber.log, fiber.level, inner, fiber.writes, recorded = snapshot
        if fiber.writes:
            fiber.run.written = True
        effect = self._wave.next(fiber, value)
        if fiber.recorded is not recorded:
            _check_records(fiber, recorded)
        if inner is None:
            if effect is None:
                _strays(fiber, "another effect", None)
            fiber.run.held.append((fiber, effect))
            return
        if isinstance(inner, OpenScan):
            if type(effect) is not Scan:
                _strays(fiber, "an open scan", effect)
            fiber.visits.clear()
            fiber.visits.update(inner.checkpoint.visits)
            self._replay(self._wave.open_scan(fiber, effect, inner.checkpoint), inner.fiber)
            return
        if not isinstance(effect, Gather) or len(effect.branches) != len(inner):
            _strays(fiber, f"{len(inner)} branches side by side", effect)
        fiber.children = self._wave.branches(fiber, effect)
        fiber.results = [None] * len(inner)
        for i, (child, inside) in enumerate(zip(list(fiber.children), inner)):
            assert child is not None
            if isinstance(inside, Finished):
                shut(child.coro)
                fiber.children[i], fiber.results[i] = None, inside
                fiber.run.written = fiber.run.written or bool(inside.writes)
            else:
                self._replay(child, inside)


def _check_records(fiber: Fiber, recorded: Any) -> None:
    """Compare what a replay handed to `deterministic` with what was recorded."""
    now, was = fiber.recorded, recorded
    while now is not was:
        if now is None or was is None or now[1:3] != was[1:3] or not same(now[3], was[3]):
            had, has = (one and f"{short(one[3], 60)} for {address(*one[1:3])!r}" for one in (was, now))
            _differs(fiber, f"where it had recorded {had} by fk.deterministic, it has {has}")
        now, was = now[0], was[0]
    fiber.recorded = recorded


def _compare(one: Fiber, two: Fiber) -> None:
    for left, right in zip(awaiting(one.coro), awaiting(two.coro)):
        _compare_variables(two, variables(left), variables(right))
    for a, b in zip(one.children, two.children):
        if a is not None and b is not None:
            _compare(a, b)


def _compare_variables(fiber: Fiber, had: dict[str, Any], has: dict[str, Any]) -> None:
    for name in {**had, **has}:
        a, b = had.get(name, MISSING), has.get(name, MISSING)
        if a is not b and not same(a, b):
            _differs(fiber, f"where its variable `{name}` was {short(a, 60)}, it is {short(b, 60)}")


def _plain(fiber: Fiber) -> list[dict[str, Any]]:
    """Return the variables of a fiber, and of those within it, that hold numbers and strings."""
    found = [
        {name: value for name, value in variables(coro).items() if type(value) in LEAVES}
        for coro in awaiting(fiber.coro)
    ]
    for child in fiber.children:
        if child is not None:
            found += _plain(child)
    return found


def _strays(fiber: Fiber, was: str, effect: Effect | None) -> NoReturn:
    now = "it returned" if effect is None else f"it has {_told(effect.kind, effect.name, effect.request)}"
    _differs(fiber, f"where it had {was}, {now}")


def _differs(fiber: Fiber, how: str) -> NoReturn:
    fail(
        fiber,
        NonDeterministicProgram(
            f"replaying particle {fiber.run.row} for a fork: {how}. A program must be a "
            "function of its arguments and of what its awaits return: draw random numbers with fk.sample, and "
            "put clocks, files and other outside things into fk.call, whose values are recorded (and what it changes "
            "in place is not)"
        ),
    )


def _told(kind: str, name: str, request: Any) -> str:
    return f"{kind} {name!r} ({fingerprint(request)!r})"

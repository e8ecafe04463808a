"""Live particles: a run and its fibers, and the snapshots from which a fork is rebuilt.

A *run* is one live particle; its coroutines are *fibers* (one, or a tree of them under ``gather`` and ``scan``).
A fiber keeps a persistent log of its completed effects. A completed ``gather`` or ``scan`` is one entry of the
log and an open ``scan`` keeps its last carry, so what is inside them is not replayed.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn, Protocol

from ..effects import Effect, Gather
from ..errors import ContextOverflow, WriteConflict
from ..sites import Running, Site, Tentative, address, check_name, short, shut
from ..values.guard import guard
from .cells import NO_WRITES, Writes, after, beside

if TYPE_CHECKING:
    from ..values.reach import Place

Log = tuple[Any, ...] | None
"""A persistent list of completed effects: (the log before, kind, name, request, value)."""
Records = tuple[Any, ...] | None
"""A persistent list of what code between effects recorded: (the list before, name, visit, value)."""


OVERFLOW = "context overflow"
"""The site at which a particle ends whose text does not fit into a context."""

_new = tuple.__new__  # makes a named tuple at half the price


def unroll(log: Log) -> list[tuple[str, str, Any, Any]]:
    """Return the entries of a log, oldest first: kind, name, request, value."""
    entries = []
    while log is not None:
        entries.append(log[1:])
        log = log[0]
    return entries[::-1]


class Snapshot(NamedTuple):
    """All that rebuilds a fiber at a step end."""

    log: Log
    level: float
    inner: OpenScan | tuple[Snapshot | Finished, ...] | None
    writes: Writes
    recorded: Records


class OpenScan(NamedTuple):
    """A scan in progress: what its iteration started from, and the iteration's fiber."""

    checkpoint: Checkpoint
    fiber: Snapshot


class Checkpoint(NamedTuple):
    """The start of an iteration of a scan."""

    iteration: int
    carry: Any
    outputs: tuple[Any, ...] | None
    visits: dict[str, int]


class Failed(NamedTuple):
    """What a call raised; it is raised again where the program awaits the call."""

    error: Exception


class Finished(NamedTuple):
    """A branch of a gather that has returned: its value, and what it wrote to cells since the last step end.

    Of a race's, until that is decided, its twist level, too; and its place among those that returned, once it is known.
    """

    value: Any
    writes: Writes
    level: float = 0.0
    place: int | None = None


class Watching(Protocol):
    """What looks whether a branch or an iteration changes what is not its own; see `feynkac.ppl.running.watch`."""

    own: list[Place]
    shared: list[Place]

    def begin(self) -> list[tuple[Any, ...]]:
        """Look at what particles share, before a piece of code runs."""

    def check(self, fiber: Fiber, begun: Sequence[tuple[Any, ...]]) -> None:
        """Raise `SharedMutation` if it has changed something around it."""


class Fiber:
    """One coroutine of a run, and what it has done so far."""

    __slots__ = (
        "checkpoint", "children", "coro", "effect", "guide", "handlers", "index", "inside", "kept", "level", "log",
        "parent", "recorded", "results", "run", "value", "visits", "watch", "writes",
    )  # fmt: skip
    traced: ClassVar[bool] = False
    """Whether the values that its code sees may be symbols of JAX or torch: see `feynkac.ppl.traced`."""

    def __init__(
        self,
        run: Run,
        coro: Coroutine[Any, Any, Any],
        handlers: list[Any],
        visits: dict[str, int],
        parent: Fiber | None = None,
        index: int = 0,
    ) -> None:
        self.run = run
        self.coro = coro
        self.handlers = handlers
        self.visits = visits
        self.parent = parent
        self.index = index
        self.log: Log = None
        self.recorded: Records = None
        self.kept: tuple[Place, ...] = ()  # what awaits returned that could be changed in place
        self.level = 0.0
        self.guide = self  # the fiber that holds the level: an iteration of a scan sets its scan's
        self.effect: Any = None
        self.value: Any = None
        self.children: list[Fiber | None] = []
        self.results: list[Any] = []
        self.writes = NO_WRITES  # to cells, since the last step end
        self.checkpoint: Checkpoint | None = None
        self.watch: Watching | None = None  # on what is not this branch's or iteration's own
        self.inside: Watching | None = None  # the same for the iterations of the scan that the fiber waits for

    def visited(self, name: str) -> tuple[str, int, bool]:
        """Return the full name and the visit of what is no effect, and whether a handler hides it; count the visit."""
        full, hidden = name, False
        for handler in reversed(self.handlers):
            hidden = hidden or handler.hides(full)
            full = handler.rename(full)
        visit = self.visits.get(full, 0)
        self.visits[full] = visit + 1
        return full, visit, hidden

    def record(self, name: str, value: Any) -> None:
        """Record a deterministic quantity. A replay repeats the code, but not the record."""
        check_name(name, "a recorded quantity")
        full, visit, hidden = self.visited(name)
        run = self.run
        value = guard(value)  # as it is now: the program may go on changing its own list
        if name == "output":
            run.output = value
        self.recorded = (self.recorded, full, visit, value)
        if not run.replaying:
            run.sites.append(Site(full, visit, "deterministic", value, hidden=hidden))

    def levels(self) -> float:
        """Return the sum of the twist levels of this fiber and of the fibers it waits for."""
        level = self.level
        for i, child in enumerate(self.children):
            level += self.results[i].level if child is None else child.levels()
        return level

    def take_writes(self) -> Writes:
        """Take what this fiber, and those that it waits for, wrote to cells since the last step end, as one."""
        own, self.writes = self.writes, NO_WRITES
        if not self.children:
            return own
        parts = []
        for i, child in enumerate(self.children):
            if child is None:
                parts.append(self.results[i].writes)
                self.results[i] = self.results[i]._replace(writes=NO_WRITES)
            else:
                parts.append(child.take_writes())
        return after(own, self.joined(parts))

    def joined(self, parts: list[Writes]) -> Writes:
        """Return the writes of the branches that the fiber waits for as one. Raises `WriteConflict`."""
        writes, conflict = beside(parts)
        if conflict is not None:
            fail(
                self,
                WriteConflict(
                    f"particle {self.run.row}: branches of {self.effect.kind} {self.effect.name!r} wrote to cell "
                    f"{conflict!r} in the same step, and one of them set it, so that another's write would be lost: "
                    "let all of them `add` (fk.cell(…, merge=) says how that is done), or one of them set it"
                ),
            )
        return writes

    def drop(self) -> None:
        """Close the coroutine, and cut the links that would keep it alive."""
        for child in self.children:
            if child is not None:
                child.drop()
        if isinstance(self.effect, Gather):
            self.effect.close()
        self.children, self.parent, self.effect = [], None, None
        del self.guide
        shut(self.coro)
        del self.run

    def snapshot(self) -> Snapshot:
        """Return what rebuilds this fiber at the step end where it is."""
        if not self.children:
            return _new(Snapshot, (self.log, self.level, None, self.writes, self.recorded))
        if isinstance(self.effect, Gather):
            inside = tuple(
                self.results[i] if child is None else child.snapshot() for i, child in enumerate(self.children)
            )
            return Snapshot(self.log, self.level, inside, self.writes, self.recorded)
        (child,) = self.children
        assert child is not None
        inner = _new(OpenScan, (self.checkpoint, child.snapshot()))
        return _new(Snapshot, (self.log, self.level, inner, self.writes, self.recorded))


class Run:
    """One live particle: its fibers, and what the current step has added to its weight."""

    __slots__ = (
        "batch", "cells", "dead", "done", "dropped", "given", "held", "keeps", "last", "log_potential",
        "log_prob", "log_proposal", "output", "overflow", "program", "relies", "replaying", "result", "root", "row",
        "scored", "sites", "tentative", "unawaited", "waiting", "written",
    )  # fmt: skip

    def __init__(self, program: Any) -> None:
        self.program = program
        self.done = False
        self.dead = False
        self.overflow: str | None = None
        self.dropped: str | None = None
        self.relies = False  # on an estimate that is not unbiased, see `nested`
        self.replaying = False
        self.unawaited = 0
        self.result: Any = None
        self.output: Any = None
        self.last: Effect | None = None
        self.cells: dict[str, Any] = {}  # what is committed; replaced, not changed
        self.written = False  # whether some fiber wrote to a cell since
        self.waiting: list[Fiber] = []
        self.held: list[tuple[Fiber, Any]] = []
        self.root = Fiber(self, program.coroutine(), list(program.handlers), {})
        self.root.kept = program.kept() if program.tensors else ()
        self.keeps = bool(program.tensors)  # whether some fiber has a value that could be changed in place

    def begin(self, row: int, batch: int, given: Any = None) -> None:
        """Start a step as the given row of a batch of runs, with choices that an engine gives back: see `_forced`."""
        self.row = row
        self.batch = batch
        self.tentative = False
        self.given = None if given is None else self._forced(given)
        self.log_prob = 0.0
        self.log_proposal = 0.0
        self.log_potential = 0.0
        self.scored = True
        self.sites: list[Site] = []

    def _forced(self, choices: Any) -> dict[str, Any]:
        """Turn what an engine gives back (sites, or values by address) into values by address."""
        if isinstance(choices, Mapping):
            return dict(choices)
        self.tentative = type(choices) is Tentative
        kinds = ("sample",) if self.tentative else ("sample", "call")
        return {site.address: site.value for site in choices if site.kind in kinds}

    def commit(self) -> None:
        """Commit what the fibers wrote to cells in this step, in the order of the branches."""
        self.written = False
        changed = {
            key: write.over(self.cells.get(key, write.cell.init)) for key, write in self.root.take_writes().items()
        }
        self.cells = {**self.cells, **changed}

    def kill(self) -> None:
        """End the particle at once: its weight is zero."""
        self.dead = self.done = True
        self.log_potential = -math.inf

    def refuse(self) -> None:
        """End the particle, for the choices that it was given on trial do not fit it: their density is zero."""
        self.log_prob = -math.inf
        self.kill()

    def overrun(self, error: ContextOverflow) -> None:
        """End the particle, for its text does not fit into a context."""
        self.overflow = str(error)
        self.sites.append(Site(OVERFLOW, 0, "factor", -math.inf))
        self.kill()

    def drop(self) -> None:
        """Let go of the coroutines and of all that they hold, at once: fibers and runs refer to each other."""
        self.root.drop()
        self.held, self.waiting = [], []

    def story(self) -> str:
        """Say which particle this is, where it stands, and what it did: the note on every error."""
        where = f"after site {address(self.last.name, self.last.visit)!r}" if self.last else "before its first site"
        entries = unroll(self.root.log)
        shown = ", ".join(f"{name}={short(value, 60)}" for _, name, _, value in entries[-8:])
        more = f"{len(entries) - 8} earlier sites, " if len(entries) > 8 else ""
        return (
            f"feynkac: particle {self.row} of {self.batch} of program {self.program.name!r}, {where}; "
            f"its trace so far: {more}{shown or 'empty'}"
        )


def fail(fiber: Fiber, error: Exception) -> NoReturn:
    """Raise an error at the line where the program waits, so that the traceback shows it."""
    annotate(fiber.run, error)
    if inspect.getcoroutinestate(fiber.coro) == inspect.CORO_SUSPENDED:
        outer, Running.fiber = Running.fiber, fiber
        try:
            with contextlib.suppress(BaseException):  # whatever the program makes of it, it is wrong all the same
                fiber.coro.throw(error)
        finally:
            Running.fiber = outer
    raise error from error.__cause__


def annotate(run: Run, error: BaseException) -> None:
    """Add the particle, the site and the trace so far to an error, once."""
    if not any(note.startswith("feynkac: particle") for note in getattr(error, "__notes__", ())):
        error.add_note(run.story())
    if isinstance(error, RuntimeError) and "no running event loop" in str(error):
        error.add_note("feynkac: asynchronous functions run inside fk.call: await fk.call(name, fn, *args)")

"""`fk.cell`: state that the branches of a particle share, committed where its steps end.

What a branch writes is kept with the branch: it sees it at once, and others when the particle's step ends (or the
branches join). So a particle never depends on the order in which a batch happens to be served. The committed values
and the writes that wait are parts of a snapshot, and a replay repeats no writes.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from ..effects import Effect
from ..errors import OutsideProgram
from ..sites import MISSING, Running, address, check_name
from ..values.guard import guard


class Write(NamedTuple):
    """What a branch did to a cell since the last step end: it set it (or not: MISSING), and then added to it."""

    cell: Cell
    base: Any
    deltas: tuple[Any, ...] = ()

    def over(self, value: Any) -> Any:
        """Return what the cell holds after the write, where it held ``value`` before."""
        start = value if self.base is MISSING else self.base
        return guard(functools.reduce(self.cell.merge, self.deltas, start))


Writes = Mapping[str, Write]
"""Writes by the cells' keys; never changed, but replaced."""
NO_WRITES: Writes = {}


class Touch(Effect):
    """What awaiting a cell's `get`, `set` or `add` does; ``value`` is None of a `get`."""

    __slots__ = ("cell", "does", "value")
    kind: ClassVar[str] = "touch"

    def __init__(self, cell: Cell, does: str, value: Any = None) -> None:
        super().__init__(f"cell {cell.name}")  # so that it is not counted with the visits of a site of that name
        self.cell = cell
        self.does = does
        self.value = guard(value)

    @property
    def request(self) -> Any:
        """What is done to which cell."""
        return (self.does, self.cell.key, self.value)

    def serve(self, fiber: Any) -> Any:
        """Read the cell as the fiber sees it, or write to it on the fiber's behalf; return what is awaited."""
        cell = self.cell
        if self.does == "get":
            return seen(fiber, cell)
        write = Write(cell, self.value)
        if self.does == "add":
            write = fiber.writes.get(cell.key, Write(cell, MISSING))
            write = write._replace(deltas=(*write.deltas, self.value))
            write.over(seen(fiber, cell))  # what cannot be merged fails here, at the line that adds it
        fiber.writes = {**fiber.writes, cell.key: write}
        fiber.run.written = True
        return None


class Cell:
    """State shared by the branches of a particle; made by `cell`."""

    __slots__ = ("init", "key", "merge", "name")

    def __init__(self, name: str, init: Any, merge: Callable[[Any, Any], Any], key: str) -> None:
        self.name = name
        self.init = init
        self.merge = merge
        self.key = key

    def __repr__(self) -> str:
        return f"<cell {self.name}>"

    def get(self) -> Awaitable[Any]:
        """Return the value: what was committed, and what this branch has written since."""
        return Touch(self, "get")

    def set(self, value: Any) -> Awaitable[None]:
        """Replace the value. Raises `WriteConflict` where another branch writes to the cell in the same step."""
        return Touch(self, "set", value)

    def add(self, delta: Any) -> Awaitable[None]:
        """Fold ``delta`` into the value by the cell's ``merge``; several branches may in one step."""
        return Touch(self, "add", delta)


def cell(name: str, init: Any, merge: Callable[[Any, Any], Any] | None = None) -> Cell:
    """Make state that the branches of a `gather`, or the iterations of a `scan`, share.

    ``await c.get()``, ``await c.set(value)`` and ``await c.add(delta)`` cost nothing and end no step. A branch sees
    its own writes at once; the others see them after the particle's next step end, or when the branches join. Writes
    of one step are committed in the order of the branches.

    Args:
        name: the cell's name; a repeated name is another cell.
        init: the value to start from. Values are immutable: containers become read-only.
        merge: a pure function from the value and a delta to the new value; None adds with ``+``.

    Raises:
        OutsideProgram: where no program is running.
        WriteConflict: at the step end or the join, where a branch set what another branch has set, or added to, in the
            same step.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def model():
    ...     board = fk.cell("board", 0)
    ...     async def work():
    ...         await board.add(await fk.sample("x", fk.dist.Bernoulli(0.5)))
    ...     await fk.gather(work(), work())
    ...     await fk.factor("G", 1.0 * await board.get())
    ...     return await board.get()
    >>> [round(float(fk.enumerate_program(model()).probability(k)), 3) for k in (0, 1, 2)]
    [0.072, 0.393, 0.534]
    """
    fiber = Running.fiber
    if fiber is None:
        raise OutsideProgram(f"fk.cell({name!r}, …) was used where no program is running: a cell belongs to a particle")
    check_name(name, "a cell")
    full, visit, _ = fiber.visited(f"cell {name}")
    return Cell(name, guard(init), operator.add if merge is None else merge, address(full, visit))


def seen(fiber: Any, cell: Cell) -> Any:
    """Return a cell's value as a fiber sees it: committed, then written by those that wait for it, then by itself."""
    waits = [fiber]
    while waits[-1].parent is not None:
        waits.append(waits[-1].parent)
    value = fiber.run.cells.get(cell.key, cell.init)
    for one in reversed(waits):
        if cell.key in one.writes:
            value = one.writes[cell.key].over(value)
    return value


def after(first: Writes, then: Writes) -> Writes:
    """Return the writes of one after another."""
    if not first or not then:
        return first or then
    merged = dict(first)
    for key, write in then.items():
        before = merged.get(key)
        if before is not None and write.base is MISSING:
            write = before._replace(deltas=before.deltas + write.deltas)
        merged[key] = write
    return merged


def beside(parts: Iterable[Writes]) -> tuple[Writes, str | None]:
    """Return the writes of branches side by side, and the name of a cell over which they are in conflict, if any."""
    merged: dict[str, Write] = {}
    for writes in parts:
        for key, write in writes.items():
            before = merged.get(key)
            if before is not None:
                if before.base is not MISSING or write.base is not MISSING:
                    return merged, write.cell.name
                write = before._replace(deltas=before.deltas + write.deltas)
            merged[key] = write
    return merged, None

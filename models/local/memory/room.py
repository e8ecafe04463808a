"""What stays when memory is short: whole histories go, the longest unused first, and none that is needed still."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Held:
    """A row of the cache that the pass at hand does not touch.

    Attributes:
        columns: columns that it takes.
        used: when it was used last.
        needed: whether a history of the wave that has not ended its step stands on it.
    """

    columns: int
    used: int
    needed: bool


def squeeze(room: int, wanted: int, columns: int, held: Sequence[Held]) -> tuple[list[int], int] | None:
    """Return which rows stay beside ``wanted`` rows of ``columns`` in memory for ``room`` positions, and all columns.

    What is needed stays, and of the rest as many as there is room for, the last used first. None if it is too little.

    >>> squeeze(100, 2, 20, [Held(20, 3, False), Held(20, 1, False), Held(20, 2, False), Held(20, 0, True)])
    ([0, 2, 3], 20)
    """
    kept = [i for i, row in enumerate(held) if row.needed]
    most = max((columns, *(held[i].columns for i in kept)))
    if (wanted + len(kept)) * most > room:
        return None
    for i in sorted((i for i, row in enumerate(held) if not row.needed), key=lambda i: -held[i].used):
        if (wanted + len(kept) + 1) * max(most, held[i].columns) <= room:
            kept.append(i)
            most = max(most, held[i].columns)
    return sorted(kept), room // (wanted + len(kept))


def fitting(room: int, columns: int, held: Sequence[Held]) -> int:
    """Return how many rows of ``columns`` there is room for beside the rows that are needed."""
    needed = [row.columns for row in held if row.needed]
    return max(0, room // max((columns, *needed)) - len(needed))

"""Rows are put in their places: what they begin with is copied there, and those in the way move."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from weakref import ref

from .cache import Row, Slab, copy_rows
from .jobs import Job


def fill(slab: Slab, jobs: Sequence[Job], rows: Sequence[Row]) -> None:
    """Copy what rows of a new slab begin with from where the jobs stand."""
    batches: dict[tuple[Slab, int, int, int], list[tuple[int, int]]] = defaultdict(list)
    for job, row in zip(jobs, rows):
        source = job.place
        if isinstance(source, Row) and row.base < job.base:
            key = source.slab, source.origin + row.base, row.start, job.base - row.base
            batches[key].append((source.index, row.index))
    for (old, read, write, count), pairs in batches.items():
        tensors = [both for index, pair in old.layers.items() for both in zip(pair, slab.layers[index])]
        views = [(there[:, :, read : read + count], here[:, :, write : write + count]) for there, here in tensors]
        copy_rows(views, [i for i, _ in pairs], [j for _, j in pairs])


def aligned(job: Job, slab: Slab, end: int) -> bool:
    """Return whether a job stands in a slab so that it is to end at a column."""
    row = job.place
    return isinstance(row, Row) and row.slab is slab and row.origin + job.node.length == end


def arrange(slab: Slab, claimed: dict[int, Row], forks: dict[int, Job], count: int, end: int) -> dict[int, Row]:
    """Bring the claimed rows together in ``count`` neighbouring places, and make rows for forks in the rest.

    Rows in the way change places with claimed rows or go to free places. Returns the forks' rows, all of which are to
    end at one column: they copy what they begin with, from where it stands.
    """
    low, high = min(claimed, default=0), max(claimed, default=0)
    first = min(low, slab.rows - count) if high - low < count else 0
    window = range(first, first + count)
    outside = [row for index, row in claimed.items() if index not in window]
    free = [i for i in range(slab.rows) if i not in window and slab.at(i) is None]
    waiting = list(forks)
    moved: list[tuple[Row, int]] = []
    copied: list[tuple[Row, int]] = []
    made: dict[int, int] = {}
    for place in window:
        if place in claimed:
            continue
        occupant = slab.at(place)
        if outside:
            row = outside.pop()
            moved.append((row, place))
            if occupant is None:
                free.append(row.index)
            else:
                moved.append((occupant, row.index))
            continue
        if occupant is not None:
            moved.append((occupant, free.pop()))
        i = waiting.pop()
        made[i] = place
        source = forks[i].place
        if isinstance(source, Row) and aligned(forks[i], slab, end):
            copied.append((source, place))
    if moved or copied:
        sources = [row for row, _ in (*moved, *copied)]
        places = [place for _, place in (*moved, *copied)]
        high = max([end, *(row.origin + row.length for row, _ in moved)])
        views = [tensor[:, :, :high] for pair in slab.layers.values() for tensor in pair]
        copy_rows(zip(views, views), [row.index for row in sources], places)
    for row, _ in moved:
        slab.slots[row.index] = None
    for row, place in moved:
        row.index = place
        slab.slots[place] = ref(row)
    done = {place for _, place in copied}
    return {i: _begin(slab, forks[i], place, end, place in done) for i, place in made.items()}


def _begin(slab: Slab, job: Job, place: int, end: int, copied: bool) -> Row:
    """Make a row for a job, with what it begins with beside a trunk, unless that was copied."""
    source, origin = job.place, end - job.node.length
    base, trunk = (source.base, source.trunk) if isinstance(source, Row) else (job.base, source)
    for index, pair in () if copied else slab.layers.items():
        for k, tensor in enumerate(pair):
            tensor[place, :, :end] = 0  # masked columns must be finite
            if isinstance(source, Row):
                part = source.slab.layers[index][k][source.index, :, source.start : source.origin + job.base]
                tensor[place, :, origin + base : origin + job.base] = part
    return Row(slab, place, origin, job.base, base, trunk)

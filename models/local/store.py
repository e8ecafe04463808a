"""The KV store: where histories stand in slabs, when they are copied, what goes when memory is short."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet, ref

from .cache import Row, Slab, copy_rows
from .histories import History

_HEADROOM = 64


@dataclass(frozen=True)
class Job:
    """A history to be forwarded: its positions from ``base`` on, given the row that holds those before.

    ``holder`` is the node on whose row the prefix was found; the row may hold more than ``base`` positions.
    Both are None where ``base`` is 0.
    """

    node: History
    base: int
    holder: History | None
    row: Row | None
    extra: int = 0
    """Positions forwarded for the sake of this history: those it shares with others, those of an encoder."""
    again: int = 0
    """Those of all its positions that had been forwarded before."""

    @property
    def pending(self) -> int:
        """Positions to be forwarded."""
        return self.node.length - self.base

    @property
    def cost(self) -> int:
        """All positions forwarded for it."""
        return self.pending + self.extra


@dataclass(frozen=True)
class Placement:
    """Where the jobs of one pass stand: job i in row ``rows[i]`` of a slab, all tips at column ``end``."""

    slab: Slab
    rows: list[Row]
    end: int


def locate(node: History, first: int, fits: Callable[[Row], bool] = lambda row: True) -> Job:
    """Find the longest kept prefix of a history, of at most ``first`` positions, in a row that ``fits``."""
    holder: History | None = node
    while holder is not None and first > 0:
        if holder.row is not None:
            if not holder.row.slab.alive:
                holder.row = None  # it was dropped
            elif fits(holder.row):
                return Job(node, min(holder.length, first), holder, holder.row)
        holder = holder.above
    return Job(node, 0, None, None)


def rehome(nodes: Sequence[History]) -> None:
    """Let the ancestors of nodes use their descendants' rows, so that rows kept only for them go free."""
    seen: set[int] = set()
    for node in nodes:
        row, above = node.row, node.above
        while row is not None and above is not None and id(above) not in seen:
            seen.add(id(above))
            above.row = row
            above = above.above


class Store:
    """All slabs of one model, in at most ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.evictions = 0
        self.peak = 0
        self.position_bytes = 0
        """Bytes that a position takes in one row."""
        self._slabs: WeakSet[Slab] = WeakSet()
        self._shapes: dict[int, tuple[Any, Any]] = {}
        self._clock = 0

    @property
    def slabs(self) -> list[Slab]:
        """The slabs in memory."""
        return [slab for slab in self._slabs if slab.alive]

    @property
    def bytes(self) -> int:
        """Bytes held in slabs."""
        return sum(slab.bytes for slab in self.slabs)

    def fit(self) -> None:
        """Forget the least recently used slabs until the limit is kept."""
        self._free(0, ())

    def clear(self) -> None:
        """Forget all slabs."""
        for slab in self.slabs:
            slab.drop()

    def reset(self) -> None:
        """Forget all slabs, and what their layers are like."""
        self.clear()
        self._shapes = {}
        self.position_bytes = 0

    def place(self, jobs: Sequence[Job], width: int) -> Placement | None:
        """Give every job a row with its prefix in it: in place where possible, else in a new slab.

        ``width`` is how many rows will be wanted soon (forks of these), to leave room for them where there is
        any. Returns None where the jobs do not fit into memory together.
        """
        self._clock += 1
        placement = self._in_place(jobs) or self._in_new(jobs, width) or self._in_longer(jobs)
        if placement is not None:
            placement.slab.used = self._clock
        return placement

    def settle(self, jobs: Sequence[Job], placement: Placement) -> None:
        """Record that the jobs were forwarded: their rows hold their whole histories now."""
        if not self._shapes:
            layers = placement.slab.layers.items()
            self._shapes = {i: (keys[:0, :, :0], values[:0, :, :0]) for i, (keys, values) in layers}
            self.position_bytes = sum(
                like.shape[1] * like.shape[3] * like.element_size() for pair in self._shapes.values() for like in pair
            )
        for job, row in zip(jobs, placement.rows):
            row.length = job.node.length
            node: History | None = job.node
            while node is not None and (node is job.node or node.length > job.base):
                node.row = row
                node = node.parent
        if any(job.row is None or job.row.slab is not placement.slab for job in jobs):
            rehome([job.node for job in jobs])

    def _in_place(self, jobs: Sequence[Job]) -> Placement | None:
        lead = jobs[0]
        if lead.row is None:
            return None
        slab, tip = lead.row.slab, lead.row.start + lead.base
        for job in jobs:
            row = job.row
            if row is None or row.slab is not slab or row.start + job.base != tip or job.pending != lead.pending:
                return None
        if len(jobs) > slab.rows or tip + lead.pending > slab.cap:
            return None
        # A row that ends where a job begins is extended by the first such job; the others copy theirs.
        claimed: dict[int, Row] = {}
        rows: dict[int, Row] = {}
        for i, job in enumerate(jobs):
            row = job.row
            if row is not None and row.length == job.base and row.index not in claimed:
                claimed[row.index] = rows[i] = row
        forks = [i for i in range(len(jobs)) if i not in rows]
        if len(forks) > slab.free:
            rehome([job.holder for job in jobs if job.holder is not None])
            if len(forks) > slab.free:
                return None
        try:
            rows.update(_arrange(slab, claimed, {i: jobs[i].row for i in forks}, len(jobs), tip))
        except BaseException:
            slab.drop()  # half-moved rows must not be read
            raise
        return Placement(slab, [rows[i] for i in range(len(jobs))], tip + lead.pending)

    def _in_longer(self, jobs: Sequence[Job]) -> Placement | None:
        """Extend the slab that all jobs stand in, one layer at a time, so that no second one is needed."""
        slab = None if jobs[0].row is None else jobs[0].row.slab
        if slab is None or any(job.row is None or job.row.slab is not slab for job in jobs):
            return None
        row = jobs[0].row
        assert row is not None
        end = row.start + jobs[0].node.length
        layer = max((sum(t.nbytes for t in pair) // slab.cap for pair in slab.layers.values()), default=0)
        for cap in (end + max(_HEADROOM, end // 2), end + 8, end):
            if end > slab.cap and self._free(slab.rows * self.position_bytes * (cap - slab.cap) + layer * cap, [slab]):
                try:
                    slab.extend(cap)
                except BaseException:
                    slab.drop()  # its layers may differ in length now
                    raise
                self.peak = max(self.peak, self.bytes + layer * cap)
                return self._in_place(jobs)
        return None

    def _in_new(self, jobs: Sequence[Job], width: int) -> Placement | None:
        end = max(job.node.length for job in jobs)
        in_use = [job.row.slab for job in jobs if job.row is not None]
        few, cap = len(jobs), end + max(_HEADROOM, end // 2)
        for rows, columns in ((max(few, width), cap), (few, cap), (few, end + 8), (few, end)):
            if self._free(rows * columns * self.position_bytes, in_use):
                break
        else:
            return None
        slab = Slab(rows, columns, end - min(job.node.length for job in jobs))
        for index, (keys, values) in self._shapes.items():
            slab.layer(index, keys, values)
        self._slabs.add(slab)
        self.peak = max(self.peak, self.bytes)
        places = [Row(slab, i, end - job.node.length, job.base) for i, job in enumerate(jobs)]
        batches: dict[tuple[Slab, int, int, int], list[tuple[int, int]]] = defaultdict(list)
        for job, row in zip(jobs, places):
            if job.row is not None:
                batches[job.row.slab, job.row.start, row.start, job.base].append((job.row.index, row.index))
        for (source, read, write, base), pairs in batches.items():
            for index, pair in source.layers.items():
                for old, new in zip(pair, slab.layers[index]):
                    copy_rows(
                        old[:, :, read : read + base], [i for i, _ in pairs],
                        new[:, :, write : write + base], [j for _, j in pairs],
                    )  # fmt: skip
        return Placement(slab, places, end)

    def _free(self, wanted: int, in_use: Sequence[Slab]) -> bool:
        """Drop the least recently used slabs, none in use, until ``wanted`` bytes fit. Returns whether they do."""
        if sum(slab.bytes for slab in set(in_use)) + wanted > self.limit:
            return False
        for old in sorted(self.slabs, key=lambda old: old.used):
            if self.bytes + wanted <= self.limit:
                break
            if old not in in_use:
                old.drop()
                self.evictions += 1
        return True


def _arrange(slab: Slab, claimed: dict[int, Row], forks: dict[int, Row | None], count: int, tip: int) -> dict[int, Row]:
    """Bring the claimed rows together in ``count`` neighbouring places, and copy the forks' rows to the rest.

    Rows in the way change places with claimed rows or go to free places. Returns the forks' new rows.
    """
    low, high = min(claimed, default=0), max(claimed, default=0)
    first = min(low, slab.rows - count) if high - low < count else 0
    window = range(first, first + count)
    outside = [row for index, row in claimed.items() if index not in window]
    free = [i for i in range(slab.rows) if i not in window and slab.at(i) is None]
    waiting = list(forks)
    moved: list[tuple[Row, int]] = []
    copied: list[tuple[int, Row, int]] = []
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
        source = forks[i]
        assert source is not None
        copied.append((i, source, place))
    if moved or copied:
        sources = [row for row, _ in moved] + [row for _, row, _ in copied]
        places = [place for _, place in moved] + [place for _, _, place in copied]
        high = max([tip, *(row.start + row.length for row, _ in moved)])
        for pair in slab.layers.values():
            for tensor in pair:
                view = tensor[:, :, :high]
                copy_rows(view, [row.index for row in sources], view, places)
    for row, _ in moved:
        slab.slots[row.index] = None
    for row, place in moved:
        row.index = place
        slab.slots[place] = ref(row)
    return {i: Row(slab, place, source.start, tip - source.start) for i, source, place in copied}

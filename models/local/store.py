"""The KV store: where histories stand in slabs and on trunks, when they are copied, what goes when memory is short."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet, ref

import torch

from .cache import Row, Slab, Trunk, chain, copy_rows
from .histories import History
from .jobs import Job, locate, rehome
from .sealing import Seal, Stand, beginnings, grounds

_HEADROOM = 64
"""Fewest columns that a new slab has to spare, of histories that are held whole; half of it of those on trunks."""
_LEAST = 64
"""Fewest positions for which a trunk is made: for fewer, to copy them is as good."""
_SAVED = 512
"""Fewest positions that a trunk must save, of all copies together: for fewer, it costs more time than it saves."""


@dataclass(frozen=True)
class Placement:
    """Where the jobs of one pass stand: job i in row ``rows[i]`` of a slab, all tips at column ``end``."""

    slab: Slab
    rows: list[Row]
    end: int


class Store:
    """All slabs and trunks of one model, in at most ``limit`` bytes.

    Attributes:
        shares: whether what several histories begin with is held in trunks.
        least: fewest positions of a trunk.
        saved: fewest positions that a trunk must save.
        sealed: trunks made so far.
        turn: the length past which keys are others (see `feynkac.models.local.attention.turn`), if there is one.
    """

    def __init__(self, limit: int, turn: int | None = None) -> None:
        self.limit = limit
        self.turn = turn
        self.shares = False
        self.least, self.saved = _LEAST, _SAVED
        self.sealed = 0
        self.evictions = 0
        self.peak = 0
        self.position_bytes = 0
        """Bytes that a position takes in one row."""
        self._slabs: WeakSet[Slab] = WeakSet()
        self._trunks: WeakSet[Trunk] = WeakSet()
        self._shapes: dict[int, tuple[Any, Any]] = {}
        self._clock = 0

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Within the block whatever is shared is held in trunks, be it one position."""
        self.shares, self.sealed = True, 0
        self.least = self.saved = 1
        try:
            yield
        finally:
            self.least, self.saved = _LEAST, _SAVED

    @property
    def slabs(self) -> list[Slab]:
        """The slabs in memory."""
        return [slab for slab in self._slabs if slab.alive]

    @property
    def trunks(self) -> list[Trunk]:
        """The trunks in memory."""
        return [trunk for trunk in self._trunks if trunk.alive]

    @property
    def held(self) -> list[Slab | Trunk]:
        """The slabs and trunks in memory."""
        return [*self.slabs, *self.trunks]

    @property
    def bytes(self) -> int:
        """Bytes held in slabs and trunks."""
        return sum(held.bytes for held in self.held)

    @property
    def positions(self) -> int:
        """Positions that there is room for in what is held."""
        trunks = sum(trunk.end - trunk.base for trunk in self.trunks)
        return trunks + sum(slab.rows * slab.cap for slab in self.slabs)

    def fit(self) -> None:
        """Forget the least recently used slabs until the limit is kept."""
        self._free(0, set())

    def clear(self) -> None:
        """Forget all slabs and trunks."""
        for held in self.held:
            held.drop()

    def reset(self) -> None:
        """Forget all slabs and trunks, and what their layers are like."""
        self.clear()
        self._shapes = {}
        self.position_bytes = 0

    def locate(self, node: History, first: int) -> Job:
        """Find the longest kept beginning of a history, of at most ``first`` positions."""
        if self.turn is None:
            return locate(node, first)
        return locate(node, first, lambda place: self._alike(place.length, node.length))

    def _alike(self, one: int, other: int) -> bool:
        """Return whether histories of two lengths have the same keys where they have the same tokens."""
        return self.turn is None or (one > self.turn) == (other > self.turn)

    def place(self, jobs: Sequence[Job], width: int) -> Placement | None:
        """Give every job a row with its prefix in it: in place where possible, else in a new slab.

        ``width`` is how many rows will be wanted soon (forks of these), to leave room for them where there is
        any. Returns None where the jobs do not fit into memory together.
        """
        self._clock += 1
        placement = self._in_place(jobs) or self._in_new(jobs, width) or self._in_longer(jobs)
        if placement is not None:
            placement.slab.used = self._clock
            for row in placement.rows:
                for trunk, _ in chain(row.trunk, row.base):
                    trunk.used = self._clock
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
        if any(not isinstance(job.place, Row) or job.place.slab is not placement.slab for job in jobs):
            rehome([job.node for job in jobs])

    def _in_place(self, jobs: Sequence[Job]) -> Placement | None:
        lead = next((job for job in jobs if isinstance(job.place, Row)), None)
        if lead is None:
            return None
        assert isinstance(lead.place, Row)
        slab, tip = lead.place.slab, lead.place.origin + lead.base
        for job in jobs:
            place = job.place
            if place is None or job.pending != lead.pending:
                return None
            if isinstance(place, Row) and (place.slab is not slab or place.origin + job.base != tip):
                return None
        if len(jobs) > slab.rows or tip + lead.pending > slab.cap:
            return None
        # A row that ends where a job begins is extended by the first such job; the others copy theirs.
        claimed: dict[int, Row] = {}
        rows: dict[int, Row] = {}
        for i, job in enumerate(jobs):
            row = job.place
            if isinstance(row, Row) and row.length == job.base and row.index not in claimed:
                claimed[row.index] = rows[i] = row
        forks = [i for i in range(len(jobs)) if i not in rows]
        if len(forks) > slab.free:
            rehome([job.holder for job in jobs if job.holder is not None])
            if len(forks) > slab.free:
                return None
        try:
            rows.update(_arrange(slab, claimed, {i: jobs[i] for i in forks}, len(jobs), tip))
        except BaseException:
            slab.drop()  # half-moved rows must not be read
            raise
        return Placement(slab, [rows[i] for i in range(len(jobs))], tip + lead.pending)

    def _in_longer(self, jobs: Sequence[Job]) -> Placement | None:
        """Extend the slab that all jobs stand in, one layer at a time, so that no second one is needed."""
        row = jobs[0].place
        if not isinstance(row, Row):
            return None
        slab, end = row.slab, row.origin + jobs[0].node.length
        if any(not isinstance(job.place, Row) or job.place.slab is not slab for job in jobs):
            return None
        in_use = _using(jobs)
        layer = max((sum(t.nbytes for t in pair) // slab.cap for pair in slab.layers.values()), default=0)
        for cap in (end + max(_HEADROOM // 2 if row.trunk is not None else _HEADROOM, end // 2), end + 8, end):
            if end > slab.cap and self._free(slab.rows * self.position_bytes * (cap - slab.cap) + layer * cap, in_use):
                try:
                    slab.extend(cap)
                except BaseException:
                    slab.drop()  # its layers may differ in length now
                    raise
                self.peak = max(self.peak, self.bytes + layer * cap)
                return self._in_place(jobs)
        return None

    def _in_new(self, jobs: Sequence[Job], width: int) -> Placement | None:
        """Put the jobs in a new slab; what several of them begin with in trunks before, where that is worth it."""
        stands, paths = grounds(jobs, self._alike)
        in_use = _using(jobs).union(*(_below(stand.made, stand.base) for stand in stands))
        apart, seals = list(stands), []
        if self.shares:
            seals = beginnings(jobs, stands, paths, self.least, self.saved)
        shape = self._shape(jobs, stands, seals, width, in_use)
        if shape is None and seals:
            stands, seals = apart, []
            shape = self._shape(jobs, stands, seals, width, in_use)
        if shape is None:
            return None
        for seal in seals:
            self._seal(seal)
        (rows, columns), end = shape, max(job.node.length - stand.base for job, stand in zip(jobs, stands))
        slab = Slab(rows, columns, end - min(job.node.length - stand.base for job, stand in zip(jobs, stands)))
        for index, (keys, values) in self._shapes.items():
            slab.layer(index, keys, values)
        self._slabs.add(slab)
        self.peak = max(self.peak, self.bytes)
        places = [
            Row(slab, i, end - job.node.length, job.base, stand.base, stand.made)
            for i, (job, stand) in enumerate(zip(jobs, stands))
        ]
        _fill(slab, jobs, places)
        return Placement(slab, places, end)

    def _shape(
        self, jobs: Sequence[Job], stands: Sequence[Stand], seals: Sequence[Seal], width: int, in_use: set[Slab | Trunk]
    ) -> tuple[int, int] | None:
        """Make room for a slab, and for trunks before: return its rows and columns, or None where there is no room."""
        more = sum(seal.end - seal.base for seal in seals if not seal.whole)
        end = max(job.node.length - stand.base for job, stand in zip(jobs, stands))
        spare = _HEADROOM // 2 if any(stand.base for stand in stands) else _HEADROOM
        few, cap = len(jobs), end + max(spare, end // 2)
        sizes = [(max(few, width), cap), (few, cap), (few, end + 8), (few, end)]
        if self.shares and width > few and max(job.pending for job in jobs) >= self.least:
            sizes = [(few, end)]  # a trunk, as soon as its forks go on
        for rows, columns in sizes:
            if self._free((rows * columns + more) * self.position_bytes, in_use):
                return rows, columns
        return None

    def _seal(self, seal: Seal) -> None:
        """Make a trunk, and let all histories that it holds stand on it."""
        row, start, end = seal.job.place, seal.start, seal.end
        assert isinstance(row, Row)
        if seal.whole:
            layers = dict(row.slab.layers)
            row.slab.drop()
        else:
            own = slice(row.origin + start, row.origin + end)
            layers = {}
            for index, pair in row.slab.layers.items():
                parts: list[tuple[Any, ...]] = [(tensor[row.index : row.index + 1, :, own],) for tensor in pair]
                for below, upto in reversed(seal.joined):
                    cut = (tensor[:, :, : upto - below.base] for tensor in below.layers[index])
                    parts = [(first, *rest) for first, rest in zip(cut, parts)]
                layers[index] = torch.cat(parts[0], 2), torch.cat(parts[1], 2)
        trunk = seal.made = Trunk(layers, seal.base, end, row.length, Stand(seal.below, seal.base).made)
        trunk.used = self._clock
        self._trunks.add(trunk)
        self.sealed += 1
        node = seal.job.holder
        while node is not None:
            if node.length <= end and (node.row is row or node.length > trunk.base):
                node.row = trunk
            node = node.above

    def _free(self, wanted: int, in_use: set[Slab | Trunk]) -> bool:
        """Drop the least recently used slabs and trunks, none in use, until ``wanted`` bytes fit.

        What stands on a trunk was not used after it, and goes first. Returns whether the bytes fit.
        """
        if sum(held.bytes for held in in_use) + wanted > self.limit:
            return False
        spare = self.limit - wanted - self.bytes
        for old in sorted(self.held, key=_age):
            if spare >= 0:
                break
            if old not in in_use:
                spare += old.bytes
                old.drop()
                self.evictions += 1
        return True


def _using(jobs: Sequence[Job]) -> set[Slab | Trunk]:
    """Return what holds the beginnings of jobs."""
    found: set[Slab | Trunk] = set()
    for job in jobs:
        if isinstance(job.place, Row):
            found |= {job.place.slab, *_below(job.place.trunk, job.place.base)}
        else:
            found |= _below(job.place, job.base)
    return found


def _below(trunk: Trunk | None, end: int) -> set[Slab | Trunk]:
    """Return a trunk and those below it that a history of ``end`` positions needs."""
    return {below for below, _ in chain(trunk, end)}


def _age(held: Slab | Trunk) -> tuple[int, bool, int]:
    """Sort key of what to drop first: of what was last used together, what stands on others."""
    return held.used, isinstance(held, Trunk), -held.base if isinstance(held, Trunk) else 0


def _fill(slab: Slab, jobs: Sequence[Job], rows: Sequence[Row]) -> None:
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


def _arrange(slab: Slab, claimed: dict[int, Row], forks: dict[int, Job], count: int, tip: int) -> dict[int, Row]:
    """Bring the claimed rows together in ``count`` neighbouring places, and copy the forks' rows to the rest.

    Rows in the way change places with claimed rows or go to free places. Returns the forks' new rows: those that stand
    on a trunk alone begin with nothing.
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
        if isinstance(source, Row):
            copied.append((source, place))
    if moved or copied:
        sources = [row for row, _ in (*moved, *copied)]
        places = [place for _, place in (*moved, *copied)]
        high = max([tip, *(row.origin + row.length for row, _ in moved)])
        views = [tensor[:, :, :high] for pair in slab.layers.values() for tensor in pair]
        copy_rows(zip(views, views), [row.index for row in sources], places)
    for row, _ in moved:
        slab.slots[row.index] = None
    for row, place in moved:
        row.index = place
        slab.slots[place] = ref(row)
    rows = {}
    for i, place in made.items():
        job, source = forks[i], forks[i].place
        if isinstance(source, Row):
            rows[i] = Row(slab, place, source.origin, job.base, source.base, source.trunk)
        else:
            rows[i] = Row(slab, place, tip - job.base, job.base, job.base, source)
            for tensor in (tensor for pair in slab.layers.values() for tensor in pair):
                tensor[place, :, :tip] = 0  # masked columns must be finite
    return rows

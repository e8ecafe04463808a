"""The KV store: where histories stand in slabs and on trunks, when they are copied, what goes when memory is short."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch

from .cache import Row, Slab, Trunk, chain
from .histories import History
from .jobs import Job, locate, rehome
from .placing import aligned, arrange, fill
from .room import Held, fitting, squeeze
from .sealing import Seal, Stand, beginnings, grounds

_LARGE = 8
"""Of the limit a slab is large that takes more than one in so many bytes."""
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
        turn: the length past which keys are others (see `feynkac.models.local.passes.attention.turn`), if there is one.
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
        self._clock = self._since = 0

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
        return [trunk for trunk in self._trunks if trunk.held]

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

    def begin(self) -> None:
        """A wave begins: what is used from now on is kept rather than what was used before."""
        self._since = self._clock + 1

    def place(
        self, jobs: Sequence[Job], width: int, needed: Callable[[], Sequence[Job]] = tuple, more: int = 0
    ) -> Placement | None:
        """Give every job a row with its prefix in it: in place where possible, else in a new slab.

        ``width`` is how many rows will be wanted soon (forks of these), to leave room for them where there is
        any, and ``more`` how many tokens may follow. Returns None where the jobs do not fit into memory together
        beside what ``needed`` names: what others of the wave stand on.
        """
        self._clock += 1
        placement = self._in_place(jobs)
        if placement is None:
            placement = self._making_room(jobs, width, needed(), more)
        if placement is not None:
            placement.slab.used = self._clock
            for row in placement.rows:
                row.used = self._clock
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
        return self._put(slab, jobs, tip + lead.pending)

    def _put(self, slab: Slab, jobs: Sequence[Job], end: int) -> Placement | None:
        """Give jobs rows of a slab, so that all end at one column."""
        if len(jobs) > slab.rows or end > slab.cap:
            return None
        # A row that ends where a job begins is extended by the first such job; the others copy theirs.
        claimed: dict[int, Row] = {}
        rows: dict[int, Row] = {}
        for i, job in enumerate(jobs):
            row = job.place
            ends = isinstance(row, Row) and row.length == job.base and aligned(job, slab, end)
            if isinstance(row, Row) and ends and row.index not in claimed:
                claimed[row.index] = rows[i] = row
        forks = [i for i in range(len(jobs)) if i not in rows]
        if len(forks) > slab.free:
            rehome([job.holder for job in jobs if job.holder is not None])
            if len(forks) > slab.free:
                return None
        try:
            rows.update(arrange(slab, claimed, {i: jobs[i] for i in forks}, len(jobs), end))
        except BaseException:
            slab.drop()  # half-moved rows must not be read
            raise
        return Placement(slab, [rows[i] for i in range(len(jobs))], end)

    def _making_room(self, jobs: Sequence[Job], width: int, needed: Sequence[Job], more: int) -> Placement | None:
        """Place jobs where there is room, or can be made.

        First goes what the wave does not use; then columns that are free take the place of rows, and rows that of
        others, the longest unused first, whose histories have ended their step.
        """
        rows = {job.place for job in needed if isinstance(job.place, Row)}
        used: set[Slab | Trunk] = {held for held in self.held if held.used >= self._since}
        stood_on = _using([*jobs, *needed])
        wave = used | stood_on
        slabs = {held for held in wave if isinstance(held, Slab)}
        columns = max(job.columns for job in jobs)
        size = (len(jobs) + len(rows)) * (columns + max(_HEADROOM, columns // 2)) * self.position_bytes
        ample = sum(held.bytes for held in wave) + size <= self.limit
        only = len(slabs) == 1 and _LARGE * sum(slab.bytes for slab in slabs) > self.limit
        grows = only and any(isinstance(job.place, Row) for job in jobs)
        return (
            (self._in_new(jobs, width, wave) if (ample and not grows) or self._shared(jobs) else None)
            or self._in_longer(jobs, wave)
            or self._in_tighter(jobs, rows, more)
            or (None if only else self._in_new(jobs, width, wave))
            or (None if needed else self._in_new(jobs, width, stood_on))
        )

    def _shared(self, jobs: Sequence[Job]) -> bool:
        """Return whether jobs have something to hold once for all."""
        stands, paths = grounds(jobs, self._alike)
        return self.shares and bool(beginnings(jobs, stands, paths, self.least, self.saved))

    def _in_tighter(self, jobs: Sequence[Job], needed: set[Row], more: int) -> Placement | None:
        """Take the places of rows that nobody in the wave needs, in the slab of the jobs, or else the largest."""
        own = {row for job in jobs if isinstance(row := job.place, Row) and row.length == job.base}
        stood_on = {row.slab for row in own}
        if len(stood_on) > 1 or not self.slabs:
            return None
        slab = stood_on.pop() if stood_on else max(self.slabs, key=lambda slab: slab.bytes)
        longest = max(job.columns for job in jobs)
        sources = {job.place for job in jobs}
        others = [row for row in slab.held if row not in own]
        held = [Held(row.columns, row.used, row in needed or row in sources) for row in others]
        found = squeeze(slab.room, len(jobs), longest + (more if len(own) < len(jobs) else 0), held)
        if found is None:
            return None
        stay, cap = [others[i] for i in found[0]], found[1]
        last = max((longest, *(row.columns for row in stay)))
        end = min(max(longest, last - more), cap)
        starts = {row: last - row.columns for row in stay}
        starts.update((row, end - job.columns) for job in jobs if isinstance(row := job.place, Row) and row in own)
        self.evictions += len(slab.held) - len(starts)
        try:
            slab.repack(starts, len(jobs) + len(stay), cap)
        except BaseException:
            slab.drop()  # half-moved rows must not be read
            raise
        return self._put(slab, jobs, end)

    def fitting(self, jobs: Sequence[Job], needed: Sequence[Job]) -> int:
        """Return how many of some jobs, from the first on, there may be room for; not all."""
        slab = next((job.place.slab for job in jobs if isinstance(job.place, Row)), None)
        slab = slab or max(self.slabs, key=lambda slab: slab.bytes, default=None)
        room = self.limit // max(1, self.position_bytes) if slab is None else slab.room
        rows = {job.place for job in needed} - {job.place for job in jobs}
        held = [] if slab is None else [Held(row.columns, row.used, row in rows) for row in slab.held]
        return min(len(jobs) - 1, fitting(room, max(job.columns for job in jobs), held))

    def _in_longer(self, jobs: Sequence[Job], wave: set[Slab | Trunk]) -> Placement | None:
        """Extend the slab that all jobs stand in, one tensor at a time, so that no second one is needed.

        A large slab that is the only one of the wave is given all that is free: later there is no room for such steps.
        """
        row = jobs[0].place
        if not isinstance(row, Row):
            return None
        slab, end = row.slab, row.origin + jobs[0].node.length
        if any(not isinstance(job.place, Row) or job.place.slab is not slab for job in jobs):
            return None
        size = slab.rows * self.position_bytes
        one = max((tensor.nbytes for pair in slab.layers.values() for tensor in pair), default=0)
        most = (self.limit - sum(held.bytes for held in wave if held is not slab) - one) // size
        wanted = end + max(_HEADROOM // 2 if row.trunk is not None else _HEADROOM, end // 2)
        if _LARGE * slab.bytes > self.limit and not any(isinstance(held, Slab) and held is not slab for held in wave):
            wanted = max(wanted, (self.limit - self.bytes + slab.bytes - one) // size)
        cap = min(most, wanted)
        if not slab.cap < end <= cap or not self._free(size * (cap - slab.cap) + one, wave | _using(jobs)):
            return None
        try:
            slab.extend(cap)
        except BaseException:
            slab.drop()  # its layers may differ in length now
            raise
        self.peak = max(self.peak, self.bytes + one)
        return self._in_place(jobs)

    def _in_new(self, jobs: Sequence[Job], width: int, wave: set[Slab | Trunk]) -> Placement | None:
        """Put the jobs in a new slab; what several of them begin with in trunks before, where that is worth it."""
        stands, paths = grounds(jobs, self._alike)
        in_use = (wave | _using(jobs)).union(*(_below(stand.made, stand.base) for stand in stands))
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
        fill(slab, jobs, places)
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
        for below, _ in chain(trunk, end):
            below.used = self._clock
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

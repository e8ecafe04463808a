"""Keys and values of many histories: what several begin with in trunks, the rest in the rows of slabs.

A `Slab` holds a batch of rows, right-aligned: all rows that are advanced together end at one column, so that
a new token is written in place in every row with no copy, and shorter ones are padded on the left. A `Row` holds
one history, or what follows the `Trunk` that it stands on; every node on the path to its tip points at it, each using
as much of it as it is long (as slices of one array share it in Go): a child extends the row if the row ends where its
parent ends, and copies it otherwise. Rows that no node holds any more are free for forks; a slab without rows, and a
trunk that nothing stands on, is freed by reference count alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from weakref import ref

import numpy as np
import torch
from transformers import Cache

from ..weights.staging import send


class Trunk:
    """What several histories begin with: keys and values of positions ``base`` to ``end``.

    They are (1, heads, end − base, dim) in each layer, and never written again. Positions before ``base`` are those of
    the trunk that it stands on.

    Attributes:
        length: positions of the history that it was cut from.
    """

    __slots__ = ("__weakref__", "base", "end", "layers", "length", "trunk", "used")

    def __init__(self, layers: dict[int, tuple[Any, Any]], base: int, end: int, length: int, trunk: Trunk | None):
        self.layers = layers
        self.base = base
        self.end = end
        self.length = length
        self.trunk = trunk
        self.used = 0

    @property
    def alive(self) -> bool:
        """Whether it and what it stands on are held still."""
        return self.held and (self.trunk is None or self.trunk.alive)

    @property
    def held(self) -> bool:
        """Whether it takes memory still."""
        return bool(self.layers)

    @property
    def bytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for pair in self.layers.values() for tensor in pair)

    def drop(self) -> None:
        """Forget everything; what stands on it is computed again when it is needed."""
        self.layers = {}


def chain(trunk: Trunk | None, end: int) -> Iterator[tuple[Trunk, int]]:
    """Yield a trunk and those below it, each with the position up to which a history of ``end`` positions needs it."""
    while trunk is not None:
        if end > trunk.base:
            yield trunk, end
            end = trunk.base
        trunk = trunk.trunk


class Row:
    """One history, or what follows the first ``base`` positions of a trunk: columns of row ``index`` of a slab.

    Attributes:
        origin: the column at which position 0 would be.
        length: positions of the history, the trunk's included.
    """

    __slots__ = ("__weakref__", "base", "index", "length", "origin", "slab", "trunk", "used")

    def __init__(
        self, slab: Slab, index: int, origin: int, length: int, base: int = 0, trunk: Trunk | None = None
    ) -> None:
        self.slab = slab
        self.index = index
        self.origin = origin
        self.length = length
        self.base = base
        self.trunk = trunk
        self.used = 0
        slab.slots[index] = ref(self)

    @property
    def start(self) -> int:
        """The first column in use."""
        return self.origin + self.base

    @property
    def columns(self) -> int:
        """How many columns it takes."""
        return self.length - self.base

    @property
    def alive(self) -> bool:
        """Whether it is held still."""
        return self.slab.alive and self.slab.at(self.index) is self and (self.trunk is None or self.trunk.alive)

    def drop(self) -> None:
        """Forget it; its histories are computed again when they are needed."""
        self.slab.slots[self.index] = None
        self.index = -1

    def fills(self, start: int, end: int) -> bool:
        """Return whether its slab holds some positions of its history and nothing else."""
        return self.slab.rows == 1 and (self.origin + start, self.origin + end) == (0, self.slab.cap)


Place = Row | Trunk


def standing(place: Place, length: int) -> Place:
    """Return the row, or the trunk below it, that holds the last of a history's ``length`` positions."""
    while length <= place.base and place.trunk is not None:
        place = place.trunk
    return place


class Slab:
    """Keys and values of ``rows`` histories: per layer two tensors (rows, heads, cap, dim)."""

    def __init__(self, rows: int, cap: int, pad: int) -> None:
        self.rows = rows
        self.cap = cap
        self.pad = pad
        self.layers: dict[int, tuple[Any, Any]] = {}
        self.slots: list[ref[Row] | None] = [None] * rows
        self.alive = True
        self.used = 0

    @property
    def bytes(self) -> int:
        """Bytes held."""
        return sum(tensor.untyped_storage().nbytes() for pair in self.layers.values() for tensor in pair)

    @property
    def held(self) -> list[Row]:
        """The rows that it holds, in order."""
        return [row for slot in self.slots if slot is not None and (row := slot()) is not None]

    @property
    def room(self) -> int:
        """How many positions there is memory for."""
        tensor = next(iter(self.layers.values()), [None])[0]
        if tensor is None:
            return self.rows * self.cap
        return int(tensor.untyped_storage().nbytes() // (tensor.element_size() * tensor.shape[1] * tensor.shape[3]))

    def repack(self, starts: dict[Row, int], rows: int, cap: int) -> None:
        """Have other numbers of rows and columns in the same memory; of its rows keep some, each from a column on."""
        kept = []
        for row in self.held:
            if row in starts:
                kept.append(row)
            else:
                row.drop()
        moves = [(row.index, row.start, row.columns, starts[row]) for row in kept]
        for index, pair in self.layers.items():
            self.layers[index] = _repacked(pair[0], moves, rows, cap), _repacked(pair[1], moves, rows, cap)
        self.rows, self.cap, self.slots = rows, cap, [None] * rows
        for place, row in enumerate(kept):
            row.index, row.origin = place, starts[row] - row.base
            self.slots[place] = ref(row)

    def layer(self, index: int, keys: Any, values: Any) -> tuple[Any, Any]:
        """Return the tensors of a layer, made like ``keys`` and ``values`` (n, heads, any, dim) at first."""
        pair = self.layers.get(index)
        if pair is None:
            pair = self.layers[index] = self._blank(keys), self._blank(values)
        return pair

    def extend(self, cap: int) -> None:
        """Make room for more columns, layer by layer."""
        old, self.cap = self.cap, cap
        for index in self.layers:
            for k in (0, 1):  # tensor by tensor, so that no more than one is there twice
                longer = self._blank(self.layers[index][k])
                longer[:, :, :old] = self.layers[index][k]
                keys, values = self.layers[index]
                self.layers[index] = (keys, longer) if k else (longer, values)
                del keys, values

    def _blank(self, like: Any) -> Any:
        tensor = like.new_empty((self.rows, like.shape[1], self.cap, like.shape[3]))
        # Masked columns still meet a weight of 0 in attention: they must be finite.
        tensor[:, :, : self.pad] = 0
        return tensor

    def at(self, index: int) -> Row | None:
        """Return the row that occupies a place, if any does."""
        slot = self.slots[index]
        return None if slot is None else slot()

    @property
    def free(self) -> int:
        """How many places hold no row."""
        return sum(self.at(i) is None for i in range(self.rows))

    def drop(self) -> None:
        """Forget everything; histories that were held here are computed again when they are needed."""
        self.alive = False
        self.layers.clear()


def _repacked(tensor: Any, moves: Sequence[tuple[int, int, int, int]], rows: int, cap: int) -> Any:
    """Return a tensor (rows, heads, cap, dim) in the memory of another, with a few of its rows.

    Row by row, in an order in which none is written over before it is read: as they keep their order, first those that
    move up, from the last to the first, then those that move down.
    """
    _, heads, old, dim = tensor.shape
    new = tensor.as_strided((rows, heads, cap, dim), (heads * cap * dim, cap * dim, dim, 1), 0)
    up = [place for place, move in enumerate(moves) if place * cap >= move[0] * old]
    down = [place for place, move in enumerate(moves) if place * cap < move[0] * old]
    for place in (*reversed(up), *down):
        index, start, length, to = moves[place]
        part = tensor[index, :, start : start + length].clone()
        new[place, :, :to] = 0  # masked columns must be finite
        new[place, :, to : to + length] = part
    return new


class SlabCache(Cache):  # type: ignore[misc]
    """One forward pass's view of a slab, as transformers sees a cache.

    Rows ``window`` of the slab are the batch, columns from ``low`` are seen, and the queries are written from
    column ``at``; only where ``valid`` (n, 1, q, 1), if it is given. The longest history has ``before`` positions
    before them. ``seen`` is told of the keys that a layer is given.
    """

    def __init__(self, slab: Slab, window: slice, low: int, at: int, before: int, valid: Any, seen: Any = None) -> None:
        super().__init__(layers=[])
        self._slab = slab
        self._window = window
        self._low = low
        self._at = at
        self._before = before
        self._valid = valid
        self._seen = seen

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Write the new keys and values, and return all that the queries may see."""
        end = self._at + key_states.shape[2]
        seen = []
        pair = self._slab.layer(layer_idx, key_states, value_states)
        for tensor, new in zip(pair, (key_states, value_states)):
            place = tensor[self._window, :, self._at : end]
            place.copy_(new if self._valid is None else torch.where(self._valid, new, place))
            seen.append(tensor[self._window, :, self._low : end])
        if self._seen is not None:
            self._seen.note(seen[0], layer_idx)
        return seen[0], seen[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many positions the longest history has before the queries."""
        return self._before

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return how many columns are seen, and the first: every layer keeps all, windowed ones too."""
        return self._at - self._low + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return −1: there is no maximum."""
        return -1


def copy_rows(pairs: Iterable[tuple[Any, Any]], source_rows: Sequence[int], target_rows: Sequence[int]) -> None:
    """Copy rows from one to the other tensor (rows, heads, columns, dim) of each pair, as if all were read first."""
    overlap = not set(source_rows).isdisjoint(target_rows)
    sent: dict[Any, list[Any]] = {}
    for source, target in pairs:
        if source.device.type == "cpu" and not (overlap and source.data_ptr() == target.data_ptr()):
            for i, j in zip(source_rows, target_rows):
                target[j].copy_(source[i])
            continue
        if source.device not in sent:
            sent[source.device] = send(source.device, np.array(source_rows), np.array(target_rows))
        read, write = sent[source.device]
        target.index_copy_(0, write, source.index_select(0, read))

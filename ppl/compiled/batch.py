"""Particles of a compiled scan as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..model import Floats, Index

Leaves = tuple[NDArray[Any], ...]


class Trail(NamedTuple):
    """The ys of m particles, as linked steps: that of the last iteration, and where the one before is.

    Attributes:
        ys: leaves of the last y, (m, …).
        before: the trail of those before, and ``origin`` (m,) each particle's row in it; None in the first iteration.
    """

    ys: Leaves
    before: Trail | Joined | Whole | None
    origin: Index


class Joined(NamedTuple):
    """Several trails as one: rows are numbered through."""

    parts: tuple[Trail | Joined | Whole, ...]
    ends: Index


class Whole(NamedTuple):
    """All ys of m particles that are through the scan, leaves (m, T, …)."""

    ys: Leaves


def resolve(trail: Any, rows: Index, length: int) -> Leaves:
    """Return the leaves (m, length, …) of the ys of some rows, all of which have made as many iterations."""
    if isinstance(trail, Whole):
        return tuple(leaf[rows] for leaf in trail.ys)
    columns: list[Leaves] = []
    while isinstance(trail, Trail):
        columns.append(tuple(leaf[rows] for leaf in trail.ys))
        trail, rows = trail.before, trail.origin[rows]
    late = tuple(np.stack(leaves[::-1], 1) for leaves in zip(*columns)) if columns else ()
    if trail is None:
        return late
    part = np.searchsorted(trail.ends, rows, side="right")
    early: list[NDArray[Any]] = []
    for p in np.unique(part).tolist():
        here = np.flatnonzero(part == p)
        first = int(trail.ends[p - 1]) if p else 0
        found = resolve(trail.parts[p], rows[here] - first, length - len(columns))
        early = early or [np.empty((len(rows), *leaf.shape[1:]), leaf.dtype) for leaf in found]
        for whole, leaf in zip(early, found):
            whole[here] = leaf
    return tuple(np.concatenate(pair, 1) for pair in zip(early, late)) if late else tuple(early)


class Batch:
    """n particles.

    Attributes:
        t: (n,) the iteration of the scan that each has made last.
        done: (n,) whether it has finished or died; ``dead`` (n,) whether it has died.
        fixed: of each latent before the scan that is needed later (n, …).
        carry: leaves of the carry (n, …).
        level: (n,) of the guide.
        trail: ys, and ``place`` (n,) each particle's row in it; None where nothing needs them.
        result: leaves of what finished particles returned (n, …); () before any has.
        output: the last ``"output"`` of each, (n, …), or None.
    """

    __slots__ = ("carry", "dead", "done", "fixed", "level", "output", "place", "result", "t", "trail")

    def __init__(
        self,
        t: NDArray[np.int64],
        done: NDArray[np.bool_],
        dead: NDArray[np.bool_],
        fixed: Leaves,
        carry: Leaves,
        level: Floats,
        trail: Trail | Joined | Whole | None,
        place: Index,
        result: Leaves = (),
        output: NDArray[Any] | None = None,
    ) -> None:
        self.t, self.done, self.dead = t, done, dead
        self.fixed, self.carry, self.level = fixed, carry, level
        self.trail, self.place = trail, place
        self.result, self.output = result, output

    def __len__(self) -> int:
        return len(self.t)

    @property
    def depth(self) -> NDArray[np.int64]:
        """Steps made by each particle, shape (n,)."""
        return self.t

    def select(self, index: Index) -> Batch:
        """Keep, duplicate or reorder particles."""
        return Batch(
            self.t[index],
            self.done[index],
            self.dead[index],
            _rows(self.fixed, index),
            _rows(self.carry, index),
            self.level[index],
            self.trail,
            self.place[index],
            _rows(self.result, index),
            None if self.output is None else self.output[index],
        )


def _rows(leaves: Leaves, index: Index) -> Leaves:
    return tuple(leaf[index] for leaf in leaves)


def concat(batches: Sequence[Batch]) -> Batch:
    """Join batches of one program."""
    if len(batches) == 1:
        return batches[0]
    trail: Any = batches[0].trail
    place = [batch.place for batch in batches]
    if trail is not None and any(batch.trail is not trail for batch in batches):
        sizes = np.array([_size(batch.trail) for batch in batches])
        trail = Joined(tuple(batch.trail for batch in batches), sizes.cumsum())  # type: ignore[misc]
        place = [rows + first for rows, first in zip(place, (sizes.cumsum() - sizes).tolist())]
    t, done, dead = ([getattr(batch, name) for batch in batches] for name in ("t", "done", "dead"))
    return Batch(
        np.concatenate(t),
        np.concatenate(done),
        np.concatenate(dead),
        _joined([batch.fixed for batch in batches], batches),
        _joined([batch.carry for batch in batches], batches),
        np.concatenate([batch.level for batch in batches]),
        trail,
        np.concatenate(place),
        _joined([batch.result for batch in batches], batches),
        _outputs(batches),
    )


def _size(trail: Any) -> int:
    return int(trail.ends[-1]) if isinstance(trail, Joined) else len(trail.origin)


def _joined(parts: Sequence[Leaves], batches: Sequence[Batch]) -> Leaves:
    """Join leaves, with zeros for a batch that has none."""
    found = next((leaves for leaves in parts if leaves), ())
    return tuple(
        np.concatenate(
            [
                leaves[j] if leaves else np.zeros((len(batch), *like.shape[1:]), like.dtype)
                for leaves, batch in zip(parts, batches)
            ]
        )
        for j, like in enumerate(found)
    )


def _outputs(batches: Sequence[Batch]) -> NDArray[Any] | None:
    found = [batch.output for batch in batches]
    if any(output is None for output in found):
        return None
    return np.concatenate(found)  # type: ignore[arg-type]


def put(old: Leaves, rows: Index, new: Leaves, n: int) -> Leaves:
    """Return leaves (n, …) with new rows in place of some of the old; zeros where there were none."""
    if len(rows) == n:
        return new
    out = []
    for j, leaf in enumerate(new):
        whole = old[j].copy() if old else np.zeros((n, *leaf.shape[1:]), leaf.dtype)
        whole[rows] = leaf
        out.append(whole)
    return tuple(out)

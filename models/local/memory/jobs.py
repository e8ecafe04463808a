"""Histories to be forwarded, and where the longest beginning of each that is kept is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .cache import Place, Row, Trunk, standing
from .histories import History


@dataclass(frozen=True)
class Job:
    """A history to be forwarded: its positions from ``base`` on, given the place that holds those before.

    ``holder`` is the node whose place it was found in; the place may hold more than ``base`` positions. Both are None
    where ``base`` is 0.
    """

    node: History
    base: int
    holder: History | None
    place: Place | None
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

    @property
    def columns(self) -> int:
        """Columns of a slab that it takes: its positions without those of the trunk that it stands on."""
        return self.node.length - (
            self.place.base if isinstance(self.place, Row) else 0 if self.place is None else self.base
        )


def locate(node: History, first: int, fits: Callable[[Place], bool] = lambda place: True) -> Job:
    """Find the longest kept prefix of a history, of at most ``first`` positions, in a place that ``fits``."""
    holder: History | None = node
    while holder is not None and first > 0:
        if holder.row is not None:
            if not holder.row.alive:
                holder.row = None  # it was dropped
            elif fits(holder.row):
                base = min(holder.length, first)
                return Job(node, base, holder, standing(holder.row, base))
        holder = holder.above
    return Job(node, 0, None, None)


def rehome(nodes: Sequence[History]) -> None:
    """Let the ancestors of nodes use their descendants' places, so that rows kept only for them go free."""
    seen: set[int] = set()
    for node in nodes:
        place, above = node.row, node.above
        while place is not None and above is not None and id(above) not in seen:
            seen.add(id(above))
            if not (isinstance(above.row, Trunk) and above.row.alive):
                above.row = standing(place, above.length)
            above = above.above

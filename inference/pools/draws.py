"""Whole runs drawn a batch at a time: what pools stand on that stop early."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from ...ppl.model import Advance
from ..base.engine import Growing, Move, Start
from ..search.expansion import Expansion

Drawing = Generator[Start | Move | Growing, Advance[Any], None]


def draw(
    tree: Expansion,
    count: int,
    stay: Callable[[list[int]], list[int]],
    report: Callable[[list[int]], Growing],
) -> Drawing:
    """Start some runs and take them to their end, each as importance sampling would draw it, step by step.

    Args:
        tree: the runs so far; those that finish become its results, in that order.
        count: how many to start.
        stay: from the runs that can go on to those that shall.
        report: makes a report of the results and of those that go on.
    """
    made = yield from tree.expand([0] * count)
    while True:
        going = tree.claim(made)
        staying = stay(going)
        tree.release(list(set(going) - set(staying)))
        yield report(staying)
        if not staying:
            return
        made = yield from tree.expand(staying)

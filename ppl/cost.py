"""The cost ledger: what models and rewards really did, counted where they do it.

A model reports each batched call with `charge`; the run in progress (see `recording`) adds it up. In a run over
many problems the rows of one call may belong to several of them, so amounts that belong to a row are given per
row and go to its owner, while the call itself counts once in the total and once for each problem in it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

UNITS = ("model_calls", "tokens_in", "tokens_out", "nfe", "reward_calls")


@dataclass(frozen=True)
class Cost:
    """What a run used.

    Attributes:
        model_calls: batched forward calls to language or diffusion models.
        tokens_in: token positions forwarded through a model (prompt, forced and generated alike).
        tokens_out: tokens sampled.
        nfe: denoiser evaluations, one per particle and step.
        reward_calls: inputs scored by rewards (cached repeats are not counted).
        seconds: wall time.
    """

    model_calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    nfe: int = 0
    reward_calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Budget:
    """Limits on the cost of one call to ``infer``; None is no limit.

    A limit is checked after each wave of particles, so a run overshoots it by at most one wave.

    >>> Budget(tokens=10).exceeded(Cost(tokens_in=500, tokens_out=10))
    'tokens'
    """

    tokens: int | None = None
    model_calls: int | None = None
    nfe: int | None = None
    reward_calls: int | None = None
    seconds: float | None = None

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return self != _NO_LIMIT

    def exceeded(self, cost: Cost) -> str | None:
        """Return the name of the first limit that ``cost`` has reached, or None. ``tokens`` are those sampled."""
        for field in fields(self):
            limit = getattr(self, field.name)
            used = cost.tokens_out if field.name == "tokens" else getattr(cost, field.name)
            if limit is not None and used >= limit:
                return field.name
        return None


_NO_LIMIT = Budget()


class Ledger:
    """The running cost of ``owners`` problems solved together, and of the whole run."""

    def __init__(self, owners: int = 1) -> None:
        self._start = time.perf_counter()
        self._owned = {unit: np.zeros(owners, np.int64) for unit in UNITS}
        self._calls = 0
        self.rows: NDArray[np.intp] = np.zeros(1, np.intp)
        """Owner of each row of the call in progress."""

    def add(self, unit: str, amount: ArrayLike) -> None:
        """Add an amount per row, or one amount that belongs to the call as a whole."""
        each = np.asarray(amount, np.int64)
        if each.ndim:
            np.add.at(self._owned[unit], self.rows, each)
        elif unit == "model_calls":
            self._calls += int(each)
            self._owned[unit][np.unique(self.rows)] += int(each)
        else:
            self._owned[unit][self.rows[0]] += int(each)

    def total(self) -> Cost:
        """Return the cost of the whole run so far."""
        sums = {unit: int(counts.sum()) for unit, counts in self._owned.items()}
        return Cost(**{**sums, "model_calls": self._calls}, seconds=time.perf_counter() - self._start)

    def of(self, owner: int) -> Cost:
        """Return the cost of one problem; ``model_calls`` are those it took part in, ``seconds`` the run's."""
        mine = {unit: int(counts[owner]) for unit, counts in self._owned.items()}
        return replace(Cost(**mine), seconds=time.perf_counter() - self._start)


class _Active(threading.local):
    """The ledgers that this thread's charges go to; the last one counts."""

    def __init__(self) -> None:
        self.ledgers: list[Ledger] = []


_active = _Active()


@contextmanager
def recording(ledger: Ledger) -> Iterator[Ledger]:
    """Send every `charge` made in the block to ``ledger``.

    >>> with recording(Ledger()) as ledger:
    ...     charge(model_calls=1, tokens_in=7)
    >>> ledger.total().tokens_in
    7
    """
    _active.ledgers.append(ledger)
    try:
        yield ledger
    finally:
        _active.ledgers.remove(ledger)


def active() -> Ledger | None:
    """Return the ledger that `charge` writes to, or None."""
    return _active.ledgers[-1] if _active.ledgers else None


@contextmanager
def rows(index: Sequence[int]) -> Iterator[None]:
    """Within the block, row i of a call belongs to the owner of what was row ``index[i]`` outside it."""
    ledger = active()
    if ledger is None:
        yield
        return
    outside = ledger.rows
    # Outside a wave a ledger has one row, which owns all.
    ledger.rows = outside[np.minimum(np.asarray(index, np.intp), len(outside) - 1)]
    try:
        yield
    finally:
        ledger.rows = outside


def charge(**amounts: ArrayLike) -> None:
    """Report what a call used: units of `Cost` by name, one number, or one per row of the batch."""
    ledger = active()
    if ledger is not None:
        for unit, amount in amounts.items():
            ledger.add(unit, amount)

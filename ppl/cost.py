"""The cost ledger: what models and rewards really did, counted where they do it.

A model reports each batched call with `charge`; the run in progress (see `recording`) adds it up. In a run over
many problems the rows of one call may belong to several of them, so amounts that belong to a row are given per
row and go to its owner, while the call itself counts once in the total and once for each problem in it.
"""

from __future__ import annotations

import math
import numbers
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

UNITS = ("model_calls", "tokens_in", "tokens_recomputed", "tokens_out", "nfe", "reward_calls", "requests")
_UNITS = frozenset(UNITS)


@dataclass(frozen=True)
class Cost:
    """What a run used.

    Attributes:
        model_calls: batched forward calls to language or diffusion models.
        tokens_in: token positions forwarded through a model (prompt, forced and generated alike).
        tokens_recomputed: those of them that had been forwarded before, as memory was too short to keep what came out.
        tokens_out: tokens sampled.
        nfe: denoiser evaluations, one per particle and step.
        reward_calls: inputs scored by rewards (cached repeats are not counted).
        requests: sent to servers, those that were sent again included.
        seconds: wall time.
    """

    model_calls: int = 0
    tokens_in: int = 0
    tokens_recomputed: int = 0
    tokens_out: int = 0
    nfe: int = 0
    reward_calls: int = 0
    requests: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Budget:
    """Limits on the cost of one call to ``infer``; None is no limit.

    A limit is checked after each wave of particles, so a run overshoots it by at most one wave. Only where it waits for
    servers or asynchronous functions, a wave is given up once the seconds are spent, and what is under way cancelled;
    the first wave is made whole.

    Raises ValueError for a limit that is no number from 0 up.

    >>> Budget(tokens=10).exceeded(Cost(tokens_in=500, tokens_out=10))
    'tokens'
    """

    tokens: int | None = None
    model_calls: int | None = None
    nfe: int | None = None
    reward_calls: int | None = None
    requests: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            limit = getattr(self, field.name)
            number = isinstance(limit, numbers.Real) and not isinstance(limit, bool)
            if limit is not None and not (number and limit >= 0):
                raise ValueError(f"the budget's {field.name} must be a number from 0 up, or None, not {limit!r}")

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


class OutOfTime(BaseException):
    """A run's budget of seconds was spent while it waited. It ends the wave as Ctrl-C does, and comes no further."""


class Ledger:
    """The running cost of ``owners`` problems solved together, and of the whole run."""

    def __init__(self, owners: int = 1) -> None:
        self._start = time.perf_counter()
        self._owned = {unit: np.zeros(owners, np.int64) for unit in UNITS}
        self._alone = owners == 1
        self._calls = 0
        self._lock = threading.RLock()
        self._end = math.inf

    def limit(self, seconds: float | None) -> None:
        """Say how long the run may take in all, for those who wait for something; None is any time."""
        self._end = math.inf if seconds is None else self._start + seconds

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self._end - time.perf_counter()

    def add(self, unit: str, amount: ArrayLike, rows: NDArray[np.intp]) -> None:
        """Add an amount per row, or one amount that belongs to the call as a whole; ``rows`` are their owners."""
        each = np.asarray(amount, np.int64)
        with self._lock:
            if each.ndim and self._alone:
                self._owned[unit][0] += each.sum()
            elif each.ndim:
                np.add.at(self._owned[unit], _pick(rows, np.arange(len(each))), each)
            elif unit == "model_calls":
                self._calls += int(each)
                self._owned[unit][0 if self._alone else np.unique(rows)] += int(each)
            else:
                self._owned[unit][rows[0]] += int(each)

    def total(self) -> Cost:
        """Return the cost of the whole run so far."""
        sums = {unit: int(counts.sum()) for unit, counts in self._owned.items()}
        return Cost(**{**sums, "model_calls": self._calls}, seconds=time.perf_counter() - self._start)

    def of(self, owner: int) -> Cost:
        """Return the cost of one problem; ``model_calls`` are those it took part in, ``seconds`` the run's."""
        mine = {unit: int(counts[owner]) for unit, counts in self._owned.items()}
        return replace(Cost(**mine), seconds=time.perf_counter() - self._start)


class _Account(NamedTuple):
    """Where charges go: to a ledger, and to the account of the run that this one is inside of, if any.

    ``rows`` are the owners, in the ledger, of the rows of the call in progress. Owner j is row j of the call of the
    run outside, in which this one is made.
    """

    ledger: Ledger
    rows: NDArray[np.intp]
    outer: _Account | None


_account: ContextVar[_Account | None] = ContextVar("feynkac_account", default=None)
"""A context variable, so that what an asynchronous function of `call` spends on another thread is counted, too."""

_FIRST = np.zeros(1, np.intp)


def _pick(rows: NDArray[np.intp], index: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return some rows; where a call has fewer (one, outside a wave), the last owns the others."""
    return rows[np.minimum(index, len(rows) - 1)]


@contextmanager
def recording(ledger: Ledger) -> Iterator[Ledger]:
    """Send every `charge` made in the block to ``ledger``, and on to the ledger of the run around it, if any.

    >>> with recording(Ledger()) as ledger:
    ...     charge(model_calls=1, tokens_in=7)
    >>> ledger.total().tokens_in
    7
    """
    token = _account.set(_Account(ledger, _FIRST, _account.get()))
    try:
        yield ledger
    finally:
        _account.reset(token)


def recorded() -> bool:
    """Return whether there is a run that charges go to."""
    return _account.get() is not None


def seconds_left() -> float | None:
    """Return how long the runs in progress may wait; None is any time."""
    account, left = _account.get(), math.inf
    while account is not None:
        left = min(left, account.ledger.left)
        account = account.outer
    return None if left == math.inf else max(0.0, left)


def assign(owners: Sequence[int] | NDArray[np.intp]) -> None:
    """Say to whom the rows of the next call belong: their owners in the ledger of the run in progress, if any."""
    account = _account.get()
    if account is not None:
        _account.set(account._replace(rows=np.asarray(owners, np.intp)))


@contextmanager
def rows(index: Sequence[int]) -> Iterator[None]:
    """Within the block, row i of a call belongs to the owner of what was row ``index[i]`` outside it."""
    account = _account.get()
    if account is None:
        yield
        return
    token = _account.set(account._replace(rows=_pick(account.rows, np.asarray(index, np.intp))))
    try:
        yield
    finally:
        _account.reset(token)


def charge(**amounts: ArrayLike) -> None:
    """Report what a call used: units of `Cost` by name, one number, or one per row of the batch.

    A kernel, a reward or a function of `call` of one's own calls it where it does the work, so that the costs that a
    posterior reports, and budgets, know of it. Outside a run it does nothing.

    Raises ValueError for a unit that `Cost` has not got.

    >>> import feynkac as fk
    >>> def look_up(query):
    ...     fk.charge(model_calls=1, tokens_in=len(query.split()))
    ...     return "found"
    >>> @fk.program
    ... async def search():
    ...     return await fk.call("search", look_up, "two words")
    >>> fk.infer(search(), fk.ImportanceSampling(5), seed=0).cost.tokens_in
    10
    """
    account = _account.get()
    if account is None:
        return
    if not amounts.keys() <= _UNITS:
        raise ValueError(f"charge knows {', '.join(UNITS)}, and not {', '.join(sorted(amounts.keys() - _UNITS))}")
    owners = account.rows
    while True:
        for unit, amount in amounts.items():
            account.ledger.add(unit, amount, owners)
        if account.outer is None:
            return
        owners, account = _pick(account.outer.rows, owners), account.outer

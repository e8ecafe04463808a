"""The laws of a potential, as assertions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .vocabulary import Vocabulary

Context = tuple[int, ...]
Floats = NDArray[np.float64]
END = -1
"""The end, where a token is asked for."""
_FEW = 64


class Weighing(Protocol):
    """What the laws are about: see `Potential`, which states them."""

    vocabulary: Vocabulary

    def prefix(self, context: Context) -> float:
        """Return the log-weight of a sequence that may go on."""

    def complete(self, context: Context) -> float:
        """Return the log-weight of a sequence that ends here."""

    def logw_next(self, context: Context) -> Floats:
        """Return the log-weights of what may follow, (V+1,)."""

    def logw_token_batch(self, contexts: Sequence[Context], tokens: Sequence[int]) -> Floats:
        """Return the entry of `logw_next` for one token of each context, (n,)."""


def check_laws(
    potential: Weighing, contexts: Sequence[Context], tokens: Sequence[int] | None = None, atol: float = 1e-6
) -> None:
    """Assert that a potential keeps its contract at some contexts.

    Every number is a log-weight (no NaN, no +inf); ``logw_next`` has shape (V+1,), and is prefix(c·x) − prefix(c) for
    each token x and complete(c) − prefix(c) for the end; what has the prefix −inf stays there; the batch versions
    and `logw_token_batch` agree with the single ones, whatever else is in the batch.

    Args:
        potential: what is checked.
        contexts: where; take some that are viable, some that may end and some that are dead.
        tokens: the tokens to check after each context; by default all, or 64 of them, some allowed ones first, where
            there are more than 512.
        atol: how far numbers may be apart.

    Raises AssertionError, naming the context and the token.
    """
    size = potential.vocabulary.size
    for context in contexts:
        before, end = potential.prefix(context), potential.complete(context)
        row = np.asarray(potential.logw_next(context))
        _require(row.shape == (size + 1,), potential, context, f"logw_next has shape {row.shape}, not ({size + 1},)")
        for what, numbers in (("prefix", before), ("complete", end), ("logw_next", row)):
            bad = ~(np.asarray(numbers) < math.inf)
            _require(not bad.any(), potential, context, f"{what} is NaN or +inf{_where(bad)}")
        if before == -math.inf:
            _require(end == -math.inf, potential, context, f"prefix is -inf, but complete is {end}")
            alive = row > -math.inf
            _require(not alive.any(), potential, context, f"prefix is -inf, but logw_next is not{_where(alive)}")
        chosen = _few(row) if tokens is None else tokens
        for token in [*chosen, END]:
            _check_token(potential, context, token, before, row, atol)
    _check_batches(potential, contexts, atol)


def _check_token(potential: Weighing, context: Context, token: int, before: float, row: Any, atol: float) -> None:
    after = potential.complete(context) if token == END else potential.prefix((*context, token))
    what = "complete(context)" if token == END else "prefix(context + token)"
    if before == -math.inf:
        _require(after == -math.inf, potential, context, f"prefix is -inf, but {what} is {after}", token)
        return
    wanted, said = after - before, float(row[token])
    _require(
        _equal(wanted, said, atol), potential, context,
        f"logw_next says {said}, but {what} - prefix(context) is {wanted}", token,
    )  # fmt: skip
    one = float(potential.logw_token_batch([context], [token])[0])
    _require(_equal(wanted, one, atol), potential, context, f"logw_token_batch says {one}, not {wanted}", token)


def _check_batches(potential: Weighing, contexts: Sequence[Context], atol: float) -> None:
    for name in ("prefix", "complete", "logw_next"):
        batch = np.asarray(getattr(potential, f"{name}_batch")(contexts))
        for i, context in enumerate(contexts):
            one = np.asarray(getattr(potential, name)(context))
            same = batch.shape[:1] == (len(contexts),) and batch[i].shape == one.shape
            _require(same, potential, context, f"{name}_batch has shape {batch.shape} for {len(contexts)} contexts")
            apart = ~np.isclose(batch[i], one, rtol=0.0, atol=atol)
            _require(not apart.any(), potential, context, f"{name}_batch differs from {name}{_where(apart)}")


def _few(row: Any) -> list[int]:
    """Return the tokens to look at: allowed ones first, then others."""
    size = len(row) - 1
    alive = np.flatnonzero(row[:-1] > -math.inf)
    order = np.concatenate([alive[:: max(1, len(alive) // (_FEW // 2))][: _FEW // 2], np.arange(size)])
    few: list[int] = list(dict.fromkeys(order.tolist()))
    return few if size <= 8 * _FEW else few[:_FEW]


def _equal(a: float, b: float, atol: float) -> bool:
    return a == b or abs(a - b) <= atol


def _where(bad: Any) -> str:
    index = np.flatnonzero(np.atleast_1d(bad))
    return f" at entry {int(index[0])}" if np.ndim(bad) and len(index) else ""


def _require(ok: Any, potential: Weighing, context: Context, message: str, token: int | None = None) -> None:
    if not ok:
        at = "" if token is None else ", the end" if token == END else f", token {token}"
        raise AssertionError(f"{potential!r}: context {context}{at}: {message}")

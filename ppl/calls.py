"""`fk.call`: ordinary, batched and asynchronous functions, served together for a whole wave."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .cost import rows
from .score import Score, evaluate

if TYPE_CHECKING:
    import asyncio


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    """The background event loop, started when an asynchronous function is first called."""
    import asyncio  # here, since it would double the time that importing feynkac takes

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="feynkac-calls", daemon=True).start()
    return loop


def evaluate_calls(calls: Sequence[tuple[Any, tuple[Any, ...]]]) -> list[Any]:
    """Evaluate ``fn(*args)`` for each call.

    Calls of one `batched` function share a call, all scores are evaluated together, and all asynchronous
    functions run side by side. An exception gets the attribute ``index``, the position of the call that failed.
    """
    results: list[Any] = [None] * len(calls)
    batched: dict[int, list[int]] = {}
    scores: dict[int, Score] = {}
    waiting: dict[int, Any] = {}
    for i, (fn, args) in enumerate(calls):
        if getattr(fn, "batched", False) and not hasattr(fn, "score_batch"):
            batched.setdefault(id(fn), []).append(i)
            continue
        try:
            value = fn if isinstance(fn, Score) else fn(*args)
        except Exception as error:
            error.index = i  # type: ignore[attr-defined]
            raise
        if isinstance(value, Score):
            scores[i] = value
        elif inspect.isawaitable(value):
            waiting[i] = value
        else:
            results[i] = value
    for places in batched.values():
        fn = calls[places[0]][0]
        inputs = [calls[i][1] for i in places]
        values = list(fn([args[0] if len(args) == 1 else args for args in inputs]))
        if len(values) != len(places):
            raise ValueError(f"batched function {fn.__name__!r} got {len(places)} inputs, returned {len(values)}")
        for i, value in zip(places, values):
            results[i] = value
    with rows(list(scores)):
        for i, value in zip(scores, evaluate(list(scores.values()))):
            results[i] = value
    if waiting:
        for i, value in zip(waiting, _run_all(list(waiting.values()))):
            if isinstance(value, BaseException):
                value.index = i  # type: ignore[attr-defined]
                raise value
            results[i] = value
    return results


def _run_all(awaitables: list[Any]) -> list[Any]:
    import asyncio

    async def together() -> list[Any]:
        return await asyncio.gather(*awaitables, return_exceptions=True)

    future = asyncio.run_coroutine_threadsafe(together(), _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()  # an interrupt must not leave requests running
        raise

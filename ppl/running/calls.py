"""`fk.call`: ordinary, batched and asynchronous functions, served together for a whole wave."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from ..cost import OutOfTime, rows, seconds_left
from ..errors import JournalError
from ..score import Score, evaluate
from ..values.recording import Unkept, form_of, served
from .fibers import Failed

if TYPE_CHECKING:
    import asyncio


class Pending:
    """A value to be: a batched function of one item, computed for a whole wave when a program awaits it in `call`.

    What a model gives inside a program where it would give a value outside one.
    """

    __slots__ = ("fingerprint", "fn", "item", "name", "source")

    def __init__(
        self, name: str, fn: Callable[[list[Any]], Sequence[Any]], item: Any, fingerprint: Hashable, source: Any
    ) -> None:
        self.name = name
        self.fn = fn
        self.item = item
        self.fingerprint = fingerprint
        self.source = source
        """The model that the value is of: with the item, it decides the value."""

    def __repr__(self) -> str:
        return f"<{self.name}, not computed yet>"

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"{self!r}: inside a program it is computed for all particles at once, await fk.call(name, …)")

    __array__ = __getitem__ = __iter__ = __len__ = __float__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __neg__ = _refuse

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self!r} has no {name!r} yet: await fk.call(name, …) gives the value")


Called = tuple[Any, tuple[Any, ...]]
"""A function, or a value that is to be computed, and its arguments."""


def recorded_calls(calls: Sequence[Called], keys: Sequence[int]) -> list[Any]:
    """Evaluate those calls that a journal does not know; ``keys`` are those of the sites that they are made at.

    What models say of their texts is known whoever asks; a function may be random, and answers a particle at a site.
    Scores are known as such, and what a function raises is not kept.
    """
    forms = [_form(fn, args, key) for (fn, args), key in zip(calls, keys)]
    free = [i for i, (fn, _) in enumerate(calls) if isinstance(fn, Score) or hasattr(fn, "score_batch")]
    asked = [i for i in range(len(calls)) if i not in free]
    results: list[Any] = [None] * len(calls)
    if asked:

        def make(places: list[int]) -> list[Any]:
            made = evaluate_calls([calls[asked[place]] for place in places])
            return [Unkept(one) if type(one) is Failed else one for one in made]

        with rows(asked):
            for i, value in zip(asked, served("call", [forms[i] for i in asked], make, asked)):
                results[i] = value
    if free:
        with rows(free):
            for i, value in zip(free, evaluate_calls([calls[i] for i in free])):
                results[i] = value
    return results


def _form(fn: Any, args: tuple[Any, ...], key: int) -> Any:
    """Return what a call's answer depends on."""
    if isinstance(fn, Score) or hasattr(fn, "score_batch"):
        return None
    if isinstance(fn, Pending):
        return form_of((fn.source, fn.item), f"what is read as {fn.name}")
    return form_of((fn, args, key), f"answers of {getattr(fn, '__qualname__', None) or repr(fn)}")


def evaluate_calls(calls: Sequence[Called]) -> list[Any]:
    """Evaluate ``fn(*args)`` for each call; what a call raises becomes its result, wrapped in `Failed`.

    Calls of one `batched` function share a call, all scores are evaluated together, and all asynchronous
    functions run side by side.
    """
    results: list[Any] = [None] * len(calls)
    batched: dict[Any, list[int]] = {}
    calls = [(fn.fn, (fn.item,)) if isinstance(fn, Pending) else (fn, args) for fn, args in calls]
    for i, (fn, args) in enumerate(calls):
        if getattr(fn, "batched", False) and not hasattr(fn, "score_batch"):
            batched.setdefault(fn, []).append(i)
        elif isinstance(fn, Score):
            results[i] = fn
        else:
            with rows([i]):  # whose cost it is
                results[i] = _attempt(fn, args)
    for fn, places in batched.items():
        with rows(places):
            values = _batch(fn, [calls[i][1] for i in places])
        for i, value in zip(places, values):
            results[i] = value
    waiting = [i for i, value in enumerate(results) if inspect.isawaitable(value)]
    if waiting:
        for i, value in zip(waiting, _run_all([results[i] for i in waiting], [[i] for i in waiting])):
            results[i] = value
    scores = [i for i, value in enumerate(results) if isinstance(value, Score)]
    if scores:
        with rows(scores):
            numbers = _attempt(evaluate, ([results[i] for i in scores],))
        for place, i in enumerate(scores):
            # One bad score spoils the batch; then each is evaluated for itself, so that only the bad ones fail.
            results[i] = numbers[place] if type(numbers) is list else _alone(results[i], i)
    return results


def _alone(score: Score, i: int) -> Any:
    with rows([i]):
        value = _attempt(evaluate, ([score],))
    return value if type(value) is Failed else value[0]


def _attempt(fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    try:
        return fn(*args)
    except JournalError:
        raise  # it is not the function's
    except Exception as error:
        return Failed(error)


def _batch(fn: Callable[..., Any], inputs: list[tuple[Any, ...]]) -> list[Any]:
    values = _attempt(fn, ([args[0] if len(args) == 1 else args for args in inputs],))
    if inspect.isawaitable(values):
        (values,) = _run_all([values], [range(len(inputs))])
    if type(values) is Failed:
        return [values] * len(inputs)
    values = list(values)
    if len(values) != len(inputs):
        name = getattr(fn, "__name__", "?")
        raise ValueError(f"batched function {name!r} got {len(inputs)} inputs and returned {len(values)} values")
    return values


@cache
def background(name: str) -> asyncio.AbstractEventLoop:
    """Return the event loop of that name, which runs on a thread of its own from when it is first asked for."""
    import asyncio  # here, since it would add much to the time that importing feynkac takes

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=f"feynkac-{name}", daemon=True).start()
    return loop


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=background.cache_clear)  # the threads of the loops stay with the parent

_depth: ContextVar[int] = ContextVar("feynkac_depth", default=0)
"""How many calls the code that now runs is inside of. An asynchronous function may run inference, whose own calls need
another loop: the one that it is on waits for it."""


def _run_all(awaitables: list[Any], places: Sequence[Sequence[int]]) -> list[Any]:
    """Run awaitables side by side; ``places[i]`` are the rows whose cost is what the i-th spends."""
    import asyncio

    async def settle(awaitable: Any, place: Sequence[int]) -> Any:
        try:
            with rows(place):
                return await awaitable
        except Exception as error:
            return Failed(error)
        except asyncio.CancelledError:
            return Failed(RuntimeError("the call was cancelled"))

    async def together() -> list[Any]:
        _depth.set(depth + 1)
        return await asyncio.gather(*map(settle, awaitables, places))

    depth = _depth.get()
    future = asyncio.run_coroutine_threadsafe(together(), background(f"calls-{depth}"))
    try:
        return future.result(seconds_left())
    except TimeoutError:
        future.cancel()
        raise OutOfTime from None
    except BaseException:
        future.cancel()  # an interrupt must not leave requests running
        raise

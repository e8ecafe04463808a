"""The cyclic garbage collector rests while waves run.

A wave makes many small long-lived objects, which set it off again and again to find nothing; that would be half of the
time of a light program. It is one for all threads: the wave that put it off puts it on again as it ends, that it may
work between the steps of one thread while another's go on.

What a run keeps of its particles makes it walk through all that there is, torch included, each time that this has grown
by a quarter, and find nothing: a fifth of the time of a light program. Within a run it does so less often, and it looks
through what is young only when that is much more than the particles of a wave leave behind.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock, local
from typing import ClassVar
from weakref import WeakSet

_PATIENCE = 8
"""How many times as long it is between two walks through everything while there are runs."""
_YOUNG = 200
"""How many young objects there may be for each particle of a run before the collector looks through them."""
_MOST_YOUNG = 200_000
"""How many there may be in all."""


class _Mine(local):
    """Whether it was this thread that put the collector off."""

    off = False


_mine = _Mine()


def resting() -> bool:
    """Return whether this thread has put the collector off."""
    return _mine.off


def rest() -> None:
    """Begin a wave."""
    if gc.isenabled():
        _mine.off = True
        gc.disable()


def wake() -> None:
    """End the wave that put the collector off; it may be said twice, where Ctrl-C cut in."""
    if _mine.off:
        gc.enable()
        _mine.off = False


class _Run:
    """A run, for as long as its frame lives."""

    __slots__ = ("__weakref__",)


class _Alone:
    """A lock that Ctrl-C may leave held, where it comes as a section ends: the thread's next section lets go of it."""

    def __init__(self) -> None:
        self._lock = RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError):  # it is let go of as often as it is held
            while True:
                self._lock.release()


class _Runs:
    """The runs of all threads, and the collector's thresholds as they were before, and as they are meanwhile."""

    lock = _Alone()
    live: ClassVar[WeakSet[_Run]] = WeakSet()
    before = gc.get_threshold()
    meanwhile: tuple[int, int, int] | None = None


@contextmanager
def patience(particles: int = 1) -> Iterator[None]:
    """Within the block, which is a run of so many particles, the collector looks through what there is less often.

    Most of what is young, the particles of the wave before, is gone by itself when it does. Where Ctrl-C cuts into the
    end of the last run, the thresholds are put back at the end of the next.
    """
    run = _Run()
    with _Runs.lock:
        if not _Runs.live and gc.get_threshold() != _Runs.meanwhile:
            _Runs.before = young, middle, old = gc.get_threshold()
            most = max(young, min(_YOUNG * particles, _MOST_YOUNG)) if young else 0  # 0: somebody has put it off
            _Runs.meanwhile = most, middle, _PATIENCE * old
            gc.set_threshold(*_Runs.meanwhile)
        _Runs.live.add(run)
    try:
        yield
    finally:
        with _Runs.lock:
            _Runs.live.discard(run)
            if not _Runs.live:
                gc.set_threshold(*_Runs.before)

"""The cyclic garbage collector rests while waves run.

A wave makes many small long-lived objects, which set it off again and again to find nothing; that would be half of the
time of a light program. It is one for all threads: the wave that put it off puts it on again as it ends, that it may
work between the steps of one thread while another's go on.

What a run keeps of its particles makes it walk through all that there is, torch included, each time that this has grown
by a quarter, and find nothing: a fifth of the time of a light program. Within a run it does so less often.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, local

_PATIENCE = 8
"""How many times as long it is between two walks through everything while there are runs."""


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


class _Runs:
    """The runs of all threads, and the collector's thresholds as they were before."""

    lock = Lock()
    count = 0
    before = gc.get_threshold()


@contextmanager
def patience() -> Iterator[None]:
    """Within the block, which is a run, the collector looks through what has been there for long less often.

    What is young, and has most of the garbage, it looks through as ever.
    """
    with _Runs.lock:
        _Runs.count += 1
        if _Runs.count == 1:
            _Runs.before = young, middle, old = gc.get_threshold()
            gc.set_threshold(young, middle, _PATIENCE * old)
    try:
        yield
    finally:
        with _Runs.lock:
            _Runs.count -= 1
            if not _Runs.count:
                gc.set_threshold(*_Runs.before)

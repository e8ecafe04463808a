"""The cyclic garbage collector rests while waves run.

A wave makes many small long-lived objects, which set it off again and again to find nothing; that would be half of the
time of a light program. It is one for all threads, so the first of the waves that run notes whether it was on, and each
outermost wave puts it on again as it ends, that it may work between the steps of one thread while another's go on.
"""

from __future__ import annotations

import gc
from threading import Lock, local


class _Mine(local):
    """How many waves this thread is in."""

    depth = 0


_mine = _Mine()
_lock = Lock()
_outermost = 0
_was_on = False


def rest() -> None:
    """Begin a wave."""
    global _outermost, _was_on
    _mine.depth += 1
    if _mine.depth == 1:
        with _lock:
            if not _outermost:
                _was_on = gc.isenabled()
            _outermost += 1
            gc.disable()


def wake() -> None:
    """End a wave."""
    global _outermost
    _mine.depth -= 1
    if not _mine.depth:
        with _lock:
            _outermost -= 1
            if _was_on:
                gc.enable()

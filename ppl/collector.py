"""The cyclic garbage collector rests while waves run.

A wave makes many small long-lived objects, which set it off again and again to find nothing; that would be half of the
time of a light program. It is one for all threads: the wave that put it off puts it on again as it ends, that it may
work between the steps of one thread while another's go on.
"""

from __future__ import annotations

import gc
from threading import local


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

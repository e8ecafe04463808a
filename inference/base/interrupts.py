"""Ctrl-C during a run: noted when it comes, since what it raises may be swallowed on its way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from weakref import WeakMethod

_watchers: list[WeakMethod[Callable[[], None]]] = []


def _handle(signum: int, frame: Any) -> NoReturn:
    for watcher in tuple(_watchers):
        note = watcher()
        if note is not None:
            note()
    raise KeyboardInterrupt


@contextmanager
def noticing(note: Callable[[], None]) -> Iterator[None]:
    """Within the block Ctrl-C calls ``note``, a method, and raises KeyboardInterrupt as ever.

    Python drops an exception that is raised in a ``__del__`` or in a callback of a library in C, and a program's bare
    ``except:`` may catch it. In other threads than the main one, and where somebody handles the signal in a way of
    their own, nothing is changed.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, _handle):
        yield
        return
    mine = WeakMethod(note)
    try:
        _watchers.append(mine)
        signal.signal(signal.SIGINT, _handle)
        yield
    finally:
        _watchers[:] = [watcher for watcher in _watchers if watcher is not mine and watcher() is not None]
        if not _watchers:
            signal.signal(signal.SIGINT, signal.default_int_handler)

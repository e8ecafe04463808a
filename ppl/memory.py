"""What rewards and models remember between waves, and when they forget it: memories and their epochs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any, Generic, TypeVar
from weakref import ref

from .values.memo import Memo

V = TypeVar("V")


class Epoch:
    """A time in which rewards and models remember; see `afresh`. Over once nobody holds it."""

    __slots__ = ("__weakref__", "number")
    _numbers = count(1)

    def __init__(self) -> None:
        self.number = next(Epoch._numbers)


_epoch: ContextVar[Epoch | None] = ContextVar("feynkac_epoch", default=None)


def current_epoch() -> Epoch | None:
    """Return the epoch in progress, of this thread or asynchronous task; None outside of all."""
    return _epoch.get()


def enter(epoch: Epoch) -> None:
    """Go on in an epoch, in the context of the caller."""
    _epoch.set(epoch)


def _epoch_number() -> int:
    epoch = _epoch.get()
    return 0 if epoch is None else epoch.number


class Recall:
    """Tells a model when to forget what it has in memory, where it cannot tell epochs apart in it."""

    def __init__(self, version: Hashable = None) -> None:
        self._newest = 0
        self._last: Any = None
        self._version = version
        self.lapsed(version)

    def lapsed(self, version: Hashable = None) -> bool:
        """Return whether what was remembered when this was last asked is to be forgotten.

        A new epoch knows nothing, nor does another ``version`` of the model, where it is told.
        Epochs may take turns (of runs on several threads, or of one that is left and taken up again), and would undo
        each other's work; so an older one is not refused what another has left that is not over.
        """
        now, last = _epoch.get(), None if self._last is None else self._last()
        over = self._last is not None and last is None
        forget = over or (now is not last and _epoch_number() > self._newest) or version != self._version
        self._version = version
        self._newest = max(self._newest, _epoch_number())
        self._last = None if now is None else ref(now)
        return forget


class Memory(Generic[V]):
    """A bounded map from a reward's arguments to its result, least recently used out first. A copy is empty.

    What was remembered in one `version` of what computes it, or in one epoch (see `afresh`), is unknown in another.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._known = Memo[Hashable, V](size)

    def __reduce__(self) -> Any:
        return type(self), (self.size,)

    def get(self, key: Hashable, version: Hashable = None) -> V | None:
        """Return the known result, or None."""
        return self._known.get((_epoch_number(), version, key))

    def put(self, key: Hashable, value: V, version: Hashable = None) -> None:
        """Remember a result, and nothing of what the arguments hold in a model's memory."""
        if self.size > 0:
            self._known[_epoch_number(), version, _detached(key)] = value


@contextmanager
def afresh() -> Iterator[None]:
    """Within the block no reward knows what was scored outside it, and no language model what it had forwarded.

    What the block leaves is forgotten in turn, and other threads know nothing of it. Each call of `infer` is a block of
    its own, so that the same run costs the same each time; those within one block share what they find:

        with fk.afresh():
            first = fk.infer(model, fk.SMC(32), seed=0)
            again = fk.infer(model, fk.SMC(32), seed=0)     # scores nothing, and forwards little

    >>> from feynkac.ppl.score import reward
    >>> @reward()
    ... def length(text):
    ...     return len(text)
    >>> length.memory.put("abc", 3.0)
    >>> with afresh():
    ...     length.memory.get("abc")
    >>> length.memory.get("abc")
    3.0
    """
    token = _epoch.set(Epoch())
    try:
        yield
    finally:
        _epoch.reset(token)


def _detached(key: Any) -> Hashable:
    if isinstance(key, tuple):
        return tuple(_detached(part) for part in key)
    light: Hashable = key.detach() if hasattr(key, "detach") and not isinstance(key, type) else key
    return light

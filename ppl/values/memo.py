"""A bounded map: least recently used out first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(Generic[K, V]):
    """A map of at most ``size`` entries.

    >>> memo = Memo[str, int](2)
    >>> memo["a"], memo["b"] = 1, 2
    >>> memo.get("a")
    1
    >>> memo["c"] = 3
    >>> memo.get("b") is None
    True
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._known: OrderedDict[K, V] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys there are now, the least recently used first."""
        with self._lock:
            return iter(list(self._known))

    def get(self, key: K) -> V | None:
        """Return the entry, or None."""
        with self._lock:
            value = self._known.get(key)
            if value is not None:
                self._known.move_to_end(key)
        return value

    def __setitem__(self, key: K, value: V) -> None:
        with self._lock:
            self._known[key] = value
            self._known.move_to_end(key)
            if len(self._known) > self.size:
                self._known.popitem(last=False)

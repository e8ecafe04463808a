"""Who may send to a server now: in order, no more at once than it is to have."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Lets requests through in order, while there are no more than ``most`` inside, and no more of their tokens.

    It belongs to one event loop. A request of more tokens than may be inside goes in alone.
    """

    def __init__(self, most: int, tokens: int | None) -> None:
        self._most, self._tokens = most, tokens
        self._inside = self._weight = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._shut = 0.0

    @asynccontextmanager
    async def through(self, weight: int) -> AsyncIterator[None]:
        """Within the block a request of ``weight`` tokens is inside."""
        place = asyncio.get_running_loop().create_future()
        self._waiting.append((place, weight))
        self._admit()
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                self._admit()
            else:  # it was let in at the same time
                self._leave(weight)
            raise
        try:
            yield
        finally:
            self._leave(weight)

    def shut(self, seconds: float) -> None:
        """Let nobody in for some time, as the server asked for."""
        loop = asyncio.get_running_loop()
        self._shut = max(self._shut, loop.time() + seconds)
        loop.call_at(self._shut, self._admit)

    def _leave(self, weight: int) -> None:
        self._inside -= 1
        self._weight -= weight
        self._admit()

    def _admit(self) -> None:
        if asyncio.get_running_loop().time() < self._shut:
            return
        while self._waiting and self._inside < self._most:
            place, weight = self._waiting[0]
            if not place.cancelled():
                if self._tokens is not None and self._inside and self._weight + weight > self._tokens:
                    return
                self._inside += 1
                self._weight += weight
                place.set_result(None)
            self._waiting.popleft()

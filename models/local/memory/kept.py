"""Results of forward passes that are kept within a number of bytes: logits, recurrent states, encoded prompts."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any
from weakref import ref

import torch

NOTHING: Mapping[int, Any] = MappingProxyType({})


@dataclass(frozen=True)
class CacheInfo:
    """What a model holds in memory between passes.

    Attributes:
        bytes: bytes of keys and values, states, encoded prompts and logits.
        peak_bytes: most bytes held at once so far; where parts have their own limits, the sum of their peaks.
        limit: the most that may be held: ``cache_bytes``, or what was decided where that is None; less after a pass
            has run out of the device's memory.
        slabs: batches of keys and values held, or of states.
        evictions: batches of these, or of logits, dropped so far (or never kept) because memory was short.
        forwarded: token positions forwarded so far.
        recomputed: those of them that had been forwarded before, and were dropped because memory was short.
        shortages: passes that ran out of the device's memory so far, and were made again in smaller ones.
        trunks: beginnings held once for several histories.
        shares: whether the model can be run so; where it cannot, each history has a copy of what it shares.
    """

    bytes: int
    peak_bytes: int
    limit: int
    slabs: int
    evictions: int
    forwarded: int
    recomputed: int
    shortages: int
    trunks: int = 0
    shares: bool = False

    def beside(self, kept: Kept) -> CacheInfo:
        """Return the same with what else is kept."""
        return replace(
            self, bytes=self.bytes + kept.bytes, peak_bytes=self.peak_bytes + kept.peak, limit=self.limit + kept.limit,
            evictions=self.evictions + kept.evictions,
        )  # fmt: skip


class Wave:
    """What one pass left: the next-token logits (n, V), and the states after it, until they are dropped.

    Attributes:
        logits: a tensor (n, V), or None.
        state: the states of the n histories, or None.
        hidden: hidden states of their last tokens, (n, d) by layer (see `Lens`).
        bytes: bytes held.
        lasting: whether it goes last when memory is short, as a long prompt would have to be computed again.
    """

    __slots__ = ("__weakref__", "bytes", "hidden", "lasting", "logits", "state")

    def __init__(
        self,
        logits: Any,
        state: Any = None,
        state_bytes: int = 0,
        lasting: bool = False,
        hidden: Mapping[int, Any] = NOTHING,
    ) -> None:
        if logits is not None and logits.untyped_storage().nbytes() > logits.nbytes:
            logits = logits.clone()  # a view would hold the logits at all other positions too
        self.logits = logits
        self.state = state
        self.hidden = hidden
        self.bytes: int = state_bytes + (0 if logits is None else logits.nbytes)
        self.bytes += sum(tensor.nbytes for tensor in hidden.values())
        self.lasting = lasting

    def forget(self) -> None:
        """Let go of all."""
        self.logits = self.state = None
        self.hidden = NOTHING


class Kept:
    """The waves that some node needs, in at most ``limit`` bytes: the least recently used go first.

    One thread at a time may use it; a wave's last node may end in any.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.peak = 0
        self.evictions = 0
        self._bytes = 0
        self._waves: OrderedDict[int, tuple[ref[Wave], int]] = OrderedDict()
        self._gone: deque[tuple[int, ref[Wave]]] = deque()

    def __len__(self) -> int:
        self._settle()
        return len(self._waves)

    @property
    def bytes(self) -> int:
        """Bytes held."""
        self._settle()
        return self._bytes

    def _settle(self) -> None:
        """Take the waves off the account that ended since."""
        while self._gone:
            key, ended = self._gone.popleft()
            if key in self._waves and self._waves[key][0] is ended:
                self._bytes -= self._waves.pop(key)[1]

    def keep(self, wave: Wave) -> bool:
        """Hold a wave while a node needs it. Returns whether there is room; if not, it is dropped at once."""
        if not self.make_room(wave.bytes):
            self.drop(wave)
            return False
        key, gone = id(wave), self._gone  # what is not `self` does not keep it alive
        self._waves[key] = ref(wave, lambda ended: gone.append((key, ended))), wave.bytes
        self._bytes += wave.bytes
        self.peak = max(self.peak, self._bytes)
        return True

    def touch(self, wave: Wave) -> None:
        """Note that a wave was used."""
        self._waves.move_to_end(id(wave))

    def make_room(self, wanted: int, but: Callable[[Wave], bool] = lambda wave: False) -> bool:
        """Drop waves until ``wanted`` bytes are free, none that ``but`` names. Returns whether they are."""
        if self.bytes + wanted <= self.limit:
            return True
        held = [wave for kept, _ in list(self._waves.values()) if (wave := kept()) is not None and not but(wave)]
        if self.bytes + wanted - sum(wave.bytes for wave in held) > self.limit:
            return False
        for wave in sorted(held, key=lambda wave: wave.lasting):
            if self.bytes + wanted <= self.limit:
                break
            self.drop(wave)
        return True

    def clear(self) -> None:
        """Forget all waves."""
        for kept, _ in list(self._waves.values()):  # what a wave lets go of may end others
            if (wave := kept()) is not None:
                wave.forget()
        self._waves.clear()
        self._bytes = 0

    def drop(self, wave: Wave) -> None:
        """Forget a wave; what it held is computed again when it is needed."""
        if self._waves.pop(id(wave), None) is not None:
            self._bytes -= wave.bytes
        self.evictions += 1
        wave.forget()


def gather(places: Sequence[tuple[Any, int]]) -> Any:
    """Stack rows of tensors, (n, V), with one copy at most."""
    first = places[0][0]
    if all(tensor is first for tensor, _ in places):
        rows = [row for _, row in places]
        if rows == list(range(len(first))):
            return first
        return first[torch.tensor(rows, device=first.device)]
    return torch.stack([tensor[row] for tensor, row in places])

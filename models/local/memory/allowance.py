"""The most bytes that a model may hold between passes: as given, or as its device allows."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any
from weakref import WeakSet

from ..weights.wrappers import core
from .shortage import share

_adding = Lock()


class Allowance:
    """A limit of bytes: the one given, or, of None, a share of what is free on the model's device when first needed.

    By then the weights are there. What other models of the device were allowed in this way and do not hold yet is
    theirs, so that those that come later get less (see `memory.share`). The limit of a model on several devices, each
    with some of its layers, is what each allows as long as all hold equally much. It stays as it was decided, unless
    the model moves, or a pass runs out of memory.

    Attributes:
        limit: the limit; None until it is decided.
    """

    def __init__(self, model: Any, given: int | None, held: Callable[[], int]) -> None:
        self.limit = given
        self._model = model
        self._given = given
        self._held = held
        if given is None:
            with _adding:
                _shared.add(self)

    def decide(self) -> int:
        """Return the limit, once and for all. The caller holds the model's device."""
        if self.limit is None:
            self.limit = self._share()
        return self.limit

    def reopen(self) -> None:
        """Decide again, as the model has moved or is of another type."""
        self.limit = self._given

    def lower(self) -> int:
        """Return a lower limit, as a pass ran out of memory: by a quarter, and no more than there is room for now."""
        self.limit = min(3 * self.decide() // 4, self._held() + self._share())
        return self.limit

    def _share(self) -> int:
        lead, *more = self._devices()
        with _adding:
            others = [other for other in _shared if other is not self and other.limit and other._devices()[0] == lead]
        promised = sum(max(0, (other.limit or 0) - other._held()) for other in others)
        return min(share(device, promised // (1 + len(more))) for device in (lead, *more)) * (1 + len(more))

    def _devices(self) -> list[Any]:
        """Where the model computes, its first layers' device first: offloaded weights are brought there."""
        found = list(dict.fromkeys(parameter.device for parameter in core(self._model).parameters()))
        return [device for device in found if device.type not in ("cpu", "meta")] or [found[0]]


_shared: WeakSet[Allowance] = WeakSet()
"""Those whose limit is a share of what is free."""

"""What posteriors and budgets say together: curves, saturation, cost models, allocation, closed forms."""

from __future__ import annotations

import sys
from typing import Any

from ...ppl.cards import Card
from ...ppl.cards import index as _index
from ...ppl.lazy import find

__all__: list[str] = ["index"]

_HOME: dict[str, str] = {}


def index() -> tuple[Card, ...]:
    """Return the index cards of what is here: paper, promise, engines, and what was measured, see `Card`."""
    return _index(sys.modules[__name__], "fk.scaling")


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "plots")


def __dir__() -> list[str]:
    return list(__all__)

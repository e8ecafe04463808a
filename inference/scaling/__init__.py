"""What posteriors and budgets say together: curves, saturation, cost models, allocation, closed forms."""

from __future__ import annotations

from typing import Any

from ...ppl.lazy import find

__all__: list[str] = []

_HOME: dict[str, str] = {}


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "plots")


def __dir__() -> list[str]:
    return list(__all__)

"""Engines and settings chosen by trying them: bandits and Bayesian optimisation."""

from __future__ import annotations

from typing import Any

from ...ppl.lazy import find

__all__: list[str] = []

_HOME: dict[str, str] = {}


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "tune")


def __dir__() -> list[str]:
    return list(__all__)

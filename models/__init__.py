"""Language models, their KV caches, and rewards. Heavy libraries are imported when a name is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .text import Text
from .thinking import think

if TYPE_CHECKING:
    from .rewards.judge import Judge
    from .sampling import Sampling
    from .transformers_lm import TransformersLM

__all__ = ["Judge", "Sampling", "Text", "TransformersLM", "think"]

_HOME = {"Judge": "rewards.judge", "Sampling": "sampling", "TransformersLM": "transformers_lm"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)

"""Language models, their KV caches, and rewards. Heavy libraries are imported when a name is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..ppl.lazy import find
from .text import Text
from .thinking import think

if TYPE_CHECKING:
    from .rewards.judge import Judge
    from .sampling import Sampling
    from .transformers_lm import TransformersLM

__all__ = ["Judge", "Sampling", "Text", "TransformersLM", "think"]

_HOME = {"Judge": "rewards.judge", "Sampling": "sampling", "TransformersLM": "transformers_lm"}


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "text")


def __dir__() -> list[str]:
    return list(__all__)

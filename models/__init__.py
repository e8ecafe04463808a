"""Language models, their KV caches, and rewards. Heavy libraries are imported when a name is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..ppl.lazy import find
from .language.stepping.thinking import think
from .language.texts.text import Text

if TYPE_CHECKING:
    from .images.generator import ImageTokens
    from .images.shipped import digit_tokens
    from .images.sources import ByScale, ByToken
    from .language.drawing.sampling import Sampling
    from .language.recorded_lm import RecordedLM
    from .local.transformers_lm import TransformersLM
    from .rewards.judges.judge import Judge
    from .served.chat_lm import ChatLM
    from .served.client import Client
    from .served.server_lm import ServerLM
    from .served.vllm import VLLM

__all__ = [
    "VLLM", "ByScale", "ByToken", "ChatLM", "Client", "ImageTokens", "Judge", "RecordedLM", "Sampling", "ServerLM",
    "Text", "TransformersLM", "digit_tokens", "think",
]  # fmt: skip

_HOME = {
    "ByScale": "images.sources",
    "ByToken": "images.sources",
    "ChatLM": "served.chat_lm",
    "Client": "served.client",
    "ImageTokens": "images.generator",
    "Judge": "rewards.judges.judge",
    "RecordedLM": "language.recorded_lm",
    "Sampling": "language.drawing.sampling",
    "ServerLM": "served.server_lm",
    "TransformersLM": "local.transformers_lm",
    "VLLM": "served.vllm",
    "digit_tokens": "images.shipped",
}


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "text")


def __dir__() -> list[str]:
    return list(__all__)

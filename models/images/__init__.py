"""Images as tokens: drawn by a language model one after another, or by a network by scales."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...ppl.lazy import find

if TYPE_CHECKING:
    from .adapters import image_model
    from .generator import ImageTokens
    from .kernels import begin, draw
    from .picture import Picture
    from .shipped import digit_class_log_probs, digit_lm, digit_tokens
    from .sources import ByScale, ByToken

_HOME = {
    "ByScale": "sources",
    "ByToken": "sources",
    "ImageTokens": "generator",
    "Picture": "picture",
    "begin": "kernels",
    "digit_class_log_probs": "shipped",
    "digit_lm": "shipped",
    "digit_tokens": "shipped",
    "draw": "kernels",
    "image_model": "adapters",
}

__all__ = [
    "ByScale",
    "ByToken",
    "ImageTokens",
    "Picture",
    "begin",
    "digit_class_log_probs",
    "digit_lm",
    "digit_tokens",
    "draw",
    "image_model",
]


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "text")


def __dir__() -> list[str]:
    return list(__all__)

"""Masks of histories of unequal lengths, made without asking the device whether they hide anything: they do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .attending import attending_by

_NAME = "feynkac_masked"


def maskable(configs: Sequence[Any]) -> list[Any]:
    """Return those of some configs by which a part of a model attends by sdpa."""
    return [config for config in configs if config._attn_implementation == "sdpa"]


@contextmanager
def masking(configs: Sequence[Any]) -> Iterator[None]:
    """Within the block a model with some configs, where it attends by sdpa, makes its masks by `known_mask`."""
    with attending_by(_NAME, maskable(configs)):
        yield


def known_mask(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
    """Return a mask for sdpa of what is padded, if anything is, see `transformers.masking_utils.sdpa_mask`.

    That waits for the device to find out whether the mask hides anything, and leaves it out if not.
    """
    if attention_mask is not None:
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(_NAME, sdpa_attention_forward)
AttentionMaskInterface.register(_NAME, known_mask)

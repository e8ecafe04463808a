"""Which forward passes a model needs: over keys and values, over recurrent states, or with an encoder."""

from __future__ import annotations

from typing import Any

from ..ppl.errors import Unsupported
from .attention import AttentionForwarder
from .encdec import EncoderDecoderForwarder
from .forward import Forwarder
from .recurrent import RecurrentForwarder
from .tree import Tree

_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def choose(model: Any, config: Any, tree: Tree, limit: int, max_batch: int) -> tuple[Forwarder, tuple[int, ...] | None]:
    """Return a model's forwarder, and the tokens that its decoder begins with if it has an encoder.

    Raises `Unsupported` for a model whose cache cannot be forked exactly.
    """
    if getattr(config, "is_encoder_decoder", False):
        start = _decoder_start(model)
        return EncoderDecoderForwarder(model, tree, limit, max_batch, config.vocab_size, start), start
    layers = set(getattr(config, "layer_types", None) or ())
    kind = RecurrentForwarder if getattr(model, "_is_stateful", False) or layers - _ATTENTION else AttentionForwarder
    return kind(model, tree, limit, max_batch, config.vocab_size), None


def contexts(config: Any) -> tuple[int | None, int | None]:
    """Return most tokens of a prompt and of a whole history (a decoder's, if it has an encoder); None is any."""
    most = getattr(config, "max_position_embeddings", None)
    if not getattr(config, "is_encoder_decoder", False):
        return most, most
    encoder = getattr(config, "max_encoder_position_embeddings", most)
    return encoder, getattr(config, "max_decoder_position_embeddings", most)


def _decoder_start(model: Any) -> tuple[int, ...]:
    """Return what ``generate`` of transformers has the decoder begin with."""
    settings = (getattr(model, "generation_config", None), model.config)

    def first(name: str) -> int | None:
        return next((value for source in settings if (value := getattr(source, name, None)) is not None), None)

    start, forced = first("decoder_start_token_id"), first("forced_bos_token_id")
    start = first("bos_token_id") if start is None else start
    if start is None:
        raise Unsupported(f"{type(model).__name__} has no decoder_start_token_id: set it in model.config")
    return (start,) if forced is None else (start, forced)

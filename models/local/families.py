"""Which forward passes a model needs: over keys and values, over recurrent states, or with an encoder."""

from __future__ import annotations

from typing import Any

from ...ppl.errors import Unsupported
from .memory.histories import Histories
from .passes.attention import AttentionForwarder
from .passes.encdec import EncoderDecoderForwarder
from .passes.forward import Forwarder
from .passes.recurrent import RecurrentForwarder
from .weights.wrappers import core, first_position

_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def choose(model: Any, tree: Histories, limit: int | None, max_batch: int) -> tuple[Forwarder, tuple[int, ...] | None]:
    """Return a model's forwarder, and the tokens that its decoder begins with if it has an encoder.

    A model that cannot be run over keys and values exactly is tried as a recurrent one, whose states are copied whole.

    Raises `Unsupported` for a model whose histories cannot be forked exactly.
    """
    config = text_config(model)
    limited = getattr(config, "expert_capacity", None) is not None
    if limited and getattr(config, "moe_eval_capacity_token_fraction", 0) < 1:
        raise Unsupported(
            f"the experts of {type(core(model)).__name__} take a limited number of a pass's tokens and drop the rest, "
            "so what a text gets depends on what else is in the pass: its log-probabilities are not defined"
        )
    prompts, most = contexts(model)
    shared = model, tree, limit, max_batch, config.vocab_size
    if core(model).config.is_encoder_decoder:
        start = _decoder_start(core(model))
        return EncoderDecoderForwarder(*shared, most, start, prompts), start
    layers = set(getattr(config, "layer_types", None) or ())
    if getattr(core(model), "_is_stateful", False) or layers - _ATTENTION:
        return RecurrentForwarder(*shared), None
    try:
        return AttentionForwarder(*shared, most), None
    except Unsupported as refusal:
        try:
            return RecurrentForwarder(*shared), None
        except Unsupported:
            raise refusal from refusal.__cause__


def text_config(model: Any) -> Any:
    """Return the settings of what reads and writes text (of the decoder, if there is an encoder)."""
    return core(model).config.get_text_config()


def contexts(model: Any) -> tuple[int | None, int | None]:
    """Return most tokens of a prompt and of a whole history (a decoder's, if it has an encoder); None is any."""
    inner = core(model)
    config = text_config(inner)
    if not inner.config.is_encoder_decoder:
        most = _most(config, inner, "max_position_embeddings", "max_target_positions", "max_seq_len")
        return most, most
    encoder = getattr(inner.config, "encoder", inner.config).get_text_config()
    return (
        _most(encoder, inner.get_encoder(), "max_encoder_position_embeddings", "max_position_embeddings"),
        _most(config, inner.get_decoder(), "max_decoder_position_embeddings", "max_position_embeddings"),
    )


def _most(config: Any, module: Any, *names: str) -> int | None:
    """Return the first of some settings that there is, less the positions that are not used; −1 says any."""
    most = next((most for name in names if (most := getattr(config, name, None)) is not None), -1)
    return None if most < 0 else most - first_position(module)


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

"""Models of transformers that draw images: Janus, and Emu3, with what they have beside their language model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from ...ppl.errors import Unsupported
from ..local.transformers_lm import TransformersLM
from .generator import ImageTokens
from .sources import ByToken


class _Heads(torch.nn.Module):  # type: ignore[misc]
    """The heads of text and of images side by side, over the tokens of both."""

    def __init__(self, text: Any, images: Any) -> None:
        super().__init__()
        self.text, self.images = text, images

    def forward(self, hidden: Any) -> Any:
        return torch.cat([self.text(hidden), self.images(hidden)], -1)


def joint(model: Any) -> Any:
    """Return the language model of a Janus with the tokens of images after those of text, in and out.

    Its weights are the model's own; what is new is the table of embeddings, which holds those of images as the aligner
    passes them on.
    """
    from transformers import AutoModelForCausalLM

    inner, text = model.model, model.config.text_config
    with torch.no_grad():
        seen = inner.generation_aligner(inner.generation_embeddings.weight)
        embeddings = torch.cat([inner.language_model.get_input_embeddings().weight, seen])
    config = copy.deepcopy(text)
    config.vocab_size, config.tie_word_embeddings = len(embeddings), False
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
    base = copy.copy(inner.language_model)
    base._modules = dict(base._modules)
    base.config = config
    base.set_input_embeddings(torch.nn.Embedding.from_pretrained(embeddings, freeze=True))
    setattr(whole, whole.base_model_prefix, base)
    whole.set_output_embeddings(_Heads(model.lm_head, inner.generation_head))
    return whole.eval()


def image_model(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    grid: tuple[int, int],
    *,
    unconditional: Sequence[int] | None = None,
    **settings: Any,
) -> ImageTokens:
    """Return a Janus or an Emu3 of transformers as a model of image tokens, its VQ decoder as ``decode``.

    Args:
        model: a ``JanusForConditionalGeneration`` or an ``Emu3ForConditionalGeneration``.
        tokenizer: its tokenizer.
        prompt: what the model reads before the first image token, as its processor makes it (it ends with what begins
            an image).
        grid: rows and columns of tokens; those of a Janus are as many as its decoder draws.
        unconditional: likewise for no condition, for guidance; a Janus' own is the prompt with padding in place of the
            words.
        settings: of `ImageTokens`.

    Values are images (channels, height, width), as the decoder makes them.

    Raises Unsupported for other models: of a Chameleon, transformers rules image tokens out and has no decoder.
    """
    kind = type(model).__name__
    alphabet: Sequence[int]
    ends: tuple[int, ...] = ()
    if kind == "JanusForConditionalGeneration":
        lm = TransformersLM(joint(model), tokenizer, packed=False)
        first = model.config.text_config.vocab_size
        alphabet = range(first, lm.vocab_size)

        def decode(tokens: Any) -> Any:
            return model.decode_image_tokens(tokens).permute(0, 3, 1, 2)

    elif kind == "Emu3ForConditionalGeneration":
        lm, names = TransformersLM(model, tokenizer, packed=False), model.model.vocabulary_mapping
        alphabet, ends = [names.img2bpe[i] for i in sorted(names.img2bpe)], (names.eol_token_id,)

        def decode(tokens: Any) -> Any:
            return model.model.vqmodel.decode(tokens.reshape(-1, *grid))

    else:
        raise Unsupported(
            f"images are drawn by a JanusForConditionalGeneration or an Emu3ForConditionalGeneration, not a {kind}: "
            "for another model whose vocabulary has image tokens, and whose logits do not rule them out, make "
            "ByToken(lm, prompt, grid, alphabet)"
        )
    none = None if unconditional is None else lm.prompt(list(unconditional))
    source = ByToken(lm, lm.prompt(list(prompt)), grid, alphabet, unconditional=none, row_end=ends)
    return ImageTokens(source, decode=decode, **settings)

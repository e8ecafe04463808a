"""The digits that are drawn as tokens, by a small language model that ships with the library."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import torch

from ...ppl.values.reals import is_index
from ..fetch.shelf import Shelf
from ..local.transformers_lm import TransformersLM
from .generator import ImageTokens
from .patches import LENGTH, PATTERNS, ROW, images_of, tokens_of
from .sources import ByToken

NAME = "digits_raster"
NONE = PATTERNS + 10
"""The token of no class; that of digit d is 16 + d."""


def record() -> dict[str, Any]:
    """Return what is on record of the digits' model: data, licence, training and quality.

    >>> record()["license"]
    'Apache-2.0'
    """
    return _shelf().record(NAME)


@cache
def digit_lm() -> TransformersLM:
    """Return the language model of `digit_tokens`: a GPT-2 of 155,008 parameters, of 16 patches and 11 classes.

    >>> digit_lm().vocab_size
    27
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(**record()["config"]))
    model.load_state_dict(_shelf().weights(NAME))
    return TransformersLM(model.requires_grad_(False).eval(), _tokenizer(), name=NAME, max_batch=256)


def digit_tokens(digit: int | None = None, *, guidance: float = 0.0, **settings: Any) -> ImageTokens:
    """Return a model of digits in black and white, 14×14 pixels, 49 tokens of 2×2 pixels, a row of 7 at a step.

    Args:
        digit: 0…9, or None for any.
        guidance: s, see `ImageTokens`; what is not of class ``digit`` is the law of all digits.
        settings: ``way``, ``temperature``, ``reward`` and ``scale`` of `ImageTokens`.

    Raises ValueError for a class that does not exist, or guidance without one; DamagedWeights where the file does not
    match its checksum.

    >>> import feynkac as fk
    >>> model = digit_tokens(7, reward=lambda images: -images.sum((1, 2)) / 10)
    >>> fk.infer(model, fk.SMC(4), seed=0).values[0].shape
    (14, 14)
    """
    if digit is not None and not is_index(digit, 10):
        raise ValueError(f"a digit is one of 0…9, not {digit!r}")
    if digit is None and guidance:
        raise ValueError("guidance needs a digit to guide to: digit_tokens(digit, guidance=…)")
    lm = digit_lm()
    prompt, none = lm.prompt([NONE if digit is None else PATTERNS + digit]), lm.prompt([NONE])
    source = ByToken(lm, prompt, (ROW, ROW), range(PATTERNS), unconditional=none)
    return ImageTokens(source, decode=images_of, guidance=guidance, **settings)


def digit_class_log_probs(images: Any) -> Any:
    """Return log p(c | image), an array (n, 10), for digits (n, 14, 14): by Bayes' rule, with all classes alike.

    It is exact for the model that draws them, which so is its own judge.

    >>> digit_class_log_probs(torch.zeros(3, 14, 14)).shape
    (3, 10)
    """
    tokens, model = tokens_of(images), digit_lm().model
    with torch.no_grad():
        each = []
        for digit in range(10):
            read = torch.cat([torch.full((len(tokens), 1), PATTERNS + digit), tokens[:, :-1]], 1)
            law = model(input_ids=read, use_cache=False).logits[..., :PATTERNS].double().log_softmax(-1)
            each.append(law.gather(-1, tokens[..., None]).reshape(-1, LENGTH).sum(-1))
    return torch.stack(each, 1).log_softmax(1).numpy()


def _tokenizer() -> Any:
    """Return what spells tokens: hexadecimal digits for patches, classes by name."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = [f"{i:x}" for i in range(PATTERNS)] + [f"<{digit}>" for digit in range(10)] + ["<none>"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<none>"))
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<none>")


def _shelf() -> Shelf:
    return Shelf(files(__package__) / "weights")

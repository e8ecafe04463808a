"""The task of the text workers: go on from a prompt, with a log-weight of −0.5 for each letter "e"."""

from __future__ import annotations

import random

PROMPT = "The weather report for the coming week says that we should expect lots of"
PENALTY = 0.5


def penalties(tokenizer) -> list[float]:
    """Log-weight of each token of a transformers tokenizer; special tokens show no text."""
    texts = (tokenizer.decode([i], skip_special_tokens=True) for i in range(len(tokenizer)))
    return [-PENALTY * text.count("e") for text in texts]


def prompt_of(tokenizer, length) -> list[int]:
    """A prompt of so many tokens: random ones, which texts cannot repeat, and then the usual prompt."""
    end = tokenizer(PROMPT).input_ids[-length:]
    ordinary = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    return [*random.Random(0).choices(ordinary, k=length - len(end)), *end]


def distinct(prompt, texts) -> int:
    """How many positions there are in texts after one prompt, if what they begin with is counted once."""
    return prompt + len({tuple(text[:k]) for text in texts for k in range(1, len(text) + 1)})


class Positions:
    """Counts the positions that a model of transformers forwards, padding included."""

    def __init__(self, model) -> None:
        self.forwarded = 0
        model.get_input_embeddings().register_forward_hook(self._count)

    def _count(self, module, inputs, output) -> None:
        self.forwarded += output.shape[0] * output.shape[1]


def held(cache) -> int:
    """How many positions a cache of transformers holds, in all its rows."""
    return cache.layers[0].keys.shape[0] * cache.layers[0].keys.shape[2]

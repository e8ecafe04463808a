"""The task of the text workers: go on from a prompt, with a log-weight of −0.5 for each letter "e"."""

from __future__ import annotations

PROMPT = "The weather report for the coming week says that we should expect lots of"
PENALTY = 0.5


def penalties(tokenizer) -> list[float]:
    """Log-weight of each token of a transformers tokenizer; special tokens show no text."""
    texts = (tokenizer.decode([i], skip_special_tokens=True) for i in range(len(tokenizer)))
    return [-PENALTY * text.count("e") for text in texts]

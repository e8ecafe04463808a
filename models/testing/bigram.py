"""A law of the next token that looks back one token, and how a server warps a law and draws from it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Bigram:
    """Random logits of the next token, given the last one.

    Args:
        size: of the vocabulary.
        support: the tokens that may be drawn, all by default. With a few of them, all texts of a few tokens can be
            counted up.
        seed: of the logits.
        scale: their standard deviation.

    >>> law = Bigram(300, support=(1, 40, 41))
    >>> np.flatnonzero(law((7,)) > -np.inf).tolist()
    [1, 40, 41]
    """

    def __init__(self, size: int, support: Collection[int] | None = None, *, seed: int = 0, scale: float = 1.0) -> None:
        drawn = np.random.default_rng(seed).normal(scale=scale, size=(size, size))
        self.logits: Floats = np.full((size, size), -math.inf)
        kept = np.arange(size) if support is None else np.array(sorted(support))
        self.logits[:, kept] = drawn[:, kept]

    def __call__(self, ids: Sequence[int]) -> Floats:
        """Return the logits (V,) of the token after some."""
        row: Floats = self.logits[ids[-1]]
        return row


def normalised(logits: Floats) -> Floats:
    """Return log-probabilities (V,)."""
    law: Floats = logits - np.logaddexp.reduce(logits)
    return law


def warped(logits: Floats, asked: dict[str, Any]) -> Floats:
    """Return the log-law (V,) that a request asks for, in the order of vLLM: allowed tokens, T, min-p, top-k, top-p."""
    law = np.array(logits, float)
    for token, bias in (asked.get("logit_bias") or {}).items():
        law[int(token)] += bias
    if asked.get("allowed_token_ids"):
        kept = np.zeros(len(law), bool)
        kept[asked["allowed_token_ids"]] = True
        law[~kept] = -math.inf
    if asked["temperature"] == 0:
        return normalised(law)
    law = normalised(law / asked["temperature"])
    if asked.get("min_p"):
        law[law < law.max() + math.log(asked["min_p"])] = -math.inf
    if 0 < (asked.get("top_k") or 0) < len(law):
        law[law < np.sort(law)[-asked["top_k"]]] = -math.inf
    if asked["top_p"] < 1:
        law = normalised(law)
        order = np.argsort(-law, kind="stable")
        mass = np.exp(law[order])
        law[order[mass.cumsum() - mass >= asked["top_p"]]] = -math.inf
    return normalised(law)


def drawn(law: Floats, greedy: bool, noise: np.random.Generator) -> int:
    """Return a token drawn from a log-law, or its best."""
    if greedy:
        return int(law.argmax())
    steps = np.exp(law).cumsum()
    return int(np.searchsorted(steps, noise.random() * steps[-1], side="right"))

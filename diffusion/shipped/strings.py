"""Strings of six letters whose law is known, and a small network that learned to fill in their masks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

LETTERS = "abcd"
LENGTH = 6
FIRST = (0.4, 0.3, 0.2, 0.1)
NEXT = ((0.1, 0.5, 0.3, 0.1), (0.4, 0.1, 0.1, 0.4), (0.25, 0.25, 0.4, 0.1), (0.1, 0.2, 0.3, 0.4))
CLOSED = 3.0
"""How much more probable a string is whose last letter is its first."""


def string_law() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return all strings, as tokens (4096, 6), and their probabilities: a Markov chain, three times where it closes.

    >>> strings, p = string_law()
    >>> round(float(p[strings[:, 0] == strings[:, -1]].sum()), 6)
    0.487996
    """
    strings = np.array(list(itertools.product(range(len(LETTERS)), repeat=LENGTH)))
    p = np.array(FIRST)[strings[:, 0]] * np.array(NEXT)[strings[:, :-1], strings[:, 1:]].prod(1)
    p *= np.where(strings[:, 0] == strings[:, -1], CLOSED, 1.0)
    return strings, p / p.sum()


class StringNet(torch.nn.Module):  # type: ignore[misc]
    """A residual network from tokens (n, 6), masks among them, to logits (n, 6, 5); the mask's own are never read."""

    def __init__(self, width: int = 192, blocks: int = 2) -> None:
        super().__init__()
        size = LENGTH * (len(LETTERS) + 1)
        self.enter = torch.nn.Linear(size, width)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(blocks))
        self.leave = torch.nn.Linear(width, LENGTH * len(LETTERS))

    def forward(self, tokens: Any, share: Any = None) -> Any:
        """Return the logits of the letters at each position."""
        hot = torch.nn.functional.one_hot(tokens, len(LETTERS) + 1).to(self.enter.weight.dtype)
        hidden = self.enter(hot.flatten(1))
        for block in self.blocks:
            hidden = hidden + torch.nn.functional.silu(block(torch.nn.functional.silu(hidden)))
        logits = self.leave(torch.nn.functional.silu(hidden)).reshape(-1, LENGTH, len(LETTERS))
        return torch.nn.functional.pad(logits, (0, 1))


def spelled(tokens: Any) -> list[str]:
    """Return tokens (n, 6) as strings; a mask is an underscore.

    >>> spelled(torch.tensor([[0, 1, 2, 3, 4, 0]]))
    ['abcd_a']
    """
    return ["".join((LETTERS + "_")[token] for token in row) for row in tokens.tolist()]


def tokens_of(string: str) -> list[int]:
    """Return the tokens of a string of letters and underscores. Raises ValueError for another one.

    >>> tokens_of("a____a")
    [0, 4, 4, 4, 4, 0]
    """
    if len(string) != LENGTH or not set(string) <= set(LETTERS + "_"):
        raise ValueError(f"strings are {LENGTH} of the letters {LETTERS}, or underscores for masks, not {string!r}")
    return [(LETTERS + "_").index(letter) for letter in string]

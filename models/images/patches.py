"""Images of black and white pixels, two by two: each patch of four is one of 16 tokens, row by row."""

from __future__ import annotations

from typing import Any

import torch

SIDE, PATCH = 14, 2
ROW = SIDE // PATCH
"""Tokens in a row of patches; an image has as many rows."""
LENGTH = ROW * ROW
PATTERNS = 2 ** (PATCH * PATCH)


def tokens_of(images: Any) -> Any:
    """Return the tokens (n, 49) of images (n, 14, 14) of zeros and ones.

    >>> tokens_of(torch.ones(1, 14, 14))[0, :3]
    tensor([15, 15, 15])
    """
    cut = torch.as_tensor(images).reshape(-1, ROW, PATCH, ROW, PATCH).transpose(2, 3)
    return (cut.reshape(-1, LENGTH, PATCH * PATCH).long() * _places()).sum(-1)


def images_of(tokens: Any) -> Any:
    """Return the images (n, 14, 14), of zeros and ones, that tokens (n, 49) stand for: `tokens_of` undone.

    >>> bool((tokens_of(images_of(torch.arange(49)[None] % 16)) == torch.arange(49) % 16).all())
    True
    """
    bits = (torch.as_tensor(tokens)[..., None] // _places()) % 2
    cut = bits.reshape(-1, ROW, ROW, PATCH, PATCH).transpose(2, 3)
    return cut.reshape(-1, SIDE, SIDE).float()


def _places() -> Any:
    return 2 ** torch.arange(PATCH * PATCH - 1, -1, -1)

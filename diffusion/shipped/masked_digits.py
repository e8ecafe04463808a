"""Digits of 14×14 pixels in four grey levels, and a small network that learned to fill in their masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

SIDE = 14
LEVELS = 4
MASK = LEVELS
"""The token that stands for a pixel that is not known yet."""
DILATIONS = (1, 2, 4, 1, 2, 4, 1, 1)


def levels(images: Any) -> Any:
    """Return images (n, 1, 28, 28) in [−1, 1] as tokens (n, 196): the mean of each 2×2 pixels, in four levels.

    A token is masked where one of its pixels is NaN.

    >>> levels(torch.ones(1, 1, 28, 28)).unique().tolist()
    [3]
    """
    shares = (nn.functional.avg_pool2d(images, 2).flatten(1) + 1.0) / 2.0
    return torch.where(shares.isnan(), MASK, (shares.nan_to_num() * LEVELS).long().clamp(0, LEVELS - 1))


def pictures(tokens: Any) -> Any:
    """Return tokens (n, 196) as images (n, 1, 28, 28) in [−1, 1], each token 2×2 pixels; masks are NaN.

    >>> bool((levels(pictures(torch.arange(196)[None] % 5)) == torch.arange(196) % 5).all())
    True
    """
    shown = torch.where(tokens == MASK, torch.nan, 2.0 * tokens / (LEVELS - 1) - 1.0)
    return nn.functional.interpolate(shown.reshape(-1, 1, SIDE, SIDE), scale_factor=2.0)


def tokens_of(image: Any) -> Any:
    """Return the tokens (196,) of an image (28, 28) or (1, 28, 28), masks where it is NaN.

    Raises ValueError for another shape, or what is beyond [−1, 1].
    """
    found = np.asarray(image, dtype=np.float32)
    if found.shape not in ((2 * SIDE, 2 * SIDE), (1, 2 * SIDE, 2 * SIDE)):
        raise ValueError(f"a template of digits is an image (1, 28, 28), not {found.shape}")
    if (np.abs(found) > 1.0 + 1e-6).any():
        raise ValueError("a template of digits has pixels from −1 (black) to 1 (white), NaN where they are not known")
    return levels(torch.from_numpy(found).reshape(1, 1, 2 * SIDE, 2 * SIDE))[0].numpy()


class MaskedDigitNet(nn.Module):  # type: ignore[misc]
    """Residual dilated convolutions from tokens (n, 196) and a class to logits (n, 196, 5); class 10 is none."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.enter = nn.Embedding(LEVELS + 1, width)
        self.place = nn.Parameter(torch.zeros(1, width, SIDE, SIDE))
        self.classes = nn.ModuleList(nn.Embedding(11, width) for _ in DILATIONS)
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for _ in DILATIONS)
        self.wide = nn.ModuleList(nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in DILATIONS)
        self.deep = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in DILATIONS)
        self.leave = nn.Conv2d(width, LEVELS, 1)

    def forward(self, tokens: Any, share: Any = None, condition: Any = None) -> Any:
        """Return the logits of the levels at each pixel; without a condition, those of digits of any class."""
        if condition is None:
            condition = torch.full((len(tokens),), 10, device=tokens.device)
        hidden = self.enter(tokens).transpose(1, 2).reshape(len(tokens), -1, SIDE, SIDE) + self.place
        for classes, norm, wide, deep in zip(self.classes, self.norms, self.wide, self.deep):
            told = nn.functional.silu(norm(hidden)) + classes(condition)[:, :, None, None]
            hidden = hidden + deep(nn.functional.silu(wide(told)))
        logits = self.leave(nn.functional.silu(hidden)).flatten(2).transpose(1, 2)
        return nn.functional.pad(logits, (0, 1))

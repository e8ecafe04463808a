"""Images as rewards see them: colours, a range, a size; all by torch, so that gradients pass."""

from __future__ import annotations

from typing import Any

from torch.nn.functional import interpolate


def colours(images: Any, value_range: tuple[float, float], name: str) -> Any:
    """Return images as (n, 3, h, w) in [0, 1], not clamped.

    ``images`` are (n, h, w), or (n, 1, h, w) for grey ones, or (n, 3, h, w); ``value_range`` is from black to white.
    Raises ValueError, with the name of the reward, for another shape.

    >>> import torch
    >>> colours(torch.full((2, 4, 4), -1.0), (-1.0, 1.0), "r").shape
    torch.Size([2, 3, 4, 4])
    """
    if images.dim() == 3:
        images = images[:, None]
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"reward {name!r} takes images (n, 1 or 3, height, width), or (n, height, width), not {tuple(images.shape)}"
        )
    low, high = value_range
    return ((images - low) / (high - low)).expand(-1, 3, -1, -1)


def fitted(images: Any, size: int) -> Any:
    """Return images (n, 3, h, w) with their shorter side brought to ``size`` (bicubic), and the middle square cut out.

    >>> import torch
    >>> fitted(torch.zeros(1, 3, 20, 30), 8).shape
    torch.Size([1, 3, 8, 8])
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    shape = (int(size * height / short), int(size * width / short))
    if shape != (height, width):
        images = interpolate(images, shape, mode="bicubic", align_corners=False, antialias=True)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return images[..., top : top + size, left : left + size]


def check_range(value_range: tuple[float, float]) -> tuple[float, float]:
    """Return a range from black to white, or raise ValueError."""
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range goes from black to white, low < high, not {value_range}")
    return float(low), float(high)

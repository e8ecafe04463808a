"""The motion of one bright thing in a clip: where it is, and how likely its path is if it flies straight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch


def centroids(clips: Any) -> Any:
    """Return the centre of light (n, frames, 2) of clips (n, frames, h, w) in [−1, 1], in pixels, across and down.

    The middle of the first pixel is at 0.5. Light below a tenth of the range does not count, so that faint noise
    does not pull the centre to the middle; a dark frame has its centre in the middle. It is differentiable.

    >>> clip = torch.full((1, 1, 4, 4), -1.0)
    >>> clip[0, 0, 1, 3] = 1.0
    >>> [round(place, 2) for place in centroids(clip)[0, 0].tolist()]
    [3.5, 1.5]
    """
    light = ((clips + 1.0) / 2.0 - 0.1).clamp(min=0.0) + 1e-6
    height, width = clips.shape[-2:]
    down = torch.arange(height, dtype=clips.dtype, device=clips.device) + 0.5
    across = torch.arange(width, dtype=clips.dtype, device=clips.device) + 0.5
    total = light.sum((-2, -1))
    return torch.stack([(light.sum(-2) * across).sum(-1), (light.sum(-1) * down).sum(-1)], -1) / total[..., None]


@dataclass(frozen=True)
class Motion:
    """The likelihood of a path that keeps its velocity, and is turned by walls, up to Gaussian noise.

    With c_t the position and v_t the velocity, each direction by itself, c_{t+1} ~ N(fold(c_t + v_t), spread²), where
    fold reflects at the walls; the velocity after it is the one that led there, turned where it was reflected. The
    first two frames are free: they set place and velocity. Calling it on clips (n, frames, h, w) gives the
    log-likelihood (n,) of their `centroids`: a differentiable reward of whole or partial clips.

    Args:
        low: where the walls are for the centre, in pixels, in both directions.
        high: the other walls.
        spread: standard deviation, in pixels.

    Raises ValueError unless low < high and spread > 0.

    >>> motion = Motion(0.0, 10.0, 1.0)
    >>> path = torch.tensor([[[1.0, 5.0], [4.0, 5.0], [7.0, 5.0], [10.0, 5.0], [7.0, 5.0]]])
    >>> most = -3 * math.log(2.0 * math.pi)
    >>> round(float(motion.log_prob(path)) - most, 4)
    0.0
    """

    low: float
    high: float
    spread: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"the walls must be in order, low < high, not {self.low} and {self.high}")
        if not self.spread > 0:
            raise ValueError(f"spread must be positive, not {self.spread}")

    def __call__(self, clips: Any) -> Any:
        """Return the log-likelihood (n,) of clips (n, frames, h, w)."""
        return self.log_prob(centroids(clips))

    def log_prob(self, path: Any) -> Any:
        """Return the log-likelihood (n,) of paths (n, frames, 2)."""
        return self.terms(path).sum(1)

    def terms(self, path: Any) -> Any:
        """Return the log-density (n, frames) of each frame given those before it; 0 for the first two."""
        out = [torch.zeros_like(path[:, t, 0]) for t in range(min(2, path.shape[1]))]
        velocity = path[:, 1] - path[:, 0] if path.shape[1] > 1 else None
        constant = 2.0 * math.log(self.spread) + math.log(2.0 * math.pi)
        for t in range(2, path.shape[1]):
            here, there = path[:, t - 1], path[:, t]
            ahead = here + velocity
            below, above = ahead < self.low, ahead > self.high
            wall = torch.where(below, 2.0 * self.low, 2.0 * self.high)
            turned = below | above
            off = there - torch.where(turned, wall - ahead, ahead)
            out.append(-0.5 * (off / self.spread).square().sum(-1) - constant)
            velocity = torch.where(turned, there - (wall - here), there - here)
        return torch.stack(out, 1)

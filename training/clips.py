"""Clips of one digit that flies about a box: its velocity is kicked a little at each frame, and turned at the walls."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from data import Digits

SIZE = 24
LOW, HIGH = 6.0, 18.0
"""Where the walls are for the middle of the digit, in pixels; its body reaches 6 pixels to each side."""
SPEED = (1.0, 2.5)
"""Least and greatest speed at the start, in pixels per frame."""
KICK = 0.5
"""Standard deviation of the change of velocity at each frame, in pixels per frame and direction."""


def paths(n: int, frames: int, generator: Any) -> Any:
    """Return positions (n, frames, 2) in pixels, horizontal and vertical."""
    place = LOW + (HIGH - LOW) * torch.rand(n, 2, generator=generator)
    speed = SPEED[0] + (SPEED[1] - SPEED[0]) * torch.rand(n, 1, generator=generator)
    angle = 2.0 * torch.pi * torch.rand(n, 1, generator=generator)
    velocity = speed * torch.cat([angle.cos(), angle.sin()], 1)
    out = [place]
    for _ in range(frames - 1):
        velocity = velocity + KICK * torch.randn(n, 2, generator=generator)
        place = place + velocity
        below, above = place < LOW, place > HIGH
        place = torch.where(below, 2.0 * LOW - place, torch.where(above, 2.0 * HIGH - place, place)).clamp(LOW, HIGH)
        velocity = torch.where(below | above, -velocity, velocity)
        out.append(place)
    return torch.stack(out, 1)


def draw(images: Any, places: Any) -> Any:
    """Return clips (n, frames, 24, 24) of images (n, 1, 28, 28), shrunk to 16×16, at places (n, frames, 2)."""
    n, frames = places.shape[:2]
    small = F.interpolate(images + 1.0, (16, 16), mode="bilinear", antialias=True, align_corners=False)
    small = small.repeat_interleave(frames, 0)
    share = SIZE / 16
    middle = places - 0.5 * 16 / 28  # the centre of mass is half a pixel off the middle of the package's images
    affine = torch.zeros(n * frames, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = share
    affine[:, :, 2] = -share * (2.0 * middle.reshape(-1, 2) / SIZE - 1.0)
    grid = F.affine_grid(affine, [n * frames, 1, SIZE, SIZE], align_corners=False)
    drawn = F.grid_sample(small, grid, align_corners=False) - 1.0
    return drawn.reshape(n, frames, SIZE, SIZE).clamp(-1.0, 1.0)


def clips(digits: Digits, n: int, frames: int, generator: Any) -> Any:
    """Return n clips (n, frames, 24, 24) of random digits."""
    return draw(digits.batch(n, generator).images, paths(n, frames, generator))

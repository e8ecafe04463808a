"""Train the two video diffusions on bouncing digits: one frame after the other, and whole clips of 8 frames.

python training/bouncing.py frames
python training/bouncing.py clip
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from clips import SIZE, clips
from data import Digits, load
from diffusers import UNet2DModel
from digits import CONFIG, noise
from loop import Settings, ship, train

PAST = 2
"""How many frames the next one is drawn from."""
CLIP = 8
"""Frames of a whole clip."""
BLUR = 0.2
"""Greatest standard deviation of the noise on past frames, which teaches the network to bear its own errors."""
SETTINGS = {
    "frames": Settings(3200, rate=2e-3, cooldown=700),
    "clip": Settings(5200, batch=32, rate=2e-3, warmup=200, cooldown=600, average=0.999, bfloat16=True),
}

FRAMES_CONFIG = {
    **CONFIG,
    "sample_size": SIZE,
    "in_channels": 1 + PAST,
    "block_out_channels": [16, 32, 64],
    "num_class_embeds": PAST + 1,
}
CLIP_CONFIG = {
    **CONFIG,
    "sample_size": SIZE,
    "in_channels": CLIP,
    "out_channels": CLIP,
    "block_out_channels": [40, 64, 64],
    "add_attention": True,  # a digit may fly through the whole box: where it is late has to know what it was early
    "num_class_embeds": None,
}


def frames_loss(digits: Digits, batch: int) -> Any:
    """Return the loss of the next frame; the class says how many frames there are before it, blank ones fill up."""

    def loss(network: Any, generator: Any) -> Any:
        clip = clips(digits, batch, PAST + 1, generator)
        known = torch.randint(0, 4, (batch,), generator=generator).clamp(max=PAST)  # half of them know both
        blur = BLUR * torch.rand(batch, 1, 1, 1, generator=generator)
        past = clip[:, :PAST] + blur * torch.randn(batch, PAST, SIZE, SIZE, generator=generator)
        there = torch.arange(PAST) >= PAST - known[:, None]
        past = torch.where(there[:, :, None, None], past, -1.0)
        x, time, v = noise(clip[:, PAST:], generator)
        return (network(torch.cat([x, past], 1), time, known).sample - v).square().mean()

    return loss


def clip_loss(digits: Digits, batch: int) -> Any:
    """Return the loss of whole clips."""

    def loss(network: Any, generator: Any) -> Any:
        x, time, v = noise(clips(digits, batch, CLIP, generator), generator)
        return (network(x, time).sample - v).square().mean()

    return loss


def main(kind: str, digits: Digits, settings: Settings, into: Path | None = None) -> Path:
    """Train one of them on some digits and write the weights."""
    config, loss = (FRAMES_CONFIG, frames_loss) if kind == "frames" else (CLIP_CONFIG, clip_loss)
    about = {
        "frames": f"{SIZE}×{SIZE} frames of a bouncing digit, each from the {PAST} before it",
        "clip": f"clips of a bouncing digit, {CLIP} frames of {SIZE}×{SIZE} in one",
    }
    torch.manual_seed(settings.seed)
    network, record = train(f"bouncing_{kind}", UNet2DModel(**config), loss(digits, settings.batch), settings)
    shape = [1 if kind == "frames" else CLIP, SIZE, SIZE]
    told = {"about": about[kind], "prediction": "v", "shape": shape, "network": "UNet2DModel", "config": config}
    return ship(f"bouncing_{kind}", network, {**told, **record}, into)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["frames", "clip"])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    settings = SETTINGS[arguments.kind]
    settings = replace(settings, steps=arguments.steps or settings.steps)
    print(main(arguments.kind, load()[0], settings, arguments.into))

"""Train the digit diffusion: 28×28, ten classes and none in one network.

    python training/digits.py

Picks up from its last checkpoint. ``--steps`` and ``--into`` make a small run for tests.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from data import Digits, load
from diffusers import UNet2DModel
from loop import Settings, ship, train

from feynkac.diffusion import Schedule

NO_CLASS = 10
DROP = 0.15
CONFIG: dict[str, Any] = {
    "sample_size": 28,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [16, 48, 80],
    "down_block_types": ["DownBlock2D"] * 3,
    "up_block_types": ["UpBlock2D"] * 3,
    "add_attention": False,
    "norm_num_groups": 8,
    "num_class_embeds": NO_CLASS + 1,
}


def noise(data: Any, generator: Any) -> tuple[Any, Any, Any]:
    """Return noisy data, the index of its level, and v, what the network is to say.

    The levels of a batch are spread evenly, which lowers the variance of the gradient.
    """
    schedule = Schedule.ddpm(1000)
    n = len(data)
    level = (torch.rand(1, generator=generator) + torch.arange(n) / n) % 1.0
    step, width = (1000 * level).long(), (n,) + (1,) * (data.dim() - 1)
    alpha, sigma = (torch.tensor(a).float()[step].reshape(width) for a in (schedule.alpha, schedule.sigma))
    epsilon = torch.randn(data.shape, generator=generator)
    return alpha * data + sigma * epsilon, torch.tensor(schedule.time)[step], alpha * epsilon - sigma * data


def loss_of(digits: Digits, batch: int) -> Any:
    """Return the loss: squared error of v, the class left out now and then."""

    def loss(network: Any, generator: Any) -> Any:
        some = digits.batch(batch, generator)
        x, time, v = noise(some.images, generator)
        dropped = torch.rand(len(some), generator=generator) < DROP
        label = torch.where(dropped, NO_CLASS, some.labels)
        return (network(x, time, label).sample - v).square().mean()

    return loss


def main(digits: Digits, settings: Settings, into: Path | None = None) -> Path:
    """Train on some digits and write the weights."""
    torch.manual_seed(settings.seed)
    network, record = train("digits", UNet2DModel(**CONFIG), loss_of(digits, settings.batch), settings)
    about = {"about": "28×28 digits, ten classes and none (class 10)", "prediction": "v", "shape": [1, 28, 28]}
    return ship("digits", network, {**about, "network": "UNet2DModel", "config": CONFIG, **record}, into)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    print(main(load()[0], Settings(arguments.steps, rate=2e-3, cooldown=900), arguments.into))

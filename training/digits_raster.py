"""Train the autoregressive digits: 14×14 in black and white, 49 tokens of 2×2 pixels after a class.

    python training/digits_raster.py

Picks up from its last checkpoint. ``--steps`` and ``--into`` make a small run for tests.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from data import Digits, load
from loop import Settings, ship, train
from torch.nn.functional import avg_pool2d, cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from feynkac.models.images.patches import LENGTH, PATTERNS, tokens_of

WEIGHTS = Path(__file__).resolve().parent.parent / "models" / "images" / "weights"
NONE = PATTERNS + 10
"""The token of no class; that of digit d is 16 + d."""
DROP = 0.1
"""How often the class is left out."""
INK = 0.35
"""A pixel is white from this mean on, of the four of which it is made, on the scale from 0 to 1."""
CONFIG: dict[str, Any] = {
    "vocab_size": NONE + 1,
    "n_positions": LENGTH + 1,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "initializer_range": 0.05,
    "bos_token_id": None,
    "eos_token_id": None,
}


def tokens(digits: Digits) -> Any:
    """Return the tokens (n, 49) of digits."""
    return tokens_of((avg_pool2d((digits.images + 1.0) / 2.0, 2) >= INK)[:, 0])


def terms(network: Any, classes: Any, images: Any) -> Any:
    """Return the log-probabilities (n, 49) of the tokens of images after tokens of classes, among the 16 that draw."""
    read = torch.cat([classes[:, None], images[:, :-1]], 1)
    logits = network(input_ids=read, use_cache=False).logits[..., :PATTERNS]
    return -cross_entropy(logits.flatten(0, 1), images.flatten(), reduction="none").reshape(images.shape)


def loss_of(images: Any, labels: Any, batch: int) -> Any:
    """Return the loss: nats of an image, over its tokens."""

    def loss(network: Any, generator: Any) -> Any:
        chosen = torch.randint(len(images), (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < DROP
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))  # of dropout, so that runs resume
        return -terms(network, torch.where(dropped, NONE, PATTERNS + labels[chosen]), images[chosen]).mean()

    return loss


def measured(network: Any, held_out: Digits) -> dict[str, float]:
    """Return nats of held-out images with and without their class, and how often the likeliest class is theirs."""
    images = tokens(held_out)
    with torch.no_grad():
        each = [terms(network, torch.full((len(images),), PATTERNS + d), images).sum(1) for d in range(11)]
    of_class = torch.stack(each[:10], 1)
    return {
        "nats_given_class": round(-float(of_class.gather(1, held_out.labels[:, None]).mean()), 3),
        "nats_without": round(-float(each[10].mean()), 3),
        "accuracy_of_likeliest_class": round(float((of_class.argmax(1) == held_out.labels).float().mean()), 4),
    }


def main(digits: Digits, held_out: Digits, settings: Settings, into: Path = WEIGHTS) -> Path:
    """Train on some digits and write the weights."""
    torch.manual_seed(settings.seed)
    loss = loss_of(tokens(digits), digits.labels, settings.batch)
    network, record = train("digits_raster", GPT2LMHeadModel(GPT2Config(**CONFIG)), loss, settings)
    about = {
        "about": "14×14 digits in black and white, 49 tokens of 2×2 pixels after one of ten classes or none",
        "network": "GPT2LMHeadModel",
        "config": CONFIG,
        **record,
        "measured": measured(network, held_out),
    }
    return ship("digits_raster", network, about, into)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1650)
    parser.add_argument("--into", type=Path, default=WEIGHTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(asked.steps, rate=3e-3, cooldown=asked.steps - 200, average=0.99, save_every=50)
    print(main(*load(), settings, asked.into))

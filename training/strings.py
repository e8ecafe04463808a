"""Train the masked diffusion of short strings, whose law is known.

    python training/strings.py

No data is fetched: strings are drawn from the law. Picks up from its last checkpoint. ``--steps`` and ``--into`` make a
small run for tests.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loop import Settings, ship, train
from torch.nn.functional import cross_entropy

from feynkac.diffusion.shipped.strings import LENGTH, LETTERS, StringNet, string_law


def masked(batch: int, generator: Any) -> tuple[Any, Any]:
    """Return strings (n, 6), and where they are masked: a number of positions, from 1 to 6 alike, any of them."""
    strings, p = string_law()
    chosen = torch.multinomial(torch.from_numpy(p), batch, replacement=True, generator=generator)
    count = torch.randint(1, LENGTH + 1, (batch,), generator=generator)
    order = torch.rand(batch, LENGTH, generator=generator).argsort(1).argsort(1)
    return torch.from_numpy(strings)[chosen], order < count[:, None]


def loss_of(batch: int) -> Any:
    """Return the loss: the cross-entropy of what is masked, times 6/k where k positions are (the bound on −log p)."""

    def loss(network: Any, generator: Any) -> Any:
        strings, hidden = masked(batch, generator)
        logits = network(torch.where(hidden, len(LETTERS), strings))[..., : len(LETTERS)]
        each = cross_entropy(logits.flatten(0, 1), strings.flatten(), reduction="none").reshape(batch, LENGTH)
        return ((each * hidden).sum(1) * LENGTH / hidden.sum(1)).mean()

    return loss


def measured(network: Any) -> dict[str, float]:
    """Return how far the network's law, in random order, is from the true one: exactly, over all subsets."""
    strings, p = string_law()
    q = random_order_law(network, strings)
    return {
        "total_variation": round(float(0.5 * np.abs(p - q).sum()), 4),
        "divergence": round(float((p * np.log(p / q)).sum()), 5),
    }


def random_order_law(network: Any, strings: Any) -> Any:
    """Return the probability of each string, the mean over all orders in which its positions are revealed."""
    tokens = torch.from_numpy(strings)
    weights = {0: torch.ones(len(tokens), dtype=torch.float64)}
    with torch.no_grad():
        for known in range(LENGTH):
            for seen in [code for code in weights if code.bit_count() == known]:
                hidden = torch.tensor([not seen >> i & 1 for i in range(LENGTH)])
                log_mu = (
                    network(torch.where(hidden, len(LETTERS), tokens))[..., : len(LETTERS)].double().log_softmax(-1)
                )
                p = log_mu.gather(-1, tokens[..., None])[..., 0].exp()
                for i in range(LENGTH):
                    if hidden[i]:
                        code = seen | 1 << i
                        weights[code] = weights.get(code, 0.0) + weights[seen] * p[:, i] / (LENGTH - known)
    return weights[2**LENGTH - 1].numpy()


def main(settings: Settings, into: Path | None = None) -> Path:
    """Train and write the weights."""
    torch.manual_seed(settings.seed)
    network, record = train("strings", StringNet(), loss_of(settings.batch), settings)
    about = {
        "about": "strings of six letters from a known law, from any masks",
        "network": "StringNet",
        **record,
        "data": "drawn from the law",
        "measured": measured(network),
    }
    return ship("strings", network, about, into)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--into", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(asked.steps, batch=256, rate=3e-3, cooldown=asked.steps, average=0.998, save_every=500)
    print(main(settings, asked.into))

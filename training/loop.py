"""The loop that all training scripts share: Adam, an average of the weights, checkpoints, and weights to ship."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from data import PACKAGE, SPLIT_SEED, folder
from safetensors.torch import save

Loss = Callable[[Any, Any], Any]
"""From a network and a torch generator to a scalar."""


@dataclass(frozen=True)
class Settings:
    """How long and how fast: the rate rises over the first steps and falls to 0 over the last ``cooldown`` of them.

    ``average`` is the decay of the running average of the weights. ``bfloat16`` computes what may be rough in that
    format (faster where the processor has it); the weights stay in float32.
    """

    steps: int
    batch: int = 64
    rate: float = 1e-3
    warmup: int = 100
    cooldown: int = 0
    average: float = 0.998
    seed: int = 0
    save_every: int = 100
    bfloat16: bool = False

    def rate_at(self, step: int) -> float:
        left = (self.steps - step) / self.cooldown if self.cooldown else 1.0
        return self.rate * min(1.0, (step + 1) / self.warmup, left)


def train(name: str, network: Any, loss: Loss, settings: Settings) -> tuple[Any, dict[str, Any]]:
    """Train, from the last checkpoint if there is one, and return the averaged network and a record.

    Each step draws from a generator of its own, seeded by (seed, step), so that a run that was interrupted gives
    what a whole one would have.
    """
    path = folder() / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    averaged = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.rate)
    step, seconds, losses = 0, 0.0, []
    if path.exists():
        kept = torch.load(path, weights_only=True)
        network.load_state_dict(kept["network"])
        averaged.load_state_dict(kept["averaged"])
        optimiser.load_state_dict(kept["optimiser"])
        step, seconds, losses = kept["step"], kept["seconds"], kept["losses"]
    began = time.process_time() - seconds
    network.train()
    while step < settings.steps:
        for group in optimiser.param_groups:
            group["lr"] = settings.rate_at(step)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
            value = loss(network, generator)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        decay = min(settings.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, weight in zip(averaged.parameters(), network.parameters()):
                mean.lerp_(weight, 1.0 - decay)
        losses.append(float(value.detach()))
        step += 1
        if step % settings.save_every == 0 or step == settings.steps:
            seconds = time.process_time() - began
            recent = sum(losses[-settings.save_every :]) / len(losses[-settings.save_every :])
            print(f"{name}: step {step}, loss {recent:.4f}, {seconds:.0f} s of CPU", flush=True)
            _write(path, network, averaged, optimiser, step, seconds, losses)
    last = losses[-500:]
    record = {
        "data": f"npm {PACKAGE} (MIT), split seed {SPLIT_SEED}",
        "training": {**asdict(settings), "steps": step, "cpu_seconds": round(seconds), "loss": sum(last) / len(last)},
    }
    return averaged.eval(), record


def _write(
    path: Path, network: Any, averaged: Any, optimiser: Any, step: int, seconds: float, losses: list[float]
) -> None:
    kept = {
        "network": network.state_dict(),
        "averaged": averaged.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
        "seconds": seconds,
        "losses": losses,
    }
    part = path.with_suffix(".part")
    torch.save(kept, part)
    os.replace(part, path)


def ship(name: str, network: Any, record: dict[str, Any], into: Path | None = None) -> Path:
    """Write weights (float16) and their record to the library's folder of weights, or another."""
    into = into or Path(__file__).resolve().parent.parent / "diffusion" / "shipped" / "weights"
    into.mkdir(parents=True, exist_ok=True)
    path = into / f"{name}.safetensors"
    path.write_bytes(save({key: value.half().contiguous() for key, value in network.state_dict().items()}))
    record = {
        "license": "Apache-2.0",
        **record,
        "parameters": sum(value.numel() for value in network.parameters()),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path

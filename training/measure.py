"""Measure the shipped generators, and add what was found to their records.

    python training/measure.py

The digits: how often the judge, which never rewarded anything, sees the class that was asked for, and the kernel
distance (squared MMD, cubic kernel: KID, Binkowski et al. 2018, arXiv:1801.01401) of its features to those of digits
that no network has seen, with that of other real digits beside it. The clips: how likely the motion model finds them,
as they are and with their frames in another order, and the same for clips of the data.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clips import KICK, clips
from data import load

import feynkac as fk
from feynkac.diffusion.shipped import zoo

WEIGHTS = Path(__file__).resolve().parent.parent / "diffusion" / "shipped" / "weights"


def distance(a: Any, b: Any) -> float:
    """Return the unbiased squared MMD of two sets of features (n, d), with the kernel (1 + x·y/d)³."""
    a, b, d = a.double(), b.double(), a.shape[1]
    aa, bb, ab = ((1.0 + x @ y.T / d) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    n, m = len(a), len(b)
    inside = (aa.sum() - aa.diagonal().sum()) / (n * (n - 1)) + (bb.sum() - bb.diagonal().sum()) / (m * (m - 1))
    return float(inside - 2.0 * ab.mean())


def share(true: Any) -> float:
    """Return the share of what is true, to 3 digits."""
    return round(float(true.double().mean()), 3)


def samples(model: Any, n: int, seed: int) -> Any:
    return torch.tensor(np.stack(fk.infer(model, fk.ImportanceSampling(n), seed=seed).values))


def measure_digits(model: Callable[..., Any], n: int, steps: int) -> dict[str, Any]:
    """Return recognition and distances, of n samples of each kind."""
    train, held_out = load()
    judge = zoo.digit_judge()
    classes = [i % 10 for i in range(n)]
    asked, free = samples(model(steps, classes), n, 0), samples(model(steps), n, 1)
    right = judge(asked).argmax(1) == torch.tensor(classes)
    truth = judge.features(held_out.images)
    return {
        "samples": n,
        "steps": steps,
        "recognised": share(right),
        "recognised_by_class": [share(right[i::10]) for i in range(10)],
        "recognised_real": share(judge(held_out.images).argmax(1) == held_out.labels),
        "kid_of_classes": distance(judge.features(asked), truth),
        "kid_of_no_class": distance(judge.features(free), truth),
        "kid_of_other_real_digits": distance(judge.features(train.images[:n]), truth),
    }


def measure_clips(model: Any, n: int) -> dict[str, Any]:
    """Return mean log-likelihoods per frame of motion, of n clips of 8 frames."""
    motion = zoo.bouncing_motion(KICK)
    made = samples(model, n, 0)
    real = clips(load()[1], n, made.shape[1], torch.Generator().manual_seed(0))
    order = torch.randperm(made.shape[1], generator=torch.Generator().manual_seed(1))

    def each(some: Any) -> float:
        return float(motion(some).mean()) / (made.shape[1] - 2)

    return {
        "samples": n,
        "motion_per_frame": each(made),
        "motion_per_frame_shuffled": each(made[:, order]),
        "motion_per_frame_of_data": each(real),
        "light": float((made + 1.0).mean() / 2.0),
        "light_of_data": float((real + 1.0).mean() / 2.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="all by default")
    parser.add_argument("--samples", type=int, default=250)
    arguments = parser.parse_args()
    n = arguments.samples
    found = {
        "digits": lambda: measure_digits(zoo.digits, n, 50),
        "digits_small": lambda: measure_digits(zoo.digits_small, n, 50),
        "bouncing_frames": lambda: measure_clips(zoo.bouncing(8, 10), n // 5),
        "bouncing_clip": lambda: measure_clips(zoo.bouncing_clip(50), n // 5),
    }
    for name in arguments.names or found:
        path = WEIGHTS / f"{name}.json"
        told = {**json.loads(path.read_text(encoding="utf-8")), "measured": found[name]()}
        path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        print(name, json.dumps(told["measured"], indent=2), flush=True)


if __name__ == "__main__":
    main()

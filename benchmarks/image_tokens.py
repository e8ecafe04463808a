"""Guidance of image tokens, as usual and as the exact product: how far apart, and what weights cost.

    python benchmarks/image_tokens.py

Task: digits 0…9 of `fk.models.digit_tokens`, 100 particles each, seed = the digit; s = 0, .25, .5, 1, 2. For each s:
the ESS per particle of the weights of the exact product without resampling (the mean over digits of what is left of
100); the share of digits that the model itself, as its own judge, takes for what was asked (exactly, by p(x | c)), of
usual draws, of exact ones by weight, and of exact ones by SMC; and the mean of pixels, ink, likewise.

Rule: guidance as the exact product is *affordable without resampling* at an s where the mean ESS is 20 of 100 or more;
the two ways *differ* at an s where the ink of SMC's draws is off that of the usual ones by more than 2 standard errors
of the difference over the ten digits. ``--short`` takes 2 digits, 8 particles and s = .5.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

import feynkac as fk
from feynkac.models.images import digit_class_log_probs


def row(digit: int, s: float, particles: int) -> dict[str, float]:
    """Measure one digit at one s."""
    drawn = {}
    for name, way, engine in (
        ("usual", "usual", fk.ImportanceSampling(particles)),
        ("weighted", "exact", fk.ImportanceSampling(particles)),
        ("smc", "exact", fk.SMC(particles)),
    ):
        drawn[name] = fk.infer(fk.models.digit_tokens(digit, guidance=s, way=way), engine, seed=digit)
    found: dict[str, float] = {"digit": digit, "s": s, "ess": drawn["weighted"].ess / particles}
    for name, posterior in drawn.items():
        images = np.stack(posterior.values)
        right = digit_class_log_probs(images).argmax(1) == digit
        found[f"right_{name}"] = float(posterior.probabilities @ right)
        found[f"ink_{name}"] = float(posterior.probabilities @ images.mean((1, 2)))
    return found


def verdict(rows: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Return a line for each s."""
    lines = []
    for s in sorted({one["s"] for one in rows}):
        mine = [one for one in rows if one["s"] == s]
        line: dict[str, Any] = {name: round(float(np.mean([one[name] for one in mine])), 3) for name in mine[0]}
        off = np.array([one["ink_smc"] - one["ink_usual"] for one in mine])
        error = off.std(ddof=1) / np.sqrt(len(off))
        line["z_ink"] = round(float(off.mean() / error), 2) if error else 0.0  # at s = 0 they are the same
        line |= {"affordable": line["ess"] >= 0.2, "differ": abs(line["z_ink"]) > 2.0}
        del line["digit"]
        lines.append(line)
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each s."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    short = parser.parse_args(arguments).short
    digits, particles, strengths = (range(2), 8, (0.5,)) if short else (range(10), 100, (0.0, 0.25, 0.5, 1.0, 2.0))
    for s in strengths:
        (line,) = verdict([row(digit, s, particles) for digit in digits])
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

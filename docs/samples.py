"""Draw the pictures of what the shipped generators make, into docs/.

python docs/samples.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import feynkac as fk
from feynkac.diffusion.shipped import zoo

HERE = Path(__file__).resolve().parent


def sheet(pictures: np.ndarray, path: Path, gap: int = 2, zoom: int = 2) -> None:
    """Write pictures (rows, columns, h, w) in [−1, 1] as one PNG."""
    rows, columns, h, w = pictures.shape
    page = np.ones((rows * (h + gap) - gap, columns * (w + gap) - gap))
    for i in range(rows):
        for j in range(columns):
            page[i * (h + gap) : i * (h + gap) + h, j * (w + gap) : j * (w + gap) + w] = pictures[i, j]
    plt.imsave(path, page.repeat(zoom, 0).repeat(zoom, 1), cmap="gray", vmin=-1, vmax=1)


def draw(model: fk.FeynmanKac, n: int, seed: int) -> np.ndarray:
    """Return n samples of a model."""
    return np.stack(fk.infer(model, fk.ImportanceSampling(n), seed=seed).values)


def sevens() -> np.ndarray:
    """Return three rows of digits (3, 10, 28, 28): of any class, steered to a 7 by a reward, and guided to it."""
    steering = fk.diffusion.Steering(fk.diffusion.digit_classifier().log_prob(7), 4.0, temper=lambda share: share**4)
    steered = fk.infer(zoo.digits(20, steering=steering), fk.SMC(64), seed=0).sample(10, seed=0)
    rows = [draw(zoo.digits(20), 10, seed=0), np.stack(steered), draw(zoo.digits(20, 7, guidance=3.0), 10, seed=0)]
    return np.stack(rows)[:, :, 0]


def halves() -> np.ndarray:
    """Return rows of digits (5, 10, 28, 28) of the masked model, of digits that it has not seen.

    Four rows have the digit, what is shown of it, and eight completions of any class; the last what is shown of the
    fourth, completed as each class.
    """
    kept = np.load(HERE.parent / "tests" / "data" / "digits.npz")
    chosen = [int(np.flatnonzero(kept["labels"] == label)[i]) for label, i in ((3, 1), (8, 2), (5, 3), (9, 4))]
    rows = []
    for image in kept["images"][chosen] / 127.5 - 1.0:
        shown = np.where(np.arange(28)[:, None] < 14, image, np.nan)
        completed = draw(zoo.digits_masked(template=shown), 8, seed=0)[:, 0]
        rows.append(np.concatenate([image[None], np.nan_to_num(shown)[None], completed]))
    rows.append(draw(zoo.digits_masked(None, range(10), template=shown), 10, seed=1)[:, 0])
    return np.stack(rows)


def main() -> None:
    """Draw them all."""
    sheet(sevens(), HERE / "images.png")
    classes = [label for _ in range(5) for label in range(10)]
    sheet(draw(zoo.digits(50, classes), 50, seed=0).reshape(5, 10, 28, 28), HERE / "digits.png")
    sheet(halves(), HERE / "halves.png")
    sheet(draw(zoo.bouncing(16, 10), 4, seed=0), HERE / "bouncing.png")
    sheet(draw(zoo.bouncing_clip(50), 4, seed=0), HERE / "bouncing_clip.png")


if __name__ == "__main__":
    main()

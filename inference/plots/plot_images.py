"""Images of a posterior as matplotlib figures: the most probable ones, and how they came to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..base.weights import normalize
from ..drawing.palette import INK, ORANGE
from ..drawing.pixels import Layout, Pixels, Range, frames, identity, pictures_in, range_of, strip
from ..drawing.views import number
from ..results.posterior import Posterior
from .faces import Faces, Show

Size = tuple[float, float] | None


def images(
    posterior: Posterior,
    n: int = 16,
    *,
    columns: int | None = None,
    show: Show | None = None,
    layout: Layout | None = None,
    value_range: Range | None = None,
    figsize: Size = None,
) -> Any:
    """Draw the images of largest weight, with their weight and their log G below; equal ones are one, with their total.

    A clip is drawn as its frames side by side, up to eight of them; `video` plays it.

    Args:
        posterior: whose values are images or clips: (H, W), (C, H, W) or (H, W, C), with T before it for frames; bytes,
            or floats in [−1, 1] or [0, 1].
        n: most images.
        columns: of the grid; None fits.
        show: from a value to its picture, where values are more than pictures; None takes the picture in them.
        layout: the axes, such as "THW", where the shape does not tell: (3, H, W) is taken for colours.
        value_range: of floats, from black to white; None is (−1, 1) where any value goes below 0, else (0, 1).
        figsize: of the figure, in inches.

    Raises ValueError for values that are no pictures.

    >>> import feynkac as fk
    >>> posterior = fk.infer(fk.diffusion.digits(steps=3), fk.ImportanceSampling(4), seed=0)
    >>> len(fk.plots.images(posterior, n=3).axes)
    3
    """
    posterior._some()
    from ..drawing.figure import SMALL, picture

    chosen = heaviest(posterior, n)
    shown = [pictured(posterior.values[i], show, layout) for i, _ in chosen]
    shades = value_range or range_of(shown)
    pixels = [strip(frames(one, layout, shades)) for one in shown]
    shape = max(one.shape[1] / one.shape[0] for one in pixels)
    across = columns or (math.ceil(math.sqrt(len(pixels) * 1.6)) if shape < 2 else max(1, round(4 / shape)))
    across = min(across, len(pixels))
    rows = -(-len(pixels) // across)
    width = min(max(1.05 * shape, 0.9), 9.0 / across)
    figure = picture(figsize or (width * across, (width / shape + 0.38) * rows))
    grid = np.ravel(figure.subplots(rows, across, squeeze=False))
    for ax, one, (i, weight) in zip(grid, pixels, chosen):
        _paint(ax, one)
        ax.set_xlabel(f"{weight:.3f}\nlog G {number(float(posterior.log_potential[i]), 3)}", fontsize=SMALL, color=INK)
    for ax in grid[len(pixels) :]:
        ax.remove()
    return figure


def film(
    posterior: Posterior,
    particle: int | Sequence[int] | None = None,
    *,
    steps: int = 10,
    show: Show | None = None,
    layout: Layout | None = None,
    value_range: Range | None = None,
    figsize: Size = None,
) -> Any:
    """Draw how particles came to be: what they and their ancestors were at evenly spaced steps, one row for each.

    The history holds what each step chose, which for diffusion is the noisy data; noise beyond the range of the image
    is scaled to fit it. The last picture is the value. A number in orange is a step that began with resampling.

    Args:
        posterior: of a diffusion model, or a program that draws images.
        particle: its number among all chains, or several; None is the best.
        steps: most pictures in a row.
        show: from what a step chose to a picture, such as a decoder of latents.
        layout: as in `images`, of values and of what ``show`` returns.
        value_range: as in `images`.
        figsize: of the figure, in inches.

    Raises IndexError for a particle that is not there, and ValueError where the history holds no pictures: where it
    holds latents, give ``show``; where the engine kept nothing (``record=False``), run it with ``record=True``.

    >>> import feynkac as fk
    >>> posterior = fk.infer(fk.diffusion.digits(steps=5), fk.SMC(2), seed=0)
    >>> len(fk.plots.film(posterior, [0, 1], steps=4).axes)
    8
    """
    from ..drawing.figure import SMALL, picture

    chosen = [posterior._best()] if particle is None else [particle] if isinstance(particle, int) else list(particle)
    rows = [reel(posterior, i, steps, show, layout, value_range) for i in chosen]
    across = max(map(len, rows))
    shape = max(one.shape[1] / one.shape[0] for row in rows for _, _, one in row)
    width = min(0.95 * min(shape, 3.0), 11.0 / across)
    figure = picture(figsize or (width * across + 0.5, (width / shape + 0.22) * len(rows)))
    grid = figure.subplots(len(rows), across, squeeze=False)
    weights = normalize(posterior.log_weights)
    for line, row, i in zip(grid, rows, chosen):
        for ax, (t, resampled, one) in zip(line, row):
            _paint(ax, one)
            ax.set_title(f"{t}", fontsize=SMALL, color=ORANGE if resampled else INK, pad=3)
        for ax in line[len(row) :]:
            ax.remove()
        name = f"particle {i}\n{weights[i]:.3f}"
        line[0].set_ylabel(name, fontsize=SMALL, color=INK, rotation=0, ha="right", va="center")
    return figure


def reel(
    posterior: Posterior,
    particle: int,
    steps: int,
    show: Show | None = None,
    layout: Layout | None = None,
    value_range: Range | None = None,
) -> list[tuple[int, bool, Pixels]]:
    """Return the pictures of a particle's past: number of the step, whether it began with resampling, and pixels.

    Raises as `film` does.
    """
    if steps < 1:
        raise ValueError(f"a film has at least one step, not {steps}")
    chain, i = posterior._locate(particle)
    number_of = next(c for c, one in enumerate(posterior.chains) if one is chain)
    faces = Faces(posterior, number_of, show, layout, value_range)
    line = chain.lines[:, i]
    found = []
    for t, j in enumerate(line.tolist()):
        if len(chain.steps[t].choices[j]) or t + 1 == len(line):
            found.append((t, j))
    if len(found) < 2 < len(line):
        raise ValueError(
            f"{posterior.engine} kept nothing of the steps of particle {particle}: run it with record=True, where an "
            "engine has that"
        )
    kept = [found[k] for k in np.unique(np.linspace(0, len(found) - 1, min(len(found), steps)).round().astype(int))]
    made = [(t, bool(chain.steps[t].resampled), faces.step(t, j)) for t, j in kept]
    shown = [(t, resampled, one) for t, resampled, one in made if one is not None]
    if not shown or (len(shown) == 1 < len(kept)):
        shapes = sorted({str(np.shape(chain.steps[t].choices[j])) for t, j in kept})
        raise ValueError(
            f"the steps of {posterior.engine} hold no pictures, but {', '.join(shapes[:3])}: give show=, a function "
            "from what a step chose to an image, such as a decoder of latents"
        )
    return shown


def heaviest(posterior: Posterior, n: int) -> list[tuple[int, float]]:
    """Return a particle of each distinct value, and its total weight, largest first."""
    if n < 1:
        raise ValueError(f"n must be a positive number of images, not {n}")
    totals: dict[Any, tuple[int, float]] = {}
    for i, (value, weight) in enumerate(zip(posterior.values, normalize(posterior.log_weights).tolist())):
        first, total = totals.get(key := identity(value), (i, 0.0))
        totals[key] = (first, total + weight)
    return sorted(totals.values(), key=lambda item: -item[1])[:n]


def pictured(value: Any, show: Show | None, layout: Layout | None) -> Any:
    """Return the picture of a value."""
    if show is not None:
        return show(value)
    return value if layout else next(pictures_in(value), value)


def _paint(ax: Any, pixels: Pixels) -> None:
    """Show an image in axes without a scale."""
    grey = pixels.shape[-1] == 1
    ax.imshow(pixels[..., 0] if grey else pixels, cmap="gray" if grey else None, vmin=0, vmax=255)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)

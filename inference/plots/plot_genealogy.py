"""The genealogy of one chain as a matplotlib figure."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from ..base.chain import Chain
from ..drawing.palette import BLUE, BRANCHES, INK
from ..drawing.pixels import Pixels, shrunk
from ..drawing.views import cut, words
from ..results.posterior import Posterior
from .faces import Faces, Show
from .lineages import MOST_PARTICLES, MOST_STEPS, Level, levels

# Lines run level for a while, with room for the text of the step, and then bend towards the next.
_CURVE = np.append(0.0, np.linspace(0.5, 1.0, 10))
_RISE = (2 * _CURVE.clip(0.5) - 1) ** 2 * (5 - 4 * _CURVE.clip(0.5))


def genealogy(
    posterior: Posterior,
    *,
    chain: int = 0,
    label: Callable[[Any], str] | None = None,
    image: Show | None = None,
    ax: Any = None,
    figsize: tuple[float, float] | None = None,
) -> Any:
    """Draw the tree of ancestors of a chain: who was copied, who died out, and where the surviving lines part.

    Surviving lines are coloured by branch, and as wide as the weight of their descendants; dots mark the line of the
    best particle; lines that died out are thin and grey; a light vertical line marks a resampling. One line until
    near the end means that all particles share their past: they say little about it. Above 64 particles, 64
    surviving ones are drawn, picked evenly by weight. Where values are images, those of surviving particles are drawn
    at their nodes, framed in the colour of their branch, of as many particles and steps as there is room for.

    Args:
        posterior: of any engine.
        chain: number of the chain.
        label: what to write for a step of a surviving particle: a function of its choices (its sites), "" for
            nothing. None writes what it drew, where that is text and there is room, or draws its image.
        image: from the choices of a step to a picture, or None for none; by default what `Faces` finds. No picture is
            drawn where there is a ``label``.
        ax: axes to draw in; None makes a figure.
        figsize: of the new figure, in inches.

    Raises IndexError for a chain that is not there.
    """
    posterior._some()
    from ..drawing.figure import SMALL, axes, write
    from ..drawing.figure import label as title

    run = one_chain(posterior, chain)
    faces = None if label else Faces(posterior, chain, image)
    pictured = bool(faces)
    if pictured and figsize is None and ax is None:
        figsize = _size_for_images(run)
    tree = levels(run, *(_room(ax, figsize, len(run.steps)) if pictured else (MOST_PARTICLES, MOST_STEPS)))
    rows = max(len(level.particle) for level in tree)
    steps = len(run.steps)
    say = label or words
    lengths = [len(say(run.steps[level.step].choices[level.particle[level.best]])) for level in tree]
    typical = float(np.quantile([length for length in lengths if length] or [0], 0.8))
    width = min(max(6.0, 0.2 * len(tree), (0.1 + 0.07 * typical) * len(tree)), 13.0)
    ax = axes(ax, figsize, (width, min(max(2.2, 0.16 * rows + 0.8), 6.0)))
    for before, here in pairwise(tree):
        for k in range(len(here.particle)):
            _edge(ax, before, here, k)
    best = [level.height[level.best] for level in tree]
    if tree[-1].alive.any():
        size = 3 if len(tree) <= 64 else 2
        ax.plot([level.step for level in tree], best, "o", color=INK, markersize=size, zorder=4)
    if len(tree) == 1:  # no lines, so that each particle is a dot
        ax.scatter(np.zeros(rows), tree[0].height, s=4 + 250 * tree[0].mass, color=BLUE, alpha=0.6, linewidths=0)
    for t, step in enumerate(run.steps):
        if step.resampled and steps <= 128:
            ax.axvline(t - 0.5, color=INK, linewidth=0.7, alpha=0.3, zorder=0)
    _frame(ax, steps)
    drawn = len(tree[-1].particle)
    n = len(run.log_weights)
    of = f"{n:,} particles" if drawn == n else f"{drawn} of {n:,} particles, picked by weight"
    which = f"chain {chain} of {len(posterior.chains)}, " if len(posterior.chains) > 1 else ""
    title(ax, "Genealogy", "step")
    best_is = "grey frames: the best" if faces else "dots: the best"
    ax.set_title(
        f"{which}{of}; {best_is if tree[-1].alive.any() else 'none survived'}",
        loc="right",
        fontsize=SMALL,
        color=INK,
    )
    if faces:
        _images(ax, tree, faces)
        return ax.figure
    texts = _texts(ax, run, tree, say)
    for x, y, mass, text in texts:
        write(ax, x, y, text, xytext=(3, 1.5 + _width(mass) / 2), fontsize=7, zorder=5)
    if texts:
        ax.set_xlim(right=steps - 0.1)  # room for those of the last step
    return ax.figure


def one_chain(posterior: Posterior, chain: int) -> Chain:
    """Return a chain by number, or raise IndexError."""
    if not 0 <= chain < len(posterior.chains):
        raise IndexError(f"chain {chain} of {len(posterior.chains)}")
    return posterior.chains[chain]


def _size_for_images(run: Chain) -> tuple[float, float]:
    """Return the size of a figure with room for images, in inches."""
    rows = max(len(step.ancestors) for step in run.steps)
    return min(max(5.0, 0.8 * len(run.steps)), 11.0), min(max(1.8, 0.42 * rows + 0.7), 8.0)


def _room(ax: Any, figsize: tuple[float, float] | None, steps: int) -> tuple[int, int]:
    """Return how many particles and steps can be drawn as images of a quarter of an inch or more, steps evenly."""
    width, height = figsize or ax.figure.get_size_inches() * (ax.get_position().width, ax.get_position().height)
    stride = -(-(steps - 1) // max(min(int(width / 0.62), 16) - 1, 1)) or 1
    return max(min(int((height - 0.7) / 0.26), 20), 2), (steps - 1) // stride + 1


def _images(ax: Any, tree: list[Level], faces: Faces) -> None:
    """Draw the images of surviving particles at their nodes."""
    rows = max(len(level.particle) for level in tree)
    width, height = ax.figure.get_size_inches() * (ax.get_position().width, ax.get_position().height)
    side = 72 * min(0.86 * (height - 0.3) / rows, 0.8 * (width - 0.5) / len(tree), 0.8)
    for level in tree:
        for k in np.flatnonzero(level.alive).tolist():
            pixels = faces.step(level.step, int(level.particle[k]))
            if pixels is not None:
                colour = INK if k == level.best or level.clade[k] < 0 else BRANCHES[level.clade[k] % len(BRANCHES)]
                thumbnail(ax, level.step, level.height[k], pixels, side, colour, 2.2 if k == level.best else 1.0)
    last = tree[-1].step
    ax.set_xlim(-0.6 * last / len(tree), last + 0.6 * last / len(tree))


def thumbnail(ax: Any, x: float, y: float, pixels: Pixels, side: float, colour: Any, edge: float) -> None:
    """Draw an image (h, w, c) at a point, ``side`` points high (lower if it is wide), in a frame."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    pixels = shrunk(pixels, 128)
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, -1)  # colours take less time than a colour map
    shown = OffsetImage(pixels, zoom=side / max(pixels.shape[0], pixels.shape[1] / 3))
    frame = {"edgecolor": colour, "linewidth": edge, "boxstyle": "square,pad=0.08", "facecolor": colour}
    box = AnnotationBbox(shown, (x, y), pad=0.0, bboxprops=frame, zorder=5)
    box.set_in_layout(False)  # which would cost more than all the rest
    ax.add_artist(box)


def _edge(ax: Any, before: Level, here: Level, k: int) -> None:
    """Draw the line from a particle's ancestor to it."""
    start, end = before.height[here.parent[k]], here.height[k]
    xs = before.step + (here.step - before.step) * _CURVE
    ys = start + (end - start) * _RISE
    if not here.alive[k]:
        ax.plot(xs, ys, color=INK, linewidth=0.6, alpha=0.4, zorder=1)
        return
    clade = here.clade[k]
    colour = BRANCHES[clade % len(BRANCHES)] if clade >= 0 else INK
    ax.plot(xs, ys, color=colour, linewidth=_width(here.mass[k]), zorder=2, solid_capstyle="round")


def _width(mass: Any) -> Any:
    """Return how wide a line is, in points, whose descendants have this share of the weight."""
    return 1.0 + 4.0 * mass


def _frame(ax: Any, steps: int) -> None:
    from ..drawing.figure import steps_axis

    steps_axis(ax, steps)
    ax.set_ylim(1.02, -0.06)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)


def _texts(ax: Any, run: Chain, tree: list[Level], say: Callable[[Any], str]) -> list[tuple[float, float, float, str]]:
    """Return the texts that fit above the surviving lines, with place and mass, cut to the width of a step."""
    width, height = ax.figure.get_size_inches() * (ax.get_position().width, ax.get_position().height)
    room = int(width / len(run.steps) * 17)  # characters of 7 points in a step
    line = 0.1 / height
    made: list[tuple[float, float, float, str]] = []
    for level in tree if room >= 3 else []:
        alive = np.flatnonzero(level.alive)
        alive = alive[np.argsort(level.height[alive])]
        free = np.diff(level.height[alive], prepend=-1.0) >= line
        for k in alive[free]:
            text = say(run.steps[level.step].choices[level.particle[k]]).strip()
            if text:
                made.append((level.step, float(level.height[k]), float(level.mass[k]), cut(text, room)))
    return made

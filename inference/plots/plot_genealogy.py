"""The genealogy of one chain as a matplotlib figure."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple
from unicodedata import east_asian_width

import numpy as np

from ..base.chain import Chain
from ..drawing.palette import BLUE, BRANCHES, INK
from ..drawing.pixels import Pixels, shrunk
from ..drawing.views import cut, words
from ..results.posterior import Posterior
from .faces import Faces, Show
from .lineages import MOST_PARTICLES, MOST_STEPS, Level, choices_of, levels, one_chain, parted

_LEVEL = 0.72
"""Lines run level for this share of a step, which is the room for its text, and then bend towards the next."""
_CURVE = np.append(0.0, np.linspace(_LEVEL, 1.0, 10))
_BEND = (_CURVE.clip(_LEVEL) - _LEVEL) / (1.0 - _LEVEL)
_RISE = _BEND**2 * (3.0 - 2.0 * _BEND)
_FEW = 32
"""Of more than 64 particles, so many are drawn where there are texts to write."""
_TYPE = 7.5
"""Size of the texts, in points."""


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
    best particle; lines that died out are thin and grey; a light vertical line marks a resampling. A text is bold where
    copies of one ancestor part: where a surviving one drew another text than its siblings. One line until
    near the end means that all particles share their past: they say little about it. Above 64 particles, 64
    surviving ones are drawn, picked evenly by weight, or 32 where there are texts. Where values are images, those of
    surviving particles are drawn at their nodes, framed in the colour of their branch, of as many particles and steps
    as there is room for.

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
    from ..drawing.figure import SMALL, axes
    from ..drawing.figure import label as title

    run = one_chain(posterior, chain)
    faces = None if label else Faces(posterior, chain, image)
    say = label or words
    if faces:
        if figsize is None and ax is None:
            figsize = _size_for_images(run)
        tree = levels(run, *_room(ax, figsize, len(run.steps)))
    else:
        tree = levels(run)
        if len(run.log_weights) > MOST_PARTICLES and any(_said(run, tree, say)):
            tree = levels(run, _FEW)
    rows, steps = max(len(level.particle) for level in tree), len(run.steps)
    typical = float(np.quantile([len(text) for text in _said(run, tree, say) if text] or [0], 0.8))
    width = min(max(6.0, 0.2 * len(tree), (0.18 + 0.105 * typical) * len(tree)), 13.0)
    ax = axes(ax, figsize, (width, min(max(2.4, 0.2 * rows + 0.9), 7.0)))
    for before, here in pairwise(tree):
        for k in range(len(here.particle)):
            _edge(ax, before, here, k)
    if tree[-1].alive.any():
        size = 3 if len(tree) <= 64 else 2
        best = [level.height[level.best] for level in tree]
        ax.plot([level.step for level in tree], best, "o", color=INK, markersize=size, zorder=4)
    if len(tree) == 1:  # no lines, so that each particle is a dot
        ax.scatter(np.zeros(rows), tree[0].height, s=4 + 250 * tree[0].mass, color=BLUE, alpha=0.6, linewidths=0)
    for t in _resampled(run):
        ax.axvline(t - 0.5, color=INK, linewidth=0.7, alpha=0.4, zorder=0)
    _frame(ax, steps)
    drawn, n = len(tree[-1].particle), len(run.log_weights)
    of = f"{n:,} particles" if drawn == n else f"{drawn} of {n:,} particles, picked by weight"
    which = f"chain {chain} of {len(posterior.chains)}, " if len(posterior.chains) > 1 else ""
    title(ax, "Genealogy", "step")
    survived = "" if tree[-1].alive.any() else "; none survived"
    ax.set_title(f"{which}{of}{survived}", loc="right", fontsize=SMALL, color=INK)
    bold = False
    if faces:
        _images(ax, tree, faces)
    else:
        if typical:
            ax.set_xlim(right=steps - 0.1)  # room for the texts of the last step
        bold = _write(ax, _texts(ax, run, tree, say))
    _key(ax, tree, bool(_resampled(run)), bool(faces), bold)
    return ax.figure


def _said(run: Chain, tree: list[Level], say: Callable[[Any], str]) -> list[str]:
    """Return the texts of the best line."""
    return [say(run.steps[level.step].choices[level.particle[level.best]]).strip() for level in tree]


def _resampled(run: Chain) -> list[int]:
    """Return the steps that began with resampling, where they can be told apart."""
    return [t for t, step in enumerate(run.steps) if step.resampled] if len(run.steps) <= MOST_STEPS else []


def _key(ax: Any, tree: list[Level], resampled: bool, pictured: bool, bold: bool) -> None:
    """Say what the marks are, those that are there."""
    from ..drawing.figure import key, sign

    alive = tree[-1].alive.any()
    dead = len(tree) > 1 and not all(level.alive.all() for level in tree)
    signs = []
    if alive and pictured:
        signs.append(sign("the best", "s", markerfacecolor="none", markeredgewidth=2.2, markersize=7))
    elif alive:
        signs.append(sign("the best", "o", markersize=4))
    if alive and len(tree) > 1:
        signs.append(sign("survives, by branch", color=BLUE, linewidth=2))
    if dead:
        signs.append(sign("died out", linewidth=0.8, alpha=0.6))
    if resampled:
        signs.append(sign("resampled", "|", markersize=9, alpha=0.6))
    if bold:
        signs.append(sign("bold: copies part", " "))
    key(ax, signs)


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


class _Text(NamedTuple):
    """A text above a line, at its left end."""

    x: float
    y: float
    mass: float
    text: str
    parts: bool


def _texts(ax: Any, run: Chain, tree: list[Level], say: Callable[[Any], str]) -> list[_Text]:
    """Return the texts that fit between a surviving line and the next line above it, before they bend."""
    width, height = _inches(ax)
    step = 72 * width / (ax.get_xlim()[1] - ax.get_xlim()[0])
    stride = tree[1].step - tree[0].step if len(tree) > 1 else 1
    room, last = (72 * share * step / 72 * stride - 4 for share in (_LEVEL, 0.95))
    point = 1.08 / (72 * height)  # of the axis, which is a bit longer than 1
    made: list[_Text] = []
    for before, level, after in zip([None, *tree], tree, [*tree[1:], None]):
        texts = [say(choices).strip() for choices in choices_of(run, level)]
        parts = parted(before, level, texts) if before else np.zeros(len(texts), bool)
        goes_on = np.ones(len(texts), bool) if after is None else np.isin(np.arange(len(texts)), after.parent)
        order = np.argsort(level.height)
        order = order[goes_on[order]]
        lower = np.diff(level.height[order], prepend=-1.0)
        for k, gap in zip(order.tolist(), lower.tolist()):
            mass, bold = float(level.mass[k]), bool(parts[k])
            if level.alive[k] and texts[k] and gap >= (_TYPE * 1.2 + _width(mass) / 2) * point:
                shown = fitted(texts[k], last if after is None else room, bold)
                made.append(_Text(level.step, float(level.height[k]), mass, shown, bold))
    readable = [one for one in made if len(one.text) > 3 or not one.text.endswith("…")]
    return made if 4 * len(readable) >= 3 * len(made) else []


def _write(ax: Any, texts: list[_Text]) -> bool:
    """Write the texts, and return whether any is bold."""
    from ..drawing.figure import write

    for one in texts:
        place, weight = (3, 1 + _width(one.mass) / 2), "bold" if one.parts else "normal"
        write(ax, one.x, one.y, one.text, xytext=place, va="bottom", fontsize=_TYPE, fontweight=weight, zorder=5)
    return any(one.parts for one in texts)


def _inches(ax: Any) -> tuple[float, float]:
    """Return about how large the axes will be."""
    width, height = ax.figure.get_size_inches() * (ax.get_position().width, ax.get_position().height)
    if ax.figure.get_layout_engine() is None:
        return width, height
    return 1.24 * width, 1.08 * height  # the layout takes what the margins leave


def fitted(text: str, room: float, bold: bool = False) -> str:
    """Cut a text to a width in points, in the type of the texts here."""
    ends = np.cumsum([_advance(letter, bold) for letter in cut(text, 200)])
    if not len(ends) or ends[-1] <= room:
        return cut(text, 200)
    return cut(text, max(int((ends <= room - _advance("…", bold)).sum()) + 1, 1))


@lru_cache(4096)
def _advance(letter: str, bold: bool) -> float:
    """Return the width of a letter in points."""
    if east_asian_width(letter) in "WF":
        return _TYPE
    glyph = _font(bold).load_char(ord(letter))
    return float(glyph.linearHoriAdvance) / 65536


@lru_cache(2)
def _font(bold: bool) -> Any:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(weight="bold" if bold else "normal")))
    font.set_size(_TYPE, 72)
    return font

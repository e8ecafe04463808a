"""The genealogy of one chain as SVG: steps go down, the text of the best line stands beside, the mouse tells more."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np

from ..base.chain import Chain
from ..drawing.html_images import svg_image
from ..drawing.palette import BRANCHES, INK
from ..drawing.svg import Html, drawing
from ..drawing.views import cut, number, step_text, words
from ..results.posterior import Posterior
from .faces import Faces, Show
from .html_partings import partings_html
from .lineages import MOST_PARTICLES, Level, choices_of, levels, one_chain, parted

_FEW = 32
"""With more than 64 particles, so many are drawn; and twice as many steps."""
_NODES = 2500
"""With more nodes in all, those of lines that died say nothing."""
_WIDTH, _TEXT, _LEFT, _LETTER = 830.0, 62, 34.0, 6.4
"""The room of tree and text together, characters of a text beside it, the room of the numbers, and a character's."""
_IMAGES, _IMAGE_STEPS, _SIDE = 20, 14, 38.0
"""Particles and steps that are drawn as images, and the pixels that one takes."""


def genealogy_html(
    posterior: Posterior, *, chain: int = 0, label: Callable[[Any], str] | None = None, image: Show | None = None
) -> Html:
    """Draw the tree of ancestors of a chain as HTML, without matplotlib; a notebook shows it.

    Steps go down the page. Surviving lines are coloured by branch, and as wide as the weight of their descendants;
    those that died are grey. The best particle's line has dots, with its text beside; the other nodes have theirs where
    there is room, bold where copies of one ancestor part. Below stand the texts of the heaviest lines: what one shares
    with the line above is pale. Each node tells its text, log G and weight where the mouse is on it. Up to 64 particles
    all are drawn, of more 32 that survived, picked evenly by weight; of more than 64 steps, 64 of them, evenly spaced.
    Where values are images, those of surviving particles stand at their nodes, of 20 particles and 14 steps at most.

    Args:
        posterior: of any engine.
        chain: number of the chain.
        label: the text of a step: a function of a particle's choices (its sites). None shows what it drew.
        image: from the choices of a step to a picture, or None for none; by default what `Faces` finds. No picture is
            drawn where there is a ``label``.

    Raises IndexError for a chain that is not there.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def two():
    ...     for _ in range(2):
    ...         face = await fk.sample("face", fk.dist.DiscreteUniform(1, 6))
    ...         await fk.factor("G", float(face))
    >>> page = fk.plots.genealogy_html(fk.infer(two(), fk.SMC(4), seed=0))
    >>> page.count("<circle")
    8
    """
    posterior._some()
    run = one_chain(posterior, chain)
    faces = None if label else Faces(posterior, chain, image)
    if faces:
        return _with_images(run, faces)
    many = len(run.log_weights) > MOST_PARTICLES
    tree, say, write = levels(run, _FEW if many else MOST_PARTICLES, 2 * _FEW), label or step_text, label or words
    rows = max(len(level.particle) for level in tree)
    said = [say(run.steps[level.step].choices[int(level.particle[level.best])]) for level in tree]
    written = [write(choices) for level in tree for choices in choices_of(run, level)]
    column = _LETTER * min(max(map(len, said)), _TEXT)
    pitch = min(max(16.0, _LETTER * float(np.quantile([len(text) for text in written], 0.9)) + 20.0), 150.0)
    width = min(pitch * rows, _WIDTH - column)
    gap = 24.0 if any(written) and len(tree) <= 32 else 20.0 if len(tree) <= 32 else 16.0
    all_nodes = sum(len(level.particle) for level in tree) <= _NODES
    nodes, texts = [], []
    for row, level in enumerate(tree):
        y = 12.0 + gap * row
        for k in range(len(level.particle)):
            if all_nodes or level.alive[k]:
                nodes.append(_node(run, level, k, _LEFT + width * level.height[k], y, say))
        texts.append(_beside(run, level, y, width, say))
        if any(written):
            texts.append(_at_nodes(run, tree[row - 1] if row else None, level, (width, y), write))
    inside = f"{_lines(tree, width, gap, 12.0)}{''.join(nodes)}{''.join(texts)}"
    svg = drawing(_LEFT + width + 16 + column, 24 + gap * (len(tree) - 1), inside, "genealogy")
    return Html(svg + partings_html(run, tree, write))


def _with_images(run: Chain, faces: Faces) -> Html:
    """Draw the tree with an image at each node that survived, as wide as the widest."""
    stride = -(-(len(run.steps) - 1) // (_IMAGE_STEPS - 1)) or 1
    tree = levels(run, _IMAGES, (len(run.steps) - 1) // stride + 1)
    shown = {
        (row, k): pixels
        for row, level in enumerate(tree)
        for k in np.flatnonzero(level.alive).tolist()
        if (pixels := faces.step(level.step, int(level.particle[k]))) is not None
    }
    shape = max((pixels.shape[1] / pixels.shape[0] for pixels in shown.values()), default=1.0)
    across = _SIDE * min(shape, 3.0)
    high, gap = across / shape, across / shape + 14.0
    width, top = (across + 6.0) * max(len(level.particle) for level in tree), high / 2 + 4
    nodes, numbers = [], []
    for row, level in enumerate(tree):
        y = top + gap * row
        numbers.append(_number(run, level, y))
        for k in range(len(level.particle)):
            x = _LEFT + width * level.height[k]
            if (row, k) not in shown:
                nodes.append(_node(run, level, k, x, y, step_text))
                continue
            colour, wide = ("currentColor", 2.5) if k == level.best else (_colour(level, k), 1.2)
            nodes.append(svg_image(shown[row, k], x, y, high, colour, wide, _told(run, level, k, step_text)))
    inside = f"{_lines(tree, width, gap, top)}{''.join(nodes)}{''.join(numbers)}"
    return Html(drawing(_LEFT + width + 12, gap * (len(tree) - 1) + 2 * top, inside, "genealogy"))


def _lines(tree: list[Level], width: float, gap: float, top: float) -> str:
    """Draw the lines from ancestors to their children."""
    dead, lines = [], []
    for row, (before, level) in enumerate(pairwise(tree), 1):
        y = top + gap * row
        for k in range(len(level.particle)):
            start, end = (_LEFT + width * height for height in (before.height[level.parent[k]], level.height[k]))
            path = _path(start, y - gap, end, y)
            if level.alive[k]:
                wide = f'stroke-width="{1.2 + 4 * level.mass[k]:.1f}"'
                lines.append(f'<path d="{path}" stroke="{_colour(level, k)}" {wide}/>')
            else:
                dead.append(path)
    return (
        f'<g fill="none"><path d="{"".join(dead)}" stroke="{INK}" stroke-width="0.7" opacity="0.45"/>{"".join(lines)}'
        "</g>"
    )


def _colour(level: Level, k: int) -> str:
    return BRANCHES[level.clade[k] % len(BRANCHES)] if level.clade[k] >= 0 else INK


def _path(x0: float, y0: float, x1: float, y1: float) -> str:
    """Run straight down near the nodes, which leaves room for their texts, and bend between them."""
    if abs(x1 - x0) < 0.05:
        return f"M{x0:.1f} {y0:.0f}V{y1:.0f}"
    middle, bend = (y0 + y1) / 2, min(6.0, (y1 - y0) / 4)
    return (
        f"M{x0:.1f} {y0:.0f}V{y0 + bend:.0f}C{x0:.1f} {middle:.0f} {x1:.1f} {middle:.0f} {x1:.1f} {y1 - bend:.0f}"
        f"V{y1:.0f}"
    )


def _node(run: Chain, level: Level, k: int, x: float, y: float, say: Callable[[Any], str]) -> str:
    """Draw a node that tells what its particle did."""
    title = escape(_told(run, level, k, say))
    radius, opacity = (3.2, 1.0) if k == level.best else (2.0, 0.9) if level.alive[k] else (1.3, 0.5)
    colour = "currentColor" if k == level.best else _colour(level, k)
    return (
        f'<circle cx="{x:.1f}" cy="{y:.0f}" r="{radius}" fill="{colour}" opacity="{opacity}" stroke="{INK}" '
        f'stroke-opacity="0" stroke-width="8" pointer-events="all"><title>{title}</title></circle>'
    )


def _told(run: Chain, level: Level, k: int, say: Callable[[Any], str]) -> str:
    step, i = run.steps[level.step], int(level.particle[k])
    told = [f"step {level.step}, particle {i}", f"log G {number(float(step.log_potential[i]), 3)}"]
    told.append(f"weight of its descendants {level.mass[k]:.3f}" if level.alive[k] else "no descendant is left")
    text = cut(say(step.choices[i]), 400)
    return "\n".join([", ".join(told), text] if text else [", ".join(told)])


def _number(run: Chain, level: Level, y: float) -> str:
    """Write the number of a step on the left, bold after a resampling."""
    bold = ' font-weight="bold"' if run.steps[level.step].resampled else ' opacity="0.85"'
    return f'<text x="{_LEFT - 12:.0f}" y="{y + 4:.0f}" text-anchor="end" fill="currentColor"{bold}>{level.step}</text>'


def _beside(run: Chain, level: Level, y: float, width: float, say: Callable[[Any], str]) -> str:
    """Write the number of the step on the left, and the best line's text on the right."""
    text = say(run.steps[level.step].choices[int(level.particle[level.best])])
    if not text:
        return _number(run, level, y)
    shown = escape(cut(text, _TEXT).strip())
    return (
        f'{_number(run, level, y)}<text x="{_LEFT + width + 12:.0f}" y="{y + 4:.0f}" fill="currentColor">{shown}'
        f"<title>{escape(cut(text, 2000))}</title></text>"
    )


def _at_nodes(
    run: Chain, before: Level | None, level: Level, place: tuple[float, float], say: Callable[[Any], str]
) -> str:
    """Write the texts of surviving nodes on their right, as far as the next node; bold where copies part."""
    width, y = place
    texts = [say(choices).strip() for choices in choices_of(run, level)]
    bold = parted(before, level, texts) if before is not None else np.zeros(len(texts), bool)
    order = np.argsort(level.height)
    gaps = width * np.diff(level.height[order], append=1.0)
    made = []
    for k, gap in zip(order.tolist(), gaps.tolist()):
        room = int((gap - 11.0) / (_LETTER * (1.12 if bold[k] else 1.0)))
        if level.alive[k] and texts[k] and room >= min(len(texts[k]), 4):
            x, weight = _LEFT + width * level.height[k] + 6.0, ' style="font-weight:bold"' if bold[k] else ""
            shown = escape(cut(texts[k], room))
            made.append(f'<text x="{x:.1f}" y="{y + 3.5:.1f}" fill="currentColor"{weight}>{shown}</text>')
    return "".join(made)

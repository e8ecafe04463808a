"""The tree of a search as SVG: depth goes to the right, the mouse tells of each node."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import numpy as np

from ..base.search_tree import SearchTree
from ..drawing.palette import INK
from ..drawing.svg import Html, drawing
from ..drawing.views import cut, number, step_text, words
from ..results.posterior import Posterior
from .plot_tree import grown_by, heaviest_leaves, layout, stood

_LEAVES = 48
_WIDE, _LETTER, _LINE = 800.0, 6.1, 17.0
_STOPS = np.array([[104, 92, 168], [49, 122, 171], [33, 145, 140], [94, 180, 80], [238, 200, 30]], float)
"""Colours from the least worth to the most, after viridis, of middle tones."""


def tree_html(
    posterior: Posterior, *, chain: int = 0, label: Callable[[Any], str] | None = None, most: int = _LEAVES
) -> Html:
    """Draw the tree that an engine such as `TreeSampling` or `BeamSearch` grew as HTML, without matplotlib.

    Nodes where lines part, and leaves, have a dot, coloured by worth as in `tree`; lines are as wide as the share of
    the rollouts that went through them, and faint where the search gave up; a ring marks the heaviest leaf.

    Args:
        posterior: of an engine that grows a tree.
        chain: number of the chain.
        label: what to write for a node: a function of the choices of its step. None writes the text that was drawn.
        most: leaves to draw.

    Raises IndexError for a chain that is not there, and ValueError for a posterior without a tree.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def two():
    ...     for _ in range(2):
    ...         face = await fk.sample("face", fk.dist.DiscreteUniform(1, 6))
    ...         await fk.factor("G", float(face))
    >>> page = fk.plots.tree_html(fk.infer(two(), fk.BeamSearch(4), seed=0))
    >>> "step 1, worth " in page
    True
    """
    run, grown = grown_by(posterior, chain)
    say = label or words
    nodes, above, heights = layout(grown, heaviest_leaves(grown, run.log_weights, most))
    share, kept = stood(grown, nodes)
    pitch = _WIDE / (float(grown.depth[nodes].max()) + 2.6)
    xs, ys = 14.0 + pitch * (grown.depth[nodes] + 1.0), 14.0 + _LINE * heights
    best = int(grown.particles[int(np.argmax(run.log_weights))])
    colours = _colours(grown.log_weight[nodes] + grown.value[nodes])
    lines, dots, texts = [], [], []
    inner = np.isin(np.arange(len(nodes)), above)
    for k, node in enumerate(nodes.tolist()):
        if k:
            lines.append(_line(xs[above[k]], ys[above[k]], xs[k], ys[k], pitch, share[k], bool(kept[k])))
            texts.append(_text(grown, node, xs[k], ys[k], pitch, bool(inner[k]), say))
        ring = f' stroke="currentColor" stroke-width="{2 if node == best else 0}"'
        told = escape(_told(grown, node))
        dots.append(
            f'<circle cx="{xs[k]:.1f}" cy="{ys[k]:.1f}" r="{2.6 + 5 * share[k] ** 0.5:.1f}" fill="{colours[k]}"{ring}>'
            f"<title>{told}</title></circle>"
        )
    inside = f'<g fill="none" stroke="{INK}">{"".join(lines)}</g>{"".join(dots)}{"".join(texts)}'
    return Html(drawing(_WIDE + 20, 28 + _LINE * float(heights.max()), inside, "search tree"))


def _line(x0: float, y0: float, x1: float, y1: float, pitch: float, share: float, kept: bool) -> str:
    """Bend when the line leaves a node, and run level then."""
    turn = x0 + 0.4 * pitch
    path = f"M{x0:.1f} {y0:.1f}C{x0 + 0.2 * pitch:.1f} {y0:.1f} {x0 + 0.2 * pitch:.1f} {y1:.1f} {turn:.1f} {y1:.1f}"
    return f'<path d="{path}H{x1:.1f}" stroke-width="{0.7 + 3.5 * share:.1f}" opacity="{0.7 if kept else 0.25}"/>'


def _text(tree: SearchTree, node: int, x: float, y: float, pitch: float, inner: bool, say: Callable[[Any], str]) -> str:
    """Write beside a leaf, and above the level end of the line to another node."""
    choices = tree.choices[node]
    text = say(choices).strip() if len(choices) else ""
    room = int((0.55 * pitch if inner else 1.4 * pitch) / _LETTER)
    if not text or room < 3:
        return ""
    place = f'x="{x - 7:.1f}" y="{y - 3.5:.1f}" text-anchor="end"' if inner else f'x="{x + 9:.1f}" y="{y + 4:.1f}"'
    return f'<text {place} fill="currentColor">{escape(cut(text, room))}</text>'


def _told(tree: SearchTree, node: int) -> str:
    """Say what a node is."""
    if node == 0:
        return f"start, {int(tree.visits[0]):,} rollouts"
    worth = number(float(tree.log_weight[node] + tree.value[node]), 3)
    told = f"step {int(tree.depth[node])}, worth {worth} nats, {int(tree.visits[node]):,} rollouts"
    text = cut(step_text(tree.choices[node]), 400) if len(tree.choices[node]) else ""
    return f"{told}\n{text}" if text else told


def _colours(worth: Any) -> list[str]:
    """Return a colour for each worth, grey where it is nothing."""
    finite = np.isfinite(worth)
    low, high = np.quantile(worth[finite], [0.02, 1.0]) if finite.any() else (0.0, 1.0)
    share = np.where(finite, (np.where(finite, worth, low) - low) / max(high - low, 1e-9), 0.0).clip(0.0, 1.0)
    levels = np.linspace(0.0, 1.0, len(_STOPS))
    red, green, blue = (np.interp(share, levels, stops).round().astype(int) for stops in _STOPS.T)
    return [f"#{r:02x}{g:02x}{b:02x}" if ok else INK for r, g, b, ok in zip(red, green, blue, finite)]

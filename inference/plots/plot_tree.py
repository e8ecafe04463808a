"""The tree of a search as a matplotlib figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..base.chain import Chain
from ..base.search_tree import SearchTree
from ..drawing.palette import INK
from ..drawing.views import words
from ..results.posterior import Posterior
from .faces import Faces, Show
from .lineages import one_chain
from .plot_genealogy import fitted, thumbnail

MOST_LEAVES = 96
"""With more, only the likeliest are drawn, and the nodes that lead to them."""
_BEND = np.linspace(0.0, 0.4, 10)
_RISE = (_BEND / 0.4) ** 2 * (3.0 - 2.0 * _BEND / 0.4)
"""Lines bend when they leave a node, and then run level, with room for a text above them."""
MOST_IMAGES = 24
"""The same, where nodes are images."""


def tree(
    posterior: Posterior,
    *,
    chain: int = 0,
    label: Callable[[Any], str] | None = None,
    image: Show | None = None,
    most: int | None = None,
    ax: Any = None,
    figsize: tuple[float, float] | None = None,
) -> Any:
    """Draw the tree that an engine such as `TreeSampling`, `BeamSearch` or `AStar` grew.

    Depth goes from left to right; only nodes where lines part, and leaves, have a dot: as large as the share of
    rollouts that went through it, and coloured by its worth, the log-weight of the path to it plus its value, in nats.
    Worths that the weights make equal to nothing are left grey. A ring marks the heaviest leaf. Lines are fainter where
    a search gave up, as `BeamSearch` or `AStar` do: what is below them is no particle.

    Args:
        posterior: of an engine that grows a tree.
        chain: number of the chain.
        label: what to write beside a dot: a function of the choices of its step, "" for nothing. None writes what was
            drawn, where that is text and there is room, or shows its image.
        image: from the choices of a step to a picture, or None; it is shown in place of the dot, which becomes its
            frame. By default, where values are images, leaves show theirs, and nodes what they chose.
        most: leaves to draw; None is 96, or 24 where images are shown.
        ax: axes to draw in; None makes a figure.
        figsize: of the new figure, in inches.

    Raises:
        IndexError: for a chain that is not there.
        ValueError: for a posterior without a tree.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def two():
    ...     for _ in range(2):
    ...         face = await fk.sample("face", fk.dist.DiscreteUniform(1, 6))
    ...         await fk.factor("G", float(face))
    >>> figure = fk.plots.tree(fk.infer(two(), fk.TreeSampling(20), seed=0))
    >>> figure.axes[0].get_title(loc="left")
    'Search tree'
    """
    run, grown = grown_by(posterior, chain)
    from ..drawing.figure import SMALL, axes, key, sign, steps_axis
    from ..drawing.figure import label as title

    faces = None if label else Faces(posterior, chain, image)
    most = most if most is not None else MOST_IMAGES if faces else MOST_LEAVES
    nodes, above, heights = layout(grown, heaviest_leaves(grown, run.log_weights, most))
    leaves = int(heights.max()) + 1
    ax = axes(ax, figsize, (8.0, min(max(2.4, (0.36 if faces else 0.17) * leaves + 0.9), 9.5)))
    depths, (share, kept) = grown.depth[nodes], stood(grown, nodes)
    for k in range(1, len(nodes)):
        xs = np.append(depths[above[k]] + _BEND, depths[k])
        ys = np.append(heights[above[k]] + (heights[k] - heights[above[k]]) * _RISE, heights[k])
        alpha = 0.7 if kept[k] else 0.25
        ax.plot(xs, ys, color=INK, linewidth=0.5 + 3.5 * share[k], alpha=alpha, zorder=1)
    worth = grown.log_weight[nodes] + grown.value[nodes]
    dots = _dots(ax, depths, heights, share, worth)
    best = np.flatnonzero(nodes == grown.particles[int(np.argmax(run.log_weights))])
    ax.scatter(depths[best], heights[best], s=90, facecolors="none", edgecolors=INK, linewidths=1.2, zorder=4)
    if faces:
        _images(ax, grown, nodes, depths, heights, faces, dots)
    else:
        _labels(ax, grown, (nodes, above, heights), depths, share, label or words)
    steps_axis(ax, int(depths.max()) + 1)
    ax.xaxis.set_major_formatter(lambda x, _: "start" if x < 0 else f"{x:g}")
    ax.set_xlim(-1.25, depths.max() + 0.8)
    ax.set_ylim(leaves - 0.5, -0.5)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    title(ax, "Search tree", "step")
    whole, held = len(grown.leaves), len(grown.particles)
    of = f"{whole:,} leaves" if leaves == whole else f"{leaves} of {whole:,} leaves"
    more = f"{int(grown.visits[0]):,} rollouts" if held == whole else f"{held:,} kept"
    ax.set_title(f"{of}, {more}", loc="right", fontsize=SMALL, color=INK)
    signs = [sign("heaviest", "o", markerfacecolor="none", markersize=8)]
    signs += [] if kept.all() else [sign("given up", alpha=0.4)]
    key(ax, [*signs, sign("wide: many rollouts", linewidth=3.5, alpha=0.7)])
    return ax.figure


def grown_by(posterior: Posterior, chain: int) -> tuple[Chain, SearchTree]:
    """Return a chain by number, and its tree. Raises IndexError without it, ValueError for one that grew none."""
    posterior._some()
    run = one_chain(posterior, chain)
    if run.tree is None:
        raise ValueError(f"{posterior.engine} grows no tree: this is for engines such as TreeSampling and TreeSearch")
    return run, run.tree


def stood(tree: SearchTree, nodes: Any) -> tuple[Any, Any]:
    """Return the share of the rollouts that went through nodes (k,), and whether the search kept them."""
    return tree.visits[nodes] / max(int(tree.visits[0]), 1), np.isin(nodes, above_all(tree, tree.particles))


def layout(tree: SearchTree, leaves: Any) -> tuple[Any, Any, Any]:
    """Place the nodes where lines part, and the given leaves (node numbers), so that no two lines cross.

    Returns their numbers (k,), root first, the position of the drawn node above each (−1 for the root), and their
    heights (k,), in units of one leaf.
    """
    wanted = np.zeros(len(tree), bool)
    wanted[above_all(tree, leaves)] = True
    nodes, above, heights, placed = [], [], [], 0.0
    stack: list[tuple[int, int]] = [(0, -1)]
    while stack:
        x, up = stack.pop()
        children = [int(c) for c in tree.children(x) if wanted[c]]
        if len(children) != 1 or x == 0:
            nodes.append(x)
            above.append(up)
            heights.append(placed if not children else np.nan)
            placed += not children
            up = len(nodes) - 1
        stack += [(c, up) for c in reversed(children)]
    rows = np.array(heights)
    for k in range(len(nodes) - 1, -1, -1):
        if np.isnan(rows[k]):
            rows[k] = np.mean([rows[j] for j in range(k + 1, len(nodes)) if above[j] == k])
    return np.array(nodes), np.array(above), rows


def above_all(tree: SearchTree, leaves: Any) -> Any:
    """Return the given nodes and all that lead to them."""
    found, node = [], np.unique(leaves)
    while len(node):
        found.append(node)
        node = np.unique(tree.parent[node])
        node = node[node >= 0]
    return np.unique(np.concatenate(found))


def heaviest_leaves(tree: SearchTree, log_weights: Any, most: int) -> Any:
    """Return the leaves to draw: those that weigh most, then other particles, and among equals those worth most."""
    if most < 1:
        raise ValueError(f"most must be a positive number of leaves, not {most!r}")
    weight, left = np.full(len(tree), -np.inf), np.ones(len(tree), bool)
    weight[tree.particles], left[tree.particles] = log_weights, False
    order = np.lexsort((-tree.log_mass[tree.leaves], left[tree.leaves], -weight[tree.leaves]))
    return np.sort(tree.leaves[order[:most]])


def _dots(ax: Any, depths: Any, heights: Any, share: Any, worth: Any) -> Any:
    """Draw the dots with a colour bar, and return their colours."""
    finite = np.isfinite(worth)
    low, high = np.quantile(worth[finite], [0.02, 1.0]) if finite.any() else (0.0, 1.0)
    size = 10 + 250 * share
    ax.scatter(depths[~finite], heights[~finite], s=size[~finite], color=INK, alpha=0.6, linewidths=0, zorder=2)
    drawn = ax.scatter(
        depths[finite],
        heights[finite],
        s=size[finite],
        c=worth[finite],
        cmap="viridis",
        vmin=low,
        vmax=max(high, low + 1e-9),
        linewidths=0,
        zorder=3,
    )
    bar = ax.figure.colorbar(drawn, ax=ax, pad=0.01, fraction=0.03)
    bar.ax.tick_params(labelsize=7.5, colors=INK, length=2)
    bar.outline.set_visible(False)
    bar.set_label("worth, nats", fontsize=7.5, color=INK)
    colours = np.tile([0.5, 0.5, 0.5, 1.0], (len(worth), 1))
    colours[finite] = drawn.to_rgba(worth[finite])
    return colours


def _images(ax: Any, tree: SearchTree, nodes: Any, depths: Any, heights: Any, faces: Faces, colours: Any) -> None:
    """Show pictures at the nodes."""
    height = 0.9 * ax.figure.get_size_inches()[1] * ax.get_position().height * 72 / (heights.max() + 1)
    particles = {int(node): i for i, node in enumerate(tree.particles)}
    for k in range(1, len(nodes)):
        node = int(nodes[k])
        pixels = faces.value(particles[node]) if node in particles else faces.choices(tree.choices[node])
        if pixels is not None:
            thumbnail(ax, depths[k], heights[k], pixels, min(max(height, 12.0), 40.0), colours[k], 1.5)


def _labels(
    ax: Any, tree: SearchTree, places: tuple[Any, Any, Any], depths: Any, share: Any, say: Callable[[Any], str]
) -> None:
    """Write what the steps of the nodes drew, where there is room."""
    from ..drawing.figure import write

    nodes, above, heights = places
    if heights.max() > 60:
        return
    step = 72 * ax.figure.get_size_inches()[0] * 0.86 / (depths.max() + 2.05)
    inner = np.isin(np.arange(len(nodes)), above)
    for k in range(1, len(nodes)):
        choices = tree.choices[nodes[k]]
        text = say(choices).strip() if len(choices) else ""
        if not text:
            continue
        room, place, side = (0.75 * step, (6, -3), "left")
        if inner[k]:  # above the level end of the line to it, which others leave alone
            room, place, side = 0.55 * step, (-6, 1.5 + 1.75 * share[k]), "right"
        write(ax, depths[k], heights[k], fitted(text, room), xytext=place, ha=side, fontsize=7.5, zorder=6)

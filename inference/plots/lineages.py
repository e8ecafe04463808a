"""The tree of ancestors, laid out to be drawn: no two lines cross."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...ppl.model import Floats, Index
from ..base.chain import Chain
from ..base.step import Step
from ..base.weights import normalize
from ..drawing.views import ancestry
from ..results.posterior import Posterior

MOST_PARTICLES = 64
"""With more, only some surviving lines are drawn."""
MOST_STEPS = 128
"""With more, only some steps are drawn."""


class Level(NamedTuple):
    """The k particles that are drawn of one step.

    Attributes:
        step: its number.
        particle: (k,) their indices.
        parent: (k,) the positions of their ancestors in the level before; −1 in the first.
        height: (k,) in 0…1, from the top.
        alive: (k,) whether a descendant of positive weight is left at the end.
        mass: (k,) the weight of their descendants.
        clade: (k,) number of the branch they belong to, counted where the surviving lines first part; −1 before,
            and for lines that died. All 0 where they never part.
        best: the position of the best particle's ancestor.
    """

    step: int
    particle: Index
    parent: Index
    height: Floats
    alive: NDArray[np.bool_]
    mass: Floats
    clade: Index
    best: int


def levels(chain: Chain, most: int = MOST_PARTICLES, most_steps: int = MOST_STEPS) -> list[Level]:
    """Lay out the tree of a chain.

    Up to ``most`` particles, all are drawn. Of more, ``most`` final ones are picked evenly by weight (and the best),
    and drawn with their ancestors.
    """
    steps = chain.steps
    kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), most_steps)).round().astype(int))
    weights = normalize(chain.log_weights)
    best = best_particle(chain)
    if max(len(step.ancestors) for step in steps) <= most:
        drawn = [np.arange(len(steps[t].ancestors)) for t in kept]
        final, mass = drawn[-1], weights
    else:
        even = weights if weights.any() else np.full(len(weights), 1 / len(weights))
        picks = np.minimum(np.searchsorted(np.cumsum(even), (np.arange(most) + 0.5) / most), len(even) - 1)
        final = np.unique(np.append(picks, best))
        mass = np.array([(picks == i).mean() for i in final])
        lines = ancestry(steps, final)
        drawn = [np.unique(lines[t]) for t in kept]
    parents = [np.full(len(drawn[0]), -1)]
    for a, b, before, here in zip(kept, kept[1:], drawn, drawn[1:]):
        parents.append(np.searchsorted(before, _ancestors(steps, a, b, here)))
    bests = ancestry(steps, np.array([best]))[kept, 0]
    found = [int(np.searchsorted(here, i)) for here, i in zip(drawn, bests)]
    alive, masses = _from_the_end(parents, drawn, weights[final] > 0, mass)
    heights, clades = _from_the_start(parents, alive)
    return [Level(int(t), *level) for t, *level in zip(kept, drawn, parents, heights, alive, masses, clades, found)]


def one_chain(posterior: Posterior, chain: int) -> Chain:
    """Return a chain by number, or raise IndexError."""
    if not 0 <= chain < len(posterior.chains):
        raise IndexError(f"chain {chain} of {len(posterior.chains)}")
    return posterior.chains[chain]


def choices_of(chain: Chain, level: Level) -> list[Any]:
    """Return what the particles of a level chose."""
    choices = chain.steps[level.step].choices
    return [choices[i] for i in level.particle.tolist()]


def parted(before: Level, here: Level, texts: Sequence[str]) -> NDArray[np.bool_]:
    """Return which particles of a level differ in their texts from a copy of the same ancestor that survives, (k,)."""
    found: dict[int, set[str]] = {}
    for parent, alive, text in zip(here.parent.tolist(), here.alive.tolist(), texts):
        if alive:
            found.setdefault(parent, set()).add(text)
    several = [len(found.get(parent, ())) > 1 for parent in here.parent.tolist()]
    return np.logical_and(here.alive, several)


def best_particle(chain: Chain) -> int:
    """Return the particle of largest weight in a chain (a complete one, where any has weight)."""
    complete = np.where(chain.complete, chain.log_weights, -np.inf)
    return int((complete if np.isfinite(complete).any() else chain.log_weights).argmax())


def _ancestors(steps: Sequence[Step], a: int, b: int, particles: Index) -> Index:
    """Return the ancestors at step a of particles of step b."""
    for t in range(b, a, -1):
        particles = steps[t].ancestors[particles]
    return particles


def _from_the_end(
    parents: list[Index], drawn: list[Index], alive: NDArray[np.bool_], mass: Floats
) -> tuple[list[NDArray[np.bool_]], list[Floats]]:
    """Hand down life and mass from the final particles to their ancestors."""
    lives: list[NDArray[np.bool_]] = [alive]
    masses: list[Floats] = [mass]
    for parent, before in zip(parents[:0:-1], drawn[-2::-1]):
        lives.append(np.bincount(parent, lives[-1], len(before)) > 0)
        masses.append(np.bincount(parent, masses[-1], len(before)).astype(float))
    return lives[::-1], masses[::-1]


def _from_the_start(parents: list[Index], alive: list[NDArray[np.bool_]]) -> tuple[list[Floats], list[Index]]:
    """Place children in the order of their parents, and name the branches."""
    heights: list[Floats] = []
    clades: list[Index] = []
    parted = next((t for t, lives in enumerate(alive) if lives.sum() > 1), 0)
    for t, (parent, lives) in enumerate(zip(parents, alive)):
        order = np.argsort(heights[-1][parent], kind="stable") if t else np.arange(len(parent))
        height = np.empty(len(parent))
        height[order] = (np.arange(len(parent)) + 0.5) / len(parent)
        clade = np.full(len(parent), -1)
        if t == parted:
            clade[order[lives[order]]] = np.arange(lives.sum())
        elif t > parted:
            clade = np.where(lives, clades[-1][parent], -1)
        heights.append(height)
        clades.append(clade)
    return heights, clades

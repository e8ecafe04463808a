"""Search trees as they are kept: the record of engines that grow a tree of partial runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...ppl.model import Floats, Index
from .step import Step, freeze
from .weights import spread

ARRAYS = ("parent", "depth", "visits", "value", "log_weight", "log_mass", "log_potential", "done", "particles")


@dataclass(frozen=True, eq=False)
class SearchTree:
    """m nodes in the order in which they were made. Node 0 is the root, before the first step.

    Attributes:
        parent: (m,) parents come before their children; −1 for the root.
        depth: (m,) the step that made each node, from 0; −1 for the root.
        visits: (m,) how many rollouts went through each.
        value: (m,) v̂, the estimate of the log of the mean weight still to come; 0 at a leaf.
        log_weight: (m,) Σ log G + log p − log q from the root to each.
        log_mass: (m,) its share: the masses of a level (finished nodes included) sum to the evidence of its depth.
        log_potential: (m,) log G of the step that made it.
        done: (m,) whether it has finished, or died.
        choices: m of what its step chose; () where that was not kept, and for the root.
        particles: (n,) the node of each particle.

    All its arrays are read-only.
    """

    parent: Index
    depth: NDArray[np.int64]
    visits: NDArray[np.int64]
    value: Floats
    log_weight: Floats
    log_mass: Floats
    log_potential: Floats
    done: NDArray[np.bool_]
    choices: Sequence[Any]
    particles: Index

    def __post_init__(self) -> None:
        freeze(self, *ARRAYS)

    def __len__(self) -> int:
        return len(self.parent)

    @cached_property
    def _families(self) -> tuple[Index, Index]:
        """Nodes sorted by parent, and where each parent's begin."""
        order = np.argsort(self.parent, kind="stable")
        return order, np.searchsorted(self.parent[order], np.arange(len(self) + 1))

    def children(self, node: int) -> Index:
        """Return the children of a node, in the order in which they were made."""
        order, start = self._families
        return order[start[node] : start[node + 1]]

    @cached_property
    def leaves(self) -> Index:
        """The nodes without children, in order: the particles, and where searches gave up."""
        out = np.flatnonzero(np.bincount(self.parent[1:], minlength=len(self)) == 0)
        out.flags.writeable = False
        return out

    @property
    def rewards(self) -> Floats:
        """The reward of each particle: log G of its whole path, shape (n,)."""
        node, total = self.particles, np.zeros(len(self.particles))
        while node.any():
            total += self.log_potential[node]  # 0 at the root
            node = np.maximum(self.parent[node], 0)
        return total

    @property
    def steps(self) -> tuple[Step, ...]:
        """The tree read by depth, as the history of a chain whose last step holds the particles in their order.

        Each step has one entry for each of its nodes that leads to a particle, and for each particle that finished
        before. It counts as resampled where a node of the step before has several children.
        """
        node, lines = np.asarray(self.particles), []
        for t in range(int(self.depth[self.particles].max(initial=-1)), -1, -1):
            node = np.where(self.depth[node] > t, self.parent[node], node)
            lines.append(node)
        before, made = np.zeros(1, np.intp), []
        for t, line in enumerate(reversed(lines)):
            here = np.asarray(self.particles) if t + 1 == len(lines) else np.unique(line)
            made.append(self._step(t, here, before))
            before = here
        return tuple(made)

    def _step(self, t: int, here: Index, before: Index) -> Step:
        new = self.depth[here] == t
        origin = np.where(new, self.parent[here], here)
        # The nodes of a step are sorted, but for those of the last, which is nobody's past.
        ancestors = np.searchsorted(before, origin) if t else np.arange(len(here))
        log_weights = self.log_mass[here] + np.log(len(here))
        found = spread(log_weights)
        forked = bool(t and len(np.unique(origin)) < len(origin))
        return Step(
            depth=t,
            ess=found.ess,
            entropy=found.entropy,
            log_evidence=found.log_mean,
            resampled=forked,
            ancestors=ancestors,
            log_weights=log_weights,
            log_potential=np.where(new, self.log_potential[here], 0.0),
            log_twist=np.zeros(len(here)),
            done=np.asarray(self.done[here], bool),
            choices=[self.choices[x] if fresh else () for x, fresh in zip(here.tolist(), new.tolist())],
            scheme="tree" if forked else None,
        )


def accumulate(parent: Index, depth: Any, log_edge: Floats, ends: Any) -> tuple[Floats, Floats, Any]:
    """Return ``log_weight``, ``log_mass`` and ``visits`` of nodes (m,); see `SearchTree`.

    Args:
        parent: (m,) the root, node 0, has −1.
        depth: (m,)
        log_edge: (m,) the log-weight of the step to each.
        ends: (m,) how many rollouts ended in each.
    """
    crowd = np.log(np.maximum(np.bincount(parent[1:], minlength=len(parent)), 1))
    log_weight, log_mass, visits = np.zeros(len(parent)), np.zeros(len(parent)), np.array(ends)
    order = np.argsort(depth, kind="stable")
    levels = np.split(order, np.searchsorted(depth[order], np.arange(depth.max() + 1)))[1:]
    for level in levels:
        above = parent[level]
        log_weight[level] = log_weight[above] + log_edge[level]
        log_mass[level] = log_mass[above] + log_edge[level] - crowd[above]
    for level in reversed(levels):
        np.add.at(visits, parent[level], visits[level])
    return log_weight, log_mass, visits

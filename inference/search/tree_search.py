"""Diffusion Tree Search."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac
from ..base.checks import is_real, one_of
from ..base.engine import Guarantee, Ranking, Report, Run
from ..base.search_tree import SearchTree
from ..base.weights import logmeanexp
from .growth import Fork, Growth
from .tree_sampling import check_tree, grow


@dataclass(frozen=True)
class TreeSearch:
    """Diffusion Tree Search (DTS*): grow a tree of runs towards the best, and take the best way down.

    Feynman–Kac mapping: the tree of `TreeSampling`, but that a rollout descends to the child of the largest
    edge + v̂ + c·s·√(log N / n), an upper confidence bound, where N rollouts went through the node and n through the
    child, and s is the standard deviation of edge + v̂ among the root's children, so that c has no unit. The particles
    are the leaves; all weight is on the one that a descent by the largest edge + v̂ ends in. It is a heuristic for
    finding good samples. With ``backup="max"`` that is the best leaf found, the one of the largest Π G·p/q, and there
    is no evidence; with "soft", as the paper has it for images, it is the best leaf of a branch that is good on
    average, less prone to a reward that flatters a freak, and there is an evidence, exp(v̂) of the root, which is biased
    since visits follow the values: use `TreeSampling` for that.

    Args:
        rollouts: descents, in all; one that ends in a leaf it has been to costs nothing.
        explore: c. The paper does not say which; 0.1 and 0.3 did alike where we tried, 1 sometimes half as well.
        backup: "soft", log mean exp over the children, or "max".
        width: C; a node has up to ⌈C·N^α⌉ children.
        growth: α, in [0, 1]. The paper has 0.8, which spends most on new starts; a search wants fewer and deeper.
        branch_at: the depths (steps made, from 0) whose nodes may have several children; None for all. The root
            always may. Name those after which runs still differ in reward, and not those before anything is decided:
            a diffusion's first steps decide little, so of T steps with the usual schedule 0.4, 0.5, 0.6, 0.7 and
            0.8·T did better than even parts (``benchmarks/tree_search.py``).
        batch: rollouts of a wave, which share their calls. They see each other's visits and not their rewards.
        record: whether to keep what every step chose; False keeps that of branching depths and leaves.
        chains: independent trees; each selects its own leaf.
        all_dead: "error" raises `AllParticlesDead` when all leaves have weight zero; "zero" keeps the dead.

    Cost: That of `TreeSampling`.
    When it pays: For one best image, where branches part late enough to share most of the steps.

    Source: Jain, Sareen, Pedramfar and Ravanbakhsh (2025), arXiv:2506.20701; the bound, Kocsis and Szepesvári (2006),
    doi:10.1007/11871842_29.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def digits():
    ...     number = 0
    ...     for _ in range(3):
    ...         number = 10 * number + await fk.sample("digit", fk.dist.DiscreteUniform(0, 9))
    ...         await fk.factor("high", float(number % 10))
    ...     return number
    >>> fk.infer(digits(), fk.TreeSearch(200, backup="max"), seed=0).best()
    999
    """

    rollouts: int
    explore: float = 0.3
    backup: Literal["soft", "max"] = "soft"
    width: float = 2.0
    growth: float = 0.5
    branch_at: Collection[int] | None = None
    batch: int = 16
    record: bool = True
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "heuristic"
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        check_tree(self)
        if not is_real(self.explore) or not self.explore >= 0:
            raise ValueError(f"explore must not be negative, not {self.explore!r}")
        one_of("backup", self.backup, ("soft", "max"))

    @property
    def particles(self) -> int:
        """Leaves of a chain, at most."""
        return self.rollouts

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        branch_at = None if self.branch_at is None else frozenset(self.branch_at)
        backup = logmeanexp if self.backup == "soft" else lambda reach: float(reach.max())
        tree = Growth(key, self.width, self.growth, branch_at, backup, self.record)

        def descend(fork: Fork, visits: int) -> int:
            return most_promising(fork, visits, self.explore * tree.spread())

        yield from grow(model, tree, self, descend, self._weigh)

    def _weigh(self, tree: SearchTree) -> Report:
        leaf = best_leaf(tree)
        log_weights = np.where((tree.particles == leaf) & (tree.log_weight[leaf] > -np.inf), 0.0, -np.inf)
        evidence = logmeanexp(tree.log_mass[tree.particles]) + math.log(len(tree.particles))
        return Report(None, log_weights, None, evidence if self.backup == "soft" else math.nan, tree=tree)


def most_promising(fork: Fork, visits: int, explore: float) -> int:
    """Return the position of the child of the largest bound.

    One whose runs have all died so far has the reach of the worst that lived: it may be unlucky, and is tried again
    when its turn comes. Of equals the living come first. One that is dead itself is not gone to.
    """
    reach = np.array(fork.reach)
    lived = reach > -np.inf
    reach[~lived] = reach[lived].min(initial=np.inf) if lived.any() else 0.0
    bound = uct(reach, np.array(fork.visits), visits, explore)
    bound[~lived] = np.nextafter(bound[~lived], -np.inf)
    bound[np.isneginf(fork.promise)] = -np.inf
    return int(bound.argmax())


def uct(values: Any, visits: Any, total: int, explore: float) -> Any:
    """Return the upper confidence bound of each child, value + c·√(log N / n), where n of N visits went to it.

    Auer, Cesa-Bianchi and Fischer (2002), doi:10.1023/A:1013689704352, have c = √2 for rewards in [0, 1].
    """
    return values + explore * np.sqrt(math.log(max(total, 1)) / visits)


def best_leaf(tree: SearchTree) -> int:
    """Return the node where a descent by the largest edge + value ends."""
    node = 0
    while len(children := tree.children(node)):
        node = int(children[np.argmax(tree.log_weight[children] + tree.value[children])])
    return node

"""Diffusion Tree Sampling."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac
from ..base.checks import depths_or_none, fraction, is_real, one_of, positive
from ..base.engine import Guarantee, Ranking, Report, Run
from ..base.search_tree import SearchTree
from ..base.weights import logmeanexp
from .growth import Descend, Fork, Growth


@dataclass(frozen=True)
class TreeSampling:
    """Diffusion Tree Sampling (DTS): grow a tree of runs, and descend it in proportion to what was found below.

    Feynman–Kac mapping: a node is a particle after a step, and the edge to it weighs G·p/q. The value v̂ of a node is
    the log of the mean weight still to come: 0 at a leaf, and log mean_c exp(edge + v̂_c) over children c drawn from M
    (or its proposal). A rollout descends by children ∝ exp(edge + v̂) while a node has C·N^α children or more, N being
    the rollouts that went through it; then it adds a child, runs it to its end, and every node of it joins the tree.
    So intermediate potentials count where there are any, and late steps teach early ones.

    The particles are the leaves, each with the probability that a descent of the finished tree by the same rule ends
    in it: ``posterior.sample(n)`` samples from the tree, without a call of the model. These probabilities and
    exp(v̂) of the root, the estimate of Z, converge to the truth as rollouts grow, and are biased at any finite number
    of them: where a first estimate was high it is looked at again and corrected, where it was low it stays, so that Ẑ
    is too small on average, often by a tenth or a third, and slow to grow (Nie et al. 2018, arXiv:1708.01977, on data
    collected so). A smaller α looks longer at fewer children. With branching at the root alone there is no bias: it is
    importance sampling, draw by draw. Twists do not enter.

    It can be left and taken up at any time (`steps`), and a run that is cut short has the leaves so far; a wave that
    was under way is lost.

    Args:
        rollouts: descents, in all; one that ends in a leaf it has been to costs nothing.
        width: C.
        growth: α, in [0, 1]. The paper has C = 2 with 0.8 for images and 0.7 for text.
        branch_at: the depths (steps made, from 0) whose nodes may have several children; None for all. The root,
            before the first step, always may. With few, rollouts share long beginnings, and fewer states are kept.
            A child of a node where little is decided yet is nearly a new run, and costs nearly as much.
        batch: rollouts of a wave, which share their calls. They see each other's visits and not their rewards: the
            smaller, the better informed.
        record: whether to keep what every step chose, for `trace` and drawings; False keeps that of branching depths
            and leaves, since a long generation of images fills the memory.
        chains: independent trees, pooled in proportion to their evidence; several give a standard error.
        all_dead: "error" raises `AllParticlesDead` when all leaves have weight zero; "zero" returns log Z = −inf.

    Source: Jain, Sareen, Pedramfar and Ravanbakhsh (2025), arXiv:2506.20701. There rewards come at the end alone.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coins():
    ...     a = await fk.sample("a", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("Ga", 1.0 * a)
    ...     b = await fk.sample("b", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("Gb", 1.0 * (a == b))
    ...     return a, b
    >>> posterior = fk.infer(coins(), fk.TreeSampling(500), seed=0)
    >>> abs(posterior.log_evidence - fk.enumerate_program(coins()).log_evidence) < 0.1
    True
    """

    rollouts: int
    width: float = 2.0
    growth: float = 0.8
    branch_at: Collection[int] | None = None
    batch: int = 16
    record: bool = True
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "consistent"
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        check_tree(self)

    @property
    def particles(self) -> int:
        """Leaves of a chain, at most."""
        return self.rollouts

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        branch_at = None if self.branch_at is None else frozenset(self.branch_at)
        tree = Growth(key, self.width, self.growth, branch_at, record=self.record)
        yield from grow(model, tree, self, boltzmann, self._weigh)

    def _weigh(self, tree: SearchTree) -> Report:
        # On one scale for all chains, so that trees of more leaves are not pooled with more weight.
        mass = tree.log_mass[tree.particles]
        evidence = logmeanexp(mass) + math.log(len(mass))
        return Report(None, mass + math.log(self.rollouts), None, evidence, tree=tree)


def boltzmann(fork: Fork, visits: int, key: Keys) -> int:
    """Choose a child ∝ exp(edge + v̂)."""
    reach = np.frombuffer(fork.reach)
    ends = np.cumsum(np.exp(reach - reach.max()))
    # A draw below the total falls on a child of positive weight.
    return int(np.searchsorted(ends, _keys.uniform(key)[0] * ends[-1], side="right"))


def grow(model: FeynmanKac[Any], tree: Growth, settings: Any, descend: Descend, weigh: Any) -> Run:
    """Grow a tree to its number of rollouts, with a report after each wave that found something new."""
    waves = 0
    while tree.rollouts < settings.rollouts:
        points = tree.plan(min(settings.batch, settings.rollouts - tree.rollouts), descend)
        if not points:
            continue
        step = yield from tree.wave(model, points)
        yield tree.growing(model, replace(step, depth=waves), weigh)
        waves += 1
    tree.check_alive(settings.all_dead)


def check_tree(settings: Any) -> None:
    """Raise ValueError for a setting of a tree engine that is out of range."""
    for name in ("rollouts", "batch", "chains"):
        positive(name, getattr(settings, name))
    if not is_real(settings.width) or not settings.width > 0:
        raise ValueError(f"width must be positive, not {settings.width!r}")
    fraction("growth", settings.growth)
    depths_or_none("branch_at", settings.branch_at)
    one_of("all_dead", settings.all_dead, ("error", "zero"))

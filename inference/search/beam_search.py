"""Beam search."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac, Floats
from ..base.engine import Guarantee, Move, Run, Start
from ..base.selection import best_first
from ..particles.reducing import Reduce, check_reductions
from .expansion import Expanding, Expansion, Scoring, check_search

Allot = Callable[[Expansion, list[int], list[int]], Expanding]
"""From the tree, the nodes just made and those of them that can go on: the nodes to expand, once for each child."""


@dataclass(frozen=True)
class BeamSearch:
    """Beam search over steps: keep the best of the beams at each step, and give each several children.

    Feynman–Kac mapping: n particles make a step by M; the best n/M by score go on, each with M children. The score is
    that of the potentials and the twist alone: log G of the last step ("last", for a process reward of the whole run so
    far), Σ log G ("product", SMC's weight without p/q) or the least log G ("min"), plus log ψ. Particles that finish
    leave the beam with their places, so that n have finished at the end; all weight goes to the best of them. A
    heuristic for finding one good sample: there is no evidence, and no guarantee that the best is found.

    With ``lookahead`` k each candidate is first run on by k steps of M, and has the score where it comes to. These
    steps are thrown away: a step costs N·(k + 1) draws.

    Args:
        particles: n, how many candidates a step has.
        width: M, children of each beam that is kept.
        score: "last", "product" or "min"; see `expansion.Scoring`.
        lookahead: k.
        distinct: whether to leave out candidates that repeat a sibling; published code has it as an option.
        temperature: None puts all weight on the best; T gives weights ∝ exp(score / T) among those that finished, so
            that ``posterior.vote(key)`` is a weighted vote (T = 1: each votes with its r̂).
        chains: independent searches.
        all_dead: "error" raises `AllParticlesDead` when all candidates have weight zero; "zero" keeps the dead.
        reduce: after which steps the beam gets narrower, as early steps decide most: with ``{2: Reduce(6, "cluster"),
            6: Reduce(2)}`` six candidates are made after step 2 (the first is 0) and two after step 6, besides those
            that have finished. Where they are made fewer, the ⌈m/M⌉ beams that have children are the best by score
            ("weight"), the best of each of as many clusters ("cluster") or the nearest to their centres ("centre").

    Cost: ``width`` children of each of n beams a step.
    When it pays: Where steps are few, a score ranks partial runs well, and one good answer is all that is asked.

    Source: Snell et al. (2024), arXiv:2408.03314, with look-ahead; a beam over steps with a verifier, Yao et al.
    (2023), arXiv:2305.10601, and Xie et al. (2023), arXiv:2305.00633; fewer on the way, Chen et al. (2025),
    arXiv:2507.18537. Raises ValueError for settings out of range.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def dice():
    ...     total = 0
    ...     for _ in range(4):
    ...         total += await fk.sample("face", fk.dist.DiscreteUniform(1, 6))
    ...         await fk.factor("high", float(total))
    ...     return total
    >>> fk.infer(dice(), fk.BeamSearch(32, width=8), seed=0).best()
    24
    """

    particles: int
    width: int = 4
    score: Scoring = "last"
    lookahead: int = 0
    distinct: bool = False
    temperature: float | None = None
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    reduce: Mapping[int, Reduce] = field(default_factory=dict, hash=False)
    guarantee: ClassVar[Guarantee] = "heuristic"

    def __post_init__(self) -> None:
        check_beams(self)
        check_reductions(self.reduce, self.particles)
        for depth, one in self.reduce.items():
            if one.by != "weight" and one.to <= self.width:
                raise ValueError(
                    f"of {one.to} candidates of width {self.width} one beam goes on after depth {depth}, and by "
                    f'"{one.by}" nothing is left to tell apart: reduce to more than the width, or by "weight"'
                )

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        return in_waves(model, key, self, self._allot, self.distinct)

    def _allot(self, tree: Expansion, made: list[int], going: list[int]) -> Expanding:
        depth = tree.nodes[made[0]].depth
        places = self._population(tree, depth) - len(tree.results)
        if not going or places <= 0:
            return []
        ahead = yield from look(tree, going, self.lookahead)
        beams, reduction = math.ceil(places / self.width), self.reduce.get(depth)
        if reduction is None:
            kept = best_first(ahead, beams)
        else:
            key = _keys.fold(tree.key, _keys.tag("reduce"), depth)
            kept = reduction.pick(partial(tree.values, going), ahead, beams, key)
        # The best have one child more where places cannot be shared evenly.
        return [going[kept[i % len(kept)]] for i in range(places)]

    def _population(self, tree: Expansion, depth: int) -> int:
        """Return how many runs there are to be, those that have finished and those that go on after a depth."""
        population = self.particles
        for at, one in sorted(self.reduce.items()):
            if at <= depth:
                finished = sum(tree.nodes[x].depth <= at for x in tree.results)
                population = min(population, finished + one.to)
        return population


def in_waves(model: FeynmanKac[Any], key: Keys, settings: Any, allot: Allot, distinct: bool = False) -> Run:
    """Search breadth first: make a wave of children, see which nodes are allotted how many, and make the next."""
    tree = Expansion(model, key, settings.score)
    made = yield from tree.expand([0] * settings.particles, distinct=distinct)
    for wave in itertools.count():
        going = tree.claim(made)
        yield tree.growing(wave, going, settings.temperature)
        parents = yield from allot(tree, made, going)
        tree.release(list(set(going) - set(parents)))
        if not parents:
            break
        made = yield from tree.expand(parents, distinct=distinct)
    yield tree.growing(wave + 1, (), settings.temperature)
    tree.check_alive(settings.all_dead)


def look(tree: Expansion, nodes: list[int], steps: int) -> Generator[Start | Move, Advance[Any], Floats]:
    """Return the scores of nodes (n,), or of where they come to in some more steps, which are thrown away."""
    if not steps:
        return tree.scores(nodes)
    size = len(tree)
    tips = yield from tree.roll(nodes, steps, keep=True)
    tree.release(range(size, len(tree)))
    return tree.scores(tips)


def check_beams(settings: Any) -> None:
    """Raise ValueError for a setting of a search by beams that is out of range."""
    check_search(settings, "particles", "width")
    if not isinstance(settings.lookahead, int | np.integer) or settings.lookahead < 0:
        raise ValueError(f"lookahead is a number of steps, 0 for none, not {settings.lookahead!r}")

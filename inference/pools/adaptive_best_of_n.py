"""Best-of-N that stops when it knows that it will not do better, and drops runs that it would do better without."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl.errors import InvalidWeight
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats
from ..base.checks import function_or_none, one_of, positive
from ..base.engine import Growing, Guarantee, Run
from ..base.selection import best_first
from ..search.expansion import Expansion
from .draws import draw


@dataclass(frozen=True)
class AdaptiveBestOfN:
    """Draw runs until one is as good as need be, and give up on the poor ones on their way.

    Feynman–Kac mapping: particles run to their end under M, a batch at a time. Each has a probability P that a fresh
    start would not do better: exp(log G + log ψ) of its last step, where ψ is the twist's level, or ``judge(value)``.
    Drawing stops when a run that finished has P ≥ threshold, or all runs have been drawn; all weight goes to the
    largest P. With ``prune`` only the best share of a batch goes on from certain depths. If a draw passes with
    probability a, the mean number of draws (in batches of one) is (1 − (1 − a)^N) / a. A heuristic, without evidence.

    A language model can judge itself, by how it answers "Would you do better if you started over?" In a program this
    is best a factor at the end, ``await fk.factor("good", stays(text).log())``, and a twist at the depths where runs
    are pruned: the questions of a wave then share a call, and their cost is counted. ``judge`` is asked for one value
    at a time (of a run under way, its last ``fk.deterministic("output", …)``), and what that costs is not counted.

    Args:
        particles: N, the most runs to draw.
        threshold: in (0, 1].
        batch: runs drawn at a time, which share their calls.
        prune: by depth (steps made, from 0), the fraction of a batch's unfinished runs that goes on, rounded up.
        judge: from a value to P; None reads the model's potentials and twists.
        chains: independent runs, each of which stops for itself and selects its own.
        all_dead: "error" raises `AllParticlesDead` when all runs have weight zero; "zero" keeps the dead.

    Cost: N runs at most, fewer where one is good enough early.
    When it pays: Where a score says when to stop: easy problems take a run or two.

    Source: Manvi, Singh and Ermon (2024), arXiv:2410.02725. Raises ValueError for settings out of range, InvalidWeight
    for a judge that returns no probability.

    >>> import math, feynkac as fk
    >>> @fk.program
    ... async def die():
    ...     face = await fk.sample("face", fk.dist.DiscreteUniform(1, 6))
    ...     await fk.factor("good", math.log(face / 6))
    ...     return face
    >>> posterior = fk.infer(die(), fk.AdaptiveBestOfN(50, threshold=0.8), seed=0)
    >>> posterior.best() >= 5, len(posterior) < 10
    (True, True)
    """

    particles: int
    threshold: float
    batch: int = 1
    prune: Mapping[int, float] = field(default_factory=dict)
    judge: Callable[[Any], float] | None = field(default=None, repr=False)
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "heuristic"

    def __post_init__(self) -> None:
        for name in ("particles", "batch", "chains"):
            positive(name, getattr(self, name))
        object.__setattr__(self, "prune", dict(self.prune))
        if not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"threshold is a probability above 0, not {self.threshold!r}")
        if any(depth < 0 or not 0.0 < share <= 1.0 for depth, share in self.prune.items()):
            raise ValueError(f"prune gives for depths from 0 up a fraction in (0, 1] that goes on, not {self.prune!r}")
        function_or_none("judge", self.judge)
        one_of("all_dead", self.all_dead, ("error", "zero"))

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        tree = Expansion(model, key, "last")
        waves = itertools.count()
        known: dict[int, float] = {}

        def promise(nodes: list[int]) -> Floats:
            if self.judge is None:
                return tree.scores(nodes)
            fresh = [x for x in nodes if x not in known and tree.nodes[x].score > -math.inf]
            known.update(zip(fresh, [self._judged(value) for value in tree.values(fresh)]))
            return np.array([known.get(x, -math.inf) for x in nodes])

        def stay(going: list[int]) -> list[int]:
            share = self.prune.get(tree.nodes[going[0]].depth) if going else None
            if share is None:
                return going
            return [going[i] for i in np.sort(best_first(promise(going), math.ceil(share * len(going) - 1e-9)))]

        def rank(nodes: Sequence[int]) -> Floats:
            ended = [x for x in nodes if tree.nodes[x].done]  # the others are not asked about, they are all alike
            found = dict(zip(ended, promise(ended)))
            return np.array([found.get(x, 0.0) for x in nodes])

        def report(going: list[int]) -> Growing:
            return tree.growing(next(waves), going, rank=rank)

        for drawn in range(0, self.particles, self.batch):
            yield from draw(tree, min(self.batch, self.particles - drawn), stay, report)
            if max(promise(tree.results), default=-math.inf) >= math.log(self.threshold):
                break
        tree.check_alive(self.all_dead)

    def _judged(self, value: Any) -> float:
        try:
            found = float(self.judge(value))  # type: ignore[misc]
        except Exception as error:
            error.add_note(f"feynkac: in the judge of AdaptiveBestOfN, for the value {value!r:.200}")
            raise
        if not 0.0 <= found <= 1.0:
            raise InvalidWeight(f"the judge of AdaptiveBestOfN returned {found} for {value!r:.200}: no probability")
        return math.log(max(found, math.ulp(0.0)))  # a run that is judged to be worthless is still a run

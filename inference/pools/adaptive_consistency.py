"""Adaptive consistency: self-consistency that stops when the majority is safe."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac
from ..base.checks import function_or_none, one_of, positive
from ..base.engine import Growing, Guarantee, Run
from ..base.selection import Ballot
from ..search.expansion import Expansion
from .draws import draw
from .first_finish import vote


@dataclass(frozen=True)
class AdaptiveConsistency:
    """Self-consistency that draws runs until it is sure enough which answer has the majority.

    Feynman–Kac mapping: particles run to their end under M (or its proposal), a batch at a time, and each has one vote
    for its answer ``key(value)``; the potentials do not count, but for a −inf, which has no vote. After each batch the
    two answers with most votes, v₁ ≥ v₂, are compared: with a uniform prior the share p of the first among the two has
    the law Beta(v₁ + 1, v₂ + 1), and the run stops where P(p > ½) reaches the threshold, or all runs have been drawn.
    Easy questions end after 4 runs that agree. The draws are those of `SelfConsistency`. A heuristic; when it stops
    depends on what it found, so there is no evidence.

    Args:
        particles: the most runs to draw.
        threshold: in (½, 1).
        batch: runs between two looks, which share their calls.
        key: what is voted on; None is the value itself. It must return something hashable; None abstains.
        chains: independent runs, each of which stops for itself; all votes count.
        all_dead: "error" raises `AllParticlesDead` when all runs have weight zero; "zero" keeps the dead.

    Cost: N runs at most, fewer where a majority is clear.
    When it pays: As `SelfConsistency`, over problems of unequal difficulty.

    Source: Aggarwal et al. (2023), arXiv:2305.11860; they have 40 runs, a threshold of 0.95 and batches of one. Raises
    ValueError for settings out of range.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def sums():
    ...     slip = await fk.sample("slip", fk.dist.Bernoulli(0.05))
    ...     return 12 + slip
    >>> posterior = fk.infer(sums(), fk.AdaptiveConsistency(40), seed=0)
    >>> posterior.best(), len(posterior)
    (12, 4)
    """

    particles: int
    threshold: float = 0.95
    batch: int = 1
    key: Callable[[Any], Hashable] | None = field(default=None, repr=False)
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "heuristic"

    def __post_init__(self) -> None:
        for name in ("particles", "batch", "chains"):
            positive(name, getattr(self, name))
        if not 0.5 < self.threshold < 1.0:
            raise ValueError(f"threshold is a probability between 1/2 and 1, not {self.threshold!r}")
        function_or_none("key", self.key)
        one_of("all_dead", self.all_dead, ("error", "zero"))

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        tree, ballot = Expansion(model, key, "product"), Ballot(self.particles, self.key, "AdaptiveConsistency")
        waves = itertools.count()

        def report(going: list[int]) -> Growing:
            return vote(tree, ballot, next(waves), going)

        for drawn in range(0, self.particles, self.batch):
            yield from draw(tree, min(self.batch, self.particles - drawn), lambda going: going, report)
            cast = [answer for answer in ballot.answers[: len(tree.results)] if answer is not None]
            counts = Counter(cast).most_common(2)
            first, second = [*(count for _, count in counts), 0, 0][:2]
            if majority(first, second) >= self.threshold:
                break
        tree.check_alive(self.all_dead)


def majority(first: int, second: int) -> float:
    """Return P(p > ½) where p, the share of the first of two answers, has the law Beta(first + 1, second + 1).

    It is the chance of at most ``first`` heads in first + second + 1 throws of a fair coin.

    >>> majority(3, 0), majority(4, 0), majority(2, 2)
    (0.9375, 0.96875, 0.5)
    """
    throws = first + second + 1
    return float(sum(math.comb(throws, heads) for heads in range(first + 1)) / 2**throws)

"""First finish search."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac
from ..base.checks import function_or_none, one_of, positive
from ..base.engine import Growing, Guarantee, Run
from ..base.selection import Ballot
from ..search.expansion import Expansion
from .draws import draw


@dataclass(frozen=True)
class FirstFinish:
    """First finish search: launch N runs, and stop them all as soon as the first k have finished; those vote.

    Feynman–Kac mapping: each particle runs under M (or its proposal), step by step, all of them side by side. The
    particles that are returned are the first k to finish alive, each with one vote for its answer ``key(value)``; the
    potentials do not count, but for a −inf. It is worth trying where short runs are better than long ones, as
    reasoning traces often are. A heuristic, without evidence.

    Time is counted in steps, so a step should be short: a token, or some. A program whose only step is the whole answer
    has nothing to stop; with ``length`` it still votes with the shortest, as runs that finish at the same step are put
    in order by it.

    Args:
        particles: N.
        first: k.
        key: what is voted on; None is the value itself. It must return something hashable; None abstains.
        length: of a value, to order those that finish together, such as ``lambda text: len(text.tokens)``.
        chains: independent races; all votes count.
        all_dead: "error" raises `AllParticlesDead` when all runs have weight zero; "zero" keeps the dead.

    Cost: N runs side by side, until the first ones have finished.
    When it pays: Where shorter is likelier right, and time counts.

    Source: Agarwal, Sengupta and Chakraborty (2025), arXiv:2505.18149. Raises ValueError for settings out of range.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def wait():
    ...     slow = await fk.sample("slow", fk.dist.Bernoulli(0.5))
    ...     for _ in range(9 if slow else 2):
    ...         await fk.factor("tick", 0.0)
    ...     return "late" if slow else "early"
    >>> posterior = fk.infer(wait(), fk.FirstFinish(8), seed=0)
    >>> posterior.best(), len(posterior), len(posterior.steps)
    ('early', 1, 2)
    """

    particles: int
    first: int = 1
    key: Callable[[Any], Hashable] | None = field(default=None, repr=False)
    length: Callable[[Any], float] | None = field(default=None, repr=False)
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "heuristic"

    def __post_init__(self) -> None:
        for name in ("particles", "first", "chains"):
            positive(name, getattr(self, name))
        if self.first > self.particles:
            raise ValueError(f"first must not be above the {self.particles} particles, not {self.first!r}")
        for name in ("key", "length"):
            function_or_none(name, getattr(self, name))
        one_of("all_dead", self.all_dead, ("error", "zero"))

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        tree, ballot = Expansion(model, key, "product"), Ballot(self.particles, self.key, "FirstFinish")
        places = itertools.count()
        placed: list[int] = []

        def stay(going: list[int]) -> list[int]:
            fresh = tree.results[len(placed) :]
            if self.length is not None:
                lengths = dict(zip(fresh, map(self.length, tree.values(fresh))))
                fresh.sort(key=lambda x: lengths[x])
            placed.extend(fresh)
            tree.results[:] = placed
            return going if len(placed) < self.first else []

        def report(going: list[int]) -> Growing:
            tree.results[:] = placed[: self.first]
            return vote(tree, ballot, next(places), going)

        yield from draw(tree, self.particles, stay, report)
        tree.check_alive(self.all_dead)


def vote(tree: Expansion, ballot: Ballot, wave: int, going: list[int]) -> Growing:
    """Return a report in which each result has one vote; before there is any, or any answer, all share the weight."""
    results = tree.results
    ballot.ask(lambda: tree.values(results), np.arange(len(ballot.cast)) < len(results))
    nodes = [*results, *going] or tree.dead
    voting = np.full(len(nodes), bool(going))
    if results:
        voted = ballot.cast[: len(results)]
        voting[:] = False
        voting[: len(results)] = voted if voted.any() else True
    answers = [*ballot.answers[: len(results)], *[None] * (len(nodes) - len(results))]
    return tree.report(wave, nodes, np.where(voting, 0.0, -np.inf), answers)

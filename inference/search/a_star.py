"""A*-decoding, and best-first search."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl.errors import InvalidWeight
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats
from ..base.checks import function_or_none
from ..base.engine import Guarantee, Run
from .expansion import Expansion, Node, Scoring, check_search

Cost = Literal["rises", "falls"] | Callable[[Node | None, Node], float]


@dataclass(frozen=True)
class AStar:
    """A*-decoding: go on from the run of lowest f = g + h, wherever in the tree it is, until one has finished.

    Feynman–Kac mapping: a node is a particle after a step. The node of lowest f is taken from a queue and given
    ``width`` children by M (those that repeat a sibling are left out), which join the queue with g = the sum of the
    costs of the steps to them and h = what is estimated to be left. Depth does not matter: a search that goes astray
    comes back to an earlier fork, and a clear path is followed at the cost of a single run. A finished particle that
    comes up first is a result; all weight is on the result of lowest f, and while there is none on the unfinished
    node of lowest f. A heuristic, without evidence; its steps do not enter by p or q unless the costs say so.

    By default h = 1 − r̂ with r̂ = exp(score), so the score should be the log of a probability (see `Scoring`), and
    the cost of a step is what h rises by, max(0, h' − h), as the paper is reported to have it: doubts that came up on
    the way keep counting. That h is not consistent, so the result need not be the cheapest in the tree. The least cost
    that makes it so is what h falls by, max(0, h − h') (``cost="falls"``): then f never falls along a path. For any
    consistent h the result is the cheapest path of the tree that is drawn, and nothing of higher f is expanded (with
    ``batch=1``). ``cost=lambda before, node: 0.0`` is greedy best-first search; ``cost=lambda before, node:
    -node.log_prob`` with ``heuristic=lambda node: 0.0`` finds the likeliest run, by Dijkstra's algorithm.

    Args:
        expansions: the most nodes that get children; tokens, calls and seconds are limited by ``fk.Budget``.
        width: k, children of an expansion.
        batch: nodes that are expanded in one call, the best of the queue; some would not have been expanded alone.
        results: how many finished particles to wait for.
        score: "last", "product" or "min"; see `expansion.Scoring`.
        cost: "rises", "falls", or a function of the `Node` before (None for a first step) and the one after.
        heuristic: a function of a `Node`; None is 1 − exp(score).
        temperature: None puts all weight on the lowest f; T gives weights ∝ exp(−f / T) among the results.
        chains: independent searches.
        all_dead: "error" raises `AllParticlesDead` when all nodes have weight zero; "zero" keeps the dead.

    Cost: ``expansions`` expansions of ``width`` children.
    When it pays: Where scores fall along wrong paths, so that it comes back to earlier ones; on Countdown it saved
    calls of the verifier, and few tokens.

    Source: A*-decoding, Chatziveroglou (2025), arXiv:2505.13672; Hart, Nilsson and Raphael (1968),
    doi:10.1109/TSSC.1968.300136. Raises ValueError for settings out of range, InvalidWeight for a cost or heuristic
    that is no number.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def likeliest():
    ...     word = ""
    ...     for _ in range(3):
    ...         word += await fk.sample("letter", fk.dist.Categorical([0.6, 0.3, 0.1], values=list("abc")))
    ...         await fk.factor("end of step", 0.0)
    ...     return word
    >>> dijkstra = fk.AStar(50, width=16, cost=lambda before, node: -node.log_prob, heuristic=lambda node: 0.0)
    >>> fk.infer(likeliest(), dijkstra, seed=0).best()
    'aaa'
    """

    expansions: int
    width: int = 4
    batch: int = 1
    results: int = 1
    score: Scoring = "last"
    cost: Cost = "rises"
    heuristic: Callable[[Node], float] | None = field(default=None, repr=False)
    temperature: float | None = None
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "heuristic"

    def __post_init__(self) -> None:
        check_search(self, "expansions", "width", "batch", "results")
        if self.cost not in ("rises", "falls") and not callable(self.cost):
            raise ValueError(f'cost must be "rises", "falls" or a function of two nodes, not {self.cost!r}')
        function_or_none("heuristic", self.heuristic, "a node")

    @property
    def particles(self) -> int:
        """Results of a chain."""
        return self.results

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        tree, agenda = Expansion(model, key, self.score), _Agenda(self)
        chosen, made = [0], 0
        for wave in itertools.count():
            children = yield from tree.expand(np.repeat(chosen, self.width).tolist(), distinct=True)
            made += len(chosen)
            agenda.add(tree, children)
            tree.claim(children)
            yield tree.growing(wave, agenda.open(), self.temperature, agenda.rank)
            chosen = agenda.take(tree, min(self.batch, self.expansions - made), self.results)
            if not chosen:
                break
        going = agenda.open()
        if tree.results:
            tree.release(going)
            going = []
        yield tree.growing(wave + 1, going, self.temperature, agenda.rank)
        if not going:
            tree.check_alive(self.all_dead)


class _Agenda:
    """The queue of a search, and what g, h and f are of each node."""

    def __init__(self, settings: AStar) -> None:
        self._settings = settings
        self._g, self._h = {0: 0.0}, {0: 0.0}
        self._queue: list[tuple[float, bool, int, int]] = []
        self._popped = 0

    def add(self, tree: Expansion, nodes: Sequence[int]) -> None:
        """Take new nodes that are alive into the queue."""
        for x in nodes:
            node, above = tree.nodes[x], tree.parent[x]
            if node.score == -math.inf:
                continue
            guess = self._settings.heuristic
            self._h[x] = _number("heuristic", -math.expm1(min(node.score, 700.0)) if guess is None else guess(node), x)
            self._g[x] = self._g[above] + _number("cost", self._cost(tree, above, x), x)
            # Of equals the finished first, then the deepest: a search that nothing guides runs straight to an end.
            heapq.heappush(self._queue, (self._g[x] + self._h[x], not node.done, -node.depth, x))

    def _cost(self, tree: Expansion, above: int, x: int) -> float:
        cost = self._settings.cost
        if not isinstance(cost, str):
            return cost(tree.nodes[above] if above else None, tree.nodes[x])
        change = self._h[x] - self._h[above] if above else 0.0  # of a first step there is no h before
        return max(0.0, change if cost == "rises" else -change)

    def take(self, tree: Expansion, count: int, results: int) -> list[int]:
        """Take up to ``count`` nodes to expand; none where enough results came up, or the queue is empty."""
        chosen: list[int] = []
        while self._queue and self._popped < results and len(chosen) < count:
            if tree.nodes[self._queue[0][-1]].done:
                if chosen:  # a child of theirs may still come before it
                    break
                heapq.heappop(self._queue)
                self._popped += 1
            else:
                chosen.append(heapq.heappop(self._queue)[-1])
        return chosen

    def open(self) -> list[int]:
        """Return the unfinished nodes of the queue, the most promising first."""
        return [x for _, going, _, x in sorted(self._queue) if going]

    def rank(self, nodes: Sequence[int]) -> Floats:
        """Return −f of some nodes (n,); −inf for the dead."""
        return np.array([-(self._g[x] + self._h[x]) if x in self._g else -math.inf for x in nodes])


def _number(name: str, value: Any, x: int) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise InvalidWeight(
            f"the {name} of node {x} is {number}: it must be a finite number; a factor of -inf ends a run"
        )
    return number

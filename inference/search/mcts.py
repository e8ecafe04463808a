"""Monte Carlo tree search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac, Floats
from ..base.checks import is_real, one_of
from ..base.engine import Guarantee, Move, Run, Start
from .expansion import Expansion, Scoring, check_search
from .tree_search import uct

PUCT_INIT, PUCT_BASE = 1.25, 19652.0


@dataclass(frozen=True)
class MCTS:
    """Monte Carlo tree search: descend by an upper confidence bound, expand a leaf, and average what it is worth.

    Feynman–Kac mapping: a node is a particle after a step. A simulation descends from the root to a node without
    children, each time to the child of the largest bound; gives it ``width`` children by M (those that repeat a sibling
    are left out); values each, and adds its visit and value to all nodes above it. One that ends at a finished node
    counts that one again, and costs nothing. Q is the mean value. The bound is

        uct    Q + c·√(2 ln N / n)
        puct   Q + (1.25 + ln((N + 19652 + 1) / 19652))·√N / (1 + n)

    for a child with n of its parent's N visits. A value is r̂ = exp(score), in [0, 1] where the score is the log of a
    probability (else choose c near the spread of the values); with ``value="rollout"`` it is that of a run to the end
    from there. Rollouts that finish are results, as are finished nodes, and all weight is on the one of the largest
    score; while there is none it is on the best unfinished node. A heuristic, without evidence.

    With ``moves`` the search goes to the most visited child of its root after every ``simulations``, until it is at an
    end; without, all simulations begin at the first step, and only results that were come upon are returned.

    Args:
        simulations: of each move, or in all.
        width: children of a node.
        rule: "uct" or "puct" (of AlphaZero, without its prior).
        explore: c of "uct".
        value: "score" or "rollout".
        moves: whether to commit to a child after ``simulations``.
        batch: simulations whose leaves are expanded in one call; they see each other's visits, with value 0 for now.
        score: "last", "product" or "min"; see `expansion.Scoring`.
        temperature: None puts all weight on the best; T gives weights ∝ exp(score / T) among the results.
        chains: independent searches.
        all_dead: "error" raises `AllParticlesDead` when there is no result and nothing to go on from; "zero" keeps the
            dead.

    Cost: ``width`` children for each simulation, and with ``value="rollout"`` a run to the end of each.
    When it pays: Where first steps decide, and a run to the end is cheap.

    Source: Kocsis and Szepesvári (2006), doi:10.1007/11871842_29; the second bound, Silver et al. (2018),
    doi:10.1126/science.aar6404; over steps of a language model, Zhang et al. (2024), arXiv:2406.07394, and Hao et al.
    (2023), arXiv:2305.14992. Raises ValueError for settings out of range.

    >>> import math, feynkac as fk
    >>> @fk.program
    ... async def coins():
    ...     heads = 0
    ...     for t in range(1, 5):
    ...         heads += await fk.sample("heads", fk.dist.Bernoulli(0.3))
    ...         await fk.factor("prm", math.log((heads + 0.5) / (t + 1)))
    ...     return heads
    >>> fk.infer(coins(), fk.MCTS(8), seed=0).best()
    4
    """

    simulations: int
    width: int = 4
    rule: Literal["uct", "puct"] = "uct"
    explore: float = 1.4
    value: Literal["score", "rollout"] = "score"
    moves: bool = True
    batch: int = 1
    score: Scoring = "last"
    temperature: float | None = None
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "heuristic"
    particles: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_search(self, "simulations", "width", "batch")
        one_of("rule", self.rule, ("uct", "puct"))
        one_of("value", self.value, ("score", "rollout"))
        if not is_real(self.explore) or not 0 <= self.explore < math.inf:
            raise ValueError(f"explore must be finite and not negative, not {self.explore!r}")

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        game = _Game(Expansion(model, key, self.score), self)
        wave = 0
        while game.can_move:
            left = self.simulations
            while left:
                leaves, ended = game.plan(min(self.batch, left))
                left -= len(leaves) + ended
                if leaves:
                    yield from game.expand(leaves)
                    yield game.tree.growing(wave, game.shown(), self.temperature)
                    wave += 1
            if not self.moves or not game.can_move:
                break
            game.move()
        left_over = game.shown()
        if game.tree.results:
            game.tree.release(game.going)
            left_over = []
        yield game.tree.growing(wave, left_over, self.temperature)
        if not left_over:
            game.tree.check_alive(self.all_dead)


class _Game:
    """A search on its way.

    Attributes:
        at: the node that simulations begin at.
        children: those alive, of the nodes that were expanded.
        going: unfinished nodes without children.
    """

    def __init__(self, tree: Expansion, settings: MCTS) -> None:
        self.tree, self._settings = tree, settings
        self.tree.visits = self._visits = [0]
        self._total: dict[int, float] = {0: 0.0}
        self._worth: dict[int, float] = {}
        self._bound: Callable[[Floats, Floats, int], Floats] = puct
        if settings.rule == "uct":
            self._bound = lambda q, n, total: uct(q, n, total, settings.explore * math.sqrt(2.0))
        self.at = 0
        self.children: dict[int, list[int]] = {}
        self.going: list[int] = []

    @property
    def can_move(self) -> bool:
        """Whether there is anything below ``at``, or may be."""
        return not self.tree.nodes[self.at].done and self.children.get(self.at) != []

    def shown(self) -> list[int]:
        """Return the unfinished leaves; none where rollouts went on from them."""
        return [] if self._settings.value == "rollout" else self.going

    def plan(self, count: int) -> tuple[list[int], int]:
        """Send up to ``count`` simulations down; return the leaves to be expanded, and how many ended elsewhere."""
        leaves: list[int] = []
        pending: Counter[int] = Counter()
        ended = 0
        while len(leaves) + ended < count:
            path = [self.at]
            while self.children.get(path[-1]):
                path.append(self._best(path[-1], pending))
            leaf = path[-1]
            if self.tree.nodes[leaf].done or leaf in self.children:
                self._back_up(leaf, self._worth[leaf])
                ended += 1
            elif leaf in leaves:
                break  # what it will be worth is not known yet
            else:
                leaves.append(leaf)
                pending.update(path)
        return leaves, ended

    def _best(self, x: int, pending: Counter[int]) -> int:
        children = self.children[x]
        n = np.array([self._visits[c] + pending[c] for c in children], float)
        q = np.array([self._total[c] for c in children]) / n
        return children[int(np.argmax(self._bound(q, n, self._visits[x] + pending[x])))]

    def expand(self, leaves: list[int]) -> Generator[Start | Move, Advance[Any], None]:
        """Give leaves their children, and back up what those are worth."""
        tree, settings = self.tree, self._settings
        parents = [x for x in leaves for _ in range(settings.width)]
        made = yield from tree.expand(parents, distinct=True)
        going = tree.claim(made)
        ends = dict(zip(made, made))
        if settings.value == "rollout":
            tips = yield from tree.roll(going, keep=True)
            tree.claim(tips)
            ends |= dict(zip(going, tips))
        self.going = [x for x in self.going if x not in leaves] + going
        self.children |= {x: [] for x in leaves}
        self._worth |= dict.fromkeys(leaves, 0.0)  # where all children are dead
        for child in made:
            if tree.nodes[child].score > -math.inf:
                self.children[tree.parent[child]].append(child)
            self._total[child] = 0.0
            self._worth[child] = math.exp(min(tree.nodes[ends[child]].score, 700.0))
            self._back_up(child, self._worth[child])

    def _back_up(self, x: int, worth: float) -> None:
        while x >= 0:
            self._visits[x] += 1
            self._total[x] += worth
            x = self.tree.parent[x]

    def move(self) -> None:
        """Go to the most visited child (of equals the one of the largest mean), and let go of what is not below it."""
        children = self.children[self.at]
        self.at = max(children, key=lambda c: (self._visits[c], self._total[c] / self._visits[c]))
        below = [x for x in self.going if self._is_below(x)]
        self.tree.release(list(set(self.going) - set(below)))
        self.going = below

    def _is_below(self, x: int) -> bool:
        while x > self.at:  # parents come before their children
            x = self.tree.parent[x]
        return x == self.at


def puct(values: Floats, visits: Floats, total: int) -> Floats:
    """Return the bound of AlphaZero, without its prior, of each child: n of N visits went to it.

    >>> puct(np.array([0.5, 0.4]), np.array([3.0, 0.0]), 4).round(4).tolist()
    [1.1251, 2.9005]
    """
    scale = PUCT_INIT + math.log((total + PUCT_BASE + 1.0) / PUCT_BASE)
    return np.asarray(values + scale * math.sqrt(total) / (1.0 + visits))

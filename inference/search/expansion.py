"""How a tree grows step by step: nodes get children, in one batched call for all of them at whatever depth they are.

What searches stand on that score partial runs as they go. Each node is a particle after a step; its children are made
by the model's own step (or proposal). The search says which nodes get children, which are results, and which it will
not come back to; states are kept of those alone that it may.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from ...ppl import keys as _keys
from ...ppl.errors import AllParticlesDead, InvalidWeight
from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac, Floats, Index
from ...ppl.sites import Site
from ..base.chain import detach_choices
from ..base.checks import one_of, positive, temperature_or_none
from ..base.engine import Growing, Move, Report, Start, pick, where
from ..base.search_tree import SearchTree, accumulate
from ..base.selection import choose
from ..base.step import Step
from ..base.weights import spread

Scoring = Literal["last", "product", "min"]
"""What of a node's path is its score, always with the twist's level added: the last log G, Σ log G, or the least.

"last" is for a program whose every step ends in the probability that it comes out well
(``await fk.factor("prm", prm(text).log())``): the score is log r̂ of the run so far. "product" is for potentials that
each say something of their own, for those that telescope, and for programs that set the same probability as a twist
and multiply the reward at the end; a twist alone scores the same by all three.
"""

Expanding: TypeAlias = Generator[Start | Move, Advance[Any], list[int]]
_FOLD: dict[str, tuple[float, Callable[[Any, Any], Any]]] = {
    "last": (0.0, lambda before, now: now),
    "product": (0.0, np.add),
    "min": (np.inf, np.minimum),
}


class Node(NamedTuple):
    """What costs and heuristics may know of a node.

    Attributes:
        depth: the step that made it, from 0.
        score: of the path to it, see `Scoring`; −inf where it is dead.
        log_potential: log G of its step.
        log_twist: the level of the twist.
        log_prob: log p of what its step chose.
        done: whether it has finished.
        choices: what its step chose; in programs its `Site` records.
    """

    depth: int
    score: float
    log_potential: float
    log_twist: float
    log_prob: float
    done: bool
    choices: Any


class Expansion:
    """A tree on its way. Node 0 is the root, before the first step.

    Attributes:
        key: of the search, which nodes fold for keys of their own.
        parent, founder: of each node; the founder is the node of the first step on its path.
        nodes: what is known of each.
        visits: how often each was gone through, where the search counts that itself.
        results: nodes that were claimed as finished alive.
        dead: those of the last claim in which any had died.
    """

    def __init__(self, model: FeynmanKac[Any], key: Keys, score: Scoring) -> None:
        start, self._fold = _FOLD[score]
        self._model, self.key = model, key
        self.parent, self.founder = [-1], [0]
        self.nodes = [Node(-1, 0.0, 0.0, 0.0, 0.0, False, ())]
        self.visits: list[int] | None = None
        self.results: list[int] = []
        self._log_edge, self._carry, self._born = [0.0], [start], [0]
        self._lineage = [np.uint64(0)]
        self._states: dict[int, Any] = {}
        self.dead: list[int] = []
        self._shown = 1

    def __len__(self) -> int:
        return len(self.parent)

    def scores(self, nodes: Sequence[int]) -> Floats:
        """Return the scores of some nodes (n,)."""
        return np.array([self.nodes[x].score for x in nodes])

    # -- growth -------------------------------------------------------------------------------------------------

    def expand(self, parents: Sequence[int], *, distinct: bool = False, keep: bool = False) -> Expanding:
        """Give each of some nodes a further child in one call, and return the children in their order.

        Args:
            parents: nodes, each as often as it gets children; the root alone or none of it.
            distinct: leave out a child that chose the same as one before it.
            keep: whether the parents may get more children later; else their states are let go.
        """
        at = np.array(parents, np.intp)
        number = np.array([self._count(x) for x in at.tolist()])
        if not at.any():
            lines = _keys.fold(self.key, _keys.tag("particle"), number)
            advance = yield Start(_keys.fold(lines, 0))
        else:
            depth = np.array([self.nodes[x].depth for x in at])
            lines = np.array([self._lineage[x] for x in at], np.uint64)
            twins = number > 0  # the first child keeps its parent's line
            lines[twins] = _keys.fold(lines[twins], _keys.tag("twin"), depth[twins], number[twins])
            own, copies = np.unique(at, return_inverse=True)
            state = self._model.select(self._model.concat([self._states[x] for x in own.tolist()]), copies)
            if not keep:
                self.release(own.tolist())
            advance = yield Move(state, _keys.fold(lines, depth + 1))
        if distinct:
            rows = _distinct(at.tolist(), advance.choices)
            advance, at, lines = pick(self._model, advance, rows), at[rows], lines[rows]
        return self._settle(advance, at.tolist(), lines)

    def roll(self, tips: Sequence[int], steps: float = math.inf, *, keep: bool = False) -> Expanding:
        """Run nodes on by one child a step, and return where each has come; ``keep`` as in `expand`, for the first."""
        here, made = list(tips), 0
        while made < steps:
            going = [i for i, x in enumerate(here) if not self.nodes[x].done]
            if not going:
                break
            moved = yield from self.expand([here[i] for i in going], keep=keep and not made)
            for i, x in zip(going, moved):
                here[i] = x
            made += 1
        return here

    def _count(self, x: int) -> int:
        self._born[x] += 1
        return self._born[x] - 1

    def _settle(self, advance: Advance[Any], at: list[int], lines: Keys) -> list[int]:
        """Take new children of the nodes ``at`` into the tree."""
        edge, level = np.asarray(advance.log_increment, float), np.asarray(advance.log_twist, float)
        bad = np.flatnonzero(~(edge < np.inf) | ~np.isfinite(level))
        if len(bad):
            i = int(bad[0])
            raise InvalidWeight(
                f"particle {i} of its wave has weight {edge[i]} and twist {level[i]} at depth "
                f"{self.nodes[at[i]].depth + 1}: a weight must be less than +inf, a twist finite, and neither NaN"
            )
        carry = self._fold(np.array([self._carry[x] for x in at]), np.asarray(advance.log_potential, float))
        score = np.where(edge > -np.inf, carry + level, -np.inf)
        done = np.asarray(advance.done, bool) | np.isneginf(edge)
        first, choices = len(self), detach_choices(advance.choices)
        for i, x in enumerate(at):
            log_g, log_p = float(advance.log_potential[i]), float(advance.log_prob[i])
            node = Node(
                self.nodes[x].depth + 1, float(score[i]), log_g, float(level[i]), log_p, bool(done[i]), choices[i]
            )
            self.nodes.append(node)
            self.founder.append(self.founder[x] or first + i)
            self._states[first + i] = self._model.select(advance.state, np.array([i]))
        self.parent += at
        self._log_edge += edge.tolist()
        self._carry += carry.tolist()
        self._born += [0] * len(at)
        self._lineage += list(lines)
        if self.visits is not None:
            self.visits += [0] * len(at)
        return list(range(first, len(self)))

    # -- what becomes of nodes ----------------------------------------------------------------------------------

    def claim(self, nodes: Sequence[int]) -> list[int]:
        """Take those that finished alive as results, and return those that can go on."""
        dead = [x for x in nodes if self.nodes[x].score == -math.inf]
        if dead:
            self.release(self.dead)
            self.dead = dead
        self.results += [x for x in nodes if self.nodes[x].done and self.nodes[x].score > -math.inf]
        return [x for x in nodes if not self.nodes[x].done]

    def release(self, nodes: Sequence[int]) -> None:
        """Let go of the states of nodes that nobody comes back to."""
        for x in nodes:
            self._states.pop(x, None)

    def check_alive(self, policy: str) -> None:
        """Raise `AllParticlesDead` where a search ended without a result, unless the policy is "zero"."""
        if self.results or not self.dead or policy == "zero":
            return
        raise AllParticlesDead(
            f"all {len(self.dead)} particles have weight zero at step {self.nodes[self.dead[0]].depth} "
            f"({where([self.nodes[x].choices for x in self.dead])}), and none had finished before. Search wider, "
            'soften the factor, or set all_dead="zero" to keep the dead'
        )

    # -- reports ------------------------------------------------------------------------------------------------

    def growing(
        self,
        wave: int,
        going: Sequence[int] = (),
        temperature: float | None = None,
        rank: Callable[[Sequence[int]], Floats] | None = None,
    ) -> Growing:
        """Return a report, to be made when asked for: the particles are the results and those still going.

        All weight is on the best by ``rank`` (by default the score), of the results where there are any; with a
        temperature weights are ∝ exp(rank / temperature). Where nothing is alive, those that died last are shown.
        """
        nodes = [*self.results, *going] or list(self.dead)
        done = np.array([self.nodes[x].done for x in nodes])
        log_weights = choose((rank or self.scores)(nodes), done, temperature)
        return self.report(wave, nodes, log_weights)

    def report(
        self, wave: int, nodes: Sequence[int], log_weights: Floats, answers: Sequence[Any] | None = None
    ) -> Growing:
        """Return a report of some leaves as particles, with the weights given, to be made when asked for."""
        states, size = [self._states[x] for x in nodes], len(self)

        def made() -> Report:
            tree = self._record(size, nodes)
            return Report(self._model.concat(states), log_weights, None, math.nan, answers, tree)

        finished = sum(self.nodes[x].done for x in nodes)
        step = self._describe(wave) if self._shown < size else None
        self._shown = size
        return Growing(made, step, finished)

    def values(self, nodes: Sequence[int]) -> list[Any]:
        """Return the values of nodes whose states are kept."""
        return self._model.values(self._model.concat([self._states[x] for x in nodes])) if nodes else []

    def _describe(self, wave: int) -> Step:
        """Describe the nodes made since the last report, as a step of a population of their own."""
        new = range(self._shown, len(self))
        log_weights = np.array([self._path(x) for x in new])
        found = spread(log_weights)
        return Step(
            depth=wave,
            ess=found.ess,
            entropy=found.entropy,
            log_evidence=math.nan,
            resampled=False,
            ancestors=np.arange(len(new)),
            log_weights=log_weights,
            log_potential=np.array([self.nodes[x].log_potential for x in new]),
            log_twist=np.array([self.nodes[x].log_twist for x in new]),
            done=np.array([self.nodes[x].done for x in new]),
            choices=[self.nodes[x].choices for x in new],
        )

    def _path(self, x: int) -> float:
        total = 0.0
        while x:
            total, x = total + self._log_edge[x], self.parent[x]
        return total

    def _record(self, size: int, particles: Sequence[int]) -> SearchTree:
        nodes, parent = self.nodes[:size], np.array(self.parent[:size])
        depth = np.array([node.depth for node in nodes])
        leaves = np.bincount(parent[1:], minlength=size) == 0
        log_weight, log_mass, visits = accumulate(parent, depth, np.array(self._log_edge[:size]), leaves.astype(int))
        return SearchTree(
            parent=parent,
            depth=depth,
            visits=visits if self.visits is None else np.array(self.visits[:size]),
            value=np.array([node.log_twist for node in nodes]),
            log_weight=log_weight,
            log_mass=log_mass,
            log_potential=np.array([node.log_potential for node in nodes]),
            done=np.array([node.done for node in nodes]),
            choices=[node.choices for node in nodes],
            particles=np.array(particles, np.intp),
        )


def check_search(settings: Any, *counts: str) -> None:
    """Raise ValueError for a setting that searches share and that is out of range; ``counts`` must be positive."""
    for name in (*counts, "chains"):
        positive(name, getattr(settings, name))
    one_of("score", settings.score, get_args(Scoring))
    temperature_or_none(settings.temperature)
    one_of("all_dead", settings.all_dead, ("error", "zero"))


def _distinct(parents: Sequence[int], choices: Any) -> Index:
    """Return the rows whose choices differ from those of all rows before with the same parent."""
    seen: set[Hashable] = set()
    rows = []
    for i, x in enumerate(parents):
        made = _fingerprint(choices[i])
        if made is None or (x, made) not in seen:
            rows.append(i)
            seen.add((x, made))
    return np.array(rows, np.intp)


def _fingerprint(choice: Any) -> Hashable | None:
    """Return something equal for equal choices; None for what cannot be compared, such as arrays."""
    if isinstance(choice, tuple) and all(isinstance(site, Site) for site in choice):
        choice = tuple((site.address, site.value) for site in choice if site.kind in ("sample", "call"))
    try:
        hash(choice)
    except TypeError:
        return None
    return choice  # type: ignore[no-any-return]

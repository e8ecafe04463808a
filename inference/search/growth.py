"""How a tree of partial runs grows: rollouts in waves, one batched call for all of a wave at whatever depth they are.

A rollout descends from the root to a node that may have one more child, makes it by the model's own step (or
proposal), and runs on to the end; each step of it is a node. Engines differ in how they descend and in what they
report. The tree is kept in arrays that only grow at their end, so that a report can be made later of how it was.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from ...ppl import keys as _keys
from ...ppl.errors import AllParticlesDead, InvalidWeight
from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac, Floats, Index
from ..base.chain import detach_choices
from ..base.engine import Growing, Move, Report, Start, where
from ..base.search_tree import SearchTree, accumulate
from ..base.step import Step
from ..base.weights import logmeanexp, spread

Wave = Generator[Start | Move, Advance[Any], Step]
Backup = Callable[[Floats], float]


class Fork:
    """A node with several children: what its descents need to know of them, in parallel arrays.

    Attributes:
        children: the nodes.
        promise: the log-weight from the fork to where its line may part again, or ends, plus the twist's level there;
            −inf where that is dead.
        reach: the log-weight of the step to it plus its value; −inf where all that is known of it is dead.
        visits: how many rollouts took it, those still under way included.
        going: whether its line may part again.
        alive: whether any promises more than −inf.
    """

    __slots__ = ("alive", "children", "going", "promise", "reach", "visits")

    def __init__(self) -> None:
        self.alive = False
        self.children, self.visits = array("q"), array("q")
        self.promise, self.reach, self.going = array("d"), array("d"), array("b")


Descend = Callable[[Fork, int], int]
"""Choose among the children of a fork that are not all dead (the position of one that is not), given its visits."""


class Growth:
    """A tree on its way.

    Args:
        key: of the run.
        width: C of the widening rule: a node that N rollouts went through may have up to ⌈C·N^α⌉ children.
        growth: α.
        branch_at: the depths whose nodes may have several children (the root always may); None for all.
        backup: from the reach of a fork's children to its value.
        record: whether to keep the choices of every step, or those of starts, branching depths and leaves alone.
    """

    def __init__(
        self,
        key: Keys,
        width: float = math.inf,
        growth: float = 1.0,
        branch_at: frozenset[int] | None = frozenset(),
        backup: Backup = logmeanexp,
        record: bool = True,
    ) -> None:
        self._key, self._width, self._growth, self._branch_at = key, width, growth, branch_at
        self._backup, self._record = backup, record
        self.rollouts = 0
        # One entry for each node; the root has the first.
        self._parent, self._depth, self._place = array("q", [-1]), array("q", [-1]), array("q", [0])
        self._first, self._entered, self._ends = array("q", [-1]), array("q", [0]), array("q", [0])
        self._log_edge, self._log_potential, self.value = array("d", [0.0]), array("d", [0.0]), array("d", [0.0])
        self._log_twist = array("d", [0.0])
        self._done = array("b", [0])
        self._choices: list[Any] = [()]
        self._forks: dict[int, Fork] = {}
        # States are kept of the nodes that may be expanded again, and of leaves.
        self._kept: dict[int, tuple[int, int, np.uint64]] = {}
        self._states: list[Any] = []
        self.leaves = array("q")
        self._ended: list[Any] = []

    # -- descent ------------------------------------------------------------------------------------------------

    def plan(self, count: int, descend: Descend) -> list[tuple[int, int]]:
        """Send up to ``count`` rollouts down, and return the nodes that get a new child, with its number.

        A rollout that comes to a leaf, or to where all is dead, ends there. Those of one plan see each other's visits,
        but not what they find.
        """
        points: list[tuple[int, int]] = []
        pending: Counter[int] = Counter()
        for _ in range(count):
            path, x = [0], 0
            while not self._done[x] and not self._widens(x, pending[x]):
                child = self._take(x, descend)
                if child < 0:
                    break
                path.append(child)
                x = child
            if not self._done[x] and self._widens(x, pending[x]):
                points.append((x, self._count(x) + pending[x]))
                pending[x] += 1
            elif points and x == 0 and self._first[0] < 0:
                break  # the root, whose first children are still on their way
            else:
                self._ends[x] += 1
            self._enter(path)
            self.rollouts += 1
        return points

    def _count(self, x: int) -> int:
        fork = self._forks.get(x)
        return len(fork.children) if fork else int(self._first[x] >= 0)

    def _widens(self, x: int, pending: int) -> bool:
        if x and x not in self._kept:
            return False
        most: float = self._width * max(self._entered[x], 1) ** self._growth
        return self._count(x) + pending < most

    def _take(self, x: int, descend: Descend) -> int:
        """Return the child that a rollout goes to from x, or −1 where all are dead."""
        fork = self._forks.get(x)
        if fork is None:
            only = self._first[x]
            return only if only >= 0 and self._log_edge[only] > -math.inf else -1
        if not fork.alive:
            return -1
        return fork.children[descend(fork, self._entered[x])]

    def _enter(self, path: Sequence[int]) -> None:
        for x in path:
            self._entered[x] += 1
            if x:
                fork = self._forks.get(self._parent[x])
                if fork is not None:
                    fork.visits[self._place[x]] += 1

    def spread(self) -> float:
        """Return the standard deviation of the reach of the root's children; of those of positive weight."""
        fork = self._forks.get(0)
        reach = np.array([] if fork is None else fork.reach)
        alive = reach[reach > -math.inf]
        return float(alive.std()) if len(alive) else 0.0

    # -- rollouts -----------------------------------------------------------------------------------------------

    def wave(
        self, model: FeynmanKac[Any], points: Sequence[tuple[int, int]], given: Sequence[Any] | None = None
    ) -> Wave:
        """Make a child at each point and run it to its end. ``given`` forces the choices of starts.

        Yields requests, and returns what happened as a step of the new leaves.
        """
        size, old = len(self._parent), len(self.leaves)
        at, number = np.array(points, np.intp).reshape(-1, 2).T
        going = []
        if (at == 0).any():
            lineage = _keys.fold(self._key, _keys.tag("particle"), number[at == 0])
            advance = yield Start(_keys.fold(lineage, 0), given)
            going += self._settle(model, advance, at[at == 0], lineage)
        if (at > 0).any():
            going.append(self._branch(model, at[at > 0], number[at > 0]))
        while going:
            state = going[0][0] if len(going) == 1 else model.concat([part[0] for part in going])
            nodes, lineage = np.concatenate([part[1] for part in going]), _keys.concat([part[2] for part in going])
            depth = np.array([self._depth[x] for x in nodes])
            advance = yield Move(state, _keys.fold(lineage, depth + 1))
            going = self._settle(model, advance, nodes, lineage)
        self._commit(size, sorted({x for x, _ in points}))
        return self._describe(old)

    def _branch(self, model: FeynmanKac[Any], at: Index, number: Index) -> tuple[Any, Index, Keys]:
        """Gather the states of nodes that get a further child, with the keys of its line."""
        kept = [self._kept[x] for x in at.tolist()]
        order = np.argsort([part for part, _, _ in kept], kind="stable")
        rows: dict[int, list[int]] = {}
        for i in order.tolist():
            rows.setdefault(kept[i][0], []).append(kept[i][1])
        picked = [model.select(self._states[part], np.array(index, np.intp)) for part, index in rows.items()]
        state = picked[0] if len(picked) == 1 else model.concat(picked)
        nodes = at[order]
        depth = np.array([self._depth[x] for x in nodes])
        # The first child keeps its parent's line, as in any other engine; this is one of the others.
        lines = np.array([kept[i][2] for i in order], np.uint64)
        return state, nodes, _keys.fold(lines, _keys.tag("twin"), depth, number[order])

    def _settle(
        self, model: FeynmanKac[Any], advance: Advance[Any], at: Index, lineage: Keys
    ) -> list[tuple[Any, Index, Keys]]:
        """Take new children of the nodes ``at`` into the tree, and return those that go on, if any."""
        edge = np.asarray(advance.log_increment, float)
        if not (edge < np.inf).all():
            i = int(np.flatnonzero(~(edge < np.inf))[0])
            raise InvalidWeight(f"the weight of rollout {i} of its wave is {edge[i]} at depth {self._depth[at[i]] + 1}")
        twist = np.asarray(advance.log_twist, float)
        if not np.isfinite(twist).all():
            i = int(np.flatnonzero(~np.isfinite(twist))[0])
            raise InvalidWeight(f"the twist of rollout {i} of its wave is {twist[i]} at depth {self._depth[at[i]] + 1}")
        stop = np.asarray(advance.done, bool) | np.isneginf(edge)
        n, first = len(at), len(self._parent)
        depth = [self._depth[x] + 1 for x in at.tolist()]
        forks = ~stop & np.array([self._branch_at is None or d in self._branch_at for d in depth])
        self._parent.extend(at.tolist())
        self._depth.extend(depth)
        self._log_edge.extend(edge.tolist())
        self._log_twist.extend(twist.tolist())
        self._log_potential.extend(np.asarray(advance.log_potential, float).tolist())
        self._done.extend(stop.astype(int).tolist())
        for column, default in ((self._place, 0), (self._first, -1), (self._entered, 1), (self._ends, 0)):
            column.extend([default] * n)
        self.value.extend([0.0] * n)
        kept = forks | stop | (at == 0) | self._record
        self._choices += [c if keep else () for c, keep in zip(detach_choices(advance.choices), kept)]
        nodes = np.arange(first, first + n)
        if forks.any():
            for row, i in enumerate(np.flatnonzero(forks).tolist()):
                self._kept[first + i] = len(self._states), row, lineage[i]
            self._states.append(model.select(advance.state, np.flatnonzero(forks)))
        if stop.any():
            self._ended.append(model.select(advance.state, np.flatnonzero(stop)))
            self.leaves.extend(nodes[stop].tolist())
        on = np.flatnonzero(~stop)
        if not len(on):
            return []
        return [(advance.state if len(on) == n else model.select(advance.state, on), nodes[on], lineage[on])]

    # -- backup -------------------------------------------------------------------------------------------------

    def _commit(self, size: int, expanded: Sequence[int]) -> None:
        """Link the nodes made since the tree had ``size``, and bring the values above them up to date."""
        fresh = range(size, len(self._parent))
        for x in fresh:
            self._ends[x] = int(self._done[x])
            if self._first[self._parent[x]] < 0:
                self._first[self._parent[x]] = x
        for x in fresh:
            if self._first[self._parent[x]] != x:
                self._join(x)
        above: set[int] = set()
        for x in expanded:
            while x >= 0 and x not in above:
                above.add(x)
                x = self._parent[x]
        for x in [*reversed(fresh), *sorted(above, reverse=True)]:  # children come after their parents
            self._update(x)

    def _join(self, x: int) -> None:
        """Make a further child part of its parent's fork."""
        parent = self._parent[x]
        fork = self._forks.get(parent)
        new = [x]
        if fork is None:
            fork = self._forks[parent] = Fork()
            new = [self._first[parent], x]
        for child in new:
            self._place[child] = len(fork.children)
            fork.children.append(child)
            fork.reach.append(self._log_edge[child] + self.value[child])
            fork.visits.append(self._entered[child])
            promise, going = self._line(child)
            fork.promise.append(promise)
            fork.alive = fork.alive or promise > -math.inf
            fork.going.append(going)

    def _line(self, x: int) -> tuple[float, bool]:
        """Return what a child promises and whether its line may part again; see `Fork`. Neither changes any more."""
        total = self._log_edge[x]
        while not self._done[x] and x not in self._kept:
            x = self._first[x]
            total += self._log_edge[x]
        return total + self._log_twist[x], not self._done[x]

    def _update(self, x: int) -> None:
        if not self._done[x]:
            fork = self._forks.get(x)
            if fork is not None:
                self.value[x] = self._backup(np.frombuffer(fork.reach))
            else:
                only = self._first[x]
                self.value[x] = self._log_edge[only] + self.value[only]
        above = self._forks.get(self._parent[x])
        if above is not None:
            above.reach[self._place[x]] = self._log_edge[x] + self.value[x]

    # -- reports ------------------------------------------------------------------------------------------------

    def _describe(self, old: int) -> Step:
        """Describe the leaves made since there were ``old``, as a step of a population of their own."""
        new = self.leaves[old:]
        weights = np.array([self._path(x, self._log_edge)[0] for x in new])
        found = spread(weights)
        return Step(
            depth=0,
            ess=found.ess,
            entropy=found.entropy,
            log_evidence=self.value[0],
            resampled=False,
            ancestors=np.arange(len(new)),
            log_weights=weights,
            log_potential=np.array([self._log_potential[x] for x in new]),
            log_twist=np.zeros(len(new)),
            done=np.array([self._done[x] for x in new], bool),
            choices=[self._choices[x] for x in new],
        )

    def _path(self, x: int, column: Any) -> tuple[float, int]:
        """Return the sum of a column along the path to a node, and the path's first node."""
        total, first = 0.0, x
        while x:
            total, first = total + column[x], x
            x = self._parent[x]
        return total, first

    def lines(self, last: int) -> tuple[Floats, list[Any]]:
        """Return the Σ log G and the first choices of the ``last`` leaves, in the order in which they were started."""
        found = sorted((self._path(x, self._log_potential) for x in self.leaves[-last:]), key=lambda line: line[1])
        return np.array([reward for reward, _ in found]), [self._choices[first] for _, first in found]

    def growing(self, model: FeynmanKac[Any], step: Step, weigh: Callable[[SearchTree], Report]) -> Growing:
        """Return a report of the tree as it is now, to be made when asked for.

        ``weigh`` makes it from the record of the tree, but for its state, which is filled in here.
        """
        nodes, leaves, ended = len(self._parent), len(self.leaves), len(self._ended)

        def report() -> Report:
            found = weigh(self.record(nodes, leaves))
            state = model.concat(self._ended[:ended])
            return Report(state, found.log_weights, None, found.log_evidence, found.answers, found.tree)

        return Growing(report, step, leaves)

    def record(self, nodes: int, leaves: int) -> SearchTree:
        """Return the tree of the first ``nodes`` nodes and ``leaves`` leaves, as they are kept."""
        parent, depth, edge, ends = (
            np.array(column[:nodes]) for column in (self._parent, self._depth, self._log_edge, self._ends)
        )
        log_weight, log_mass, visits = accumulate(parent, depth, edge, ends)
        return SearchTree(
            parent=parent,
            depth=depth,
            visits=visits,
            value=np.array(self.value[:nodes]),
            log_weight=log_weight,
            log_mass=log_mass,
            log_potential=np.array(self._log_potential[:nodes]),
            done=np.array(self._done[:nodes], bool),
            choices=self._choices[:nodes],
            particles=np.array(self.leaves[:leaves]),
        )

    def check_alive(self, policy: str) -> None:
        """Raise `AllParticlesDead` where every leaf has weight zero, unless the policy is "zero"."""
        if policy == "zero" or any(self._path(x, self._log_edge)[0] > -math.inf for x in self.leaves):
            return
        raise AllParticlesDead(
            f"all {len(self.leaves)} leaves of the tree have weight zero after {self.rollouts} rollouts "
            f"({where([self._choices[x] for x in self.leaves])}). Use more rollouts, soften the factor, or set "
            'all_dead="zero" to get log Z = -inf instead'
        )

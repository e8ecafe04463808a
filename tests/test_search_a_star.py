"""A*: the order of its expansions, and what its costs promise."""

from __future__ import annotations

import heapq
import itertools
import math

import pytest
from scripted import Scripted, noise, paths_of, prm, tree_of

import feynkac as fk


def binary(depth, seed):
    """A binary tree whose steps cost random, unequal amounts; its leaves and their costs."""

    def step(path):
        return noise(path, seed) * 3.0 ** noise(path, seed + 1)

    model = Scripted(lambda path: -step(path), lambda path: len(path) == depth)
    leaves = {leaf: sum(step(leaf[: i + 1]) for i in range(depth)) for leaf in itertools.product((0, 1), repeat=depth)}
    return model, step, leaves


def spent(before, node):
    return -node.log_potential


@pytest.mark.parametrize("seed", range(20))
def test_without_a_heuristic_it_is_dijkstra(seed):
    model, step, leaves = binary(4, 10 * seed)
    engine = fk.AStar(1000, width=2, cost=spent, heuristic=lambda node: 0.0)
    posterior = fk.infer(model, engine, seed=0)
    assert posterior.best() == min(leaves, key=leaves.get)
    queue, order = [(0.0, True, ())], []
    while True:
        g, going, path = heapq.heappop(queue)
        if not going:
            break
        order.append(path)
        for child in ((*path, 0), (*path, 1)):
            heapq.heappush(queue, (g + step(child), len(child) < 4, child))
    assert [wave[0][:-1] for wave in model.waves] == order


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("seed", range(20))
def test_a_consistent_heuristic_finds_the_cheapest_and_expands_nothing_dearer(seed, batch):
    model, step, leaves = binary(4, 1000 + 10 * seed)
    left = dict.fromkeys(leaves, 0.0)  # the true cost to go, from the leaves up
    for length in (3, 2, 1, 0):
        for path in itertools.product((0, 1), repeat=length):
            left[path] = min(step((*path, i)) + left[*path, i] for i in (0, 1))
    h = dict.fromkeys(leaves, 0.0)  # any below it that falls by no more than a step costs
    for length in (3, 2, 1):
        for path in itertools.product((0, 1), repeat=length):
            h[path] = noise(path, seed + 7) * min(step((*path, i)) + h[*path, i] for i in (0, 1))
            assert h[path] <= left[path]

    scores = {}  # a node does not know its path, but what it has cost tells it
    for path in h:
        scores[round(-step(path), 12), len(path) - 1] = h[path]

    def heuristic(node):
        return scores[round(node.log_potential, 12), node.depth]

    posterior = fk.infer(model, fk.AStar(1000, width=2, cost=spent, heuristic=heuristic, batch=batch), seed=0)
    best = min(leaves.values())
    assert leaves[posterior.best()] == best
    expanded = [paths[0][:-1] for paths in model.waves[1:]] if batch == 1 else []
    for path in expanded:
        assert sum(step(path[: i + 1]) for i in range(len(path))) + h[path] <= best + 1e-12
    assert len(model.waves) < 15 or batch > 1


def test_a_result_waits_for_those_that_are_expanded_before_it():
    """The start that has finished comes second; the first has two free steps more to go."""

    def log_g(path):
        return (-1.0, -1.5)[path[0]] if len(path) == 1 else 0.0

    model = Scripted(log_g, lambda path: path[0] == 1 or len(path) == 4)
    engine = fk.AStar(100, width=2, batch=2, cost=spent, heuristic=lambda node: 0.0)
    assert fk.infer(model, engine, seed=0).best()[0] == 0


def test_every_node_of_a_batch_counts_as_an_expansion():
    model = Scripted(lambda path: -1.0, lambda path: len(path) == 20)
    fk.infer(model, fk.AStar(5, width=2, batch=3, cost=spent, heuristic=lambda node: 0.0), seed=0)
    assert [len(wave) for wave in model.waves] == [2, 4, 4]  # one node, two, and the two that are left


def falls(path, r):
    """f of a path where g counts what h = 1 − r falls by."""
    h = [1 - r(path[: i + 1]) for i in range(len(path))]
    return h[-1] + sum(max(0.0, a - b) for a, b in itertools.pairwise(h))


def rises(path, r):
    h = [1 - r(path[: i + 1]) for i in range(len(path))]
    return h[-1] + sum(max(0.0, b - a) for a, b in itertools.pairwise(h))


def ranked(engine, depth=4):
    model = Scripted(lambda path: math.log(prm(path)), lambda path: len(path) == depth)
    return model, fk.infer(model, engine, seed=0)


@pytest.mark.parametrize(("cost", "f"), [("falls", falls), ("rises", rises)])
def test_it_is_best_first_by_f(cost, f):
    """Each expansion takes the least of the open ones, and the first finished one to come up is the result."""
    for seed in range(10):

        def r(path, seed=seed):
            return noise(path, 50 + seed)

        model = Scripted(lambda path: math.log(r(path)), lambda path: len(path) == 4)
        found = fk.infer(model, fk.AStar(100, width=2, cost=cost), seed=0)
        queue = [(0.0, ())]
        for wave in model.waves:
            assert min(queue)[1] == wave[0][:-1]
            heapq.heappop(queue)
            for path in wave:
                heapq.heappush(queue, (f(path, r), path))
        assert f(found.best(), r) == min(queue)[0]
        assert len(found.best()) == 4


def test_what_h_falls_by_makes_it_consistent_and_what_it_rises_by_does_not():
    leaves = list(itertools.product((0, 1), repeat=4))
    _, found = ranked(fk.AStar(100, width=2, cost="falls"))
    assert found.best() == min(leaves, key=lambda path: falls(path, prm))
    along = {f: [[f(path[: i + 1], prm) for i in range(4)] for path in leaves] for f in (falls, rises)}
    assert all(line == sorted(line) for line in along[falls])
    assert not all(line == sorted(line) for line in along[rises])


def test_a_greedy_search_follows_the_score_alone():
    model, found = ranked(fk.AStar(100, width=2, cost=lambda before, node: 0.0))
    queue = [(-1.0, ())]
    for wave in model.waves:
        assert heapq.heappop(queue)[1] == wave[0][:-1]
        for path in wave:
            heapq.heappush(queue, (1 - prm(path), path))
    assert found.best() == queue[0][1]


def test_a_search_that_nothing_guides_runs_straight_to_an_end():
    model = Scripted(lambda path: 0.0, lambda path: len(path) == 5)
    assert fk.infer(model, fk.AStar(100, width=3), seed=0).complete.all()
    assert [len(wave[0]) for wave in model.waves] == [1, 2, 3, 4, 5]


def test_costs_see_the_node_before():
    seen = []

    def cost(before, node):
        seen.append((before.depth if before else None, node.depth, node.score))
        return 1.0

    ranked(fk.AStar(3, width=2, cost=cost))
    assert {(None, 0), (0, 1)} <= {(a, b) for a, b, _ in seen}
    assert all(a is None or b == a + 1 for a, b, _ in seen)


def test_an_interrupted_a_star_returns_its_results_or_the_lowest_leaf():
    _, cut = ranked(fk.AStar(3, width=2))
    assert not cut.complete.any()
    tree, paths = tree_of(cut), paths_of(tree_of(cut))
    leaves = [paths[x] for x in range(1, len(tree)) if not len(tree.children(x))]
    assert sorted(cut.values) == sorted(leaves)
    assert cut.best() == min(leaves, key=lambda path: rises(path, prm))
    _, two = ranked(fk.AStar(100, width=2, results=8))
    _, one = ranked(fk.AStar(100, width=2))
    assert one.complete.all()
    assert two.complete.all()
    assert two.cost.nfe > one.cost.nfe
    model = Scripted(lambda path: math.log(prm(path)), lambda path: len(path) == 4)
    session = fk.steps(model, fk.AStar(100, width=2), seed=0, budget=fk.Budget(nfe=8))
    list(session)
    assert session.posterior.stopped == "nfe"
    assert session.posterior.cost.nfe == 8
    assert session.posterior.best() in session.posterior.values


def test_costs_and_heuristics_must_be_numbers():
    with pytest.raises(fk.errors.InvalidWeight, match="the heuristic of node 1 is nan"):
        ranked(fk.AStar(3, heuristic=lambda node: math.nan))
    with pytest.raises(fk.errors.InvalidWeight, match="the cost of node 1 is inf"):
        ranked(fk.AStar(3, cost=lambda before, node: math.inf))

"""Monte Carlo tree search: its bounds, its visits and its rollouts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scripted import Scripted, noise, paths_of, prm, tree_of

import feynkac as fk
from feynkac.inference.search.mcts import puct


def test_uct_pulls_two_arms_sixteen_and_four_times():
    arms = Scripted(lambda path: 0.0 if path[0] == 0 else -700.0, lambda path: True)
    posterior = fk.infer(arms, fk.MCTS(19, width=2), seed=0)  # the first simulation makes both arms
    tree = tree_of(posterior)
    assert tree.visits[tree.children(0)].tolist() == [16, 4]
    assert posterior.cost.nfe == 2
    assert posterior.best() == (0,)


def test_puct_is_its_formula():
    values, visits = np.array([0.3, 0.9, 0.5]), np.array([4.0, 1.0, 0.0])
    expected = [q + (1.25 + math.log((5 + 19652 + 1) / 19652)) * math.sqrt(5) / (1 + n) for q, n in zip(values, visits)]
    assert puct(values, visits, 5) == pytest.approx(expected)


def play(simulations, width, depth, bound, r, moves):
    """A plain implementation to compare with: visits of each path, and the path walked."""
    n, total, children = {(): 0}, {(): 0.0}, {}

    def back(path, worth):
        for i in range(len(path) + 1):
            n[path[:i]] += 1
            total[path[:i]] += worth

    at = ()
    while len(at) < depth:
        for _ in range(simulations):
            path = at
            while path in children:
                path = max(children[path], key=lambda c: bound(total[c] / n[c], n[c], n[path]))
            if len(path) == depth:
                back(path, r(path))
                continue
            children[path] = [(*path, i) for i in range(width)]
            for child in children[path]:
                n[child], total[child] = 0, 0.0
                back(child, r(child))
        if not moves:
            break
        at = max(children[at], key=lambda c: (n[c], total[c] / n[c]))
    return n


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("rule", ["uct", "puct"])
@pytest.mark.parametrize("seed", range(5))
def test_visits_are_those_of_a_plain_implementation(rule, moves, seed):
    def bound(q, n, parent):
        if rule == "uct":
            return q + 1.4 * math.sqrt(2 * math.log(parent) / n)
        return q + (1.25 + math.log((parent + 19652 + 1) / 19652)) * math.sqrt(parent) / (1 + n)

    def r(path):
        return noise(path, seed)

    model = Scripted(lambda path: math.log(r(path)), lambda path: len(path) == 3)
    posterior = fk.infer(model, fk.MCTS(9, width=3, rule=rule, moves=moves), seed=0)
    tree = tree_of(posterior)
    expected = play(9, 3, 3, bound, r, moves)
    assert dict(zip(paths_of(tree), tree.visits.tolist())) == expected
    found = [path for path in expected if len(path) == 3]
    if found:
        assert posterior.best() == max(found, key=r)
        assert posterior.complete.all()
    else:
        leaves = [path for path in expected if not any(p[:-1] == path for p in expected if p)]
        assert sorted(posterior.values) == sorted(leaves)


def test_rollouts_value_a_node_by_where_it_comes_to():
    """The first step says nothing: with rollouts the good half is found, and their ends are results."""

    def log_g(path):
        return math.log(0.5) if len(path) < 3 else math.log(0.9 if path[0] == 1 else 0.1)

    for value, at_once in (("rollout", True), ("score", False)):
        model = Scripted(log_g, lambda path: len(path) == 3)
        posterior = fk.infer(model, fk.MCTS(1, width=2, value=value, moves=False), seed=0)
        tree = tree_of(posterior)
        assert posterior.complete.all() == at_once
        assert len(posterior) == 2
        assert (posterior.best()[0] == 1) == at_once
        assert tree.visits[tree.children(0)].tolist() == [1, 1]
    model = Scripted(log_g, lambda path: len(path) == 3)
    tree = tree_of(fk.infer(model, fk.MCTS(2, width=2, value="rollout", moves=False), seed=0))
    assert tree.visits[tree.children(0)[:2]].tolist() == [1, 3]  # the second simulation knows where to go


def test_simulations_of_a_batch_share_a_call_and_spread():
    model = Scripted(lambda path: math.log(prm(path)), lambda path: len(path) == 6)
    posterior = fk.infer(model, fk.MCTS(16, width=2, moves=False, batch=4), seed=0)
    sizes = [len({path[:-1] for path in wave}) for wave in model.waves]
    assert max(sizes) > 2
    assert sum(sizes) == 16
    # Nothing of what was under way is left in the counts.
    tree = tree_of(posterior)
    assert tree.visits[0] == 32
    for x in range(1, len(tree)):
        assert tree.visits[x] == 1 + tree.visits[tree.children(x)].sum()


def test_dead_ends_are_not_walked_into():
    def log_g(path):
        return -math.inf if path[-1] == 0 else math.log(0.1 + 0.8 * prm(path))

    model = Scripted(log_g, lambda path: len(path) == 4)
    posterior = fk.infer(model, fk.MCTS(4, width=2), seed=0)
    assert posterior.best() == (1, 1, 1, 1)
    hardly = Scripted(lambda path: -800.0 if path[-1] else -math.inf, lambda path: len(path) == 4)  # worth 0.0 as float
    assert fk.infer(hardly, fk.MCTS(1, width=2), seed=0).best() == (1, 1, 1, 1)
    trap = Scripted(lambda path: -math.inf if len(path) == 2 else 0.0, lambda path: len(path) == 3)
    with pytest.raises(fk.errors.AllParticlesDead, match="weight zero at step 1"):
        fk.infer(trap, fk.MCTS(4, width=2), seed=0)

"""Searches over partial runs: beam search, DVTS, REBASE, A* and Monte Carlo tree search."""

from __future__ import annotations

import heapq
import itertools
import math

import numpy as np
import pytest
from scripted import Scripted, noise, paths_of

import feynkac as fk
from chains import chain
from feynkac.inference.search.mcts import puct
from feynkac.inference.search.rebase import shares
from feynkac.ppl.score import evaluate
from laws import check_all_dead, t1, t2

ENGINES = [
    fk.BeamSearch(12, width=3, score="product"),
    fk.BeamSearch(8, width=4, lookahead=1, distinct=True),
    fk.DVTS(12, width=3),
    fk.DVTS(8, width=2, lookahead=2, score="min"),
    fk.Rebase(12),
    fk.AStar(40, width=3, results=2),
    fk.AStar(40, width=4, batch=3, cost="falls", chains=2),
    fk.MCTS(6, width=3),
    fk.MCTS(6, width=3, value="rollout", rule="puct"),
    fk.MCTS(30, width=2, moves=False, batch=4),
]


def tree_of(posterior):
    return posterior.chains[0].tree


# -- beams ------------------------------------------------------------------------------------------------------


def uneven(path):
    """Runs of 2 to 6 steps."""
    return len(path) >= 6 or (len(path) > 1 and noise(path, 1) < 0.3)


@pytest.mark.parametrize("rule", ["last", "product", "min"])
@pytest.mark.parametrize(("n", "width"), [(12, 3), (10, 4), (7, 1), (6, 6)])
def test_a_beam_keeps_its_best_and_duplicates_them(rule, n, width):
    """Every wave, read off the record: n/M parents, the best by score; the others have no children."""

    def log_g(path):
        return math.log(noise(path)) if path[-1] else math.log(0.999 * noise(path))

    fold = {"last": lambda g: g[-1], "product": sum, "min": min}[rule]
    posterior = fk.infer(Scripted(log_g, uneven), fk.BeamSearch(n, width, score=rule), seed=0)
    tree = tree_of(posterior)
    paths = paths_of(tree)
    score = [fold([log_g(p[: i + 1]) for i in range(len(p))]) if p else 0.0 for p in paths]
    finished, wave = 0, [x for x in range(len(tree)) if tree.depth[x] == 0]
    assert len(wave) == n
    while wave:
        finished += int(tree.done[wave].sum())
        going = sorted((x for x in wave if not tree.done[x]), key=lambda x: -score[x])
        kept = going[: math.ceil((n - finished) / width)] if going else []
        counts = [len(tree.children(x)) for x in going]
        assert counts == [math.ceil((n - finished - i) / len(kept)) for i in range(len(kept))] + [0] * (
            len(going) - len(kept)
        )
        wave = [int(c) for x in wave for c in tree.children(x)]
    assert finished == n == len(posterior)
    best = max((x for x in range(len(tree)) if x and tree.done[x]), key=lambda x: score[x])
    assert posterior.best() == paths[best]
    assert math.isnan(posterior.log_evidence)
    assert posterior.guarantee == "heuristic"


def test_a_narrow_beam_commits_early_and_a_wider_one_does_not():
    """T1: a looks better than b, and ba is best in the end."""
    by_rule = {}
    for rule in ("last", "product", "min"):
        for keep in (1, 2):
            engine = fk.BeamSearch(32, width=32 // keep, score=rule, distinct=True)
            by_rule[rule, keep] = fk.infer(t1("product of r"), engine, seed=0).best()
    assert by_rule == {
        ("last", 1): "aa", ("last", 2): "ba", ("product", 1): "aa", ("product", 2): "aa", ("min", 1): "aa",
        ("min", 2): "aa",
    }  # fmt: skip


def test_a_twist_counts_as_a_score():
    """The reward set as a level, with the reward itself at the end, is searched as the same factors would be."""
    reward = {"a": 0.8, "b": 0.2}

    def shape(path):
        return math.log(noise(path))

    twisted = Scripted(lambda p: shape(p) if len(p) == 4 else 0.0, lambda p: len(p) == 4, twist=shape)
    factors = Scripted(shape, lambda p: len(p) == 4)
    for rule in ("last", "product"):
        found = fk.infer(twisted, fk.BeamSearch(12, 4, score=rule), seed=0)
        assert found.best() == fk.infer(factors, fk.BeamSearch(12, 4, score="last"), seed=0).best()
    guided = t1("final r", twist=lambda text: math.log(reward.get(text[-1:], 1.0)))
    assert fk.infer(guided, fk.BeamSearch(32, 32, distinct=True), seed=0).best() == "aa"


def deceptive(path):
    """The first child of the root shines and then disappoints."""
    return math.log({0: 0.9, 1: 0.2}.get(path[0], 0.1) if len(path) == 1 else {0: 0.1, 1: 0.8}.get(path[0], 0.05))


@pytest.mark.parametrize("engine", [fk.BeamSearch(4, 4), fk.DVTS(4, 4)], ids=repr)
def test_a_look_ahead_sees_where_candidates_come_to_and_is_thrown_away(engine):
    from dataclasses import replace

    plain, ahead = (Scripted(deceptive, lambda p: len(p) == 3) for _ in range(2))
    assert fk.infer(plain, engine, seed=0).best()[0] == 0
    posterior = fk.infer(ahead, replace(engine, lookahead=1), seed=0)
    assert posterior.best()[0] == 1
    assert [len(wave) for wave in plain.waves] == [4, 4, 4]
    assert [len(wave) for wave in ahead.waves] == [4, 4, 4, 4, 4]  # N·(k + 1) but for the last step
    assert posterior.cost.nfe == 20
    assert len(set(ahead.keys)) == 20
    assert len(posterior) == 4


def test_repeated_candidates_can_be_left_out():
    @fk.program
    async def coins():
        word = ""
        for _ in range(3):
            word += "TH"[await fk.sample("coin", fk.dist.Bernoulli(0.5))]
            await fk.factor("heads", float(word.count("H")))
        return word

    tree = tree_of(fk.infer(coins(), fk.BeamSearch(24, 12, distinct=True), seed=0))
    for x in range(len(tree)):
        faces = [tree.choices[c][0].value for c in tree.children(x)]
        assert len(faces) == len(set(faces))
    plain = tree_of(fk.infer(coins(), fk.BeamSearch(24, 12), seed=0))
    assert len(plain) == 73 > len(tree)


# -- DVTS -------------------------------------------------------------------------------------------------------


def test_dvts_keeps_subtrees_where_a_beam_keeps_one():
    def log_g(path):
        return math.log(0.9 if path[0] < 2 else 0.1)

    beam, dvts = (
        fk.infer(Scripted(log_g, lambda p: len(p) == 3), engine, seed=0)
        for engine in (fk.BeamSearch(4, 2), fk.DVTS(4, 2))
    )
    assert {path[0] // 2 for path in beam.values} == {0}
    assert sorted(path[0] // 2 for path in dvts.values) == [0, 0, 1, 1]
    assert max(beam.best()[0], dvts.best()[0]) < 2


def test_a_subtree_goes_on_from_its_own_best_until_that_has_finished():
    def log_g(path):
        return math.log(noise(path))

    n, width = 12, 3
    model = Scripted(log_g, uneven)
    posterior = fk.infer(model, fk.DVTS(n, width), seed=0)
    expected, results = {i: [(j,) for j in range(3 * i, 3 * i + 3)] for i in range(4)}, []
    while expected:
        following = {}
        for subtree, paths in expected.items():
            results += [p for p in paths if uneven(p)]
            best = max(paths, key=log_g)
            if not uneven(best):
                following[subtree] = [(*best, j) for j in range(width)]
        expected = following
    assert sorted(posterior.values) == sorted(results)
    assert posterior.complete.all()
    assert posterior.best() == max(results, key=log_g)
    votes = fk.infer(Scripted(log_g, uneven), fk.DVTS(n, width, temperature=1.0), seed=0).vote(lambda path: path[0])
    total = sum(noise(p) for p in results)
    assert votes == pytest.approx({i: sum(noise(p) for p in results if p[0] == i) / total for i in votes})


# -- REBASE -----------------------------------------------------------------------------------------------------


def test_shares_are_those_of_the_paper_and_add_up():
    assert shares([0.6, 0.5, 0.4], 8).tolist() == [5, 2, 1]
    assert shares([0.4, 0.6, 0.5], 8).tolist() == [1, 5, 2]
    assert shares([0.3, 0.3, 0.3, 0.3], 8).tolist() == [2, 2, 2, 2]  # no place is lost or won by rounding floats
    rng = np.random.default_rng(0)
    for _ in range(300):
        n, places, tau = rng.integers(1, 12), int(rng.integers(1, 40)), float(rng.choice([0.01, 0.2, 3.0]))
        r = rng.uniform(size=n).round(1)
        found = shares(r, places, tau)
        assert found.sum() == places
        assert (np.diff(found[np.argsort(-r, kind="stable")]) <= 0).all()
        # By the paper's loop, in exact order.
        left, mass = places, sum(math.exp(x / tau) for x in r)
        for i in np.argsort(-r, kind="stable"):
            share = min(left, math.ceil(left * math.exp(r[i] / tau) / mass - 1e-6))
            assert found[i] == share
            left, mass = left - share, max(mass - math.exp(r[i] / tau), 1e-300)
    assert shares([5.0, 1e300], 4).tolist() == [0, 4]


def test_rebase_shares_the_places_that_finished_nodes_leave():
    rewards = (0.6, 0.5, 0.4, 0.0, 0.0, 0.0, 0.0, 0.0)

    def log_g(path):
        r = rewards[path[0]]
        return math.log(r) if r else -math.inf

    posterior = fk.infer(Scripted(log_g, lambda p: len(p) == 2), fk.Rebase(8), seed=0)
    tree = tree_of(posterior)
    assert [len(tree.children(x)) for x in tree.children(0)] == [5, 2, 1, 0, 0, 0, 0, 0]
    assert posterior.best()[0] == 0
    # Two of the eight have finished: six places are left.
    model = Scripted(
        lambda p: math.log((*rewards[:3], 0.3, 0.3, 0.2, 0.9, 0.1)[p[0]]), lambda p: len(p) == 2 or p[0] > 5
    )
    posterior = fk.infer(model, fk.Rebase(8), seed=0)
    tree = tree_of(posterior)
    expected = shares([0.6, 0.5, 0.4, 0.3, 0.3, 0.2], 6).tolist()
    assert [len(tree.children(x)) for x in tree.children(0)] == [*expected, 0, 0]
    assert len(posterior) == 8
    assert posterior.best() == (6,)


# -- A* ---------------------------------------------------------------------------------------------------------


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


def prm(path):
    return noise(path, 3)


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


# -- Monte Carlo tree search -------------------------------------------------------------------------------------


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


# -- what all of them share ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_every_key_is_used_once_and_cost_is_what_the_model_saw(engine):
    model = chain()
    posterior = fk.infer(model, engine, seed=3)
    assert len(model.keys) == len(set(model.keys)) == posterior.cost.nfe
    assert len(model.calls) == posterior.cost.model_calls
    again = fk.infer(chain(), engine, seed=3)
    assert again.values == posterior.values
    assert (again.log_weights == posterior.log_weights).all()
    assert fk.infer(chain(), engine, seed=4).chains[0].tree.choices != tree_of(posterior).choices


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_unequal_lengths_and_many_problems_at_once(engine):
    alone = [fk.infer(model, engine, seed=5) for model in (t2(), t1("product of r"))]
    assert alone[0].best().endswith("$")
    assert alone[0].complete.any()
    together = fk.infer([t2(), t1("product of r")], engine, seed=5)
    assert together[0].values == alone[0].values
    assert (together[0].log_weights == alone[0].log_weights).all()
    tree = tree_of(alone[0])
    assert posterior_weights_select_the_best(alone[0], engine)
    assert (tree.parent[1:] < np.arange(1, len(tree))).all()
    assert alone[0].trace(0)


def posterior_weights_select_the_best(posterior, engine):
    return posterior.complete[np.argmax(posterior.log_weights)] and set(posterior.log_weights) <= {0.0, -np.inf}


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_a_run_can_be_cut_at_any_wave(engine):
    whole = chain()
    fk.infer(whole, engine, seed=6)
    for calls in range(1, len(whole.calls) + 1):
        posterior = fk.infer(chain(), engine, seed=6, budget=fk.Budget(model_calls=calls))
        assert posterior.best() is not None
        assert len(posterior.values) == len(posterior.log_weights) >= 1
        assert posterior.probabilities.sum() == pytest.approx(1.0)
        # The record is a tree whose particles are its leaves, as they were at the last report.
        tree = tree_of(posterior)
        assert (tree.done[tree.particles] == posterior.chains[0].complete).all()
        assert all(not len(tree.children(x)) for x in tree.particles)
        for particle in range(len(posterior.chains[0].log_weights)):
            line = [step.choices[i] for step, i in zip(posterior.steps, posterior.genealogy(particle))]
            made = tuple(c[0] for c in line if c)
            assert made == tuple(v for v in posterior.values[particle] if v >= 0)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_it_is_drawn_saved_and_told(engine, tmp_path):
    posterior = fk.infer(t2(), engine, seed=7)
    figure = fk.plots.tree(posterior)
    assert figure.axes[0].get_title(loc="left") == "Search tree"
    tree = tree_of(posterior)
    assert set(tree.particles) <= set(tree.leaves)
    if len(tree.particles) < len(tree.leaves):  # what was given up is drawn, too, and is fainter
        assert f"{len(tree.particles)} kept" in figure.axes[0].get_title(loc="right")
        faint = sum(line.get_alpha() == 0.2 for line in figure.axes[0].lines)
        assert 0 < faint < len(figure.axes[0].lines)
    import matplotlib.pyplot as plt

    plt.close(figure)
    posterior.save(tmp_path / "p.fk")
    loaded = fk.Posterior.load(tmp_path / "p.fk")
    assert loaded.values == posterior.values
    assert (tree_of(loaded).visits == tree_of(posterior).visits).all()
    assert "heuristic" in posterior.summary()
    assert "<" in posterior._repr_html_()


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_all_dead(engine):
    check_all_dead(engine)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_weights_that_are_no_numbers_are_refused(engine):
    for bad in (math.nan, math.inf):
        with pytest.raises(fk.errors.InvalidWeight, match="particle 0 of its wave has weight"):
            fk.infer(Scripted(lambda path, bad=bad: bad, lambda path: False), engine, seed=0)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_states_are_let_go_of(engine):
    """At the end a session holds the particles of its last report and no more."""
    import gc
    import weakref

    live = weakref.WeakSet()

    class Counted(Scripted):
        def _made(self, paths, keys):
            advance = super()._made(paths, keys)
            live.add(advance.state)
            return advance

        def select(self, state, index):
            rows = super().select(state, index)
            live.add(rows)
            return rows

    model = Counted(lambda path: math.log(0.05 + 0.9 * prm(path)), lambda path: len(path) >= 5)
    session = fk.steps(model, engine, seed=0)
    list(session)
    gc.collect()
    shown = sum(len(chain.log_weights) for chain in session.posterior.chains)
    assert len(live) <= shown


# -- on a language model ------------------------------------------------------------------------------------------


@fk.program
async def two_lines(lm, topic):
    text = lm.prompt(f"Once upon a {topic} there was")
    for _ in range(2):
        text = await fk.sample("step", lm.tokens(text, 3))
        await fk.factor("prm", math.log(0.05 + 0.9 / (1.0 + str(text).count("e"))))
        if "r" in str(text):  # so that depths are mixed
            await fk.factor("more", -0.1)
    return text


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_searches_of_a_language_model_keep_its_cache(engine):
    """Texts found in batches of mixed depths have the probability that the model gives them, and nothing is redone."""
    pytest.importorskip("torch")
    from feynkac.models.testing import tiny_lm

    lm = tiny_lm()
    posterior = fk.infer(two_lines(lm, "river"), engine, seed=8)
    prompt = len(lm.prompt("Once upon a river there was").prompt_tokens)
    # Each token drawn is forwarded at most once, and the prompt once.
    assert posterior.cost.tokens_in <= prompt + posterior.cost.tokens_out
    found = [value for value, complete in zip(posterior.values, posterior.complete) if complete][:8]
    fresh = evaluate([tiny_lm().score(text) for text in found])
    assert [text.log_prob for text in found] == pytest.approx(fresh, abs=1e-3)
    if isinstance(engine, fk.AStar) and engine.batch > 1:
        assert posterior.cost.model_calls < posterior.cost.tokens_out / 2

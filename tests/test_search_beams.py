"""Beam search, DVTS and REBASE: whom each wave keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scripted import Scripted, noise, paths_of, tree_of

import feynkac as fk
from feynkac.inference.search.rebase import shares
from laws import t1

# -- beams ------------------------------------------------------------------------------------------------------------


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


# -- beams that get narrower ------------------------------------------------------------------------------------------


def by_first(values):
    """Features by which candidates are alike that come from starts of one kind: 0 to 2, 3 and 4, or the others."""
    return [[float(sum(path[0] >= bound for bound in (3, 5)))] for path in values]


FIRST = {0: 0.9, 1: 0.8, 2: 0.7, 3: 0.3, 4: 0.4, 5: 0.2, 6: 0.1, 7: 0.05}


def by_start(path):
    """Each start has a score of its own, and its children nearly the same."""
    return math.log(FIRST[path[0]] - 0.001 * sum(path[1:]))


def waves(engine, log_g=by_start, ends=lambda path: len(path) == 4):
    model = Scripted(log_g, ends)
    posterior = fk.infer(model, engine, seed=0)
    return model.waves, posterior


def test_the_best_go_on_where_a_beam_gets_narrower():
    found, posterior = waves(fk.BeamSearch(8, 2, reduce={1: fk.Reduce(4), 2: fk.Reduce(1)}))
    assert [len(wave) for wave in found] == [8, 8, 4, 1]
    assert found[2] == [(0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]
    assert found[3] == [(0, 0, 0, 0)]
    assert (posterior.guarantee, len(posterior)) == ("heuristic", 1)
    assert math.isnan(posterior.log_evidence)
    # What it makes and keeps until then is what a beam does that stays as it is.
    plain, _ = waves(fk.BeamSearch(8, 2))
    assert found[:2] == plain[:2]
    assert [len(wave) for wave in plain] == [8, 8, 8, 8]


def test_clusters_keep_the_best_of_each_kind_and_centres_the_nearest():
    found, _ = waves(fk.BeamSearch(8, 1, reduce={1: fk.Reduce(3, "cluster", by_first)}))
    assert sorted(path[0] for path in found[2]) == [0, 4, 5]
    places = (0, 1, 5, 100, 103, 104, 105, 108)  # the centres are 2 and 104
    centres = fk.BeamSearch(8, 1, reduce={1: fk.Reduce(2, "centre", lambda paths: [[places[p[0]]] for p in paths])})
    found, posterior = waves(centres)
    assert sorted(path[0] for path in found[2]) == [1, 5]
    assert posterior.guarantee == "heuristic"
    # With two children each, four places are those of two clusters; the better of them comes first.
    found, _ = waves(fk.BeamSearch(8, 2, reduce={1: fk.Reduce(4, "cluster", lambda v: [[p[0] > 0] for p in v])}))
    assert [path[0] for path in found[2]] == [0, 1, 0, 1]


def test_a_look_ahead_says_which_are_the_best_of_their_clusters_and_the_dead_make_none():
    def log_g(path):
        if path[0] in (5, 6, 7) and len(path) == 3:
            return -math.inf
        return by_start(path) if len(path) < 3 or path[0] != 2 else 0.0

    narrow = fk.BeamSearch(8, 1, lookahead=1, reduce={1: fk.Reduce(3, "cluster", by_first)})
    found, posterior = waves(narrow, log_g)
    # A look ahead follows each wave but the last: the fifth is made after step 1, of two kinds that live on.
    kept = {path[0] for path in found[4]}
    assert kept >= {2, 4}
    assert not kept & {5, 6, 7}
    assert posterior.best()[0] == 2


def test_those_that_finished_before_keep_their_places_beside():
    def ends(path):
        return len(path) == 4 or (len(path) == 2 and path[0] < 3)

    found, posterior = waves(fk.BeamSearch(8, 1, reduce={1: fk.Reduce(4), 2: fk.Reduce(2)}), ends=ends)
    assert [len(wave) for wave in found] == [8, 8, 4, 2]
    assert len(posterior) == 3 + 2

    # Those that finish later take their places with them.
    def later(path):
        return len(path) == 4 or (len(path) == 3 and path[0] == 0)

    found, posterior = waves(fk.BeamSearch(8, 1, reduce={1: fk.Reduce(4)}), ends=later)
    assert [len(wave) for wave in found] == [8, 8, 4, 3]
    assert len(posterior) == 4


def test_narrower_beams_have_a_record_that_a_file_keeps(tmp_path):
    engine = fk.BeamSearch(8, 2, temperature=1.0, reduce={1: fk.Reduce(4, "cluster", by_first)})
    _, posterior = waves(engine)
    posterior.save(tmp_path / "kept")
    again = fk.Posterior.load(tmp_path / "kept")
    np.testing.assert_array_equal(again.log_weights, posterior.log_weights)
    assert np.bincount(tree_of(posterior).depth[1:]).tolist() == [8, 8, 4, 4]
    assert again.values == posterior.values
    assert hash(engine) == hash(fk.BeamSearch(8, 2, temperature=1.0))
    assert engine != fk.BeamSearch(8, 2, temperature=1.0)


def test_reductions_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="reduce makes 8 particles fewer, not 8, at depth 2"):
        fk.BeamSearch(8, reduce={2: fk.Reduce(8)})
    with pytest.raises(TypeError, match=r"reduce is a dict from depths to fk.Reduce"):
        fk.BeamSearch(8, reduce={2: 4})
    for by in ("cluster", "centre"):
        with pytest.raises(ValueError, match=f'of 2 candidates of width 4 one beam goes on .* and by "{by}"'):
            fk.BeamSearch(8, reduce={3: fk.Reduce(2, by)})
    with pytest.raises(ValueError, match="does not ask which are alike"):
        fk.Reduce(2, features=by_first)
    with pytest.raises(ValueError, match="clusters need numbers that tell which particles are alike"):
        waves(fk.BeamSearch(8, 1, reduce={1: fk.Reduce(2, "cluster", lambda paths: ["a"] * len(paths))}))


# -- DVTS -------------------------------------------------------------------------------------------------------------


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


# -- REBASE -----------------------------------------------------------------------------------------------------------


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

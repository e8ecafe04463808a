"""Populations that shrink on the way: unbiased by weight and by clusters, a heuristic by centres."""

import math

import numpy as np
import pytest

import feynkac as fk
from feynkac.inference.particles.reducing import k_means
from feynkac.ppl.errors import Unsupported


@fk.program
async def walk():
    """Three throws that weigh, the second one most; a twist looks ahead. Its value on the way is the throws so far."""
    total = 0
    for p, gain in ((0.3, 0.8), (0.6, -1.7), (0.45, 1.1)):
        step = await fk.sample("step", fk.dist.Categorical([p, 0.9 - p, 0.1]))
        total = 3 * total + step
        fk.deterministic("output", total)
        await fk.twist("ahead", 0.5 * step)
        await fk.factor("G", gain * step + 0.3 * (total % 4 == 1))
    return total


TRUTH = fk.enumerate_program(walk())


def parity(values):
    """Features by which many that differ are alike, so that it matters which of a cluster is drawn."""
    return [[float(value % 2)] for value in values]


REDUCE = {
    "weight": {1: fk.Reduce(5), 2: fk.Reduce(2)},
    "cluster": {1: fk.Reduce(3, "cluster", parity), 2: fk.Reduce(2, "cluster", parity)},
    "both": {1: fk.Reduce(5, "cluster"), 2: fk.Reduce(3)},
    "centre": {1: fk.Reduce(5, "centre"), 2: fk.Reduce(3, "centre")},
}


@pytest.mark.parametrize("by", ["weight", "cluster", "both"])
def test_evidence_and_means_stay_unbiased(by):
    engine = fk.SMC(8, ess_threshold=0.3, reduce=REDUCE[by])
    assert engine.guarantee == "unbiased"
    found = [fk.infer(walk(), engine, seed=seed) for seed in range(100)]
    assert {len(p) for p in found} == {REDUCE[by][2].to}
    z = np.exp([p.log_evidence - TRUTH.log_evidence for p in found])
    f = TRUTH.expect(lambda v: v // 9 == 2)
    moments = z * np.array([p.expect(lambda v: v // 9 == 2) for p in found])
    # 6 comparisons in all at |z| < 4.265: a correct engine fails with probability 6 × 2.0e-5.
    for ratio in (z - 1.0, moments - f):
        assert abs(ratio.mean()) / (ratio.std(ddof=1) / math.sqrt(len(ratio))) < 4.265


def test_centres_are_a_heuristic_without_evidence():
    engine = fk.SMC(8, reduce=REDUCE["centre"])
    assert engine.guarantee == "heuristic"
    posterior = fk.infer(walk(), engine, seed=0)
    assert math.isnan(posterior.log_evidence)
    assert posterior.guarantee == "heuristic"
    assert len(posterior) == 3


@pytest.mark.parametrize("by", REDUCE)
def test_history_says_who_went_on_and_a_file_keeps_it(by, tmp_path):
    posterior = fk.infer(walk(), fk.SMC(8, reduce=REDUCE[by]), seed=1)
    steps = posterior.chains[0].steps
    assert [len(step.done) for step in steps] == [8, 8, REDUCE[by][1].to, *[REDUCE[by][2].to] * (len(steps) - 3)]
    assert steps[2].scheme == f"fewer by {REDUCE[by][1].by}"
    if by != "weight":
        assert len(set(steps[2].ancestors.tolist())) == REDUCE[by][1].to
    for step in steps:
        assert len(step.log_weights) == len(step.ancestors) == len(step.choices)
    posterior.save(tmp_path / "kept")
    again = fk.Posterior.load(tmp_path / "kept")
    np.testing.assert_array_equal(again.log_weights, posterior.log_weights)
    assert again.values == posterior.values


def test_standard_errors_of_such_a_chain_need_several():
    engine = fk.SMC(8, resampling="multinomial", ess_threshold=1.0, reduce=REDUCE["weight"])
    assert math.isnan(fk.infer(walk(), engine, seed=0).log_evidence_se)
    several = fk.SMC(8, chains=4, reduce=REDUCE["weight"])
    assert math.isfinite(fk.infer(walk(), several, seed=0).log_evidence_se)


def test_clusters_are_of_likes_and_none_is_empty():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(6, 2)), rng.normal(size=(4, 2)) + 20.0])
    clusters, _ = k_means(points, 2, fk.keys.root(3))
    assert len(set(clusters[:6].tolist())) == len(set(clusters[6:].tolist())) == 1
    same, _ = k_means(np.zeros((5, 2)), 4, fk.keys.root(0))
    assert set(same.tolist()) == {0, 1, 2, 3}


@fk.program
async def named():
    name = await fk.sample("coin", fk.dist.Bernoulli(0.5))
    fk.deterministic("output", "heads" if name else "tails")
    for _ in range(2):
        await fk.factor("G", 0.1 * name)
    return await fk.sample("again", fk.dist.Bernoulli(0.5))


def test_what_cannot_be_done_is_refused():
    with pytest.raises(ValueError, match="reduce makes 8 particles fewer, not 8, at depth 2"):
        fk.SMC(8, reduce={2: fk.Reduce(8)})
    with pytest.raises(ValueError, match="reduce makes 4 particles fewer, not 6, at depth 3"):
        fk.SMC(8, reduce={3: fk.Reduce(6), 2: fk.Reduce(4)})
    with pytest.raises(TypeError, match=r"reduce is a dict from depths to fk.Reduce"):
        fk.SMC(8, reduce={2: 4})
    with pytest.raises(ValueError, match="leave out reduce or move"):
        fk.SMC(8, move=fk.SuffixMH(1), reduce={2: fk.Reduce(4)})
    with pytest.raises(ValueError, match="by"):
        fk.Reduce(4, "luck")
    with pytest.raises(ValueError, match="clusters need numbers that tell which particles are alike"):
        fk.infer(named(), fk.SMC(4, reduce={1: fk.Reduce(2, "cluster")}), seed=0)

    @fk.program
    async def outer():
        return await fk.nested("inner", walk(), fk.SMC(4, reduce={1: fk.Reduce(2)}), steps=1)

    with pytest.raises(Unsupported, match="SMC without move and reduce"):
        fk.infer(outer(), fk.ImportanceSampling(1), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["weight", "cluster"])
def test_each_particle_keeps_its_weight_in_expectation(by):
    log_weights = np.array([0.3, -1.0, 0.9, -np.inf, 0.0, -2.0, 1.4])
    log_twist = np.array([0.5, -0.4, 0.0, 0.2, 1.0, 0.0, -0.7])
    features = (lambda values: [[v % 3] for v in values]) if by == "cluster" else None
    reduce, runs = fk.Reduce(3, by, features), 3000
    mass = np.zeros((runs, 7))
    for key in range(runs):
        kept, left = reduce.draw(lambda: list(range(7)), log_weights, log_twist, fk.keys.root(key), "multinomial")
        np.add.at(mass[key], kept, np.exp(left) / len(kept))
    truth = np.exp(log_weights) / 7
    assert not mass[:, 3].any()
    alive = np.delete(np.arange(7), 3)
    error = mass.std(0, ddof=1)[alive] / math.sqrt(runs) + 1e-12
    # 12 comparisons in all at |z| < 4.9: a correct engine fails with probability 12 × 9.6e-7 = 1.2e-5.
    assert (np.abs(mass.mean(0) - truth)[alive] / error < 4.9).all()


def test_engines_are_hashable_and_equal_by_their_settings():
    assert hash(fk.SMC(8, reduce=REDUCE["weight"])) == hash(fk.SMC(8, reduce=dict(REDUCE["weight"])))
    assert fk.SMC(8, reduce=REDUCE["weight"]) == fk.SMC(8, reduce=dict(REDUCE["weight"])) != fk.SMC(8)

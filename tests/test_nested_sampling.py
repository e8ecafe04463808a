"""Nested sampling: its unbiased weights on exact draws, its kernels, plateaus, texts, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

import feynkac as fk
from densities import (
    G1_LOG_Z,
    G2_LOG_Z,
    G3_LOG_Z,
    G3_MODE,
    Toy,
    gaussian_toy,
    log_normal,
    modes_toy,
    poisson_toy,
    serve,
)
from feynkac.inference.base.paths import extend
from feynkac.inference.tempering.nested_sampling import Population
from walks import tokens

Z_LIMIT = 4.265
"""A correct engine fails one comparison with probability 2e-5."""
PEAK = -math.log(0.5) - 0.5 * math.log(2 * math.pi)  # log L of G1 at its mode


@dataclass(frozen=True)
class Exact:
    """Draws from the prior of G1 where L is above a threshold: on an interval about 1.5."""

    def move_above(self, model, live, start, keys, above, moves):
        half = 0.5 * math.sqrt(2 * (PEAK - above.log_potential))
        low, high = ndtr(1.5 - half), ndtr(1.5 + half)
        z = ndtri(low + (high - low) * fk.keys.uniform(fk.keys.fold(keys, 1)))
        made = yield from extend(model, [None] * len(start), keys, [(x,) for x in z.tolist()])
        return made, 1.0


def ratios(found, log_z):
    return np.exp([p.log_evidence - log_z for p in found])


def agrees(samples, truth):
    error = np.std(samples, ddof=1) / math.sqrt(len(samples))
    return abs(np.mean(samples) - truth) < Z_LIMIT * error


def usual(posterior, n):
    """Ẑ by X = exp(−i/n) and the differences of X, for one death at a time."""
    logs = posterior.log_potential
    dead = len(posterior) - n
    x = np.exp(-np.arange(dead + 1) / n)
    return float(np.exp(logs[:dead]) @ (x[:-1] - x[1:]) + x[-1] * np.exp(logs[dead:]).mean())


# -- the weights ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "k", "runs", "biased"),
    [
        (5, 1, 120, 1.161),
        (20, 1, 30, 1.040),
        (20, 5, 70, None),
        (100, 1, 20, 1.009),
    ],
)
def test_weights_are_unbiased_on_exact_draws(n, k, runs, biased):
    # At most 2 comparisons of 4 settings: 1.6e-4.
    found = fk.infer([gaussian_toy()] * runs, fk.NestedSampling(n, Exact(), delete=k, moves=1), seed=0)
    ratio = ratios(found, G1_LOG_Z)
    assert agrees(ratio, 1.0)
    spread = np.std([p.log_evidence for p in found], ddof=1)
    se = np.mean([p.log_evidence_se for p in found])
    assert runs < 20 or 0.6 < spread / se < 1.6
    assert se == pytest.approx(math.sqrt(1.124718956 / n), rel=0.15)
    assert np.mean([p.info["information"] for p in found]) == pytest.approx(1.1247, rel=0.25)
    if biased:
        # The usual weights of the same runs, beside: their bias is that of the two schedules of X.
        other = np.array([usual(p, n) for p in found]) / math.exp(G1_LOG_Z)
        error = np.std(other - ratio, ddof=1) / math.sqrt(runs)
        assert abs((other - ratio).mean() - (biased - 1)) < Z_LIMIT * error + 0.005
        assert (other - ratio).mean() > Z_LIMIT * error


def test_the_dead_lie_in_their_order_with_the_mass_that_was_theirs():
    n, k = 12, 3
    p = fk.infer(gaussian_toy(), fk.NestedSampling(n, Exact(), delete=k, moves=1), seed=1)
    batches = int(p.info["batches"])
    assert len(p) == batches * k + n
    mass = p.log_weights - p.log_potential
    x = [b * math.log(1 - k / n) for b in range(batches + 1)]
    np.testing.assert_allclose(mass, [*np.repeat(x[:-1], k), *[x[-1]] * n], atol=1e-12)
    assert (np.diff(p.log_potential[: batches * k].reshape(-1, k).max(1)) > 0).all()
    assert p.log_evidence == pytest.approx(float(np.logaddexp.reduce(p.log_weights)) - math.log(n))
    assert p.info["remainder"] == pytest.approx(p.probabilities[-n:].sum())
    assert p.info["remainder"] < math.exp(-3)
    assert p.complete.all()
    assert (p.guarantee, p.ranking, p.stopped) == ("consistent", "reward", None)
    assert p.chains[0].tree.log_mass[0] == pytest.approx(p.log_evidence)
    assert p.log_evidence_interval().low < p.log_evidence < p.log_evidence_interval().high
    assert math.isnan(p.estimate(float).se)


def test_chains_are_pooled_by_their_evidence():
    p = fk.infer(gaussian_toy(), fk.NestedSampling(8, Exact(), moves=1, chains=3), seed=2)
    shares = [math.exp(chain.evidence) for chain in p.chains]
    ends = np.cumsum([len(chain.log_weights) for chain in p.chains])
    mine = [part.sum() for part in np.split(p.probabilities, ends[:-1])]
    assert mine == pytest.approx(np.array(shares) / sum(shares))
    assert p.log_evidence == pytest.approx(math.log(np.mean(shares)))
    assert p.log_evidence_se > 0


# -- kernels on continuous sites --------------------------------------------------------------------------------


TOYS = {
    "G1": (gaussian_toy, G1_LOG_Z, 1.2, 0.2),
    "G2": (poisson_toy, G2_LOG_Z, 2.0, 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("toy", "kernel"),
    [
        ("G1", fk.SuffixMH(1)),
        ("G2", fk.RandomWalk()),
        ("G1", fk.Sweep(fk.SuffixMH(1), fk.RandomWalk(step=0.8))),
    ],
)
def test_kernels_that_reject_find_the_evidence_and_the_posterior(toy, kernel):
    # 3 comparisons of 3 pairs: 1.8e-4.
    make, log_z, mean, variance = TOYS[toy]
    found = fk.infer([make()] * 10, fk.NestedSampling(30, kernel, delete=6, moves=10), seed=3)
    assert agrees(ratios(found, log_z), 1.0)
    assert agrees([p.expect(float) for p in found], mean)
    assert agrees([p.expect(lambda x: (x - mean) ** 2) for p in found], variance)
    assert all(0.05 < p.info["acceptance"] < 0.95 for p in found)


@pytest.fixture(scope="module")
def jax_toys():
    pytest.importorskip("jax")
    pytest.importorskip("blackjax")
    return {name: toy[0](jax=True) for name, toy in TOYS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("toy", ["G1", "G2"])
def test_the_slice_finds_them_too_and_is_compiled_once(toy, jax_toys):
    # 3 comparisons of 2 toys: 1.2e-4.
    _, log_z, mean, variance = TOYS[toy]
    model, engine = jax_toys[toy], fk.NestedSampling(30, fk.HitAndRunSlice(), delete=5)
    fk.infer(model, engine, seed=4)
    traced = model.calls["traced"]
    found = fk.infer([model] * 10, engine, seed=5)
    assert model.calls["traced"] == traced > 0
    assert agrees(ratios(found, log_z), 1.0)
    assert agrees([p.expect(float) for p in found], mean)
    assert agrees([p.expect(lambda x: (x - mean) ** 2) for p in found], variance)
    assert all(p.info["acceptance"] > 0.99 for p in found)


@pytest.mark.slow
def test_two_modes():
    pytest.importorskip("blackjax")
    engine = fk.NestedSampling(500, fk.HitAndRunSlice(), delete=25)
    found = fk.infer([modes_toy(jax=True)] * 8, engine, seed=6)
    # 3 comparisons: 6.0e-5.
    assert agrees(ratios(found, G3_LOG_Z), 1.0)
    share = [p.expect(lambda z: float(z[0] + z[1] > 0.5)) for p in found]
    assert agrees(share, G3_MODE)
    assert 0.04 < min(share) < max(share) < 0.17
    assert agrees([p.info["information"] for p in found], 3.354987)
    assert np.mean([p.log_evidence_se for p in found]) == pytest.approx(0.082, abs=0.005)


# -- plateaus, zeros, texts -------------------------------------------------------------------------------------


def plateau(jax=False, high=10.0):
    """x ~ N(0, 1), L = 1 below 1, ``high`` above: Z = Φ(1) + high·Φ(−1)."""
    return Toy(
        d=1,
        draw=fk.keys.normal,
        log_prior=lambda xp, x: log_normal(xp, x, 0.0, 1.0),
        grad_prior=lambda x: -x,
        potentials=(lambda xp, x: xp.where(x[..., 0] > 1.0, math.log(high), 0.7) - 0.7,),
        grad_potentials=(np.zeros_like,),
        gaussian=(np.zeros(1), np.ones(1)),
        jax=jax,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [fk.SuffixMH(1), fk.HitAndRunSlice()], ids=["SuffixMH", "slice"])
def test_a_likelihood_of_steps(kernel):
    # 2 comparisons of 2 kernels: 8.0e-5.
    jax = isinstance(kernel, fk.HitAndRunSlice)
    if jax:
        pytest.importorskip("blackjax")
    low, high = ndtr(1.0), ndtr(-1.0) * 10 * math.exp(-0.7)
    found = fk.infer([plateau(jax)] * 25, fk.NestedSampling(20, kernel, delete=4, moves=8), seed=7)
    ratio = np.exp([p.log_evidence for p in found]) / (low + high)
    assert agrees(ratio, 1.0)
    assert agrees(ratio * [p.expect(lambda x: x > 1.0) for p in found], high / (low + high))
    assert np.std(ratio) < 0.25


def test_who_lives_is_above_who_died():
    """Whatever is born on the plateau of the last that died has a label above its own."""
    (path,) = (step for step in paths_of(1))
    now = Population(fk.NestedSampling(8, fk.SuffixMH(1), delete=2), None, [path] * 8, np.linspace(0.1, 0.8, 8))
    for u in (0.01, 0.5):
        above, origin = now.bury(fk.keys.root(0))
        assert above.ties.all()
        assert above.holds([path] * 2).all()
        dead = now._label
        now.bear([path] * len(origin), origin, 0.0, above, np.full(len(origin), u))
        assert (now.labels > dead).all()
    assert now.log_evidence == pytest.approx(path.log_potential)


def paths_of(n):
    return serve(gaussian_toy(), extend(gaussian_toy(), [None] * n, fk.keys.fold(fk.keys.root(0), np.arange(n))))


@fk.program
async def prizes():
    """Most draws are worth nothing; the others tie in three prizes."""
    x = await fk.sample("x", fk.dist.Categorical([0.55, 0.25, 0.15, 0.05]))
    y = await fk.sample("y", fk.dist.Bernoulli(0.3))
    await fk.factor("prize", (-math.inf, 0.0, 1.0, 2.5)[x])
    await fk.factor("and", 0.5 * y)
    return x, y


def check_enumerated(model, found):
    """Each value's share of Ẑ/Z, and Ẑ/Z itself; |z| < 4.265 each: 2e-5 for each value, and once."""
    exact = fk.enumerate_program(model)
    ratio = ratios(found, exact.log_evidence)
    assert agrees(ratio, 1.0), ratio.mean()
    for value in {v for v in exact.values if exact.probability(v) > 0.02}:
        share = np.array([p.expect(lambda v, value=value: v == value) for p in found])
        assert agrees(ratio * share, exact.probability(value)), value


@pytest.mark.slow
def test_runs_worth_nothing_die_first_and_ties_are_even():
    # 7 comparisons: 1.4e-4.
    found = fk.infer([prizes()] * 24, fk.NestedSampling(16, fk.SuffixMH(1), delete=4, moves=5), seed=8)
    check_enumerated(prizes(), found)
    spread = np.std([p.log_evidence for p in found], ddof=1)
    assert 0.6 < spread / np.mean([p.log_evidence_se for p in found]) < 1.8
    dead = np.isneginf(found[0].log_potential)
    assert dead.any()
    assert not dead[dead.sum() :].any()


@pytest.mark.slow
def test_texts():
    # 6 comparisons: 1.2e-4. Runs differ in length, and rewards tie.
    found = fk.infer([tokens()] * 12, fk.NestedSampling(16, fk.SuffixMH(1), delete=4, moves=6), seed=9)
    check_enumerated(tokens(), found)


@fk.program
async def mixed():
    k = await fk.sample("k", fk.dist.Bernoulli(0.3))
    z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
    await fk.observe("y", fk.dist.Normal(z + 2.0 * k, 0.5), 1.5)
    return k


@pytest.mark.slow
def test_a_sweep_of_kernels_on_a_program_of_both_kinds():
    # 2 comparisons: 4.0e-5.
    zero, one = (
        share * math.exp(log_normal(np, np.array([1.5 - 2 * k]), 0.0, math.sqrt(1.25)))
        for k, share in ((0, 0.7), (1, 0.3))
    )
    kernel = fk.Sweep(fk.SuffixMH(1), fk.RandomWalk())
    found = fk.infer([mixed()] * 12, fk.NestedSampling(24, kernel, delete=6, moves=5), seed=0)
    assert agrees(ratios(found, math.log(zero + one)), 1.0)
    assert agrees([p.expect(float) for p in found], one / (zero + one))
    with pytest.raises(fk.errors.Unsupported, match="would never change site 'k'"):
        fk.infer(mixed(), fk.NestedSampling(5, fk.HitAndRunSlice()), seed=0)
    with pytest.raises(fk.errors.Unsupported, match="NestedSampling would never change site 'k'"):
        fk.infer(mixed(), fk.NestedSampling(5, fk.RandomWalk()), seed=0)


@fk.program
async def flat(log_weight):
    x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
    await fk.factor("G", log_weight)
    return x


def test_a_constant_likelihood_is_exact():
    p = fk.infer(flat(-3.0), fk.NestedSampling(6, fk.SuffixMH(1), moves=1, delete=2), seed=0)
    assert p.log_evidence == pytest.approx(-3.0, abs=1e-12)
    assert p.info["information"] == pytest.approx(0.0, abs=1e-12)


def test_all_dead():
    with pytest.raises(fk.errors.AllParticlesDead, match="all 6 first runs have weight zero"):
        fk.infer(flat(-math.inf), fk.NestedSampling(6, fk.SuffixMH(1)), seed=0)
    p = fk.infer(flat(-math.inf), fk.NestedSampling(6, fk.SuffixMH(1), all_dead="zero"), seed=0)
    assert (p.log_evidence, len(p)) == (-math.inf, 6)


# -- cut short, kept, refused -----------------------------------------------------------------------------------


def test_cut_short_it_counts_its_survivors():
    engine = fk.NestedSampling(10, fk.SuffixMH(1), moves=2)
    seen = []
    p = fk.infer(gaussian_toy(), engine, seed=0, callbacks=[lambda step: seen.append(step) or len(seen) == 15])
    assert (p.stopped, p.guarantee, len(p)) == ("callback", "consistent", 10 + 13)  # a step of the first runs, 14 more
    assert p.log_evidence == seen[-1].log_evidence == pytest.approx(np.logaddexp.reduce(p.log_weights) - math.log(10))
    assert [step.depth for step in seen] == [0, *range(14)]
    begun = fk.infer(tokens(), engine, seed=0, callbacks=[lambda step: True])
    assert (begun.guarantee, len(begun)) == ("prefix", 10)
    found = ratios(
        fk.infer([gaussian_toy()] * 60, fk.NestedSampling(10, Exact(), moves=1), seed=1, budget=fk.Budget(seconds=0)),
        G1_LOG_Z,
    )
    assert agrees(found, 1.0)  # 2e-5: whenever it stops


def test_it_is_reproducible_kept_and_diagnosed(tmp_path):
    engine = fk.NestedSampling(8, fk.SuffixMH(1), moves=2, delete=2)
    p, again = (fk.infer(tokens(), engine, seed=3) for _ in range(2))
    assert (p.values, p.log_evidence) == (again.values, again.log_evidence)
    p.save(tmp_path / "kept")
    kept = fk.Posterior.load(tmp_path / "kept")
    assert (kept.info, kept.log_evidence_se, kept.values) == (p.info, p.log_evidence_se, p.values)
    assert "NestedSampling" in p.summary()
    tree = p.to_datatree()
    assert float(tree.attrs["log_evidence_se"]) == pytest.approx(p.log_evidence_se)


@fk.program
async def proposed():
    await fk.sample("x", fk.dist.Normal(0.0, 1.0), proposal=fk.dist.Normal(0.0, 2.0))
    await fk.factor("G", 0.0)


def test_it_speaks_of_moves_that_change_nothing():
    few = fk.infer(gaussian_toy(), fk.NestedSampling(20, fk.SuffixMH(1), moves=1, delete=4), seed=0)
    many = fk.infer(gaussian_toy(), fk.NestedSampling(20, fk.RandomWalk(), moves=8, delete=4), seed=0)
    assert few.info["unmoved"] > 0.5 > 0.1 > many.info["unmoved"]
    assert any("are copies that no move has changed" in text for text in few.warnings)
    assert not many.warnings
    (text,) = fk.infer(gaussian_toy(), fk.NestedSampling(2, Exact(), moves=1), seed=0).warnings
    assert "use more live runs" in text


REFUSALS = {
    "delete": ({"live": 5, "delete": 5}, "delete must leave some of the 5 live runs"),
    "remainder": ({"live": 5, "remainder": 0.0}, "remainder is a share of the evidence"),
    "moves": ({"live": 5, "moves": 0}, "moves must be a positive integer"),
    "kernel": ({"live": 5, "kernel": fk.SuffixMH}, "kernel must be a Markov kernel"),
    "a slice": ({"live": 5, "kernel": fk.HitAndRunSlice}, "kernel must be a Markov kernel"),
    "power": ({"live": 5, "kernel": fk.SuffixMH(1, power=2.0)}, "kernel must be a Markov kernel"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_settings_are_refused_by_name(name):
    settings, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        fk.NestedSampling(**{"kernel": fk.SuffixMH(1), **settings})


def test_models_are_refused_by_name():
    with pytest.raises(fk.errors.Unsupported, match="draws from proposals: take them out"):
        fk.infer(proposed(), fk.NestedSampling(5, fk.SuffixMH(1)), seed=0)
    with pytest.raises(fk.errors.Unsupported, match=r"HitAndRunSlice needs a density of JAX \(at 'x'\)"):
        fk.infer(gaussian_toy(), fk.NestedSampling(5, fk.HitAndRunSlice()), seed=0)
    with pytest.raises(fk.errors.Unsupported, match="HitAndRunSlice moves continuous sites"):
        fk.infer(plain(), fk.NestedSampling(5, fk.HitAndRunSlice()), seed=0)


def plain():
    """A model without a density."""
    toy = gaussian_toy()

    class Plain:
        start, advance, select = toy.start, toy.advance, toy.select
        concat, values = toy.concat, toy.values

    return Plain()


def test_a_density_that_is_not_the_models_is_found_out(jax_toys):
    good, engine = jax_toys["G2"], fk.NestedSampling(30, fk.HitAndRunSlice(), delete=5)
    fk.infer(good, engine, seed=0)
    wrong = replace(good, log_prior=lambda xp, x: good.log_prior(xp, x) + 0.1)  # its density stays what it was
    with pytest.raises(fk.errors.InconsistentDensity):
        fk.infer(wrong, engine, seed=0)


@fk.program
async def decay():
    x = await fk.sample("x", fk.dist.Uniform(0.0, 1.0))
    await fk.factor("L", -10.0 * x)
    return x


@pytest.mark.slow
def test_the_evidence_of_a_decay():
    truth = (1 - math.exp(-10)) / 10  # .0999955
    engine = fk.NestedSampling(20, fk.RandomWalk(), moves=10, delete=4)
    found = np.exp([one.log_evidence for one in fk.infer([decay()] * 10, engine, seed=0)]) / truth
    assert abs(found.mean() - 1) < 4.26 * found.std(ddof=1) / math.sqrt(len(found))  # 2e-5
    assert found.std() < 0.6

"""Randomness: no key is used twice, draws follow their laws, and nothing depends on what else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import feynkac as fk
from feynkac.inference.base import resampling

# Each p-value below falls under this limit by chance once in 50,000 choices of its fixed seed.
RATE = 2e-5


# -- no key is used twice ---------------------------------------------------------------------------------------


class Recording:
    """A kernel that draws 0 or 1 (1 with probability 0.3), and notes each key."""

    fingerprint = None

    def __init__(self, log, family="a"):
        self.log = log
        self.batch_key = ("recording", family)

    def sample_batch(self, requests, keys):
        self.log.append(np.array(keys, np.uint64))
        draws = (fk.keys.uniform(keys) < 0.3).astype(int)
        return fk.Draws(draws, np.where(draws, np.log(0.3), np.log(0.7)))

    def log_prob_batch(self, requests, values):
        return np.where(np.asarray(values) == 1, np.log(0.3), np.log(0.7))


@fk.program
async def busy_with(kernel, other, rounds):
    """Repeated names, two families, branches, scans, a proposal, and unequal lengths."""

    async def branch(k):
        total = 0
        for _ in range(k):
            total += await fk.sample("x", kernel)
            await fk.factor("G", 0.4 * total)
        return total

    async def step(carry, i):
        x = await fk.sample("x", kernel)
        y = await fk.sample("x", other)
        await fk.factor("G", 0.3 * x - 0.2 * y)
        inner, _ = await fk.scan(inside, carry, range(2))
        return inner + x, y

    async def inside(carry, i):
        x = await fk.sample("x", kernel)
        await fk.twist("guide", 0.1 * x)
        return carry + x, None

    total = 0
    for _ in range(rounds):
        first = await fk.sample("x", kernel)
        total += first + await fk.sample("x", kernel, proposal=other)
        await fk.factor("G", 0.5 * first)
        if total > 5:
            return total
    a, b = await fk.gather(branch(2), branch(3))
    last, _ = await fk.scan(step, a + b, range(rounds))
    c, d = await fk.gather(branch(1), fk.handlers.scope(inline(kernel), prefix="x"))
    return total + last + c + d


def busy(log, rounds):
    return busy_with(Recording(log), Recording(log, "b"), rounds)


@fk.program
async def inline(kernel):
    x = await fk.sample("x", kernel)
    await fk.factor("G", 0.1 * x)
    return x


@pytest.mark.parametrize("scheme", ["multinomial", "systematic"])
def test_no_key_is_used_twice(monkeypatch, scheme):
    draws, resamplings, schemes = [], [], resampling.SCHEMES

    def recorded(probabilities, m, key):
        resamplings.append(np.array(key, np.uint64))
        return schemes[scheme](probabilities, m, key)

    monkeypatch.setattr(resampling, "SCHEMES", {**schemes, scheme: recorded})
    models = [busy(draws, 3), busy(draws, 3), busy(draws, 2), inline(Recording(draws))]
    engine = fk.SMC(60, ess_threshold=1.0, resampling=scheme, chains=3)
    posteriors = fk.infer(models, engine, seed=0)
    keys = np.concatenate(draws + resamplings)
    assert len(np.concatenate(draws)) > 10_000
    assert len(resamplings) > 100
    assert len(np.unique(keys)) == len(keys)
    # There were twins, and re-advanced nodes.
    assert max(len(p.steps[-1].ancestors) - len(np.unique(p.genealogy(0))) for p in posteriors) > 0
    assert len(np.unique(posteriors[0].chains[0].lines[0])) < 60


def test_keys_differ_between_runs_of_other_seeds_and_simulations():
    draws = []
    for seed in range(5):
        fk.infer(busy(draws, 2), fk.SMC(20, ess_threshold=1.0), seed=seed)
        fk.simulate(busy(draws, 2), seed=seed)
    keys = np.concatenate(draws)
    assert len(np.unique(keys)) == len(keys)


def test_twins_of_one_parent_draw_on_their_own():
    @fk.program
    async def walk():
        x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("G", 20.0 * x)  # nearly all descend from the best
        return await fk.sample("y", fk.dist.Normal(x, 1.0))

    posterior = fk.infer(walk(), fk.SMC(200, ess_threshold=1.0), seed=1)
    assert len(set(posterior.steps[-1].ancestors.tolist())) < 10
    assert len(set(posterior.values)) == 200
    noise = [trace["y"].value - trace["x"].value for trace in map(posterior.trace, range(200))]
    assert stats.kstest(noise, "norm").pvalue > RATE


# -- laws -------------------------------------------------------------------------------------------------------

N = 100_000


def families():
    """Keys as the library makes them: of neighbours, depths, sites, seeds, lineages of twins."""
    key = fk.keys.root(0)
    arange = np.arange(N)
    yield "neighbours", fk.keys.fold(key, arange)
    yield "depths", fk.keys.fold(fk.keys.fold(key, fk.keys.tag("particle"), 3), arange)
    yield "seeds", np.concatenate([fk.keys.root(seed) for seed in range(20_000)])
    yield "visits", fk.keys.fold(key, fk.keys.tag("line"), arange)
    yield "twins", fk.keys.inherit(fk.keys.fold(key, np.arange(5)), np.repeat(np.arange(5), 4000), 2)
    yield "raw", np.arange(N, dtype=np.uint64)


@pytest.mark.parametrize(("name", "keys"), list(families()), ids=lambda x: x if isinstance(x, str) else "")
def test_draws_of_all_kinds_of_keys_follow_their_laws_and_are_uncorrelated(name, keys):
    u, z = fk.keys.uniform(keys, 3), fk.keys.normal(keys, 3)
    assert ((u > 0) & (u < 1)).all()
    for k in range(3):
        assert stats.kstest(u[:, k], "uniform").pvalue > RATE
        assert stats.kstest(z[:, k], "norm").pvalue > RATE
        assert stats.pearsonr(u[1:, k], u[:-1, k]).pvalue > RATE  # neighbouring keys
        assert stats.pearsonr(z[1:, k] ** 2, z[:-1, k] ** 2).pvalue > RATE
    assert stats.pearsonr(u[:, 0], u[:, 1]).pvalue > RATE  # neighbouring counters
    assert stats.pearsonr(z[:, 1], z[:, 2]).pvalue > RATE
    pairs = np.histogram2d(u[:, 0], u[:, 1], bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(pairs.ravel()).pvalue > RATE
    lagged = np.histogram2d(u[1:, 0], u[:-1, 0], bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(lagged.ravel()).pvalue > RATE


def test_streams_of_different_parents_are_uncorrelated():
    a, b = (fk.keys.uniform(fk.keys.fold(fk.keys.root(seed), np.arange(N))) for seed in (0, 1))
    assert stats.pearsonr(a, b).pvalue > RATE
    parent = fk.keys.fold(fk.keys.root(0), np.arange(N))
    child = fk.keys.fold(parent, 0)
    assert stats.pearsonr(fk.keys.uniform(parent), fk.keys.uniform(child)).pvalue > RATE


def test_the_laws_would_notice_a_bad_generator():
    u = (np.arange(20_000) * 0.6180339887 + 0.3) % 1.0  # a lattice
    assert stats.pearsonr(u[1:], u[:-1]).pvalue < RATE


def test_folding_is_ordered_and_has_no_collisions():
    key = fk.keys.root(5)
    variants = [
        fk.keys.fold(key, 1, 2), fk.keys.fold(key, 2, 1), fk.keys.fold(key, 1), fk.keys.fold(key, 3),
        fk.keys.fold(key, 1, 2, 0), fk.keys.fold(key, 0, 1, 2), fk.keys.fold(key, -1), key,
    ]  # fmt: skip
    assert len({int(k[0]) for k in variants}) == len(variants)
    grid = fk.keys.fold(fk.keys.fold(key, np.repeat(np.arange(500), 400)), np.tile(np.arange(400), 500))
    assert len(np.unique(grid)) == 200_000
    assert (fk.keys.fold(key, 1, 2) == fk.keys.fold(fk.keys.fold(key, 1), 2)).all()
    with pytest.raises(TypeError, match="keys fold integers, not float64"):
        fk.keys.fold(key, 1.5)


@pytest.mark.parametrize("value", [0, 5, -3, 2**63 - 1, -(2**63), 2**63, 2**64 - 1])
def test_an_integer_folds_alike_whatever_holds_it(value):
    key = fk.keys.root(5)
    kinds = [np.array([value]), [value], np.array(value), *np.array([value])]
    assert {int(fk.keys.fold(key, kind)[0]) for kind in kinds} == {int(fk.keys.fold(key, value)[0])}


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1])
def test_integers_of_more_than_64_bits_are_not_cut_off(value):
    with pytest.raises(ValueError, match="keys fold integers of 64 bits"):
        fk.keys.fold(fk.keys.root(5), value)


def test_seeds_may_be_any_integers():
    seeds = [0, 1, -1, 2**63, 2**64, -(2**64), 2**64 + 1, 10**30]
    assert len({int(fk.keys.root(seed)[0]) for seed in seeds}) >= len(seeds) - 1  # −2⁶⁴… share 128 low bits
    assert fk.keys.root(np.int64(7)) == fk.keys.root(7)
    for bad in (1.0, "1", None):
        with pytest.raises(TypeError, match="seed must be an integer"):
            fk.keys.root(bad)


def test_generators_are_one_per_key_and_independent():
    keys = fk.keys.fold(fk.keys.root(3), np.arange(3000))
    first = np.array([g.random(2) for g in fk.keys.generators(keys)])
    assert (first == [g.random(2) for g in fk.keys.generators(keys)]).all()
    assert stats.kstest(first.ravel(), "uniform").pvalue > RATE
    assert stats.pearsonr(first[1:, 0], first[:-1, 0]).pvalue > RATE
    assert len({fk.keys.as_seed(keys[:i]) for i in range(1, 100)}) == 99


def test_the_first_child_keeps_its_parents_lineage_and_twins_get_their_own():
    lineage = fk.keys.fold(fk.keys.root(0), np.arange(4))
    ancestors = np.array([2, 2, 0, 2, 3])
    children = fk.keys.inherit(lineage, ancestors, 1)
    assert (children[[0, 2, 4]] == lineage[[2, 0, 3]]).all()
    assert len(np.unique(np.concatenate([lineage, children]))) == 4 + 2
    assert fk.keys.inherit(lineage, ancestors, 2)[1] != children[1]


# -- reproducibility --------------------------------------------------------------------------------------------


@fk.program
async def walk(drift, steps=4):
    x, path = 0.0, []
    for _ in range(steps):
        x = await fk.sample("x", fk.dist.Normal(x + drift, 1.0), proposal=fk.dist.Normal(x + drift, 1.5))
        await fk.twist("guide", 0.2 * x)
        path = [*path, x]
        await fk.observe("y", fk.dist.Normal(x, 0.7), 1.0)
        if await fk.sample("stop", fk.dist.Bernoulli(0.2)):
            break
    return path


def identical(a, b):
    assert a.values == b.values
    assert a.log_evidence == b.log_evidence
    for mine, other in zip(a.chains, b.chains, strict=True):
        assert (mine.log_weights == other.log_weights).all()
        for s, t in zip(mine.steps, other.steps, strict=True):
            assert (s.ancestors == t.ancestors).all()
            assert (s.log_weights == t.log_weights).all()
            assert s.choices == t.choices
    return True


ENGINES = [fk.SMC(20, ess_threshold=0.9, chains=2), fk.ImportanceSampling(20), fk.BestOfN(20)]


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_the_same_seed_gives_the_identical_posterior_and_another_does_not(engine):
    first = fk.infer(walk(0.2), engine, seed=4)
    assert identical(first, fk.infer(walk(0.2), engine, seed=4))
    other = fk.infer(walk(0.2), engine, seed=5)
    assert not set(map(str, other.values)) & set(map(str, first.values))
    assert other.log_evidence != first.log_evidence


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_nothing_depends_on_what_else_is_in_the_batch(engine):
    together = fk.infer([walk(0.2), walk(-0.5, 7), walk(0.1, 2)], engine, seed=4)
    assert identical(together[0], fk.infer(walk(0.2), engine, seed=4))
    assert identical(together[0], fk.infer([walk(0.2)], engine, seed=4)[0])
    other = fk.infer([walk(0.2), walk(-0.5, 7)], engine, seed=4)
    assert identical(together[1], other[1])


def test_two_copies_of_one_model_in_a_batch_draw_differently():
    first, second = fk.infer([walk(0.2)] * 2, fk.SMC(20), seed=0)
    assert not set(map(str, first.values)) & set(map(str, second.values))


def test_chains_differ_and_adding_one_leaves_the_others():
    two, three = (fk.infer(walk(0.2), fk.SMC(10, chains=n), seed=0) for n in (2, 3))
    assert two.values == three.values[:20]
    sets = [set(map(str, three.values[i : i + 10])) for i in (0, 10, 20)]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]


def test_importance_sampling_of_more_particles_repeats_the_fewer():
    few, many = (fk.infer(walk(0.2), fk.ImportanceSampling(n), seed=0) for n in (10, 30))
    assert many.values[:10] == few.values

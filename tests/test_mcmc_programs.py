"""Moves on the continuous sites of programs: laws of both libraries, scans, and texts beside numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("numpyro")
import numpyro.distributions as dist

import feynkac as fk
from laws import z_score


@fk.program
async def rate():
    """G2: the posterior of θ is Gamma(4, rate 2), and Z = 1/16."""
    theta = await fk.sample("theta", dist.Exponential(1.0))
    await fk.observe("count", dist.Poisson(theta), 3)
    return theta


@fk.program
async def walk(y):
    """LG: x₀ ~ N(0, 1/.19), x_t ~ N(.9 x_{t−1}, 1), y_t ~ N(x_t, 1); log Z = −7.561096823."""

    async def step(x, seen):
        x = await fk.sample("x", fk.dist.Normal(0.9 * x, 1.0))
        await fk.observe("y", fk.dist.Normal(x, 1.0), seen)
        return x, x

    first = await fk.sample("first", fk.dist.Normal(0.0, math.sqrt(1 / 0.19)))
    await fk.observe("y0", fk.dist.Normal(first, 1.0), y[0])
    _, rest = await fk.scan(step, first, y[1:])
    return [first, *rest]


@fk.program
async def letters():
    """A word of two letters, and the rate of each a in it: discrete steps and a number, which depend on each other."""
    heat = await fk.sample("heat", fk.dist.Normal(0.0, 1.0))
    word = ""
    for _ in range(2):
        p = 1 / (1 + np.e ** (-heat))
        word += await fk.sample("letter", fk.dist.Categorical([p, 1 - p], values=["a", "b"]))
    await fk.observe("seen", fk.dist.Normal(heat + word.count("a"), 0.7), 1.4)
    return word, heat


def exact_letters():
    """P(word) and E[heat], by quadrature."""
    h = np.linspace(-8, 8, 4001)
    p = 1 / (1 + np.exp(-h))
    mass, means = {}, 0.0
    for word in ("aa", "ab", "ba", "bb"):
        a = word.count("a")
        weight = np.exp(-0.5 * h**2 - 0.5 * ((1.4 - h - a) / 0.7) ** 2) * p**a * (1 - p) ** (2 - a)
        mass[word], means = weight.sum(), means + (weight * h).sum()
    total = sum(mass.values())
    return {word: m / total for word, m in mass.items()}, means / total


@pytest.mark.slow
def test_sites_of_numpyro_under_nuts():
    posterior = fk.infer(rate(), fk.MCMC(fk.NUTS(), draws=400, warmup=200), seed=0)
    theta = np.array(posterior.values, float)
    # About 500 effective draws: standard errors of .045 and .09.
    assert theta.mean() == pytest.approx(2.0, abs=0.2)
    assert theta.var() == pytest.approx(1.0, abs=0.4)
    assert posterior.mixing.rhat < 1.05
    assert posterior.trace(0)["theta"].value == posterior.values[0]


@pytest.mark.slow
def test_scans_are_smoothed_by_hmc_and_moved_inside_smc():
    y = [0.5, -1.0, 2.0, 1.0]
    posterior = fk.infer(walk(y), fk.MCMC(fk.HMC(), draws=400, warmup=200), seed=0)
    x = np.array([[float(z) for z in value] for value in posterior.values])
    # Smoothed means and variances; at least 400 effective draws: standard errors below .04.
    assert x.mean(0) == pytest.approx([0.280862, 0.068581, 1.044376, 0.969969], abs=0.2)
    assert x.var(0) == pytest.approx([0.597911, 0.483512, 0.483512, 0.597911], abs=0.25)
    found = fk.infer(walk(y), fk.SMC(300, 1.0, move=fk.RandomWalk(3)), seed=0)
    assert found.log_evidence == pytest.approx(-7.561096823, abs=0.35)
    assert found.guarantee == "consistent"


@pytest.mark.slow
def test_texts_and_numbers_are_moved_in_turn():
    """Of 12 chains, which are independent: 4 comparisons at |t| < 7 of 11 degrees: 1e-4."""
    law, mean = exact_letters()
    sweep = fk.Sweep(fk.SuffixMH(1), fk.RandomWalk(2, step=1.0))
    posterior = fk.infer(letters(), fk.MCMC(sweep, draws=70, warmup=10, chains=12), seed=0)
    words = np.reshape([word for word, _ in posterior.values], (12, 70))
    heat = np.reshape([float(heat) for _, heat in posterior.values], (12, 70))
    assert abs(z_score(heat.mean(1), mean)) < 7
    for word in ("aa", "ab", "bb"):
        assert abs(z_score((words == word).mean(1), law[word])) < 7


def test_numbers_alone_are_moved_in_a_population_and_refused_in_a_chain():
    _, mean = exact_letters()
    with pytest.raises(fk.errors.Unsupported, match=r"never change site .letter.*SuffixMH.1., Ran"):
        fk.infer(letters(), fk.MCMC(fk.RandomWalk(), draws=3), seed=0)
    posterior = fk.infer(letters(), fk.SMC(400, 1.0, move=fk.RandomWalk(2)), seed=0)
    assert posterior.expect(lambda v: float(v[1])) == pytest.approx(mean, abs=0.25)


def test_a_program_without_numbers_is_refused():
    @fk.program
    async def coin():
        heads = await fk.sample("heads", fk.dist.Bernoulli(0.5))
        await fk.factor("G", 1.0 * heads)
        return heads

    with pytest.raises(fk.errors.Unsupported, match="no continuous site"):
        fk.infer(coin(), fk.MCMC(fk.HMC(), draws=3), seed=0)


@fk.program
async def hidden(theta):
    z = await fk.sample("z", fk.dist.Normal(theta, 1.0))
    await fk.observe("y", fk.dist.Normal(z, 0.5), 1.5)


@fk.program
async def outer():
    """θ ~ N(0, 1), y = 1.5 ~ N(θ, 1.25) by an estimate: posterior N(2/3, 5/9)."""
    theta = await fk.sample("theta", fk.dist.Normal(0.0, 1.0))
    inner = await fk.nested("inner", hidden(theta), fk.SMC(4))
    await fk.factor("Z", inner.log_evidence)
    return theta


@pytest.mark.slow
def test_numbers_are_moved_by_evidence_that_is_estimated():
    """Pseudo-marginal, of 10 chains, which are independent: 2 comparisons at |t| < 7.5 of 9 degrees: 8e-5."""
    posterior = fk.infer(outer(), fk.MCMC(fk.RandomWalk(step=1.5), draws=80, warmup=10, chains=10), seed=0)
    theta = np.reshape(np.array(posterior.values, float), (10, 80))
    assert abs(z_score(theta.mean(1), 2 / 3)) < 7.5
    assert abs(z_score(((theta - 2 / 3) ** 2).mean(1), 5 / 9)) < 7.5
    with pytest.raises(fk.errors.Unsupported, match=r"HMC .*'inner' is a random estimate"):
        fk.infer(outer(), fk.MCMC(fk.HMC(), draws=3), seed=0)

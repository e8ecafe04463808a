"""Markov chains on continuous sites: their law, their warm-up, and what they tell."""

from __future__ import annotations

import math

import numpy as np
import pytest

import feynkac as fk
from densities import gaussian_toy, modes_toy, poisson_toy
from laws import z_score

OTHERS = (fk.MALA(), fk.HMC(), fk.PCN(), fk.PCNL(), fk.EllipticalSlice())
ADAPTIVE = [fk.RandomWalk(), *(pytest.param(kernel, marks=pytest.mark.slow) for kernel in OTHERS)]


@pytest.mark.parametrize("kernel", ADAPTIVE, ids=lambda kernel: type(kernel).__name__)
def test_chains_find_the_posterior_and_their_own_step(kernel):
    """By the means of 12 chains, which are independent: 2 comparisons of each kernel at |t| < 6 of 11 degrees: 2e-4."""
    engine = fk.MCMC(kernel, draws=150, warmup=200, chains=12)
    posterior = fk.infer(gaussian_toy(), engine, seed=0)
    x = np.reshape(posterior.values, (12, 150))
    assert abs(z_score(x.mean(1), 1.2)) < 6
    assert abs(z_score(((x - 1.2) ** 2).mean(1), 0.2)) < 6
    assert posterior.guarantee == "consistent"
    assert math.isnan(posterior.log_evidence)
    assert 0.15 < posterior.info["acceptance"] <= 1.0
    assert posterior.mixing.rhat < 1.1
    assert posterior.warnings == ()


@pytest.mark.slow
def test_a_constrained_target_under_nuts_with_the_warm_up_of_stan():
    model = poisson_toy(jax=True)
    posterior = fk.infer(model, fk.MCMC(fk.NUTS(), draws=400, warmup=200), seed=0)
    x = np.array(posterior.values)
    # The effective sample size is about 500: standard errors of .045 and .09.
    assert x.mean() == pytest.approx(2.0, abs=0.2)
    assert x.var() == pytest.approx(1.0, abs=0.4)
    assert posterior.info["divergences"] == 0.0
    assert 0.7 < posterior.info["acceptance"] < 0.99
    assert posterior.ess > 250
    assert posterior.mixing.rhat < 1.05
    # Another run, and another step size, use what is compiled.
    traces = model.calls["traced"]
    again = fk.infer(model, fk.MCMC(fk.NUTS(), draws=400, warmup=200), seed=0)
    assert again.values == posterior.values
    assert model.calls["traced"] == traces
    stats = posterior.to_datatree().sample_stats
    assert set(stats.data_vars) == {"acceptance_rate", "diverging", "energy", "n_steps", "lp"}
    assert stats.sizes == {"chain": 4, "draw": 400}
    assert stats["acceptance_rate"].mean() == pytest.approx(posterior.info["acceptance"])
    theta = x.reshape(4, 400)
    lp = 4 * np.log(theta) - 2 * theta - math.log(6)
    assert np.allclose(stats["lp"], lp)


def test_what_chains_tell_of_each_draw_is_saved(tmp_path):
    posterior = fk.infer(gaussian_toy(), fk.MCMC(fk.HMC(), draws=20, warmup=20, chains=2), seed=0)
    posterior.save(tmp_path / "chains.fk")
    found = fk.Posterior.load(tmp_path / "chains.fk")
    for one, other in zip(posterior.chains, found.chains):
        assert one.stats.keys() == other.stats.keys() == {"acceptance_rate", "n_steps", "lp", "diverging", "energy"}
        assert all((one.stats[name] == other.stats[name]).all() for name in one.stats)


def test_a_run_can_be_left_and_keeps_its_draws():
    run = fk.steps(gaussian_toy(), fk.MCMC(fk.RandomWalk(step=1.0), draws=100, warmup=0, chains=1), seed=0)
    for k, _ in enumerate(run):
        if k == 4:
            break
    posterior = run.posterior
    assert 10 <= len(posterior) < 100
    assert len(posterior.chains[0].stats["lp"]) == len(posterior)
    for _ in run:
        pass
    whole = fk.infer(gaussian_toy(), fk.MCMC(fk.RandomWalk(step=1.0), draws=100, warmup=0, chains=1), seed=0)
    assert run.posterior.values == whole.values
    assert whole.values[: len(posterior)] == posterior.values


def test_divergent_transitions_are_told():
    posterior = fk.infer(modes_toy(), fk.MCMC(fk.HMC(step=2.5, leapfrogs=5), draws=60, warmup=0, chains=2), seed=0)
    assert posterior.info["divergences"] > 0
    assert any("divergent" in text for text in posterior.warnings)


def test_settings_are_checked():
    for wrong in ({"draws": 0}, {"warmup": -1}, {"chains": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            fk.MCMC(fk.HMC(), **wrong)
    with pytest.raises(ValueError, match="kernel"):
        fk.MCMC(fk.HMC)
    with pytest.raises(ValueError, match="kernel 1 of Sweep"):
        fk.Sweep(fk.HMC(), fk.SuffixMH(1, power=2.0))
    with pytest.raises(ValueError, match="one or more"):
        fk.Sweep()
    with pytest.raises(ValueError, match="up to 1,"):
        fk.PCN(step=1.5)
    with pytest.raises(ValueError, match="above 0"):
        fk.HMC(step=-0.1)
    with pytest.raises(ValueError, match="jitter"):
        fk.HMC(jitter=1.0)

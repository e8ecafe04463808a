"""The Distribution Transformer as a guide: near its oracle once trained, and exact as a proposal however it is."""

from __future__ import annotations

import math

import numpy as np
import pytest

import feynkac as fk
from laws import z_score

pytest.importorskip("jax")

import jax.numpy as jnp
import numpyro.distributions as nd
import optax

from feynkac.inference.variational.transformer import mixture

NET = fk.DistributionTransformer()
PRIOR = (np.log([0.3, 0.7]), np.array([-2.0, 1.0]), 0.5 * np.log([0.5, 1.0]))
Y, NOISE, LOG_Z = np.array([0.4]), 0.5, -1.517545
WEIGHTS, MEANS, VARIANCES = (0.013548, 0.986452), (-0.4, 0.52), (1 / 6, 0.2)


async def _observed(prior, y):
    z = await fk.sample("z", mixture(*prior))
    await fk.observe("y", nd.Normal(z * jnp.ones(1), NOISE), y)


@fk.program
async def any_prior(y):
    logits = await fk.sample("logits", nd.Normal(jnp.zeros(2), 1.0))
    means = await fk.sample("means", nd.Normal(jnp.zeros(2), 2.0))
    log_scales = await fk.sample("log_scales", nd.Uniform(-jnp.ones(2), 0.5))
    await _observed((logits, means, log_scales), y)


@fk.program
async def one_prior():
    await _observed(PRIOR, Y)


@fk.program
async def posterior(logits, means, log_scales, y):
    await fk.sample("z", NET(fk.param("net", NET.init(0)), logits, means, log_scales, y))


def _density(law, x):
    return np.exp(np.asarray(law.log_prob(jnp.asarray(x))))


X = np.linspace(-6.0, 6.0, 4001)
EXACT = _density(mixture(np.log(WEIGHTS), np.array(MEANS), 0.5 * np.log(VARIANCES)), X)


def _kl(law):
    return float(np.trapezoid(EXACT * (np.log(EXACT) - np.log(_density(law, X))), X))


def test_the_oracle_is_the_posterior():
    joint = _density(mixture(*PRIOR), X) * np.exp(-0.5 * ((Y - X) / NOISE) ** 2) / (NOISE * math.sqrt(2 * math.pi))
    assert math.log(np.trapezoid(joint, X)) == pytest.approx(LOG_Z, abs=1e-5)
    assert joint / math.exp(LOG_Z) == pytest.approx(EXACT, abs=1e-4)


def _exact_as_a_proposal(guide, runs):
    model = fk.handlers.propose(one_prior(), guide)
    found = fk.infer([model] * runs, fk.ImportanceSampling(10), seed=0)
    ratios = np.exp([p.log_evidence - LOG_Z for p in found])
    # At |z| < 4.265 a right proposal fails with probability 2e-5.
    assert abs(z_score(ratios, 1.0)) < 4.265
    return ratios.std()


@pytest.mark.slow
def test_an_untrained_network_is_the_prior_and_an_exact_proposal():
    law = NET(NET.init(0), *PRIOR, Y)
    assert _density(law, X) == pytest.approx(_density(mixture(*PRIOR), X), abs=1e-5)
    weights = NET.init(0)
    weights["change"]["w"] = np.random.default_rng(0).normal(0.0, 0.1, (NET.width, 3))  # changes that mean nothing
    assert _kl(NET(weights, *PRIOR, Y)) > 0.05
    _exact_as_a_proposal(fk.Guide(posterior(*PRIOR, Y), {"net": weights}, []), runs=40)


def test_components_and_data_have_no_order():
    weights = NET.init(1)
    weights["change"]["w"] = np.random.default_rng(0).normal(0.0, 0.1, (NET.width, 3))
    data = np.array([0.3, -1.0, 2.0])
    law = NET(weights, *PRIOR, data)
    turned = NET(weights, *(part[::-1] for part in PRIOR), data[::-1])
    assert _density(law, X) == pytest.approx(_density(turned, X), rel=1e-4, abs=1e-6)
    with pytest.raises(ValueError, match="heads=3 must divide width=32"):
        fk.DistributionTransformer(heads=3)


@pytest.mark.slow
def test_trained_on_simulations_it_is_near_its_oracle(tmp_path):
    """About 20 s of CPU: priors of two components are drawn, none of which is the oracle's."""
    shown = fk.ForwardKL({name: name for name in ("logits", "means", "log_scales", "y")}, simulations=64)
    start = posterior(np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(1))
    guide = fk.fit(any_prior(Y), start, shown, 2000, optax.adam(optax.cosine_decay_schedule(3e-3, 2000)), seed=0)
    guide.save(tmp_path / "net.zip")
    guide = fk.Guide.load(tmp_path / "net.zip", start)
    law = NET(guide.params["net"], *PRIOR, Y)
    parts = law.component_distribution
    assert _kl(law) < 0.01  # .85 from the prior
    assert np.asarray(law.mixing_distribution.probs) == pytest.approx(WEIGHTS, abs=0.01)
    assert float(parts.loc[1]) == pytest.approx(MEANS[1], abs=0.1)
    assert np.asarray(parts.variance) == pytest.approx(VARIANCES, abs=0.08)
    spread = _exact_as_a_proposal(guide.bind(posterior(*PRIOR, Y)), runs=40)
    assert spread < 0.3 * _exact_as_a_proposal(posterior(*PRIOR, Y), runs=40)

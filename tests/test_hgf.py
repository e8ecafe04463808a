"""The hierarchical Gaussian filter: known beliefs, the quadratic step that they are, and the program that they mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

import feynkac as fk
from feynkac.models.programs import HGF
from laws import z_score

CONTINUOUS = HGF(omega=(-2.0, -2.0), precision=4.0)
INPUTS = (0.5, -0.2, 1.3, 2.0, 1.1)
BINARY = HGF(omega=(-1.0,))
SEEN = (1, 1, 0, 1, 1)


def particle_filter(model, inputs, n, seed):
    """The bootstrap filter of a model in NumPy: log Ẑ, and mean and variance of the levels after each input."""
    rng = np.random.default_rng(seed)
    levels = len(model.omega)
    x = np.array(model.means)[:, None] + rng.normal(size=(levels, n)) / np.sqrt(model.precisions)[:, None]
    log_z, means, variances = 0.0, [], []
    for u in inputs:
        above = np.zeros(n)
        for k in reversed(range(levels)):
            kappa = model.kappa[k] if k + 1 < levels else 0.0
            x[k] += np.exp(0.5 * (model.omega[k] + kappa * above)) * rng.normal(size=n)
            above = x[k]
        if model.precision is None:
            weights = 1 / (1 + np.exp(-x[0] if u else x[0]))
        else:
            weights = np.exp(-0.5 * model.precision * (u - x[0]) ** 2) * math.sqrt(model.precision / (2 * math.pi))
        log_z += math.log(weights.mean())
        weights /= weights.sum()
        means.append(x @ weights)
        variances.append((x - means[-1][:, None]) ** 2 @ weights)
        ends = np.cumsum(weights)
        x = x[:, np.searchsorted(ends, (np.arange(n) + rng.uniform()) / n * ends[-1])]
    return log_z, np.array(means), np.array(variances)


def test_known_beliefs():
    beliefs = CONTINUOUS.filter(INPUTS)
    np.testing.assert_allclose(beliefs.means[-1], (1.219690, 0.409537), atol=6e-7)
    np.testing.assert_allclose(beliefs.precisions[-1], (6.619468, 1.035414), atol=6e-7)
    assert beliefs.guarantee == "heuristic"
    found = BINARY.filter(SEEN).means[:, 0]
    np.testing.assert_allclose(found, (0.509654, 0.902477, 0.122522, 0.626150, 1.004384), atol=6e-7)
    standard = CONTINUOUS.filter(INPUTS, update="standard")
    assert standard.means[0, 1] == pytest.approx(
        CONTINUOUS.filter(INPUTS[:1]).means[0, 1] * (1 / (1 + math.exp(-2.0))) / standard.precisions[0, 1]
    )


@pytest.mark.parametrize("model", [HGF((-2.0, -1.0, -1.5), (0.8, 1.3), 2.0), HGF((-1.0, -2.0), (0.7,)), CONTINUOUS])
def test_each_level_makes_one_quadratic_step_on_the_walk_below(model):
    """Newton's on E log N(x_below; its mean, 1/π + e^{ω + κx}) + the prior; the mean's by the prior's curvature."""
    inputs = SEEN if model.precision is None else INPUTS
    beliefs = model.filter(inputs)
    before, pi = np.array(model.means), np.array(model.precisions)
    for mean, precise in zip(beliefs.means, beliefs.precisions):
        for k in range(1, len(mean)):
            omega, kappa = model.omega[k - 1], model.kappa[k - 1]
            expected = 1 / precise[k - 1] + (mean[k - 1] - before[k - 1]) ** 2
            walk = math.exp(model.omega[k] + (model.kappa[k] * before[k + 1] if k + 1 < len(mean) else 0.0))
            prior = 1 / (1 / pi[k] + walk)

            def energy(x, omega=omega, kappa=kappa, expected=expected, below=pi[k - 1]):
                variance = 1 / below + math.exp(omega + kappa * x)
                return -0.5 * (math.log(variance) + expected / variance)

            h, at = 1e-4, before[k]
            slope = (energy(at + h) - energy(at - h)) / (2 * h)
            curve = (energy(at + h) - 2 * energy(at) + energy(at - h)) / h**2
            assert mean[k] == pytest.approx(at + slope / prior, abs=1e-7)
            assert precise[k] == pytest.approx(prior - curve, abs=1e-6)
        before, pi = mean, precise


def test_a_top_level_that_is_not_coupled_changes_nothing():
    three = HGF((-2.0, -2.0, -1.0), (1.0, 0.0), 4.0).filter(INPUTS)
    two = CONTINUOUS.filter(INPUTS)
    np.testing.assert_allclose(three.means[:, :2], two.means, rtol=1e-14)
    np.testing.assert_allclose(three.precisions[:, :2], two.precisions, rtol=1e-14)
    assert (three.means[:, 2] == 0).all()


def test_what_particles_find():
    log_z, means, variances = particle_filter(CONTINUOUS, INPUTS, 400_000, seed=0)
    assert log_z == pytest.approx(-7.149, abs=0.01)
    np.testing.assert_allclose(means[-1], (1.2233, 0.3240), atol=0.01)
    np.testing.assert_allclose(1 / variances[-1], (6.715, 0.8403), atol=0.05)
    log_z, means, _ = particle_filter(BINARY, SEEN, 400_000, seed=0)
    assert log_z == pytest.approx(-3.428, abs=0.01)
    assert means[-1, 0] == pytest.approx(1.151, abs=0.01)


@pytest.mark.parametrize(("model", "inputs", "log_z"), [(CONTINUOUS, INPUTS, -7.149), (BINARY, SEEN, -3.428)])
def test_the_program_is_the_same_model(model, inputs, log_z):
    posteriors = fk.infer([model.program(inputs)] * 60, fk.SMC(25), seed=0)
    assert abs(z_score(np.exp([p.log_evidence - log_z for p in posteriors]), 1.0)) < 4.265  # false alarm 2e-5
    last = [*(f"{name}[4]" for name in model.names[::-1]), "u[4]"]
    assert list(posteriors[0].trace(0))[-len(last) :] == last
    assert np.shape(posteriors[0].values[0]) == (5, len(model.names))
    assert BINARY.names == ("x2",)


@pytest.mark.slow
def test_the_lowest_level_agrees_with_particles_and_the_volatility_does_not():
    gaps = []
    for seed in range(1, 7):
        rng, x1, x2, inputs = np.random.default_rng(seed), 0.0, 0.0, []
        for _ in range(100):
            x2 += math.exp(-1.0) * rng.normal()
            x1 += math.exp(0.5 * (x2 - 2.0)) * rng.normal()
            inputs.append(x1 + 0.5 * rng.normal())
        _, means, variances = particle_filter(CONTINUOUS, inputs, 20_000, seed)
        gaps.append(np.sqrt((((CONTINUOUS.filter(inputs).means - means) / np.sqrt(variances)) ** 2).mean(0)))
    found = np.array(gaps)
    assert (found[:, 0] < 0.6).all()
    assert (found[:, 0].min() > 0.17) & (found[:, 0].max() < 0.42)  # .19 to .40 of another filter
    assert (found[:, 1].min() > 0.3) & (found[:, 1].max() < 1.2)  # .34 to 1.11


def test_settings_and_failures_are_named():
    for settings, message in (
        ({"omega": ()}, "a number for each level"),
        ({"omega": (-2.0, math.nan)}, "omega needs 2 finite numbers"),
        ({"omega": (-2.0, -2.0), "kappa": (1.0, 1.0)}, "kappa needs 1 finite numbers for 2 levels"),
        ({"omega": (-2.0,), "precision": 0.0}, "precision is a positive number"),
        ({"omega": (-2.0,), "precisions": (-1.0,)}, "precisions must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            HGF(**settings)
    with pytest.raises(ValueError, match="are binary, 0 or 1"):
        BINARY.filter([0.5])
    with pytest.raises(ValueError, match="one finite number for each time"):
        CONTINUOUS.program([0.5, math.nan])
    with pytest.raises(ValueError, match='update must be "ehgf" or "standard"'):
        CONTINUOUS.filter(INPUTS, update="newton")
    with pytest.raises(ValueError, match=r"the precision of x2 is .* after input 1: the update has failed"):
        HGF(omega=(-6.0, 2.0), kappa=(1.5,), precision=100.0).filter([0.0, 3.0, 9.0, -20.0])

"""A learned likelihood under nested sampling: the evidence of the true one, for fewer evaluations of it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import feynkac as fk
from densities import G3_LOG_Z, _log_modes, modes_toy
from feynkac import tuning

ENGINE = fk.NestedSampling(60, fk.RandomWalk(), moves=8, delete=10)


def learned(tolerance):
    points = 1.7 * fk.keys.normal(fk.keys.fold(fk.keys.root(0), np.arange(300)), 2)
    truth = lambda z: float(_log_modes(np, z[None])[0])  # noqa: E731
    return tuning.LearnedLikelihood(truth, points, tolerance, scale=0.5)


def toy(likelihood):
    return replace(modes_toy(), potentials=(lambda xp, x: likelihood(x),))


@pytest.mark.slow
def test_the_evidence_is_that_of_the_true_likelihood():
    plain, law = learned(0.0), learned(1.0)
    fk.infer(toy(plain), ENGINE, seed=0)
    fk.infer(toy(law), fk.NestedSampling(20, fk.RandomWalk(), moves=8, delete=5), seed=1)
    law.learn()
    posterior = fk.infer(toy(law), ENGINE, seed=0)
    found = law.correct(posterior, np.ravel, draws=200, seed=0)
    assert abs(found.log_evidence - G3_LOG_Z) < 3 * math.hypot(found.se, posterior.log_evidence_se)
    assert found.ess > 0.5
    assert plain.trusted == 0
    assert law.asked < (plain.asked - 300) / 2


def test_networks_that_disagree_are_not_trusted():
    law = tuning.LearnedLikelihood(lambda z: -float(z @ z), [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.5]], 0.0)
    points = np.array([[3.0, 4.0], [0.5, 0.5], [3.0, 4.0]])
    assert law(points).tolist() == [-25.0, -0.5, -25.0]
    assert (law.asked, law.trusted) == (5, 0)  # each point once
    law = tuning.LearnedLikelihood(lambda z: -float(z @ z), [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.5]], math.inf)
    law(points)
    assert (law.asked, law.trusted) == (3, 3)
    with pytest.raises(ValueError, match="networks learn finite numbers"):
        tuning.LearnedLikelihood(lambda z: -math.inf, [[0.0]])


@fk.program
async def uniform(slope):
    x = await fk.sample("x", fk.dist.Categorical([0.25] * 4))
    await fk.factor("L", slope * x)
    return float(x)


def test_the_correction_is_that_of_exact_weights():
    """Learned wrongly (slope 0 where it is −1): E of Ẑ · mean ratio is Z of the truth."""
    law = tuning.LearnedLikelihood(lambda z: -float(z[0]), [[0.0], [1.0], [2.0], [3.0]], 0.0)
    posterior = fk.infer(uniform(0.0), fk.ImportanceSampling(4000), seed=0)
    found = law.correct(posterior, lambda x: [x], draws=4000, seed=0)
    truth = math.log(np.mean(np.exp(-np.arange(4))))
    assert abs(found.log_evidence - truth) < 4.265 * math.sqrt(2) * found.se  # one comparison: at most 2e-5
    assert law.asked == 4


def test_the_cautious_likelihood_is_the_mean_less_half_the_variance_and_has_gradients():
    jax = pytest.importorskip("jax")
    points = fk.keys.normal(fk.keys.fold(fk.keys.root(0), np.arange(30)), 2)
    law = tuning.LearnedLikelihood(lambda z: -float(z @ z), points, math.inf, scale=0.3)
    at = np.array([[0.3, -0.2], [6.0, 1.0]])
    mean, variance = tuning.network(points, -np.sum(points**2, axis=1), at, scale=0.3)
    assert law.cautious(at) == pytest.approx(mean - variance / 2)
    assert variance[1] > 10 > 0.1 > variance[0]  # out there it is far below what the networks say
    with jax.enable_x64(True):
        slope = jax.grad(lambda z: law.cautious(z, jax.numpy))(at[0])
    moved = [law.cautious(at[0] + step) - law.cautious(at[0] - step) for step in 1e-5 * np.eye(2)]
    assert np.asarray(slope) == pytest.approx(np.array(moved) / 2e-5, abs=1e-4)
    assert law.asked == 30

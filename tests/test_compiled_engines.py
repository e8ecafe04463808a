"""Every engine of the library on a compiled scan. Nothing here is statistical, but for the sweeps of particle Gibbs."""

import math

import numpy as np
import pytest

import feynkac as fk
from feynkac.ppl.errors import Unsupported

jax = pytest.importorskip("jax")
pytest.importorskip("torch")
pytest.importorskip("transformers")
from test_compiled import SMOOTHED, Y, linear  # noqa: E402
from test_uniformity import ENGINES  # noqa: E402

D = fk.dist
jnp = jax.numpy


@fk.program
async def rising(y):
    """A parameter, a scan, and a bounded potential, for engines that know no bound of a density."""
    rate = await fk.sample("rate", D.Uniform(0.2, 1.0))

    async def step(carry, y):
        x = await fk.sample("x", D.Normal(0.9 * carry["x"], rate))
        await fk.factor("G", -0.5 * jnp.square(x - y))
        return {"x": x, "n": carry["n"] + 1}, x

    last, xs = await fk.scan(step, {"x": 0.0, "n": 0}, y, compiled=True)
    return {"rate": rate, "n": last["n"], "xs": xs}


def run(name):
    return fk.infer(rising(Y), ENGINES[name][0], seed=5)


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_runs_on_a_compiled_scan(name, tmp_path):
    kind = name.split(",")[0]
    if kind in ("NoiseSearch", "PathSearch"):
        with pytest.raises(Unsupported, match=kind):
            run(name)
        return
    posterior = run(name)
    assert len(posterior) == len(posterior.values) > 0
    assert np.isfinite(posterior.log_weights).any()
    assert posterior.complete.all()
    assert posterior.info["compiled"].startswith(("yes", "no: moves by the density"))
    for i in {0, len(posterior) - 1}:
        trace = posterior.trace(i)
        assert [site.visit for site in trace.values() if site.name == "x"] == [0, 1, 2, 3]
        value = posterior.values[i]
        assert value["n"] == 4
        assert value["rate"] == trace["rate"].value
        assert value["xs"] == tuple(site.value for site in trace.values() if site.name == "x")
    again = run(name)
    np.testing.assert_array_equal(posterior.log_weights, again.log_weights)
    assert str(posterior.values) == str(again.values)
    posterior.save(tmp_path / "kept")
    kept = fk.Posterior.load(tmp_path / "kept")
    np.testing.assert_array_equal(posterior.log_weights, kept.log_weights)
    assert kept.info["compiled"] == posterior.info["compiled"]
    assert kept.trace(0) == posterior.trace(0)


@pytest.mark.slow
@pytest.mark.parametrize("ancestor_sampling", [True, False])
def test_fused_sweeps_have_the_smoothed_means(ancestor_sampling):
    engine = fk.ParticleGibbs(5, sweeps=600, burn_in=50, ancestor_sampling=ancestor_sampling, chains=8)
    posterior = fk.infer(linear(Y), engine, seed=1)
    assert type(posterior.chains[0].tree.choices).__name__ == "Nodes"  # it was fused
    draws = np.array(posterior.values).reshape(8, -1, 4).mean(1)
    z = (draws.mean(0) - SMOOTHED) / (draws.std(0, ddof=1) / math.sqrt(8))
    # 8 comparisons at |t| < 14 with 7 degrees of freedom: right sweeps fail with probability 8 × 2.2e-6 = 1.8e-5.
    assert (np.abs(z) < 14.0).all()
    renewed, accepted = posterior.info["renewed"], posterior.info["acceptance"]
    assert renewed > 0.8 if ancestor_sampling else 0.3 < renewed < 0.5
    assert accepted > renewed


@pytest.mark.slow
def test_fused_draws_are_whole_runs_in_a_tree():
    posterior = fk.infer(linear(Y), fk.ParticleGibbs(5, sweeps=30, thin=2), seed=1)
    tree = posterior.chains[0].tree
    assert tree.visits[0] == len(posterior) == 12
    assert len(tree) < 1 + 12 * 4  # what neighbours share is there once
    assert posterior.serial
    for i, value in enumerate(posterior.values):
        trace = posterior.trace(i)
        assert value == tuple(site.value for site in trace.values() if site.kind == "sample")
        potentials = sum(site.log_prob for site in trace.values() if site.kind == "observe")
        assert posterior.log_potential[i] == pytest.approx(potentials, abs=1e-9)


@pytest.mark.slow
def test_one_iteration_is_enough():
    for engine in (fk.SMC(50), fk.ParticleGibbs(5, sweeps=10)):
        posterior = fk.infer(linear(Y[:1]), engine, seed=0)
        assert posterior.info["compiled"] == "yes"
        assert len(posterior.steps) == 1
        assert posterior.trace(0)["x"].value == posterior.values[0][0]


@pytest.mark.slow
def test_slices_of_nested_sampling_move_a_scan_that_asks_to_be_compiled():
    engine = fk.NestedSampling(5, fk.HitAndRunSlice(), moves=1, delete=2)
    posterior = fk.infer(rising(Y), engine, seed=5)
    assert posterior.info["compiled"].startswith("no: moves by the density")
    assert np.isfinite(posterior.log_evidence)

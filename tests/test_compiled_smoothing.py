"""Smoothing of what compiled scans drew, by steps and at once."""

import numpy as np
import pytest

import feynkac as fk
from feynkac import handlers

jax = pytest.importorskip("jax")
from test_compiled import SMOOTHED, Y, linear  # noqa: E402

D = fk.dist


def test_what_a_fused_filter_found_is_smoothed():
    # 4 comparisons; the trajectories of 1,000 particles are off by .05 or so, and genealogies would be, too.
    model = linear(Y)
    smoothed = fk.smooth(fk.infer(model, fk.SMC(1000), seed=1), 1000, seed=2, model=model)
    np.testing.assert_allclose(smoothed.series("x").mean(0), SMOOTHED, atol=0.15)
    assert (smoothed.distinct > 300).all()


def test_choices_as_arrays_and_as_sites_are_smoothed_alike():
    model = linear(Y)
    posterior = fk.infer(model, fk.SMC(50, chains=3), seed=1)
    # another program of the same code has pieces of its own, so the choices are given to it site by site
    arrays, sites = (fk.smooth(posterior, 40, seed=2, model=one) for one in (model, linear(Y)))
    assert len({value[-1] for value in arrays.values}) > 20
    assert arrays.values == sites.values == tuple(map(tuple, arrays.series("x").tolist()))
    assert [list(step.choices) for step in arrays.steps] == [list(step.choices) for step in sites.steps]
    for one, other in zip(arrays.steps, sites.steps):
        np.testing.assert_array_equal(one.log_potential, other.log_potential)


@fk.program
async def told(y):
    """An iteration draws nothing; something is drawn after the scan."""

    async def step(x, y):
        x = 0.9 * x
        await fk.observe("y", D.Normal(x, 1.0), y)
        return x, x

    last, xs = await fk.scan(step, 0.5, y, compiled=True)
    return xs, await fk.sample("z", D.Normal(last, 1.0))


KNOWN = (0.1, 0.2, 0.3, 0.4)


def log_evidence(path, scale=1.0):
    return sum(float(-0.5 * (y - x) ** 2 - 0.5 * np.log(2 * np.pi)) for x, y in zip(path, Y))


@pytest.mark.parametrize("by_steps", [False, True])
def test_an_iteration_without_latents_is_smoothed(by_steps):
    """Choices that hold no values are counted all the same: all latents forced from outside, or none but at the end."""
    calls = (lambda session: None,) if by_steps else ()  # a callback has it run by steps
    known = handlers.condition(linear(Y), data={"x": np.array(KNOWN)})
    posterior = fk.infer(known, fk.SMC(50), seed=1, callbacks=calls)
    smoothed = fk.smooth(posterior, 7, seed=2, model=known)
    assert smoothed.values == (KNOWN,) * 7
    assert len(fk.smooth(posterior, 7, seed=2, model=known, order=2)) == 7
    model = told(Y)
    posterior = fk.infer(model, fk.SMC(50), seed=1, callbacks=calls)
    path = 0.5 * 0.9 ** np.arange(1, 5)
    assert posterior.log_evidence == pytest.approx(log_evidence(path), abs=1e-9)
    smoothed = fk.smooth(posterior, 40, seed=2, model=model)
    np.testing.assert_allclose([xs for xs, _ in smoothed.values], np.tile(path, (40, 1)), atol=1e-12)
    assert len({z for _, z in smoothed.values}) > 20
    assert {z for _, z in smoothed.values} <= {z for _, z in posterior.values}


def test_sweeps_of_an_iteration_without_latents_find_the_same_path():
    known = handlers.condition(linear(Y), data={"x": np.array(KNOWN)})
    posterior = fk.infer(known, fk.ParticleGibbs(5, sweeps=4), seed=1)
    assert posterior.info["compiled"] == "yes"
    assert set(posterior.values) == {KNOWN}


def test_inputs_that_hold_no_numbers_are_counted():
    @fk.program
    async def walk(xs):
        async def step(x, _):
            x = await fk.sample("x", D.Normal(0.9 * x, 1.0))
            await fk.factor("G", -0.5 * (x - 0.3) ** 2)
            return x, x

        return (await fk.scan(step, 0.0, xs, compiled=True))[1]

    posterior = fk.infer(walk([None] * 3), fk.ParticleGibbs(3, sweeps=4), seed=0)
    found = np.array(posterior.values)
    assert found.shape == (4, 3)
    np.testing.assert_allclose(posterior.log_potential, (-0.5 * (found - 0.3) ** 2).sum(1), atol=1e-9)

"""Smoothing of what compiled scans drew, by steps and at once."""

from dataclasses import replace

import numpy as np
import pytest

import feynkac as fk
from feynkac import handlers
from feynkac.ppl.errors import ImpossibleChoice, InconsistentDensity, Unsupported

jax = pytest.importorskip("jax")
from test_compiled import SMOOTHED, Y, linear  # noqa: E402

from feynkac.inference.smoothing import fused  # noqa: E402
from feynkac.ppl.compiled import model as compiled  # noqa: E402

jnp = jax.numpy

D = fk.dist


@pytest.mark.slow
def test_what_a_fused_filter_found_is_smoothed(model):
    # 4 comparisons; the trajectories of 1,000 particles are off by .05 or so, and genealogies would be, too.
    smoothed = fk.smooth(fk.infer(model, fk.SMC(1000), seed=1), 1000, seed=2, model=model)
    np.testing.assert_allclose(smoothed.series("x").mean(0), SMOOTHED, atol=0.15)
    assert (smoothed.distinct > 300).all()


@pytest.fixture(scope="module")
def model():
    return linear(Y)


@pytest.fixture(scope="module")
def filtered(model):
    return fk.infer(model, fk.SMC(50, chains=3), seed=1)


def by_sites(posterior):
    """Return a posterior whose steps are plain ones, with choices as lists of sites."""
    chains = [
        replace(chain, steps=tuple(replace(step, choices=list(step.choices)) for step in chain.steps))
        for chain in posterior.chains
    ]
    return replace(posterior, chains=tuple(chains))


def by_arrays(posterior):
    """Return a posterior whose steps are plain ones, with choices as arrays."""
    return replace(posterior, chains=tuple(replace(c, steps=tuple(c.steps)) for c in posterior.chains))


def plain(posterior):
    return [[[(s.address, s.value) for s in sites] for sites in step.choices] for step in posterior.steps]


@pytest.mark.slow
def test_at_once_by_arrays_and_by_sites_the_same_is_drawn(model, filtered, monkeypatch):
    """The same particles, by the same numbers, though blocks of draws do not come out even."""
    monkeypatch.setattr(fused, "PAIRS", 50 * 7)
    at_once = fk.smooth(filtered, 40, seed=2, model=model)
    assert len({value[-1] for value in at_once.values}) > 20
    for other in (by_arrays(filtered), by_sites(filtered)):
        steps = fk.smooth(other, 40, seed=2, model=model)
        assert at_once.values == steps.values == tuple(map(tuple, at_once.series("x").tolist()))
        assert plain(at_once) == plain(steps)
        np.testing.assert_array_equal(at_once.distinct, steps.distinct)
        for one, two in zip(at_once.steps, steps.steps):
            np.testing.assert_allclose(one.log_potential, two.log_potential, rtol=1e-12)
            assert one.log_evidence == pytest.approx(two.log_evidence, abs=1e-12)


def test_another_program_of_the_same_code_is_as_good(model, filtered, monkeypatch):
    """Its sites are the same, so that choices stay arrays; what it weighs otherwise is refused."""
    known = fk.smooth(filtered, 20, seed=2, model=model).values
    monkeypatch.setattr(compiled, "force", None)  # lays sites out one by one
    for posterior in (filtered, by_arrays(filtered)):
        assert fk.smooth(posterior, 20, seed=2, model=linear(Y)).values == known
        with pytest.raises(InconsistentDensity, match="does not weigh the choices of step 2 as the history says"):
            fk.smooth(posterior, 20, seed=2, model=linear(np.array([0.5, -1.0, 2.5, 1.0])))


def test_a_model_with_other_sites_is_refused(filtered):
    @fk.program
    async def vector(y):
        async def step(x, y):
            x = await fk.sample("x", D.Normal(jnp.zeros(2), 1.0))
            await fk.observe("y", D.Normal(x.sum(), 1.0), y)
            return x, x

        return (await fk.scan(step, np.zeros(2), y, compiled=True))[1]

    with pytest.raises(ImpossibleChoice, match="another form than its draws"):
        fk.smooth(filtered, 20, seed=2, model=vector(Y))


@fk.program
async def shocks(y):
    """A proposal, and a potential that takes two states: W_t is no product of potentials, nor p(x'|x) all there is."""

    async def step(x, y):
        e = await fk.sample("e", D.Normal(0.0, 1.0), proposal=D.Normal(0.3 * y, 1.2))
        await fk.factor("G", -0.5 * (y - x - e) ** 2 - 0.2 * jnp.abs(x))
        return 0.9 * x + e, 0.9 * x + e

    return (await fk.scan(step, 0.5, y, compiled=True))[1]


@pytest.mark.slow
def test_the_past_is_drawn_by_weight_transition_and_potential():
    """Two steps by hand: P(j) ∝ W_0^j · p(e) · G_1(x_0^j, e), of the frequencies in many draws."""
    model = shocks(Y[:2])
    posterior = fk.infer(model, fk.SMC(4, ess_threshold=0.0), seed=3)
    first, last = posterior.steps
    e, new = (np.array([sites[0].value for sites in step.choices]) for step in (first, last))
    smoothed = fk.smooth(posterior, 20_000, seed=0, model=model)
    drawn = smoothed.series("e")
    assert set(smoothed.distinct) == {4}
    for end in range(4):
        log_g = -0.5 * (Y[1] - (0.45 + e) - new[end]) ** 2 - 0.2 * np.abs(0.45 + e)
        chances = np.exp(first.log_weights + log_g)
        chances /= chances.sum()
        mine = drawn[:, 1] == new[end]
        counts = np.array([(drawn[mine, 0] == x).sum() for x in e])
        expected = mine.sum() * chances
        # 4 chi-squared tests with 3 degrees of freedom at 2.5e-6 each: a right smoother fails in 1e-5.
        assert ((counts - expected) ** 2 / expected).sum() < 29.0


@fk.program
async def rated(y):
    """A parameter that all steps depend on."""
    rate = await fk.sample("rate", D.Uniform(0.2, 1.0))

    async def step(x, y):
        x = await fk.sample("x", D.Normal(0.9 * x, rate))
        await fk.factor("G", -0.5 * (x - y) ** 2)
        return x, x

    return rate, (await fk.scan(step, 0.0, y, compiled=True))[1]


@pytest.mark.slow
def test_a_parameter_that_all_steps_depend_on_is_found_at_once_too():
    model = rated(Y)
    posterior = fk.infer(model, fk.SMC(50), seed=5)
    with pytest.raises(Unsupported, match="depends on more of the past than the last 1 step"):
        fk.smooth(posterior, 50, seed=1, model=model)


def test_a_place_is_found_by_groups_as_by_one_sum():
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 100):
        weights = rng.exponential(size=n) * rng.integers(0, 2, n)
        weights[rng.integers(n)] = 1.0
        ends = np.cumsum(weights)
        with jax.enable_x64(True):
            place = jax.jit(fused.invert)
            for u in (1e-300, *rng.uniform(size=20), 1.0 - 2.0**-53):
                found = int(place(weights, u))
                assert weights[found] > 0
                assert found == min(np.searchsorted(ends, u * ends[-1], side="right"), np.flatnonzero(weights)[-1])


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_sweeps_of_an_iteration_without_latents_find_the_same_path():
    known = handlers.condition(linear(Y), data={"x": np.array(KNOWN)})
    posterior = fk.infer(known, fk.ParticleGibbs(5, sweeps=4), seed=1)
    assert posterior.info["compiled"] == "yes"
    assert set(posterior.values) == {KNOWN}


@pytest.mark.slow
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


@fk.program
async def keeping(which):
    """Two latents before the scan that its iterations do not look at, of which the end returns one."""
    pair = await fk.sample("a", D.Normal(0.0, 1.0)), await fk.sample("b", D.Normal(0.0, 1.0))

    async def step(x, y):
        x = await fk.sample("x", D.Normal(0.9 * x, 1.0))
        await fk.observe("y", D.Normal(x, 1.0), y)
        return x, x

    await fk.scan(step, 0.0, Y[:2], compiled=True)
    return [pair[i] for i in which]


@pytest.mark.slow
@pytest.mark.parametrize("callbacks", [(), (lambda step: None,)])
def test_programs_that_differ_after_the_scan_alone_keep_their_own_latents(callbacks):
    """Their iterations have the same equations, so that what is compiled is shared as far as it may be."""
    for which in ((0,), (1,)):
        posterior = fk.infer(keeping(which), fk.SMC(8), seed=0, callbacks=callbacks)
        trace = posterior.trace(0)
        assert list(posterior.values[0]) == [trace["ab"[i]].value for i in which]

"""Densities over continuous choices: equal to what a replay gives, with the Jacobian, and with gradients."""

import math

import numpy as np
import pytest

import feynkac as fk
from feynkac.inference.base.engine import Start
from feynkac.inference.base.paths import run_on
from feynkac.ppl import keys
from feynkac.ppl.errors import NotDifferentiable, Unsupported
from feynkac.ppl.model import Draws

jax = pytest.importorskip("jax")
nd = pytest.importorskip("numpyro.distributions")
jnp = jax.numpy
D = fk.dist


def draw(model, n, horizon=None):
    """Draw paths from the prior."""
    asking, advance = run_on(model, [None] * n, keys.fold(keys.root(0), np.arange(n)), horizon), None
    while True:
        try:
            ask = asking.send(advance)
        except StopIteration as stop:
            return stop.value
        start = type(ask) is Start
        advance = model.start(ask.keys, ask.given) if start else model.advance(ask.state, ask.keys, ask.given)


def replayed(model, choices):
    """Return log p and the log potential of a forced replay."""
    step = model.start(keys.root(0), [choices[0]])
    log_prob, log_potential = step.log_prob[0], step.log_potential[0]
    for t, given in enumerate(choices[1:]):
        step = model.advance(step.state, keys.fold(keys.root(0), t + 1), [given])
        log_prob, log_potential = log_prob + step.log_prob[0], log_potential + step.log_potential[0]
    return log_prob, log_potential


def check(model, n=5, horizon=None, tolerance=1e-9):
    """Check densities against the paths, against replays elsewhere, and gradients against differences."""
    paths = draw(model, n, horizon)
    densities = model.unconstrained(paths, horizon)
    assert sorted(row for density in densities for row in density.rows) == list(range(n))
    for density in densities:
        u = density.position
        here = density.evaluate(u, True)
        log_prob = np.array([paths[row].log_prob for row in density.rows])
        log_potential = np.array([paths[row].log_potential for row in density.rows])
        near = {"rtol": tolerance, "atol": tolerance}
        np.testing.assert_allclose(here.log_prior - density.log_jacobian(u), log_prob, **near)
        np.testing.assert_allclose(here.log_potential, log_potential, **near)
        assert len(density.sites) == u.shape[1]
        v = u + 0.1 * np.sin(1.0 + np.arange(u.size)).reshape(u.shape)
        there, jacobian = density.evaluate(v, False), density.log_jacobian(v)
        for i, choices in enumerate(density.choices(v)[:2]):
            log_p, log_g = replayed(model, choices)
            np.testing.assert_allclose(there.log_prior[i], log_p + jacobian[i], **near)
            np.testing.assert_allclose(there.log_potential[i], log_g, **near)
        for k in range(min(3, u.shape[1])):
            step = 1e-5 * (np.arange(u.shape[1]) == k)
            up, down = density.evaluate(u + step, False), density.evaluate(u - step, False)
            np.testing.assert_allclose((up[0] - down[0]) / 2e-5, here.grad_prior[:, k], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose((up[1] - down[1]) / 2e-5, here.grad_potential[:, k], rtol=1e-5, atol=1e-5)
    return densities


@fk.program
async def g1():
    z = await fk.sample("z", D.Normal(0.0, 1.0))
    await fk.observe("y", D.Normal(z, 0.5), 1.5)
    return z


@fk.program
async def g2():
    rate = await fk.sample("rate", D.Exponential(1.0))
    await fk.observe("y", nd.Poisson(rate), 3)
    return rate


def mass(density, low, high):
    """Return ∫ exp(log density) du and ∫ x exp(log density) du over a grid, for x = exp(u)."""
    n = len(density.rows)
    grid = np.linspace(low, high, 40 * n).reshape(40, n, 1)
    log = np.concatenate([sum(density.evaluate(u, False)[:2]) for u in grid])
    u = grid.reshape(-1)
    return np.trapezoid(np.exp(log), u), np.trapezoid(np.exp(u + log), u)


def test_a_normal_mean():
    (density,) = check(g1())
    mean, scale = density.gaussian
    assert (mean.tolist(), scale.tolist()) == ([0.0], [1.0])
    assert math.log(mass(density, -6.0, 6.0)[0]) == pytest.approx(-1.930510309, abs=1e-6)


def test_the_jacobian_is_in_the_prior():
    (density,) = check(g2(), n=64, tolerance=1e-5)  # NumPyro interprets in single precision, and says so:
    assert density.tolerance == 1e-3
    z, first = mass(density, -12.0, 4.0)
    assert z == pytest.approx(1 / 16, rel=1e-6)
    assert first / z == pytest.approx(2.0, rel=1e-6)  # without the Jacobian: 1.5
    u = density.position
    np.testing.assert_allclose(
        sum(density.evaluate(u, False)[:2]), (4 * u - 2 * np.exp(u))[:, 0] - math.log(6), rtol=1e-9
    )


@fk.program
async def linear(ys):
    async def step(x, y):
        x = await fk.sample("x", D.Normal(0.9 * x, 1.0))
        await fk.observe("y", D.Normal(x, 1.0), y)
        return x, x

    x = await fk.sample("x", D.Normal(0.0, 0.19**-0.5))
    await fk.observe("y", D.Normal(x, 1.0), ys[0])
    x, xs = await fk.scan(step, x, ys[1:])
    scale = await fk.sample("scale", D.Exponential(1.0))
    await fk.observe("z", D.Normal(x + xs[0], scale), 0.3)
    return x


LINEAR = linear([0.5, -1.0, 2.0, 1.0])


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [None, 1, 3, 4])
def test_a_state_space_model_at_any_horizon(horizon):
    (density,) = check(LINEAR, 3, horizon)
    assert density.position.shape == (3, 5 if horizon is None else horizon)
    assert density.sites[-1] == ("scale" if horizon is None else f"x[{horizon - 1}]" if horizon > 1 else "x")


@fk.program
async def mixed():
    z = await fk.sample("z", D.Bernoulli(0.3))
    m = await fk.sample("m", D.Normal(2.0 * z, 1.0))
    w = await fk.sample("w", D.Uniform(0.0, m**2 + 1))
    await fk.observe("y", D.Normal(m + w, 1.0), 0.4)
    return z


def test_discrete_numbers_go_in_as_they_are_and_supports_may_depend_on_values():
    model = mixed()
    (density,) = check(model, 8)
    assert set(density.fixed["values"]["z"].tolist()) == {0, 1}
    assert density.stays == ("z",)
    assert density.gaussian is None
    (again,) = model.unconstrained(draw(model, 4), None)
    assert again.logdensity is density.logdensity


@fk.program
async def branching():
    z = await fk.sample("z", D.Bernoulli(0.3))
    m = await fk.sample("m", D.Normal(2.0, 1.0) if z else D.Exponential(1.0))
    await fk.factor("f", -(m**2))
    return z


def test_a_branch_on_a_discrete_value_splits_the_paths():
    assert [density.stays for density in check(branching(), 8)] == [("z",), ("z",)]


@fk.program
async def simplex():
    p = await fk.sample("p", nd.Dirichlet(jnp.array([2.0, 3.0, 4.0])))
    await fk.observe("k", D.Categorical(p), 1)
    return p


@pytest.mark.slow
def test_a_simplex_has_a_coordinate_less():
    (density,) = check(simplex(), 4, tolerance=1e-4)
    assert density.position.shape == (4, 2)
    assert density.sites == ("p", "p")


@fk.program
async def rates(ys):
    rate = await fk.sample("rate", D.Exponential(1.0))
    for y in ys:
        await fk.observe("y", D.Normal(rate, 1.0), y)
    return rate


def test_a_horizon_that_only_cuts_observations_compiles_nothing_anew():
    model = rates([1.5, 0.3, -0.2, 0.4])
    seen = []
    for horizon in (1, 2, 3, 4, None):
        paths = draw(model, 3, horizon)
        (density,) = model.unconstrained(paths, horizon)
        found = density.evaluate(density.position, True)
        np.testing.assert_allclose(found.log_potential, [path.log_potential for path in paths], rtol=1e-12)
        seen.append((density.logdensity, sum(kept.traces for kept in model.kept_densities.values() if kept)))
    assert len(set(seen)) == 1


def test_what_has_no_continuous_site_is_refused():
    @fk.program
    async def coin():
        return await fk.sample("z", D.Bernoulli(0.3))

    with pytest.raises(Unsupported, match="coin"):
        coin().unconstrained(draw(coin(), 2), None)


@fk.program
async def by_numbers():
    rate = await fk.sample("rate", D.Exponential(1.0))
    x = await fk.sample("x", D.Uniform(-1.0, 1.0 + rate), proposal=D.Uniform(-2.0, 2.0 + 2 * rate))
    if x > 0:  # what JAX cannot trace
        await fk.sample("more", D.Normal(x, np.ones(2)))
    await fk.observe("y", D.Normal(x, 1.0), 0.3)
    await fk.factor("f", -math.exp(x))
    return x


def test_what_cannot_be_traced_is_run_for_each_path():
    model = by_numbers()
    paths = [path for path in draw(model, 24) if path.log_weight > -math.inf]
    densities = model.unconstrained(paths, None)
    assert sorted(density.sites for density in densities) == [("rate", "x"), ("rate", "x", "more", "more")]
    for density in densities:
        u = density.position
        found = density.evaluate(u, False)
        log_prob = np.array([paths[row].log_prob for row in density.rows])
        np.testing.assert_allclose(found.log_prior - density.log_jacobian(u), log_prob, rtol=1e-12)
        np.testing.assert_allclose(found.log_potential, [paths[row].log_potential for row in density.rows], rtol=1e-12)
        v = u + 1e-3
        there = density.evaluate(v, False)
        finite = np.isfinite(there.log_prior)
        assert finite.any()
        for i in np.flatnonzero(finite)[:3]:
            log_p, log_g = replayed(model, density.choices(v)[i])
            assert log_p + density.log_jacobian(v)[i] == pytest.approx(there.log_prior[i], abs=1e-12)
            assert log_g == pytest.approx(there.log_potential[i], abs=1e-12)
        step = 1e-6 * np.eye(u.shape[1])
        ups, downs = ([sum(density.evaluate(u + s * e, False)[:2]) for e in step] for s in (1, -1))
        assert np.isfinite(np.array(ups) - np.array(downs)).any()
        with pytest.raises(NotDifferentiable, match=r"'x'"):
            density.evaluate(u, True)
    across = next(density for density in densities if len(density.sites) == 2)
    far = across.position + np.array([0.0, 50.0])  # x > 0: the program asks for more
    assert (across.evaluate(far, False).log_prior == -np.inf).all()


@fk.program
async def bounded():
    a = await fk.sample("a", D.Exponential(2.0))
    await fk.sample("b", D.Uniform(0.0, 1.0 + a))
    await fk.factor("e", 0.5 * a)
    await fk.sample("c", D.Normal(np.zeros(2), 1.0 + a))
    await fk.factor("f", -a)


@pytest.mark.parametrize(
    ("model", "horizon"), [(bounded(), None), (bounded(), 1), (LINEAR, 1), (LINEAR, 3), (LINEAR, None)], ids=repr
)
def test_the_interpreted_density_is_the_traced_one(model, horizon):
    """At a horizon the program has come to its next draw, which is none of the path's."""
    from feynkac.ppl.program import launch
    from feynkac.ppl.traced.interpreted import Interpreted

    paths = draw(model, 4, horizon)
    (density,) = model.unconstrained(paths, horizon)
    choices = [[step.choices for step in path.steps()] for path in paths]
    other = Interpreted(model, "", (), launch).density(range(4), choices, horizon)
    np.testing.assert_allclose(other.position, density.position, rtol=1e-9)
    v = density.position + 0.3
    np.testing.assert_allclose(other.log_jacobian(v), density.log_jacobian(v), rtol=1e-9, atol=1e-12)
    found = density.evaluate(v, False)[:2]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(other.evaluate(v, False)[:2], found, rtol=1e-9)


def test_a_recorded_call_that_would_be_asked_something_else_is_refused():
    @fk.program
    async def asks():
        x = await fk.sample("x", D.Normal(0.0, 1.0))
        y = await fk.call("c", math.exp, x)
        await fk.factor("f", -y)

    model = asks()
    (density,) = model.unconstrained(draw(model, 2), None)
    assert np.isfinite(density.evaluate(density.position, False).log_potential).all()
    with pytest.raises(Unsupported, match="'c'"):
        density.evaluate(density.position + 0.1, False)


class Words:
    """A kernel of texts, at a temperature."""

    batch_key = "words"

    def __init__(self, temperature):
        self.temperature = temperature

    @property
    def fingerprint(self):
        return ("words", self.temperature)

    def sample_batch(self, requests, keys):
        return Draws(["yes"] * len(requests), self.log_prob_batch(requests, None))

    def log_prob_batch(self, requests, values):
        return np.array([-1.0 / (1.0 + request.temperature**2) for request in requests])


@fk.program
async def spoken(warm):
    x = await fk.sample("x", D.Normal(0.0, 1.0))
    text = await fk.sample("text", Words(x if warm else 0.5))
    await fk.observe("said", Words(0.25), "no")
    await fk.observe("y", D.Normal(x * len(text), 1.0), 2.0)
    return text


def test_texts_stay_and_gradients_are_had_where_they_do_not_depend_on_numbers():
    (density,) = check(spoken(False), 3)
    assert density.stays == ("text",)
    assert density.sites == ("x",)
    model = spoken(True)
    paths = draw(model, 3)
    (density,) = model.unconstrained(paths, None)
    v = density.position + 0.5
    for i, choices in enumerate(density.choices(v)):
        log_p, log_g = replayed(model, choices)
        found = density.evaluate(v, False)
        np.testing.assert_allclose((found.log_prior[i], found.log_potential[i]), (log_p, log_g), rtol=1e-12)
    with pytest.raises(NotDifferentiable, match=r"'text'.*depends on numbers"):
        density.evaluate(v, True)


def test_two_modes_and_what_is_nan_is_no_place_to_go():
    @fk.program
    async def modes():
        z = await fk.sample("z", D.Normal(np.zeros(2), 1.0))
        near = [((z - jnp.array(at)) ** 2).sum() / 0.2 for at in ((2.0, 2.0), (-2.0, -1.0))]
        both = jnp.logaddexp(math.log(0.3) - near[0], math.log(0.7) - near[1])
        await fk.factor("G", both - math.log(2 * math.pi * 0.1))
        await fk.factor("never", jnp.where(z[0] < 4.9, 0.0, jnp.sqrt(-1.0 + 0 * z[0])))

    grid = np.linspace(-5.0, 5.0, 101)
    u = np.stack([axis.ravel() for axis in np.meshgrid(grid, grid)], axis=1)
    model = modes()
    (density,) = model.unconstrained(draw(model, 1) * len(u), None)
    log_prior, log_potential = density.evaluate(u, False)[:2]
    assert (log_potential[u[:, 0] >= 4.9] == -np.inf).all()
    weight = np.exp(log_prior + log_potential)
    assert math.log(weight.sum() * 0.01) == pytest.approx(-4.458591485, abs=1e-6)
    assert weight[u.sum(1) > 0].sum() / weight.sum() == pytest.approx(0.098772880, abs=1e-6)
    assert (weight @ u) / weight.sum() == pytest.approx([-1.459008, -0.639710], abs=1e-5)


def test_the_potential_of_a_run_within_the_program_is_an_estimate():
    @fk.program
    async def within():
        x = await fk.sample("x", D.Exponential(1.0))
        run = await fk.nested("run", g1(), fk.SMC(2))
        await fk.factor("Z", x * run.log_evidence)

    assert callable(fk.infer)  # which brings what serves runs within programs
    model = within()
    (density,) = model.unconstrained(draw(model, 2), None)
    assert density.estimated == "run"
    assert [site.name for step in density.choices(density.position)[0] for site in step] == ["x", "Z"]

"""Objectives and gradient estimators of guides: the numbers of small toys, by z-scores of many gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest

import feynkac as fk
from laws import z_score

pytest.importorskip("jax")

import jax
import jax.numpy as jnp

from feynkac.inference.variational.gradients import estimators as ways
from feynkac.inference.variational.gradients import problem as problems
from feynkac.inference.variational.spaces import Spaces
from feynkac.ppl.traced.driver import trace
from feynkac.ppl.transforms.params import Parameters

dist = fk.dist
MANY = 100_000
# Each comparison at |z| < 4.265: a right estimator fails it with probability 2e-5; there are 30 of them, so 6e-4.
LIMIT = 4.265


def gradients(objective, model, guide, n, estimators=None, at=None, seed=0):
    """The objective and its gradient by parameter, of n keys each; parameters are those that the guide declares."""
    with jax.enable_x64(True):
        problem = objective.problem(model, guide, estimators or {})
        spaces = Spaces(problem.declared, at or {})
        slope = jax.value_and_grad(lambda params, key: objective.loss(problem, params, key), has_aux=True)

        @jax.jit
        @jax.vmap
        def draw(key):
            (_, loss), by = slope(spaces.values(spaces.start), key)
            return -loss, {name: -x for name, x in by.items()}

        value, by = draw(jax.random.split(jax.random.key(seed), n))
        return np.asarray(value), {name: np.asarray(x) for name, x in by.items()}


# -- one discrete latent ----------------------------------------------------------------------------------------


@fk.program
async def seen(y=1):
    z = await fk.sample("z", dist.Bernoulli(0.3))
    await fk.observe("y", dist.Bernoulli(jnp.where(z == 1, 0.9, 0.2)), y)


@fk.program
async def logit(y=1):
    phi, psi = fk.param("phi", 0.5), fk.param("psi", 0.5)
    await fk.sample("z", dist.Bernoulli(jax.nn.sigmoid(jnp.where(y == 1, phi, psi))))


LOG_Z, ELBO, SLOPE = -0.891598, -0.894446987, 0.036843773


def test_enumeration_is_exact():
    value, by = gradients(fk.ELBO(1), seen(), logit(), 2)
    assert value == pytest.approx([ELBO] * 2, abs=1e-9)
    assert by["phi"] == pytest.approx([SLOPE] * 2, abs=1e-9)
    s = 1 / (1 + math.exp(-0.5))
    assert pytest.approx(s * (1 - s) * (math.log(0.27 / 0.14) - 0.5), abs=1e-8) == SLOPE


@pytest.mark.slow
def test_the_score_has_the_variances_of_its_baselines():
    value, by = gradients(fk.ELBO(1), seen(), logit(), MANY, {"z": "score"})
    plain = by["phi"].reshape(-1, 4).mean(1)
    _, many = gradients(fk.ELBO(4), seen(), logit(), MANY, {"z": "score"})
    assert abs(z_score(value, ELBO)) < LIMIT
    for found, variance in ((by["phi"], 0.204500), (plain, 0.051125), (many["phi"], 0.000312868)):
        assert abs(z_score(found, SLOPE)) < LIMIT
        assert found.var() == pytest.approx(variance, rel=0.04)


@pytest.mark.parametrize("how", ["enum", "score"])
def test_iwae_of_two(how):
    value, by = gradients(fk.IWAE(2), seen(), logit(), MANY, {"z": how})
    assert abs(z_score(value, -0.893004376)) < LIMIT
    assert abs(z_score(by["phi"], 0.018106206)) < LIMIT


def test_iwae_of_one_is_the_elbo():
    value, by = gradients(fk.IWAE(1), seen(), logit(), 1)
    assert by["phi"] == pytest.approx([SLOPE], abs=1e-9)
    points = [math.log(0.27 / 0.622459331), math.log(0.14 / 0.377540669)]
    assert min(abs(value[0] - point) for point in points) < 1e-6


@pytest.mark.parametrize(
    ("k", "slope"),
    [
        (1, 0.0),
        (2, 0.018384),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((4, 0.027334), (8, 0.031733))),
    ],
)
def test_the_wake_phase_is_biased_by_its_draws(k, slope):
    _, by = gradients(fk.QWake(k), seen(), logit(), MANY // 5)
    assert abs(z_score(by["phi"], slope)) < LIMIT
    assert abs(slope - 0.036077) < 0.04 / k


def test_forward_kl_sees_what_was_simulated():
    """Data y = 1 have probability Z, and pull at their own parameter alone."""
    _, by = gradients(fk.ForwardKL({"y": "y"}, 2), seen(), logit(), MANY)
    assert abs(z_score(by["phi"] / math.exp(LOG_Z), 0.036077254)) < LIMIT
    p0 = 1 - math.exp(LOG_Z)
    assert abs(z_score(by["psi"] / p0, 0.03 / p0 - 0.622459331)) < LIMIT


@pytest.mark.parametrize(("rates", "bound"), [((0.5, 0.5), -0.985338), ((0.25, 2 / 3), -0.899034)])
def test_auxiliary_draws_cost_what_their_reverse_misses(rates, bound):
    @fk.program
    async def mixed():
        a = await fk.sample("a", dist.Bernoulli(0.5))
        await fk.sample("z", dist.Bernoulli(jnp.where(a == 1, 0.8, fk.param("p", 0.4))))

    @fk.program
    async def reverse(latents):
        await fk.sample("a", dist.Bernoulli(jnp.where(latents["z"] == 1, fk.param("r", rates[1]), rates[0])))

    value, by = gradients(fk.HVI(reverse, 1), seen(), mixed(), 1)
    assert value == pytest.approx([bound], abs=2e-6)
    assert set(by) == {"p", "r"}
    if rates[0] != 0.5:  # where the reverse is exact, nothing pulls at it, and the bound is the marginal ELBO
        assert by["r"] == pytest.approx([0.0], abs=1e-9)
        assert bound == pytest.approx(0.6 * math.log(0.27 / 0.6) + 0.4 * math.log(0.14 / 0.4), abs=1e-6)


# -- normal laws ------------------------------------------------------------------------------------------------


@fk.program
async def normal_mean():
    z = await fk.sample("z", dist.Normal(0.0, 1.0))
    await fk.observe("y", dist.Normal(z, 0.5), 1.5)


@fk.program
async def normal():
    await fk.sample("z", dist.Normal(fk.param("loc", 0.5), fk.param("scale", 0.6)))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["reparam", "score", "mvd"])
def test_each_estimator_has_the_gradient_of_a_normal_mean(how):
    value, by = gradients(fk.ELBO(2), normal_mean(), normal(), MANY, {"z": how})
    assert abs(z_score(value, -3.261616976)) < LIMIT
    assert abs(z_score(by["loc"], 3.5)) < LIMIT
    assert abs(z_score(by["scale"], -4 / 3)) < LIMIT


def _cubes(n):
    """The measure-valued gradient of E z³ at N(.7, .5²), by n draws."""
    guide = normal()
    with jax.enable_x64(True):
        problem = problems.Problem(guide, guide, {"z": "mvd"})

        def slope(params, key):
            def cube(mode):
                drawn = ways.Drawn(key, problem.ways, mode=mode)
                trace(guide.with_handler(Parameters(params)), drawn)
                return drawn.records[0].value ** 3, drawn.moments

            moved, _ = jax.vmap(cube)(1 + jnp.arange(problem.ways.modes))
            return ways.slopes(problem.ways, cube(0)[1], moved)

        keys = jax.random.split(jax.random.key(0), n)
        by = jax.jit(jax.vmap(jax.grad(slope), (None, 0)))({"loc": 0.7, "scale": 0.5}, keys)
        return {name: np.asarray(x) for name, x in by.items()}


def test_measure_valued_gradients_of_a_cube():
    by = _cubes(MANY)
    assert abs(z_score(by["loc"], 2.22)) < LIMIT
    assert abs(z_score(by["scale"], 2.10)) < LIMIT


BROKEN = {
    "reparam": (ways, "checkpoint_name", lambda x, name: jax.lax.stop_gradient(x)),
    "score": (problems, "new", lambda x: jnp.zeros_like(x)),
    "mvd": (problems, "slopes", lambda plan, moments, f: ways.slopes(plan, moments, f[::-1])),
}


@pytest.mark.parametrize("how", ["score", *(pytest.param(how, marks=pytest.mark.slow) for how in ("reparam", "mvd"))])
def test_broken_estimators_are_found(how, monkeypatch):
    monkeypatch.setattr(*BROKEN[how])
    _, by = gradients(fk.ELBO(2), normal_mean(), normal(), 20_000, {"z": how})
    assert abs(z_score(by["loc"], 3.5)) > 20


# -- several sites, loops ---------------------------------------------------------------------------------------


@fk.program
async def three():
    u = await fk.sample("u", dist.Normal(0.0, 1.0))
    k = await fk.sample("k", dist.Bernoulli(jax.nn.sigmoid(2.0 * u - 0.5)))
    v = await fk.sample("v", dist.Normal(jnp.where(k == 1, u, -1.0), jnp.ones(2)))
    await fk.observe("y", dist.Normal(v.sum(), 0.7), 1.3)


@fk.program
async def three_too():
    u = await fk.sample("u", dist.Normal(fk.param("m", 0.3), 0.8))
    k = await fk.sample("k", dist.Bernoulli(jax.nn.sigmoid(fk.param("w", 0.4) * u)))
    await fk.sample("v", dist.Normal(fk.param("c", 0.9) * k + 0.2 * u, fk.param("s", jnp.array([0.6, 1.1]))))


def _three_by_quadrature(p):
    """The ELBO of the two: u by Gauss and Hermite's rule, k by enumeration, v exactly."""
    x, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    u = p["m"] + 0.8 * x
    total = 0.0
    for k in (0, 1):
        q1 = 1 / (1 + np.exp(-p["w"] * u))
        p1 = 1 / (1 + np.exp(-(2 * u - 0.5)))
        q, prior = (q1, p1) if k else (1 - q1, 1 - p1)
        mean, center = p["c"] * k + 0.2 * u, u if k else np.full_like(u, -1.0)
        inner = 0.0
        for s in p["s"]:
            inner = inner - 0.5 * (s**2 + (mean - center) ** 2) + 0.5 + np.log(s)
        spread = (p["s"] ** 2).sum()
        inner = inner - 0.5 * ((1.3 - 2 * mean) ** 2 + spread) / 0.49 - 0.5 * math.log(2 * math.pi * 0.49)
        inner = inner + np.log(prior) - np.log(q) - 0.5 * u**2 + 0.5 * x**2 + math.log(0.8)
        total += (weights * q * inner).sum()
    return total


def _slopes(f, p, step=1e-5):
    found = {}
    for name, value in p.items():
        found[name] = np.zeros(np.shape(value))
        for at in np.ndindex(np.shape(value)):
            up, down = ({**p, name: np.array(value, float)} for _ in range(2))
            up[name][at] += step
            down[name][at] -= step
            found[name][at] = (f(up) - f(down)) / (2 * step)
    return found


START = {"m": 0.3, "w": 0.4, "c": 0.9, "s": np.array([0.6, 1.1])}


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"u": "mvd", "k": "score", "v": "mvd"},
        {"u": "score", "k": "enum", "v": "mvd"},
        {"u": "mvd", "k": "enum", "v": "score"},
        {"u": "reparam", "k": "score", "v": "reparam"},
    ],
)
def test_estimators_go_together(chosen):
    truth = _slopes(_three_by_quadrature, START)
    value, by = gradients(fk.ELBO(2), three(), three_too(), 40_000, chosen)
    assert abs(z_score(value, _three_by_quadrature(START))) < LIMIT
    for name, slope in truth.items():
        for at in np.ndindex(slope.shape):
            assert abs(z_score(by[name][:, *at], slope[at])) < LIMIT, (name, at)


@pytest.mark.slow
def test_estimators_of_iwae_agree():
    """Of three draws, by paths and all values, or by scores and measures: the same bound."""
    found = [
        gradients(fk.IWAE(3), three(), three_too(), 30_000, chosen, seed=seed)[1]
        for seed, chosen in enumerate(({}, {"u": "mvd", "k": "score", "v": "score"}))
    ]
    for name in START:
        one, two = (by[name].reshape(30_000, -1) for by in found)
        for x, y in zip(one.T, two.T):
            assert abs(z_score(x - y, 0.0)) < LIMIT, name


async def _hop(x, y):
    x = await fk.sample("x", dist.Bernoulli(jnp.where(x == 1, 0.7, 0.3)))
    await fk.observe("y", dist.Bernoulli(jnp.where(x == 1, 0.7, 0.2)), y)
    return x, x


@fk.program
async def hops(data):
    await fk.scan(_hop, 0, data)


async def _guess(x, logit):
    x = await fk.sample("x", dist.Bernoulli(jax.nn.sigmoid(logit + 0.5 * x)))
    return x, x


@fk.program
async def guesses(n):
    await fk.scan(_guess, 0, fk.param("logits", np.linspace(-0.5, 0.7, n)))


@fk.program
async def unrolled(n):
    x, logits = 0, fk.param("logits", np.linspace(-0.5, 0.7, n))
    for t in range(n):
        x = await fk.sample("x", dist.Bernoulli(jax.nn.sigmoid(logits[t] + 0.5 * x)))


def test_values_are_enumerated_in_loops_and_matched_by_address():
    data = [0, 1, 1]

    def bound(p):
        total = 0.0
        for path in np.ndindex(2, 2, 2):
            log_q = log_p = 0.0
            for t, (before, x) in enumerate(zip((0, *path), path)):
                q, prior, rate = 1 / (1 + np.exp(-p["logits"][t] - 0.5 * before)), (0.3, 0.7)[before], (0.2, 0.7)[x]
                log_q += np.log(q if x else 1 - q)
                log_p += np.log(prior if x else 1 - prior) + np.log(rate if data[t] else 1 - rate)
            total += np.exp(log_q) * (log_p - log_q)
        return total

    start = {"logits": np.linspace(-0.5, 0.7, 3)}
    for guide in (guesses(3), unrolled(3)):
        value, by = gradients(fk.ELBO(1), hops(data), guide, 1)
        assert value == pytest.approx([bound(start)], abs=1e-9)
        assert by["logits"][0] == pytest.approx(_slopes(bound, start)["logits"], abs=1e-7)


async def _drift(x, y):
    x = await fk.sample("x", dist.Normal(0.9 * x, 1.0))
    await fk.observe("y", dist.Normal(x, 1.0), y)
    return x, x


@fk.program
async def drifts(data):
    await fk.scan(_drift, 0.3, data)


async def _place(_, at):
    await fk.sample("x", dist.Normal(at[0], at[1]))
    return 0.0, 0.0


@fk.program
async def places(n):
    await fk.scan(_place, 0.0, jnp.stack([fk.param("means", np.zeros(n)), fk.param("scales", np.full(n, 0.8))], 1))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["mvd", "score"])
def test_normal_laws_in_loops(how):
    """A mean field: the gradient in the means is that of the log density there, in the scales its curvature."""
    data = np.array([0.5, -1.0])
    _, by = gradients(fk.ELBO(4), drifts(data), places(2), MANY // 10, {"x": how})
    means = data + np.array([0.9 * 0.3, 0.0])
    curved = np.array([2.81, 2.0])
    for t in range(2):
        assert abs(z_score(by["means"][:, t], means[t])) < LIMIT
        assert abs(z_score(by["scales"][:, t], 1 / 0.8 - 0.8 * curved[t])) < LIMIT

"""Densities of programs of the same code are compiled once: their numbers are handed in, and never mixed up."""

import numpy as np
import pytest
from test_unconstrained import draw

import feynkac as fk
from feynkac.inference.moves.compiled import _warm_up, apart

jax = pytest.importorskip("jax")
jnp = jax.numpy
D = fk.dist


def regression(x, ys, sd, power):
    """Data, a number of the program's own and one around it: in a scan, in an observation, in a factor."""

    @fk.program
    async def line(sd):
        a = await fk.sample("a", D.Normal(0.3, sd))
        b = await fk.sample("b", D.Exponential(1.5))

        async def step(total, y):
            await fk.observe("y", D.Normal(a + power * total, b), y)
            return total + 0.1 * a, ()

        await fk.scan(step, 0.0, ys)
        await fk.factor("f", -power * jnp.logaddexp(a * x.sum(), 0.5) * b)
        return a

    return line(sd)


def by_hand(x, ys, sd, power):
    def density(u):
        a, b = u[0], jnp.exp(u[1])
        prior = -0.5 * ((a - 0.3) / sd) ** 2 - jnp.log(sd) - 0.5 * jnp.log(2 * jnp.pi) + jnp.log(1.5) - 1.5 * b + u[1]
        gap = (jnp.asarray(ys) - a - power * 0.1 * a * jnp.arange(len(ys))) / b
        seen = (-0.5 * gap**2 - jnp.log(b) - 0.5 * jnp.log(2 * jnp.pi)).sum()
        return prior, seen - power * jnp.logaddexp(a * x.sum(), 0.5) * b

    return density


def density_of(model):
    (density,) = model.unconstrained(draw(model, 2), None)
    return density


CASES = (
    (np.array([1.0, 0.5]), [0.4, -1.0, 2.0], 1.3, 0.7),
    (np.array([-2.0, 0.1]), [1.1, 0.2, -0.3], 1.3, 0.7),
    (np.array([1.0, 0.5]), [0.4, -1.0, 2.0], 0.4, 0.7),
    (np.array([1.0, 0.5]), [0.4, -1.0, 2.0], 1.3, -0.2),
)


@pytest.mark.slow
def test_programs_of_the_same_equations_share_what_is_compiled_and_keep_their_numbers():
    u = np.array([[0.2, -0.3], [-1.1, 0.4]])
    densities = [density_of(regression(*case)) for case in CASES]
    runs = []
    for case, density in [*zip(CASES, densities)] * 2:  # each once more, when all others have been there
        found = density.evaluate(u, True)
        with jax.enable_x64(True):
            for i, row in enumerate(jnp.asarray(u)):
                prior, grad_prior = jax.value_and_grad(lambda u: by_hand(*case)(u)[0])(row)  # noqa: B023
                potential, grad_potential = jax.value_and_grad(lambda u: by_hand(*case)(u)[1])(row)  # noqa: B023
                whole = (prior, potential, grad_prior, grad_potential)
                for mine, theirs in zip((part[i] for part in found), whole):
                    np.testing.assert_allclose(mine, theirs, rtol=1e-11)
        runs.append(apart(density)[0].equations.runs)
    assert len(set(runs)) == 1
    assert len({apart(density)[0] for density in densities}) == 1


def test_other_shapes_are_other_equations():
    short = density_of(regression(np.array([1.0, 0.5]), [0.4, -1.0], 1.3, 0.7))
    long = density_of(regression(*CASES[0]))
    assert apart(short)[0] is not apart(long)[0]


@pytest.mark.slow
def test_chains_of_other_data_compile_nothing():
    kernel = fk.MCMC(fk.NUTS(doublings=3), draws=10, warmup=10, chains=1)
    seen = []
    for case in CASES[:3]:
        fk.infer(regression(*case), kernel, seed=1)
        seen.append((apart(density_of(regression(*case)))[0].equations.runs, _warm_up.cache_info().misses))
    assert len(set(seen)) == 1


def squared(scale, rule):
    """A program through a function with a derivative of its own, which closes over a number."""

    @jax.custom_jvp
    def square(x):
        return x * x

    square.defjvp(lambda values, tangents: (values[0] ** 2, rule * 2 * values[0] * tangents[0]))

    @fk.program
    async def model():
        x = await fk.sample("x", D.Normal(0.0, 1.0))
        await fk.factor("f", -scale * square(x))

    return model()


@pytest.mark.parametrize("rule", [1.0, 3.0, jnp.array([2.0])[0]])
def test_derivatives_of_ones_own_are_told_apart(rule):
    for scale in (0.5, 2.0):
        u = np.array([[0.7], [-0.4]])
        found = density_of(squared(scale, rule)).evaluate(u, True)
        np.testing.assert_allclose(found.log_potential, -scale * u[:, 0] ** 2, rtol=1e-12)
        np.testing.assert_allclose(found.grad_potential, -scale * float(rule) * 2 * u, rtol=1e-12)


def test_functions_of_python_within_are_told_apart():
    number = jax.ShapeDtypeStruct((), np.float32)

    def called(by):
        def add(x):
            return np.float32(x) + np.float32(by)

        @fk.program
        async def model():
            x = await fk.sample("x", D.Normal(0.0, 1.0))
            await fk.factor("f", jax.pure_callback(add, number, x, vmap_method="sequential"))

        return density_of(model())

    u = np.array([[0.7], [-0.4]])
    for by in (0.5, 2.0):
        np.testing.assert_allclose(called(by).evaluate(u, False).log_potential, u[:, 0] + by, rtol=1e-6)

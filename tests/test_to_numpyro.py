"""Programs as NumPyro models: the same densities under the same addresses, and what NumPyro's inference finds."""

from __future__ import annotations

import numpy as np
import pytest

import feynkac as fk
from laws import Z_LIMIT

jax = pytest.importorskip("jax")
numpyro = pytest.importorskip("numpyro")
stats = pytest.importorskip("scipy.stats")

import jax.numpy as jnp  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from numpyro import handlers, infer  # noqa: E402
from numpyro.diagnostics import effective_sample_size  # noqa: E402
from numpyro.infer.util import log_density  # noqa: E402

Y = np.array([0.4, -1.1, 2.3])


@pytest.fixture(autouse=True, scope="module")
def quick_compiler():
    """What is compiled here runs a few times."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@fk.program
async def plain(y):
    """Laws of three libraries, a factor, an array, observations of several shapes, and what is recorded."""
    z = await fk.sample("z", fk.dist.Normal(0.3, 2.0))
    rate = await fk.sample("rate", stats.expon(scale=0.5))
    w = await fk.sample("w", dist.Dirichlet(jnp.array([1.5, 2.0, 0.7])))
    with fk.handlers.scope(prefix="inner"):
        z2 = await fk.sample("z", dist.HalfNormal(1.3))
    await fk.observe("y", fk.dist.Normal(z, 0.8), y)
    await fk.observe("counts", dist.Poisson(rate).expand([2]), np.array([3, 1]))
    await fk.observe("on", fk.dist.Bernoulli(0.3), 1)
    await fk.factor("soft", -0.5 * (z + w[0] * z2) ** 2)
    fk.deterministic("both", z + z2)
    fk.deterministic("label", "a text")
    fixed = await fk.sample("fixed", fk.dist.Delta(2.5))
    await fk.twist("guide", z)
    return z * fixed


@fk.program
async def loops(y):
    """Scans, one within another, after a visit of the same name, and branches."""
    x = await fk.sample("x", fk.dist.Normal(0.5, 1.0))
    sigma = await fk.sample("sigma", fk.dist.Exponential(1.5))

    async def inner(total, k):
        e = await fk.sample("e", fk.dist.Normal(total, 0.5))
        return total + 0.1 * e, e

    async def step(x, y):
        x = await fk.sample("x", fk.dist.Normal(0.9 * x, sigma))
        total, _ = await fk.scan(inner, x, np.array([1.0, 2.0]))
        await fk.observe("y", fk.dist.Normal(total, 0.5), y)
        return x, x

    async def branch(mean):
        return await fk.sample("b", fk.dist.Normal(mean, 1.0))

    last, _ = await fk.scan(step, x, y)
    first, second = await fk.gather(branch(0.0), branch(1.0))
    await fk.factor("pair", -abs(last + first - second))
    return last


@fk.program
async def under_handlers(y):
    with fk.handlers.scale(scale=0.6):
        z = await fk.sample("z", fk.dist.Normal(0.3, 2.0))
        await fk.observe("a", fk.dist.Normal(z, 1.0), 0.7)
    with fk.handlers.mask(mask=np.array([True, False, True])):
        await fk.observe("y", fk.dist.Normal(z, 0.8), y)
    with fk.handlers.mask(mask=False):
        await fk.factor("off", z)
        await fk.observe("unseen", fk.dist.Normal(z, 0.8), 3.0)
    return z


def visits(given):
    """Values by the addresses of a program, of those that NumPyro stacks."""
    out = {}
    for name, value in given.items():
        if name == "e":  # of a scan that is unrolled in one
            out |= {"e" if t == 0 else f"e[{2 * t}]": x for t, x in enumerate(value)}
        elif name == "e[1]":
            out |= {f"e[{2 * t + 1}]": x for t, x in enumerate(value)}
        elif name == "x[1]":
            out |= {f"x[{t + 1}]": x for t, x in enumerate(value)}
        else:
            out[name] = value
    return out


CONDITIONED = fk.handlers.condition(fk.handlers.substitute(plain(Y), data={"rate": 0.9}), data={"z": 0.2})
PROGRAMS = {"plain": plain(Y), "loops": loops(Y), "handlers": under_handlers(Y), "conditioned": CONDITIONED}


@pytest.mark.parametrize("name", ["plain", "loops", "handlers", pytest.param("conditioned", marks=pytest.mark.slow)])
def test_the_density_is_the_programs(name):
    """Of draws by NumPyro: log p·G as the program scores them, both in float64."""
    program = PROGRAMS[name]
    model = fk.to_numpyro(program)

    def one(key):
        sites = handlers.trace(handlers.seed(model, key)).get_trace()
        drawn = {k: v["value"] for k, v in sites.items() if v["type"] == "sample" and not v["is_observed"]}
        recorded = {k: v["value"] for k, v in sites.items() if v["type"] == "deterministic"}
        return drawn, recorded, log_density(handlers.seed(model, 0), (), {}, drawn)[0]

    with jax.enable_x64(True):
        drawn, recorded, found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 3))
        for i in range(3):
            given = visits({k: np.asarray(v[i]) for k, v in drawn.items()})
            run = fk.simulate(program, seed=0, given={k: v if v.ndim else v.item() for k, v in given.items()})
            weight = run.log_weight
            if name == "handlers":  # a latent under a scale weighs what its law has not
                weight -= (0.6 - 1) / 0.6 * run.trace["z"].log_prob
            assert found[i] == pytest.approx(run.log_prob + weight, abs=1e-9)
            for address, values in recorded.items():
                np.testing.assert_allclose(values[i], run.trace[address].value, atol=1e-12)


def sites_of(program):
    """The sites of NumPyro's trace, by symbols alone."""
    found = {}

    def run():
        with handlers.seed(rng_seed=0), handlers.trace() as sites:
            fk.to_numpyro(program)()
        found.update({name: (jnp.shape(site["value"]), site.get("is_observed")) for name, site in sites.items()})

    jax.eval_shape(run)
    return found


def test_sites_have_the_addresses_of_the_program():
    assert sites_of(plain(Y)) == {
        "z": ((), False), "rate": ((), False), "w": ((3,), False), "inner/z": ((), False), "y": ((3,), True),
        "counts": ((2,), True), "on": ((), True), "soft": ((0,), True), "both": ((), None), "fixed": ((), None),
    }  # fmt: skip
    assert {name: shape for name, (shape, _) in sites_of(loops(Y)).items()} == {
        "x": (), "sigma": (), "x[1]": (3,), "e": (3,), "e[1]": (3,), "y": (3,), "gather.0/b": (), "gather.1/b": (),
        "pair": (0,),
    }  # fmt: skip


@fk.program
async def both_toys(y, count):
    """G1 and G2: the posterior of z is N(1.2, .2), that of the rate Gamma(4, 2)."""
    z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
    rate = await fk.sample("rate", fk.dist.Exponential(1.0))
    await fk.observe("y", fk.dist.Normal(z, 0.5), y)
    await fk.observe("count", dist.Poisson(rate), count)


@pytest.mark.slow
def test_numpyros_nuts_finds_the_posterior():
    """Means of z, z², rate, rate² by their ESS: 4 × |z| < 4.26, a false alarm with probability 4 × 2.0e-5 = 8e-5."""
    chain = infer.MCMC(infer.NUTS(fk.to_numpyro(both_toys)), num_warmup=300, num_samples=4000, progress_bar=False)
    chain.run(jax.random.key(0), 1.5, 3)
    drawn = chain.get_samples()
    for site, first, second in (("z", 1.2, 1.2**2 + 0.2), ("rate", 2.0, 5.0)):
        for power, exact in ((1, first), (2, second)):
            x = np.asarray(drawn[site], float) ** power
            error = x.std() / np.sqrt(effective_sample_size(x[None]))
            assert abs(x.mean() - exact) / error < Z_LIMIT


def test_numpyros_svi_fits_the_parameters_of_a_guide():
    @fk.program
    async def model():
        z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
        await fk.observe("y", fk.dist.Normal(z, 0.5), 1.5)

    @fk.program
    async def guide():
        await fk.sample("z", fk.dist.Normal(fk.param("loc", 0.0), fk.param("scale", 1.0, "positive")))

    svi = infer.SVI(
        fk.to_numpyro(model()), fk.to_numpyro(guide()), numpyro.optim.Adam(0.05), infer.Trace_ELBO(num_particles=20)
    )
    found = svi.run(jax.random.key(0), 400, progress_bar=False).params
    assert float(found["loc"]) == pytest.approx(1.2, abs=0.1)
    assert float(found["scale"]) == pytest.approx(0.2**0.5, abs=0.06)


def test_numpyros_predictive_draws_from_it():
    drawn = infer.Predictive(fk.to_numpyro(loops(Y)), num_samples=4)(jax.random.key(0))
    assert drawn["x[1]"].shape == (4, 3)
    assert len(np.unique(drawn["x"])) == 4


def test_there_and_back():
    """A NumPyro model, made a program's and again one of feynkac, has the evidence of the program."""
    made = fk.from_numpyro(fk.to_numpyro(both_toys(1.5, 3)))
    posterior = fk.infer(made, fk.ImportanceSampling(4000), seed=0)
    assert posterior.log_evidence == pytest.approx(-1.930510309 + np.log(1 / 16), abs=0.1)


# -- refusals ---------------------------------------------------------------------------------------------------


@fk.program
async def calls():
    await fk.sample("x", fk.dist.Normal(0.0, 1.0))
    await fk.call("tool", len, [1, 2])


@fk.program
async def items():
    await fk.sample("word", fk.dist.Categorical([0.5, 0.5], values=["a", "b"]))


@fk.program
async def text():
    await fk.sample("text", fk.dist.Delta("a text"))


@fk.program
async def branching():
    x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
    return 1.0 if x > 0 else 2.0


@fk.program
async def scanned_parameter():
    async def step(x, _):
        return await fk.sample("x", fk.dist.Normal(fk.param("drift", 0.0), 1.0)), None

    await fk.scan(step, 0.0, range(3))


class Odd:
    """A kernel of somebody's own."""

    batch_key = fingerprint = "odd"

    def sample_batch(self, requests, keys):
        raise NotImplementedError


@fk.program
async def own():
    await fk.sample("odd", Odd())


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (calls, "'tool'"),
        (items, "'word'.*places"),
        (text, "'text'.*no number"),
        (branching, "after site 'x'"),
        (scanned_parameter, "'drift'"),
        (own, "'odd'"),
    ],
)
def test_what_numpyro_cannot_hold_is_refused_at_once_by_its_site(program, match):
    with pytest.raises(fk.errors.NotTraceable, match=match):
        fk.to_numpyro(program())


def test_what_is_no_program_is_refused():
    with pytest.raises(TypeError, match=r"f or f\(args\)"):
        fk.to_numpyro(fk.dist.Normal(0.0, 1.0))

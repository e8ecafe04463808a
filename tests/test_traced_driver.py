"""Programs run once on symbols of JAX: the same sites, addresses and weights as interpreted, or an error by name."""

import functools
import math

import numpy as np
import pytest

import feynkac as fk
from feynkac import handlers
from feynkac.ppl.errors import AmbiguousScore, NotTraceable, UnawaitedEffect
from feynkac.ppl.keys import fold, root

jax = pytest.importorskip("jax")
nd = pytest.importorskip("numpyro.distributions")
from feynkac.ppl.traced.driver import trace  # noqa: E402
from feynkac.ppl.traced.fiber import Stop  # noqa: E402
from feynkac.ppl.traced.laws import jax_key, law_of, words  # noqa: E402
from feynkac.ppl.traced.listeners import Record, Weigher, expand  # noqa: E402
from feynkac.ppl.traced.met import Listener  # noqa: E402

jnp = jax.numpy
D = fk.dist


@functools.cache
def traced(model, seed=3):
    """Run a program under jit, and return its value, the guide's level, the sums and the sites."""
    return run_traced(model, seed, None)


def run_traced(model, seed, given):
    spots = []

    def run(pair):
        listener = Weigher(jax_key(pair), given)
        out = trace(model, listener)
        spots[:] = [record.spot for record in listener.records]
        columns = [(record.value, record.log_prob, record.log_proposal) for record in listener.records]
        sums = listener.log_prob, listener.log_proposal, listener.log_potential
        return out.value, out.level, sums, columns

    with jax.enable_x64(True):
        value, level, sums, columns = jax.jit(run)(words(root(seed))[0])
    return value, level, [float(x) for x in sums], expand([Record(s, *c) for s, c in zip(spots, columns)])


def same(model, given=None):
    """Check that a traced run and the interpreted one of the same values have the same sites and weights."""
    found = traced(model) if given is None else run_traced(model, 3, given)
    value, _, (log_prob, log_proposal, log_potential), sites = found
    forced = {site.address: site.value for _, site in sites if site.kind == "sample"}
    run = fk.simulate(model, seed=0, given=forced)
    assert {s.address for s in run.sites} == {s.address for _, s in sites}
    for _, site in sites:
        other = next(s for s in run.sites if (s.address, s.kind) == (site.address, site.kind))
        assert (other.name, other.visit, other.hidden) == (site.name, site.visit, site.hidden)
        np.testing.assert_allclose(np.asarray(site.value), np.asarray(other.value), rtol=1e-12, atol=1e-12)
        assert site.log_prob == pytest.approx(other.log_prob, abs=1e-12, rel=1e-12)
        assert site.log_proposal == pytest.approx(other.log_proposal, abs=1e-12, rel=1e-12)
    assert log_prob == pytest.approx(run.log_prob, abs=1e-11)
    assert log_potential + log_prob - log_proposal == pytest.approx(run.log_weight, abs=1e-11)
    return value, sites


@fk.program
async def series(ys, weight=1.0):
    async def step(x, y):
        x = await fk.sample("x", D.Normal(0.9 * x, 1.0), proposal=D.Normal(0.5 * x, 2.0))
        a, _ = await fk.gather(
            fk.sample("side", D.Exponential(2.0)), fk.observe("y", D.Normal(x, np.ones(2)), y), name="both"
        )
        await fk.factor("f", -0.1 * a)
        return x, (a, x)

    x = await fk.sample("x", D.Normal(0.0, 2.0))
    await fk.observe("y", D.Normal(x, np.ones(2)), np.array([0.3, -0.2]))
    last, pairs = await fk.scan(step, x, ys)
    again = await fk.sample("x", D.Normal(last, 0.1))
    fk.deterministic("sum", weight * again)
    return pairs[-1][1] + again


YS = np.array([[0.5, 1.0], [-1.0, 0.2], [2.0, 0.1]])


SERIES = series(YS)


def test_a_scan_has_the_addresses_and_weights_of_the_interpreted_program():
    _, sites = same(SERIES)
    names = [site.address for _, site in sites]
    assert {"x[3]", "x[4]", "both[2].0/side", "both.1/y", "y", "f[2]", "sum"} <= set(names)
    assert [step for step, site in sites if site.name == "x"] == [0, 1, 3, 5, 7]  # gather and factor: two steps each


def test_steps_are_those_of_the_interpreted_program():
    model = SERIES
    *_, sites = traced(model)
    step, number = model.start(root(0), [given_in(sites, 0)]), 0
    while not step.done[0]:
        number += 1
        step = model.advance(step.state, fold(root(0), number), [given_in(sites, number)])
        assert {s.address for s in step.choices[0]} == {s.address for k, s in sites if k == number}
    assert number == 7


def given_in(sites, number):
    return {site.address: site.value for step, site in sites if step == number and site.kind == "sample"}


@fk.program
async def nest():
    async def inner(c, x):
        c = await fk.sample("z", D.Normal(c, 1.0))
        c += await fk.sample("z", D.Normal(x, 1.0))
        return c, c

    async def outer(c, x):
        c, ys = await fk.scan(inner, c, jnp.arange(2.0) + x)
        await fk.factor("f", -(c**2))
        return c, jnp.sum(jnp.asarray(ys))

    total, _ = await fk.scan(outer, 0, [1.0, 2.0, 3.0])  # the carry begins as an integer, and becomes a float
    return total


NEST = nest()


def test_scans_within_scans():
    _, sites = same(NEST)
    assert [site.visit for _, site in sites if site.name == "z"] == list(range(12))


def with_data(model):
    return [
        handlers.condition(model, data={"x": np.array([0.1, 0.2, 0.3])}),
        handlers.condition(model, data={"x": 0.1, "x[1]": 0.2, "x[2]": 0.3}),
        handlers.substitute(model, data={"x": [0.1, 0.2, 0.3]}),
        handlers.do(model, data={"x": [0.1, 0.2, 0.3]}),
        handlers.scope(handlers.block(model, hide=["x"]), prefix="in"),
        handlers.mask(model, mask=False),
        handlers.mask(model, mask=np.array([True, False])),
        handlers.scale(model, scale=2.5),
    ]


@fk.program
async def chain():
    async def step(x, y):
        x = await fk.sample("x", D.Normal(x, 1.0))
        await fk.observe("y", D.Normal(x, np.ones(2)), y)
        return x, x

    return (await fk.scan(step, 0.0, YS))[0]


@pytest.mark.parametrize("model", with_data(chain()), ids=range(8))
def test_handlers_reach_sites_in_scans(model):
    same(model)


def test_handlers_within_the_program():
    @fk.program
    async def inside():
        with handlers.scope(prefix="a"), handlers.condition(data={"x": 0.5}):
            x = await fk.sample("x", D.Normal(0.0, 1.0))
        y = await handlers.scale(chain(), scale=0.5)
        z = await fk.sample("z", D.Uniform(0.0, 2.0))
        return x + y + z

    same(inside())


def test_a_value_for_some_iterations_alone_is_refused():
    with pytest.raises(NotTraceable, match=r"'x'.*some iterations"):
        traced(handlers.condition(chain(), data={"x[1]": 0.2}))


def test_the_level_of_the_guide():
    @fk.program
    async def guided():
        async def step(c, x):
            await fk.twist("t", c + x)
            return c + 1.0, None

        async def add(c, x):
            await fk.gather(fk.twist("u", x))
            return c, None

        await fk.scan(step, 0.0, [1.0, 2.0])
        await fk.scan(add, 0.0, [0.5, 0.25])
        await fk.factor("f", 0.0)

    assert float(traced(guided())[1]) == 3.75
    *_, before = (step for step in fk.steps(guided(), fk.SMC(1), seed=0) if not step.done.all())
    assert before.log_twist[0] == 3.75


def test_draws_have_a_key_of_their_own_by_name_and_visit():
    @fk.program
    async def three():
        a = await fk.sample("a", D.Normal(0.0, 1.0))
        b = await fk.sample("b", D.Normal(0.0, 1.0))
        return a, b, await fk.sample("a", D.Normal(0.0, 1.0))

    values = [float(x) for x in traced(three())[0]]
    assert len(set(values)) == 3
    *_, sites = traced(NEST)
    drawn = [site.value for _, site in sites if site.kind == "sample"]
    assert len(set(drawn)) == 12
    with jax.enable_x64(True):
        key = jax.random.fold_in(jax.random.fold_in(jax_key(words(root(3))[0]), _crc("a")), 1)
        assert values[2] == float(law_of(D.Normal(0.0, 1.0)).draw(key))


def _crc(name):
    import zlib

    return np.uint32(zlib.crc32(name.encode()))


def test_given_values_of_a_scan_come_in_arrays():
    _, sites = same(chain(), given={"x": np.array([0.1, 0.2, 0.3])})
    assert [site.value for _, site in sites if site.name == "x"] == [0.1, 0.2, 0.3]


@fk.program
async def branching():
    x = await fk.sample("x", D.Normal(0.0, 1.0))
    if x > 0:
        return x
    return -x


@fk.program
async def by_math():
    x = await fk.sample("x", D.Normal(0.0, 1.0))
    return math.exp(x)


@fk.program
async def called():
    x = await fk.sample("x", D.Normal(0.0, 1.0))
    return await fk.call("c", math.exp, x)


@fk.program
async def growing():
    async def step(c, x):
        return (*c, x), None

    return await fk.scan(step, (), [1.0, 2.0], name="grow")


@fk.program
async def words_in():
    async def step(c, x):
        return c, None

    return await fk.scan(step, "text", [1.0, 2.0], name="texts")


@fk.program
async def shared():
    c = fk.cell("total", 0.0)
    await c.add(1.0)


class Own:
    batch_key = "own"
    fingerprint = "own"

    def sample_batch(self, requests, keys):
        raise AssertionError("never drawn")


@fk.program
async def own_kernel():
    return await fk.sample("mine", Own())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (branching(), r"'branching', after site 'x'.*boolean"),
        (by_math(), r"'by_math', after site 'x'.*[Cc]oncrete"),
        (called(), r"'c'.*fk.call"),
        (growing(), r"scan 'grow'.*carry"),
        (words_in(), r"scan 'texts'"),
        (shared(), r"cell total"),
        (own_kernel(), r"'mine'.*Own"),
    ],
)
def test_what_cannot_be_traced_is_named(model, message):
    with pytest.raises(NotTraceable, match=f"(?s){message}"):
        traced(model)


def test_other_mistakes_keep_their_names():
    @fk.program
    async def forgotten():
        fk.factor("f", 1.0)

    @fk.program
    async def truth():
        x = await fk.sample("x", D.Normal(0.0, 1.0))
        await fk.factor("f", x > 0)

    with pytest.raises(UnawaitedEffect):
        traced(forgotten())
    with pytest.raises(AmbiguousScore, match=r"where"):
        traced(truth())


def test_a_listener_may_stop():
    class First(Listener):
        def sample(self, site):
            raise Stop

    with pytest.raises(Stop):
        trace(branching(), First())
    assert fk.simulate(branching(), seed=0).value  # nothing of the trace is left behind


def test_laws_are_those_of_the_interpreted_path():
    from scipy import stats

    pairs = [
        (D.Normal(0.3, 1.7), 0.2), (D.Normal(np.zeros(3), 2.0), np.arange(3.0)), (D.Normal(0.0, 1.0), np.arange(4.0)),
        (D.Uniform(-1.0, 2.0), 2.0), (D.Uniform(-1.0, 2.0), 2.1), (D.Exponential(2.0), 0.0), (D.Exponential(2.0), -0.1),
        (D.Bernoulli(0.3), 1), (D.Bernoulli(0.0), 1), (D.Bernoulli(0.3), 2), (D.DiscreteUniform(1, 6), 6),
        (D.DiscreteUniform(1, 6), 7), (D.DiscreteUniform(1, 6), 1.5), (D.Categorical([0.2, 0.3, 0.5]), 2),
        (D.Categorical(logits=[0.2, 0.3, 0.5]), 1), (D.Categorical([0.2, 0.3, 0.5]), 3),
        (D.Categorical([0.2, 0.3, 0.5], values=[4, 6, 4]), 4), (D.Categorical([0.2, 0.8], values="ab"), "a"),
        (D.Categorical([[0.2, 0.8], [0.5, 0.5]]), [1, 0]), (D.Delta(3), 3), (D.Delta("a"), "b"),
        (D.MultivariateNormal([0.0, 1.0], [[2.0, 1.0], [1.0, 2.0]]), np.array([0.3, 0.4])),
        (stats.norm(1.0, 2.0), 0.3), (stats.gamma(2.0, scale=3.0), 1.2), (stats.poisson(2.5), 3),
        (stats.poisson(2.5), 3.5), (stats.beta(2.0, 3.0), 0.4), (stats.lognorm(0.5, scale=2.0), 1.2),
        (stats.t(3.0, 1.0, 2.0), 0.4), (stats.binom(5, 0.3), 2), (stats.uniform(1.0, 2.0), 2.5),
        (stats.weibull_min(1.5, scale=2.0), 0.7), (stats.invgamma(2.0, scale=1.5), 0.7), (stats.expon(scale=2.0), 0.7),
        (stats.multivariate_normal([0.0, 1.0], [[2.0, 1.0], [1.0, 2.0]]), np.array([0.3, 0.4])),
    ]  # fmt: skip
    from feynkac.ppl.distributions.adapters import as_kernel

    with jax.enable_x64(True):
        found = jax.jit(lambda: [law_of(law).log_prob(x) for law, x in pairs])()  # one program, compiled once
        for (law, x), mine in zip(pairs, map(float, found)):
            other = float(as_kernel(law).log_prob(x))
            assert mine == other or abs(mine - other) < 1e-12 * max(1.0, abs(other)), (law, x)
        for odd in (stats.gamma(2.0, loc=1.0), stats.geom(0.3), Own()):
            with pytest.raises(NotTraceable, match="site 'x'"):
                law_of(odd, "site 'x'")


def test_laws_of_torch_with_constants():
    torch = pytest.importorskip("torch")
    from feynkac.ppl.distributions.adapters import as_kernel

    t = torch.distributions
    with jax.enable_x64(True):
        for law, x in [(t.Normal(0.5, 2.0), 0.3), (t.Gamma(2.0, 3.0), 0.3), (t.Bernoulli(0.25), 1),
                       (t.Dirichlet(torch.ones(3) * 2), np.array([0.25, 0.25, 0.5]))]:  # fmt: skip
            assert float(law_of(law).log_prob(x)) == pytest.approx(as_kernel(law).log_prob(x), abs=1e-12)

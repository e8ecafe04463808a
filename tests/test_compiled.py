"""Compiled scans: law, sites and weights of the interpreted program, by arrays and as one program of XLA."""

import contextlib
import functools
import math

import numpy as np
import pytest

import feynkac as fk
from feynkac import handlers
from feynkac.ppl.errors import AllParticlesDead, ImpossibleChoice, InvalidWeight, NotTraceable, UnsupportedProposal

jax = pytest.importorskip("jax")
nd = pytest.importorskip("numpyro.distributions")
from feynkac.ppl.compiled.deciding import prepare  # noqa: E402

jnp = jax.numpy
D = fk.dist
Y = np.array([0.5, -1.0, 2.0, 1.0])
LOG_Z = -7.561096823
SMOOTHED = np.array([0.280862, 0.068581, 1.044376, 0.969969])


@contextlib.contextmanager
def compilations():
    """Count what XLA compiles within the block."""
    found = []

    def heard(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)


# -- programs ----------------------------------------------------------------------------------------------------------


@fk.program
async def linear(y, rho=0.9, law=D.Normal):
    """The linear Gaussian model of the tests."""

    async def step(carry, y):
        x, t = carry
        x = await fk.sample("x", law(jnp.where(t == 0, 0.0, rho * x), jnp.where(t == 0, 1 / jnp.sqrt(0.19), 1.0)))
        await fk.observe("y", law(x, 1.0), y)
        return (x, t + 1), x

    _, xs = await fk.scan(step, (0.0, 0), y, compiled=True)
    return xs


@fk.program
async def parametric(y):
    """A parameter before the scan that the step closes over, two potentials in an iteration, and sites after it."""
    rho = await fk.sample("rho", D.Uniform(0.0, 1.0))
    x = await fk.sample("x", nd.Normal(0.0, 2.0))
    await fk.factor("first", -0.1 * x * x)

    async def step(carry, y):
        x = await fk.sample("x", nd.Normal(rho * carry["x"], 1.0))
        await fk.observe("y", nd.StudentT(4.0, x, 1.0), y)
        await fk.factor("small", -0.05 * x * x)
        fk.deterministic("twice", 2 * x)
        return {"x": x, "n": carry["n"] + 1}, (x, carry["n"])

    last, ys = await fk.scan(step, {"x": x, "n": 0}, list(y), compiled=True)
    z = await fk.sample("z", D.Normal(last["x"], 0.5))
    await fk.observe("end", D.Normal(z, 1.0), 0.7)
    return {"rho": rho, "z": z, "n": last["n"], "ys": ys, "name": "parametric"}


@fk.program
async def guided(y):
    """A proposal, twists, and a gather."""

    async def noise(loc):
        return await fk.sample("e", D.Normal(loc, 0.3))

    async def step(x, y):
        x = await fk.sample("x", D.Normal(0.9 * x, 1.0), proposal=D.Normal(0.5 * (0.9 * x + y), 1.2))
        a, b = await fk.gather(noise(0.0), noise(0.1))
        await fk.gather(fk.observe("y", D.Normal(x + a - b, 1.0), y), fk.twist("look", -0.1 * x * x))
        return x, x

    return (await fk.scan(step, 0.0, y, compiled=True))[0]


@fk.program
async def discrete(y):
    """Discrete states, a vector observed at once, an inner scan, and "output"."""
    stay = jnp.array([[0.7, 0.3], [0.2, 0.8]])

    async def inner(total, w):
        e = await fk.sample("e", D.Normal(0.0, w))
        return total + e, e

    async def step(z, y):
        z = await fk.sample("z", D.Categorical(probs=stay[z]))
        total, es = await fk.scan(inner, 0.0, [0.1, 0.2])
        await fk.observe("y", D.Normal(z + total, jnp.array([[1.0, 2.0], [0.5, 1.0]])), y)
        b = await fk.sample("b", D.Bernoulli(0.3))
        fk.deterministic("output", z + b)
        return z, es[1]

    z, ys = await fk.scan(step, 0, np.stack([np.full((2, 2), v) for v in y]), compiled=True)
    return z, ys[-1]


@fk.program
async def free(n):
    """No input, two axes, and a law that is conditioned on from outside."""

    async def step(x, t):
        x = await fk.sample("x", nd.Normal(0.5 * x + 0.1 * t, 1.0).to_event(1))
        return x, x.sum()

    return await fk.scan(step, np.zeros(2), range(n), compiled=True)


PROGRAMS = {
    "linear": linear(Y),
    "NumPyro's": linear(Y, law=nd.Normal),
    "parametric": parametric(Y),
    "guided": guided(Y),
    "discrete": discrete(Y),
    "conditioned": handlers.condition(free(3), data={"x": np.array([[0.1, 0.2], [0.4, -1.0], [1.0, 0.3]])}),
    "scoped": handlers.scope(handlers.substitute(linear(Y), data={"x": np.array([0.3, 0.1, 1.0, 0.5])}), prefix="a"),
}


@functools.cache
def found(name, whole=True):
    """A posterior of a program: of a run as a whole, or step by step."""
    callbacks = () if whole else (lambda step: None,)
    return fk.infer(PROGRAMS[name], fk.SMC(24, ess_threshold=0.9), seed=3, callbacks=callbacks)


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        pytest.param(name, whole, marks=[] if name in ("parametric", "guided") else pytest.mark.slow)
        for name in PROGRAMS
        for whole in (True, False)
    ],
)
def test_sites_and_weights_are_those_of_the_interpreted_program(name, whole):
    posterior, model = found(name, whole), PROGRAMS[name]
    assert posterior.info["compiled"] == "yes"
    chain = posterior.chains[0]
    for i in (0, 7, 23):
        trace = posterior.trace(i)
        forced = {address: site.value for address, site in trace.items() if site.kind == "sample"}
        with jax.enable_x64(True):  # or its own numbers would be of 32 bits
            run = fk.simulate(model, seed=0, given=forced)
        assert sorted(run.trace) == sorted(trace)  # a wave takes branches by turns
        for address, site in run.trace.items():
            mine = trace[address]
            assert (mine.kind, mine.visit, mine.hidden) == (site.kind, site.visit, site.hidden)
            np.testing.assert_allclose(mine.value, site.value, rtol=1e-9, atol=1e-9)
            assert mine.log_prob == pytest.approx(site.log_prob, abs=1e-9)
            assert mine.log_proposal == pytest.approx(site.log_proposal, abs=1e-9)
        _same(posterior.values[i], run.value)
        line = chain.lines[:, i]
        weighed = [site for site in run.sites if site.kind in ("observe", "factor")]
        potentials = sum(site.log_prob if site.kind == "observe" else site.value for site in weighed)
        assert sum(step.log_potential[j] for step, j in zip(chain.steps, line)) == pytest.approx(potentials, abs=1e-9)
    assert posterior.log_evidence == pytest.approx(chain.steps[-1].log_evidence, abs=1e-9)


def _same(mine, other):
    assert isinstance(mine, type(other)) or isinstance(other, np.generic | jax.Array)
    if isinstance(other, dict):
        assert list(mine) == list(other)
        mine, other = list(mine.values()), list(other.values())
    if isinstance(other, tuple | list):
        assert len(mine) == len(other)
        for a, b in zip(mine, other):
            _same(a, b)
    elif isinstance(other, str):
        assert mine == other
    else:
        np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-9)


# -- the law -----------------------------------------------------------------------------------------------------------


def z_of(ratios):
    return (np.mean(ratios) - 1.0) / (np.std(ratios, ddof=1) / math.sqrt(len(ratios)))


SCHEMES = ("systematic", "multinomial", "stratified", "residual", "ssp")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_evidence_of_a_fused_filter_is_unbiased(scheme):
    # 7 comparisons at |z| < 4.75: a correct filter fails one of these tests with probability 7 × 2.0e-6 = 1.4e-5.
    for threshold in (0.5, 1.0, 0.0) if scheme == "multinomial" else (0.7,):
        engine = fk.SMC(10, ess_threshold=threshold, resampling=scheme, chains=600)
        posterior = fk.infer(linear(Y), engine, seed=1)
        ratios = np.exp(np.array([chain.evidence for chain in posterior.chains]) - LOG_Z)
        assert abs(z_of(ratios)) < 4.75


@pytest.mark.slow
def test_step_by_step_the_law_is_the_same():
    # 1 comparison at |z| < 4.27: fails for a correct filter with probability 2.0e-5.
    posterior = fk.infer(linear(Y), fk.SMC(10, chains=400), seed=2, callbacks=[lambda step: None])
    assert abs(z_of(np.exp(np.array([chain.evidence for chain in posterior.chains]) - LOG_Z))) < 4.27


@pytest.mark.slow
def test_smoothed_means():
    posterior = fk.infer(linear(Y), fk.SMC(20_000), seed=0)
    np.testing.assert_allclose(posterior.expect(np.array), SMOOTHED, atol=0.05)


# -- when it is compiled ---------------------------------------------------------------------------------------------


def compiled(model, particles=10_000):
    return prepare(model, particles).note


@pytest.mark.slow
def test_what_is_compiled_is_compiled_once():
    fk.infer(linear(Y, 0.9), fk.SMC(24), seed=0).steps[0]
    with compilations() as made:
        for y in (Y, Y[::-1], Y[:3]):  # three inputs are padded to four
            posterior = fk.infer(linear(y, 0.5), fk.SMC(24), seed=0)
            assert posterior.steps[-1].done.all()
    assert len(made) <= 3  # the suffix knows how many there are
    with compilations() as made:
        for seed in range(3):
            fk.infer(linear(Y, 0.25 * seed), fk.SMC(24), seed=seed).trace(0)
    assert not made


@pytest.mark.slow
def test_the_same_seed_gives_the_same_posterior():
    one, other = (fk.infer(PROGRAMS["parametric"], fk.SMC(24), seed=7) for _ in range(2))
    np.testing.assert_array_equal(one.log_weights, other.log_weights)
    assert str(one.values) == str(other.values)


def test_small_runs_are_interpreted():
    @fk.program
    async def small():
        async def step(x, y):
            x = await fk.sample("x", D.Normal(x, 1.0))
            await fk.observe("y", D.Normal(x, 1.0), y)
            return x, x

        return await fk.scan(step, 0.0, Y)

    assert fk.infer(small(), fk.SMC(10), seed=0).info["compiled"].startswith("no: 40 iterations of particles")
    assert compiled(small(), 20_000) == "yes"
    assert compiled(linear(Y)) == "yes"


def branches(x):
    return 1.0 if x > 0 else 2.0


UNTRACEABLE = {
    "a branch": (lambda x: branches(x), "after site 'x': TracerBool"),
    "a number": (lambda x: float(x), r"after site 'x': .*`float`"),
    "another structure": (lambda x: (x, x), "the carry begins as"),
    "another shape": (lambda x: jnp.stack([x, x]), "the carry begins with shape"),
}


@pytest.mark.parametrize("kind", UNTRACEABLE)
def test_what_cannot_be_traced_is_interpreted_or_refused(kind):
    change, words = UNTRACEABLE[kind]

    @fk.program
    async def program(must):
        async def step(x, y):
            x = await fk.sample("x", D.Normal(0.0, 1.0))
            return change(x), x

        return (await fk.scan(step, 0.0, Y, compiled=must))[1]

    with pytest.raises(NotTraceable, match=words):
        prepare(program(True), 10)
    note = compiled(program(None), 50_000)
    assert note.startswith("no: ")
    assert compiled(program(False)) == "no: compiled=False"


def test_what_needs_a_model_costs_no_trace(monkeypatch):
    @fk.program
    async def asks(y):
        async def step(x, y):
            x = await fk.call("f", math.sin, x)
            return x, x

        return await fk.scan(step, 0.0, y, compiled=True)

    monkeypatch.setitem(__import__("sys").modules, "feynkac.ppl.compiled.model", None)
    with pytest.raises(NotTraceable, match=r"site 'f': fk.call"):
        prepare(asks(Y), 10**9)


def test_inputs_that_depend_on_draws_are_not_compiled():
    @fk.program
    async def program():
        a = await fk.sample("a", D.Normal(0.0, 1.0))

        async def step(x, y):
            return x + y, x

        return await fk.scan(step, 0.0, [a, 2 * a], compiled=True)

    with pytest.raises(NotTraceable, match="its inputs depend on what was drawn"):
        prepare(program(), 10)


# -- what goes wrong -------------------------------------------------------------------------------------------------


@fk.program
async def weighed(weights, prior=0.0, scale=1.0):
    async def step(x, w):
        x = await fk.sample("x", D.Normal(prior * x, scale))
        await fk.factor("G", jnp.where(x > 0, w, 0.0))
        return x, x

    return await fk.scan(step, 0.0, weights, compiled=True)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_weights_that_cannot_be(whole):
    callbacks = () if whole else [lambda step: None]
    infer = functools.partial(fk.infer, engine=fk.SMC(24), seed=0, callbacks=callbacks)
    for wrong in (np.nan, np.inf):
        with pytest.raises(InvalidWeight, match=r"iteration 2 of the scan, 'G': the log-weight is NaN or \+inf"):
            infer(weighed(np.array([0.0, 0.0, wrong, 0.0])))
    with pytest.raises(ValueError, match=r"iteration 0 of the scan, 'x': the parameter scale of Normal"):
        infer(weighed(np.zeros(4), scale=-1.0))
    half = infer(weighed(np.array([0.0, -np.inf, -np.inf, 0.0])))
    assert all((np.array(value[1])[1:3] <= 0).all() for value, w in zip(half.values, half.log_weights) if w > -np.inf)


@fk.program
async def doomed():
    async def step(x, t):
        x = await fk.sample("x", D.Normal(0.0, 1.0))
        fk.deterministic("output", x)
        await fk.factor("G", jnp.where(t == 1, -jnp.inf, -0.5))
        return x, x

    return await fk.scan(step, 0.0, range(4), compiled=True)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_all_dead(whole):
    callbacks = () if whole else [lambda step: None]
    with pytest.raises(AllParticlesDead, match=r"at step 1 \(24 at site 'G"):
        fk.infer(doomed(), fk.SMC(24), seed=0, callbacks=callbacks)
    posterior = fk.infer(doomed(), fk.SMC(24, all_dead="zero"), seed=0, callbacks=callbacks)
    assert posterior.log_evidence == -np.inf
    assert [step.depth for step in posterior.steps] == [0, 1]
    assert posterior.steps[1].done.all()


def test_given_values_must_be_met():
    model = prepare(linear(Y), 10**6).model
    keys = fk.keys.fold(fk.keys.root(0), np.arange(3))
    began = model.start(keys, [{"x": 0.25}, None, {"x": 1.0}])
    assert [began.choices[i][0].value for i in (0, 2)] == [0.25, 1.0]
    with pytest.raises(ImpossibleChoice, match=r"\['z'\] were not met"):
        model.advance(began.state, keys, [{"x[1]": 0.0, "z": 1.0}, None, None])
    with pytest.raises(ImpossibleChoice, match="another form"):
        model.advance(began.state, keys, [{"x[1]": np.zeros(2)}, None, None])


def test_a_proposal_that_cannot_reach_all_is_refused():
    @fk.program
    async def narrow():
        async def step(x, t):
            x = await fk.sample("x", D.Uniform(0.0, 1.0), proposal=D.Uniform(0.0, 0.5))
            await fk.factor("G", x)
            return x, x

        return await fk.scan(step, 0.0, range(4), compiled=True)

    with pytest.raises(UnsupportedProposal, match="'x': the proposal cannot reach all"):
        fk.infer(narrow(), fk.SMC(24), seed=0)


@pytest.mark.slow
def test_functions_that_are_called_back_are_told_apart():
    """Programs of the same equations but for a function outside JAX do not share what is compiled."""

    def following(sign):
        async def step(x, _):
            x = await fk.sample("x", fk.dist.Normal(x, 1.0))
            found = jax.pure_callback(
                lambda x: np.asarray(sign * x, np.float32),
                jax.ShapeDtypeStruct((), np.float32),
                jax.numpy.float32(x),
                vmap_method="expand_dims",
            )
            await fk.factor("near 3", -0.5 * (found - 3.0) ** 2)
            return x, x

        @fk.program
        async def follow(ys):
            return await fk.scan(step, 0.0, ys, compiled=True)

        return follow(np.zeros(5))

    for sign in (1.0, -1.0):
        posterior = fk.infer(following(sign), fk.SMC(500), seed=0)
        assert posterior.info["compiled"] == "yes"
        assert sign * posterior.expect(lambda value: float(value[0])) > 2

"""Guides as proposals: exact under every engine, forks and given choices; what does not fit is refused by name."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

import feynkac as fk
from laws import check_unbiased, z_score

dist, propose = fk.dist, fk.handlers.propose
STAY, SEEN = (0.3, 0.8), ((0.7, 0.2, 0.1), (0.1, 0.3, 0.6))


@fk.program
async def chain(data):
    """Two kinds of walk over states 0 and 1, seen through three colours."""
    x = await fk.sample("kind", dist.Bernoulli(0.4))
    path = [x]
    for y in data:
        x = await fk.sample("x", dist.Bernoulli(STAY[x]))
        await fk.observe("y", dist.Categorical(SEEN[x]), y)
        path.append(x)
    return tuple(path)


@fk.program
async def looks(data):
    """Its laws depend on the data, on what was drawn, and on a parameter; one branch of its own."""
    x = await fk.sample("kind", dist.Bernoulli(fk.param("kind", 0.7)))
    for y in data:
        likely = await fk.call("look", lambda y=y: SEEN[1][y] / (SEEN[0][y] + SEEN[1][y]))
        if x:
            x = await fk.sample("x", dist.Bernoulli(likely))
        else:
            x = await fk.sample("x", dist.Categorical([1 - likely / 2, likely / 2]))


async def _step(x, y):
    x = await fk.sample("x", dist.Bernoulli(STAY[x]))
    await fk.observe("y", dist.Categorical(SEEN[x]), y)
    return x, x


@fk.program
async def scanned(data):
    x = await fk.sample("kind", dist.Bernoulli(0.4))
    last, path = await fk.scan(_step, x, data)
    assert last == path[-1]
    return x, *path


async def _propose(before, y):
    was, x = before
    await fk.sample("x", dist.Bernoulli(0.2 + 0.2 * y + 0.1 * was))
    return (x, y), None


@fk.program
async def scans(data):
    x = await fk.sample("kind", dist.Bernoulli(0.7))
    (_, last), nothing = await fk.scan(_propose, (0, x), data)
    assert (last, nothing) == (data[-1], (None,) * len(data))


@fk.program
async def one(name, p, seen):
    with fk.handlers.scope(prefix=name):
        z = await fk.sample("z", dist.Bernoulli(p))
        await fk.factor("w", 0.8 * z if seen else -0.4 * z)
        return z + await fk.sample("v", dist.Bernoulli(0.3 + 0.4 * z))


@fk.program
async def branches():
    a, b = await fk.gather(one("a", 0.2, True), one("b", 0.6, False), name="pair")
    c = await one("c", 0.5, True)
    await fk.factor("total", 0.5 * (a + b + c))
    return a, b, c


async def _near(name):
    with fk.handlers.scope(prefix=name):
        z = await fk.sample("z", dist.Bernoulli(0.7))
        await fk.sample("v", dist.Bernoulli(0.8 if z else 0.4))


@fk.program
async def beside():
    one, two = await fk.gather(_near("a"), _near("b"), name="pair")
    assert one is two is None
    await _near("c")


DATA = (2, 0)
PAIRS = {
    "loop": (chain(DATA), looks(DATA)),
    "scan": (scanned(DATA), scans(DATA)),
    "branches": (branches(), beside()),
}
ENGINES = {
    "importance": fk.ImportanceSampling(3),
    "smc": fk.SMC(4, ess_threshold=1.0, resampling="stratified"),
    "moves": fk.SMC(3, ess_threshold=0.9, move=fk.SuffixMH(1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("engine", ENGINES)
def test_evidence_and_law_are_exact(pair, engine):
    model, guide = PAIRS[pair]
    truth = fk.enumerate_program(model)
    likely = {value: p for value, p in truth.law().items() if p > 0.08}  # of others there are too few for a z-score
    # 9 cases of at most 8 comparisons at |z| < 4.75: a right proposal fails one with probability 1.5e-4.
    check_unbiased(propose(model, guide), ENGINES[engine], likely, truth.log_evidence, runs=200, limit=4.75)


@fk.program
async def astray(data):
    await fk.sample("kind", dist.Bernoulli(0.8))
    for _ in data:
        await fk.sample("x", dist.Bernoulli(0.85))


@pytest.mark.slow
@pytest.mark.parametrize("engine", [fk.SuffixMH(60, block=1, burn_in=40), fk.ParticleGibbs(3, 30, burn_in=20)])
def test_chains_have_the_law(engine):
    model = chain(DATA)
    found = [posterior.expect(sum) for posterior in fk.infer([propose(model, astray(DATA))] * 30, engine, seed=0)]
    # 2 comparisons at |z| < 4.265: 4e-5. Without the weights the chains are 8 and more standard errors away.
    assert abs(z_score(found, fk.enumerate_program(model).expect(sum))) < 4.265


def test_weights_are_p_over_q():
    model, guide = PAIRS["loop"]
    run = fk.simulate(propose(model, guide), seed=3)
    drawn = {site.address: site.value for site in run.sites if site.kind == "sample"}
    p, q = fk.simulate(model, seed=0, given=drawn), fk.simulate(guide, seed=0, given=drawn)
    assert run.log_prob == pytest.approx(p.log_prob)
    assert run.log_weight == pytest.approx(p.log_weight + p.log_prob - q.log_prob)
    assert set(run.trace) == {*p.trace, *(f"guide/{name}" for name in q.trace if name.startswith("look"))}


@pytest.mark.parametrize("pair", PAIRS)
def test_given_choices_are_scored_under_the_guide(pair):
    model = propose(*PAIRS[pair])
    keys, other = (fk.keys.fold(fk.keys.root(seed), np.arange(5)) for seed in (0, 1))
    made = model.start(keys)
    forced = model.start(other, made.choices)
    apart = False
    while True:
        for name in ("log_prob", "log_proposal", "log_potential"):
            assert getattr(forced, name) == pytest.approx(getattr(made, name)), name
        apart |= not np.allclose(made.log_prob, made.log_proposal)
        if made.done.all():
            break
        keys, other = fk.keys.fold(keys, 1), fk.keys.fold(other, 1)
        made = model.advance(made.state, keys)
        forced = model.advance(forced.state, other, made.choices)
    assert apart


def test_what_the_guide_does_not_draw_is_drawn_from_the_model():
    @fk.program
    async def less(data):
        await fk.sample("kind", dist.Bernoulli(0.7))

    for model in (chain(DATA), scanned(DATA)):
        run = fk.simulate(propose(model, less(DATA)), seed=0)
        apart = [site.address for site in run.sites if site.log_prob != site.log_proposal and site.kind == "sample"]
        assert apart == ["kind"]


def test_handlers_outside_reach_the_model():
    model, guide = PAIRS["loop"]
    seen = fk.handlers.condition(propose(model, guide), data={"x[1]": 0})
    truth = fk.enumerate_program(fk.handlers.condition(model, data={"x[1]": 0}))
    check_unbiased(seen, fk.SMC(3), truth.law(), truth.log_evidence, runs=150)
    scope = fk.handlers.scope(propose(fk.handlers.condition(model, data={"kind": 1}), guide), prefix="outer")
    run = fk.simulate(scope, seed=0)
    assert run.trace["outer/x"].log_prob != run.trace["outer/x"].log_proposal
    assert run.trace["outer/kind"].kind == "observe"


def test_normal_laws_guide_normal_laws():
    """The optimal proposal of a linear Gaussian model, in a scan, has the exact evidence with few particles."""
    y = (0.5, -1.0, 2.0, 1.0)

    async def step(x, y):
        x = await fk.sample("x", dist.Normal(0.9 * x, 1.0))
        await fk.observe("y", dist.Normal(x, 1.0), y)
        return x, x

    async def best(x, y):
        x = await fk.sample("x", dist.Normal((0.9 * x + y) / 2, math.sqrt(0.5)))
        return x, None

    @fk.program
    async def model():
        x = await fk.sample("x", dist.Normal(0.0, math.sqrt(1 / 0.19)))
        await fk.observe("y", dist.Normal(x, 1.0), y[0])
        return (await fk.scan(step, x, y[1:]))[1]

    @fk.program
    async def guide():
        variance = 1 / (1 + 0.19)
        x = await fk.sample("x", dist.Normal(variance * y[0], math.sqrt(variance)))
        await fk.scan(best, x, y[1:])

    log_z = -7.561096823
    ratios = {
        name: np.exp([p.log_evidence - log_z for p in fk.infer([m] * 100, fk.SMC(10), seed=1)])
        for name, m in {"prior": model(), "guided": propose(model(), guide())}.items()
    }
    for found in ratios.values():
        # 2 comparisons at |z| < 4.265: 4e-5.
        assert abs(z_score(found, 1.0)) < 4.265
    assert ratios["guided"].std() < 0.5 * ratios["prior"].std()


# -- what is refused --------------------------------------------------------------------------------------------


@fk.program
async def two():
    a = await fk.sample("a", dist.Bernoulli(0.4))
    b = await fk.sample("b", dist.Normal(a, 1.0))
    await fk.observe("y", dist.Normal(b, 1.0), 0.3)


async def _draw(*names):
    for name in names:
        await fk.sample(name, dist.Bernoulli(0.5) if name == "a" else dist.Normal(0.0, 1.0))


async def _observes():
    await fk.observe("y", dist.Normal(0.0, 1.0), 0.3)


async def _weighs():
    await fk.factor("w", 0.1)


async def _forgets():
    fk.sample("a", dist.Bernoulli(0.5))


async def _own():
    await fk.sample("a", dist.Bernoulli(0.5), proposal=dist.Bernoulli(0.4))


async def _masked():
    with fk.handlers.scale(scale=2.0):
        await fk.sample("a", dist.Bernoulli(0.5))


async def _scans():
    await fk.scan(lambda c, x: _draw("a"), 0, [1, 2])


async def _narrow():
    await fk.sample("a", dist.Bernoulli(0.4))
    await fk.sample("b", dist.Uniform(-1.0, 1.0))


REFUSED = [
    (lambda: _draw("a", "b", "zz"), fk.errors.UnfitGuide, "draws 'zz' and the model does not"),
    (lambda: _draw("b", "a"), fk.errors.UnfitGuide, "comes to 'a' after the model has"),
    (_observes, fk.errors.UnfitGuide, "observes 'y'"),
    (_weighs, fk.errors.UnfitGuide, "has the factor 'w'"),
    (_own, fk.errors.UnfitGuide, "'a' from a proposal of its own"),
    (_masked, fk.errors.UnfitGuide, "'a' is under a handler, scale"),
    (_scans, fk.errors.UnfitGuide, "opens a scan 'scan' and the model does not"),
    (_forgets, fk.errors.UnawaitedEffect, "never awaited"),
    (_narrow, fk.errors.UnsupportedProposal, "sample 'b'.*cannot reach all"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), REFUSED)
def test_what_does_not_fit_is_refused(wrong, error, message):
    @fk.program
    async def guide():
        await wrong()

    with pytest.raises(error, match=message):
        fk.infer(propose(two(), guide()), fk.SMC(3), seed=0)


def test_structures_that_differ_are_refused():
    short = scans(DATA[:1])
    with pytest.raises(fk.errors.UnfitGuide, match="scan 'scan' is over 1 inputs, the model's over 2"):
        fk.simulate(propose(scanned(DATA), short), seed=0)

    @fk.program
    async def single():
        await fk.gather(_near("a"), name="pair")

    with pytest.raises(fk.errors.UnfitGuide, match="gather 'pair' has 1 branches, and the model's 2"):
        fk.simulate(propose(branches(), single()), seed=0)
    with pytest.raises(fk.errors.UnfitGuide, match="draws 'x' and the model does not, at this place"):
        fk.simulate(propose(scanned(DATA), looks(DATA)), seed=0)  # a loop beside a scan
    with pytest.raises(TypeError, match="propose takes a bound program"):
        propose(two(), two)


def test_errors_of_guides_name_their_line():
    @fk.program
    async def guide():
        await fk.sample("a", dist.Bernoulli(0.5))
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine") as caught:
        fk.simulate(propose(two(), guide()), seed=0)
    assert any("particle 0" in note for note in caught.value.__notes__)
    assert any(entry.name == "guide" for entry in caught.traceback)


def test_chance_in_a_guided_program_is_found():
    @fk.program
    async def careless():
        a = await fk.sample("a", dist.Bernoulli(0.4))
        hidden = random.random()
        await fk.factor("w", 0.1 * a)
        await fk.sample("b", dist.Normal(a, 1.0))
        return hidden

    @fk.program
    async def guide():
        await _draw("a", "b")

    with pytest.raises(fk.errors.NonDeterministicProgram, match="its variable `hidden`"):
        fk.infer(propose(careless(), guide()), fk.SMC(10, ess_threshold=1.0), seed=0)


def test_parameters_are_looked_up_through_scopes():
    @fk.program
    async def inner():
        return fk.param("loc", 1.5)

    @fk.program
    async def outer():
        with fk.handlers.scope(prefix="left"):
            left = await inner()
        return left, fk.param("loc", np.ones(2)), fk.param("loc", 0.0)

    value = fk.simulate(outer(), seed=0).value
    assert value == (1.5, pytest.approx([1.0, 1.0]), 0.0)
    with pytest.raises(ValueError):
        value[1][0] = 2.0
    with pytest.raises(fk.errors.OutsideProgram, match=r"fk.param\('loc'"):
        fk.param("loc", 1.0)


# -- in JAX -----------------------------------------------------------------------------------------------------


async def _drift(x, y):
    x = await fk.sample("x", dist.Normal(0.9 * x, 1.0))
    await fk.observe("y", dist.Normal(x, 1.0), y)
    return x, x


async def _near_y(x, y):
    return await fk.sample("x", dist.Normal(fk.param("a", 0.45) * x + 0.5 * y, 0.8)), None


@fk.program
async def drifting(y):
    x = await fk.sample("x", dist.Normal(0.0, math.sqrt(1 / 0.19)))
    await fk.observe("y", dist.Normal(x, 1.0), y[0])
    return await fk.scan(_drift, x, y[1:])


@fk.program
async def following(y):
    x = await fk.sample("x", dist.Normal(0.4 * y[0], 1.0))
    await fk.scan(_near_y, x, y[1:])


@pytest.mark.slow
def test_a_guided_scan_is_traced_and_compiled():
    jax = pytest.importorskip("jax")
    from feynkac.ppl.traced.driver import trace
    from feynkac.ppl.traced.listeners import Weigher

    y = (0.5, -1.0, 2.0, 1.0)
    model = propose(drifting(y), following(y))
    run = fk.simulate(model, seed=0)
    drawn = np.array([site.value for site in run.sites if site.kind == "sample"])
    with jax.enable_x64(True):
        weigher = Weigher(given={"x": drawn[0], "x[1]": drawn[1:]})
        trace(model, weigher)
    log_weight = weigher.log_potential + weigher.log_prob - weigher.log_proposal
    assert float(weigher.log_prob) == pytest.approx(run.log_prob, abs=1e-9)
    assert float(log_weight) == pytest.approx(run.log_weight, abs=1e-9)
    posterior = fk.infer(model, fk.SMC(20_000), seed=0)
    assert posterior.info["compiled"] == "yes"
    # The standard deviation is about .005; 4.265 of them are exceeded with probability 2e-5.
    assert posterior.log_evidence == pytest.approx(-7.561096823, abs=0.022)

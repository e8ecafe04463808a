"""Handlers mean what NumPyro's of the same name mean: interventions, series, masks, scales, seeds.

Each z-test raises a false alarm twice in 100,000 times (`laws.Z_LIMIT`); there are about 80 here. Seeds are fixed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import feynkac as fk
from feynkac import handlers
from handled import PATHS, agrees, chain, weight
from laws import Z_LIMIT, z_score


@fk.program
async def gauss(observed=None, proposal=None):
    """x → z → w."""
    x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
    z = await fk.sample("z", fk.dist.Normal(x, 1.0), obs=observed, proposal=proposal)
    w = await fk.sample("w", fk.dist.Normal(z, 1.0))
    await fk.factor("end", 0.0)
    return x, z, w


DONE = {
    "do(condition)": lambda: handlers.do(handlers.condition(gauss(), data={"z": 3.0}), data={"z": 0.0}),
    "condition(do)": lambda: handlers.condition(handlers.do(gauss(), data={"z": 0.0}), data={"z": 3.0}),
    "do(obs=)": lambda: handlers.do(gauss(3.0), data={"z": 0.0}),
}


@pytest.mark.parametrize("name", DONE)
def test_evidence_on_a_site_that_is_intervened_on_still_counts(name):
    """E[x | z = 3] = 3/2 and z = 0 for what follows: w ~ N(0, 1)."""
    posteriors = fk.infer([DONE[name]()] * 30, fk.SMC(200), seed=0)
    for fn, truth in ((lambda v: v[0], 1.5), (lambda v: v[2], 0.0), (lambda v: v[2] ** 2, 1.0)):
        assert abs(z_score(np.array([p.expect(fn) for p in posteriors]), truth)) < Z_LIMIT
    z = math.exp(-9 / 4) / math.sqrt(4 * math.pi)
    assert abs(z_score(np.exp([p.log_evidence for p in posteriors]), z)) < Z_LIMIT
    trace = posteriors[0].trace(0)
    assert {a: (s.kind, s.value) for a, s in trace.items() if a.startswith("z")} == {
        "z": ("observe", 3.0), "z__CF": ("do", 0.0),
    }  # fmt: skip


def test_numpyro_says_the_same_of_interventions():
    numpyro = pytest.importorskip("numpyro")
    from numpyro import distributions as nd
    from numpyro import handlers as nh
    from numpyro.infer.util import log_density

    def model():
        x = numpyro.sample("x", nd.Normal(0.0, 1.0))
        z = numpyro.sample("z", nd.Normal(x, 1.0))
        numpyro.sample("w", nd.Normal(z, 1.0))

    def ours(wrapped, x, w):
        run = fk.simulate(wrapped, seed=0, given={"x": x, "w": w})
        return sum(site.log_prob for site in run.sites)

    chosen = {"x": 0.7, "w": -0.4}
    for wrap in (
        lambda h, m: h.do(h.condition(m, data={"z": 3.0}), data={"z": 0.5}),
        lambda h, m: h.condition(h.do(m, data={"z": 0.5}), data={"z": 3.0}),
        lambda h, m: h.substitute(h.condition(m, data={"z": 3.0}), data={"z": 0.5}),
        lambda h, m: h.condition(h.substitute(m, data={"z": 0.5}), data={"z": 3.0}),
        lambda h, m: h.scale(h.condition(m, data={"z": 3.0}), scale=0.3),
    ):
        theirs, _ = log_density(nh.seed(wrap(nh, model), 0), (), {}, chosen)
        assert ours(wrap(handlers, gauss()), **chosen) == pytest.approx(float(theirs), rel=1e-5)


def test_a_substitute_changes_an_observation():
    run = fk.simulate(handlers.substitute(gauss(3.0), data={"z": 1.0}), seed=0, given={"x": 1.0})
    assert run.trace["z"].kind == "observe"
    assert run.value[1] == 1.0
    assert run.log_weight == pytest.approx(-0.5 * math.log(2 * math.pi))


def test_a_replay_leaves_observations_alone_and_needs_draws():
    drawn = fk.simulate(gauss(), seed=1).trace
    seen = fk.simulate(gauss(2.0), seed=1).trace
    run = fk.simulate(handlers.replay(gauss(2.0), trace=drawn), seed=5)
    assert (run.value[0], run.value[1]) == (drawn["x"].value, 2.0)
    with pytest.raises(ValueError, match="site 'z' is drawn here, and the trace observed it"):
        fk.simulate(handlers.replay(gauss(), trace=seen), seed=5)


def test_of_nested_seeds_the_innermost_holds():
    twice = handlers.seed(handlers.seed(chain(), rng_seed=1), rng_seed=2)
    assert fk.simulate(twice).value == fk.simulate(chain(), seed=1).value
    assert len({fk.simulate(chain(), seed=s).value for s in (1, 2)}) == 2


def test_a_seed_inside_a_program_is_refused():
    @fk.program
    async def block():
        with handlers.seed(rng_seed=1):
            return await fk.sample("x", fk.dist.Bernoulli(0.5))

    @fk.program
    async def inner():
        return await handlers.seed(chain(), rng_seed=1)

    @fk.program
    async def branch():
        return await fk.gather(handlers.seed(chain(), rng_seed=1))

    for model in (block(), inner(), branch()):
        with pytest.raises(fk.errors.Unsupported, match="seed inside a program"):
            fk.infer(model, fk.SMC(3), seed=0)


@fk.program
async def series(n=3, twice=False):
    async def step(x, _):
        x = await fk.sample("z", fk.dist.Normal(x, 1.0))
        if twice:
            await fk.sample("z", fk.dist.Normal(x, 1.0))
        await fk.factor("G", 0.0)
        return x, x

    return (await fk.scan(step, 0.0, range(n)))[1]


@pytest.mark.parametrize("kind", [np.array, list, tuple])
def test_a_series_gives_each_iteration_of_a_scan_its_value(kind):
    values = kind([1.0, 2.0, 4.0])
    log_p = -0.5 * (1 + 1 + 4) - 1.5 * math.log(2 * math.pi)
    seen = fk.simulate(handlers.condition(series(), data={"z": values}), seed=0)
    assert (seen.value, seen.log_weight) == ((1.0, 2.0, 4.0), pytest.approx(log_p))
    forced = fk.simulate(handlers.substitute(series(), data={"z": values}), seed=0)
    assert (forced.value, forced.log_prob) == ((1.0, 2.0, 4.0), pytest.approx(log_p))
    done = fk.simulate(handlers.do(series(), data={"z": values}), seed=0)
    assert (done.value, done.log_prob, done.log_weight) == ((1.0, 2.0, 4.0), 0.0, 0.0)
    posterior = fk.infer(handlers.condition(series(), data={"z": values}), fk.SMC(3, ess_threshold=1.0), seed=0)
    assert posterior.log_evidence == pytest.approx(log_p)  # with forks


def test_numpyro_says_the_same_of_a_series():
    numpyro = pytest.importorskip("numpyro")
    from numpyro import distributions as nd
    from numpyro.contrib.control_flow import scan
    from numpyro.infer.util import log_density

    def model():
        def step(x, _):
            x = numpyro.sample("z", nd.Normal(x, 1.0))
            return x, x

        return scan(step, 0.0, np.arange(3))

    from jax import numpy as jnp

    values = np.array([1.0, 2.0, 4.0])
    theirs, _ = log_density(numpyro.handlers.condition(model, data={"z": jnp.array(values)}), (), {}, {})
    run = fk.simulate(handlers.condition(series(), data={"z": values}), seed=0)
    assert run.log_weight == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize(("twice", "n"), [(False, 2), (False, 4), (True, 3)])
def test_a_series_of_another_length_is_refused_at_the_site(twice, n):
    model = handlers.condition(series(3, twice), data={"z": np.arange(float(n))})
    with pytest.raises(ValueError, match=r"site 'z.*' is in a scan of 3 iterations, and under 'z' there are") as caught:
        fk.infer(model, fk.SMC(2), seed=0)
    assert any("particle 0 of 2" in note for note in caught.value.__notes__)


def test_single_visits_of_a_scan_have_addresses():
    run = fk.simulate(handlers.condition(series(), data={"z[0]": 1.0, "z[2]": 5.0}), seed=0)
    assert (run.value[0], run.value[2]) == (1.0, 5.0)
    assert [site.kind for site in run.sites if site.name == "z"] == ["observe", "sample", "observe"]

    async def wide(carry, _):
        with handlers.condition(data={"v": np.array([1.0, 2.0])}):  # within an iteration: one value, a vector
            v = await fk.sample("v", fk.dist.Normal(np.zeros(2), 1.0))
        return carry, v

    @fk.program
    async def vectors():
        return (await fk.scan(wide, 0, range(2)))[1]

    first, second = fk.simulate(vectors(), seed=0).value
    assert first.tolist() == [1.0, 2.0] != second.tolist()  # "v" is the first visit


@pytest.mark.parametrize("kind", ["fk", "numpyro", "scipy", "torch"])
def test_an_array_masks_an_observed_array_by_component(kind):
    if kind == "fk":
        law = fk.dist.Normal(np.array([0.0, 1.0, 2.0]), 1.0)
    elif kind == "numpyro":
        law = pytest.importorskip("numpyro").distributions.Normal(np.array([0.0, 1.0, 2.0]), 1.0)
    elif kind == "scipy":
        law = pytest.importorskip("scipy.stats").norm(np.array([0.0, 1.0, 2.0]), 1.0)
    else:
        torch = pytest.importorskip("torch")
        law = torch.distributions.Normal(torch.tensor([0.0, 1.0, 2.0]), 1.0)

    @fk.program
    async def model():
        x = await fk.sample("x", fk.dist.Bernoulli(0.5))
        with handlers.mask(mask=np.array([True, False, x == 1])):  # each particle has its own
            await fk.observe("y", law, np.array([1.0, np.nan, 4.0]))
        return x

    found = fk.infer(model(), fk.SMC(40), seed=0)
    one = -0.5 - 0.5 * math.log(2 * math.pi)
    for value, log_weight in zip(found.values, found.steps[0].log_weights):
        assert log_weight == pytest.approx(2 * one - 1.5 if value else one, rel=1e-5)


def test_masks_that_do_not_fit_are_refused():
    @fk.program
    async def model(law, value, mask):
        with handlers.mask(mask=mask):
            await fk.observe("y", law, value)

    @fk.program
    async def factor(mask):
        with handlers.mask(mask=mask):
            await fk.factor("G", 1.0)

    two = np.array([True, False])
    for bad, error, match in (
        (
            model(fk.dist.Normal(np.zeros(3), 1.0), np.zeros(3), two),
            ValueError,
            "a mask of shape",
        ),
        (model(fk.dist.Normal(0.0, 1.0), 0.0, two), ValueError, r"a mask of shape \(2,\) for components of shape \(\)"),
        (
            model(fk.dist.MultivariateNormal(np.zeros(2), np.eye(2)), np.zeros(2), two),
            fk.errors.CannotScore,
            "not independent",
        ),
        (factor(two), ValueError, "factor 'G': an array mask is for observed arrays"),
    ):
        with pytest.raises(error, match=match):
            fk.infer(bad, fk.SMC(2), seed=0)
    with pytest.raises(TypeError, match="a mask is a bool or an array of bools"):
        handlers.mask(chain(), mask=1.0)


def test_masks_within_masks_leave_out_what_either_does():
    @fk.program
    async def model(outer, inner):
        with handlers.mask(mask=outer), handlers.mask(mask=inner):
            await fk.observe("y", fk.dist.Exponential(np.ones(3)), np.array([1.0, 2.0, 4.0]))

    a, b = np.array([True, True, False]), np.array([False, True, True])
    for outer, inner, total in ((a, b, 2.0), (True, a, 3.0), (a, True, 3.0), (a, False, 0.0), (False, b, 0.0)):
        assert fk.simulate(model(outer, inner), seed=0).log_weight == -total


@pytest.mark.slow
@pytest.mark.parametrize("s", [0.5, 2.5])
def test_a_scale_raises_all_terms_to_a_power(s):
    assert agrees(handlers.scale(chain(), scale=s), {path: weight(path) ** s for path in PATHS})
    inner = handlers.scale(handlers.scale(chain(), scale=s), scale=1 / s)
    assert agrees(inner, {path: weight(path) for path in PATHS})
    assert agrees(handlers.scale(handlers.condition(chain(), data={"x": 1}), scale=s), {
        p: weight(p) ** s for p in PATHS if p[0]
    })  # fmt: skip


def test_a_scale_keeps_to_a_masks_zero_and_to_proposals():
    @fk.program
    async def proposed():
        with handlers.scale(scale=2.0):
            x = await fk.sample("x", fk.dist.Bernoulli(0.3), proposal=fk.dist.Bernoulli(0.8))
            await fk.observe("y", fk.dist.Bernoulli(0.9 if x else 0.2), 1)
            with handlers.mask(mask=False):
                await fk.factor("out", 3.0 * x)
        return x

    assert agrees(proposed(), {0: (0.7 * 0.2) ** 2, 1: (0.3 * 0.9) ** 2})


def test_scales_that_make_no_sense_are_refused():
    for bad in (0.0, -1.0, math.nan, math.inf, True, np.True_, np.array(True), "2", None):
        with pytest.raises(ValueError, match="a scale is a positive number"):
            handlers.scale(chain(), scale=bad)

    class Silent:
        batch_key = fingerprint = "silent"

        def sample_batch(self, requests, keys):
            return fk.Draws([0] * len(requests), None)

    @fk.program
    async def silent():
        await fk.sample("x", Silent())

    fk.simulate(silent(), seed=0)
    with pytest.raises(fk.errors.CannotScore, match="sample 'x': what has no log-probability cannot be scaled"):
        fk.simulate(handlers.scale(silent(), scale=2.0), seed=0)


def test_block_may_name_what_it_exposes():
    model = handlers.block(chain(2), expose=["x"])
    assert list(fk.simulate(model, seed=0).trace) == ["x", "x[1]"]
    assert [s.kind for s in fk.simulate(handlers.condition(model, data={"G": 1, "x": 1}), seed=0).sites[:1]] == [
        "observe"
    ]
    for wrong in ({"hide": ["x"], "expose": ["x"]}, {"hide": "x"}, {"expose": "x"}):
        with pytest.raises(ValueError, match="block takes"):
            handlers.block(chain(), **wrong)


@pytest.mark.parametrize(
    "engine",
    [fk.SuffixMH(30, block=2), fk.ParticleGibbs(4, 30, ancestor_sampling=True), fk.TreeSampling(30)],
    ids=lambda engine: type(engine).__name__,
)
def test_engines_that_give_choices_back_leave_interventions_as_they_are(engine):
    model = handlers.do(handlers.condition(chain(), data={"x[2]": 1}), data={"x[1]": 1})
    posterior = fk.infer(model, engine, seed=0)
    assert {value[1] for value in posterior.values} == {1}
    assert {value[0] for value in posterior.values} == {0, 1}

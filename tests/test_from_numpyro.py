"""NumPyro's models as Feynman–Kac models: draws, scores and densities against NumPyro's own, and the refusals."""

from __future__ import annotations

import itertools
from functools import cache
from operator import itemgetter
from types import SimpleNamespace

import numpy as np
import pytest

import feynkac as fk
from laws import Z_LIMIT, z_score

jax = pytest.importorskip("jax")
numpyro = pytest.importorskip("numpyro")

import numpyro.distributions as dist  # noqa: E402
import numpyro_models as zoo  # noqa: E402
from numpyro import handlers  # noqa: E402
from numpyro.infer.util import log_density, potential_energy  # noqa: E402

QUICK = {"terms", "walk", "mixed", "supports"}
MODELS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in zoo.MODELS]
ROWS = fk.keys.fold(fk.keys.root(7), np.arange(4))


@pytest.fixture(autouse=True, scope="module")
def quick_compiler():
    """What is compiled here runs a few times."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@cache
def bridged(name):
    """One of the models, its first draws, and their density: compiled once for all tests."""
    model, args = zoo.MODELS[name]
    made = fk.from_numpyro(model, *args)
    drawn = made.start(ROWS)
    (density,) = made.unconstrained([SimpleNamespace(choices=chosen) for chosen in drawn.choices], None)
    return made, drawn, density


def of(chosen, *kinds):
    return {site.name: site.value for site in chosen if site.kind in kinds}


def exactly(name, density):
    """NumPyro's own log-density of the rows, by values and by coordinates, and its gradient there."""
    made, drawn, _ = bridged(name)
    model, args = zoo.MODELS[name]
    free = made.joint.free
    u = density.position + 0.1 * np.random.default_rng(0).standard_normal(density.position.shape)

    def by_values(values):
        return log_density(handlers.seed(model, 0), args, {}, values)[0]

    def by_coordinates(u, fixed):
        ends = np.cumsum([latent.size for latent in free])
        parts = {a.name: u[end - a.size : end].reshape(a.free) for a, end in zip(free, ends)}
        return -potential_energy(handlers.substitute(handlers.seed(model, 0), data=fixed), args, {}, parts)

    def both(values, u, fixed):
        return by_values(values), *jax.value_and_grad(by_coordinates)(u, fixed)

    rows = [of(chosen, "sample") for chosen in drawn.choices]
    values = {latent.name: np.array([row[latent.name] for row in rows]) for latent in made.joint.latents}
    with jax.enable_x64(True):
        return u, *jax.jit(jax.vmap(both))(values, u, density.fixed)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_draws_and_densities_are_those_of_numpyro(name):
    made, drawn, density = bridged(name)
    u, by_values, by_coordinates, gradient = exactly(name, density)
    np.testing.assert_allclose(drawn.log_prob + drawn.log_potential, by_values, atol=1e-9, rtol=1e-12)
    for i, chosen in enumerate(drawn.choices):
        assert drawn.log_prob[i] == pytest.approx(sum(s.log_prob for s in chosen if s.kind == "sample"), abs=1e-12)
        said = [s.log_prob for s in chosen if s.kind in ("observe", "deterministic")]
        said += of(chosen, "factor").values()
        assert drawn.log_potential[i] == pytest.approx(sum(said), abs=1e-12)
    assert len({repr(of(chosen, "sample")) for chosen in drawn.choices}) == len(ROWS)
    assert drawn.done.all()
    assert drawn.scored.all()
    found = density.evaluate(u, True)
    np.testing.assert_allclose(found.log_prior + found.log_potential, by_coordinates, atol=1e-9, rtol=1e-12)
    np.testing.assert_allclose(found.grad_prior + found.grad_potential, gradient, atol=1e-8, rtol=1e-9)
    # The parts are those of a replay there, where log|det dx/du| is what log_prior has besides.
    replay = made.start(ROWS, [step for (step,) in density.choices(u)])
    np.testing.assert_allclose(replay.log_prob + density.log_jacobian(u), found.log_prior, atol=1e-9)
    np.testing.assert_allclose(replay.log_potential, found.log_potential, atol=1e-9)
    (there,) = made.unconstrained([SimpleNamespace(choices=chosen) for chosen in replay.choices], None)
    np.testing.assert_allclose(there.position, u, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_what_was_drawn_can_be_forced_and_scores_the_same(name):
    made, drawn, _ = bridged(name)
    again = made.start(ROWS[::-1], [drawn.choices[0], None, of(drawn.choices[2], "sample"), None])
    for i, source in ((0, drawn.choices[0]), (2, drawn.choices[2])):
        for term in ("log_prob", "log_proposal", "log_potential"):
            assert getattr(again, term)[i] == pytest.approx(getattr(drawn, term)[i], abs=1e-12)
        np.testing.assert_equal(of(again.choices[i], "sample"), of(source, "sample"))
    free = made.start(ROWS[::-1])
    for i in (1, 3):
        np.testing.assert_equal(of(again.choices[i], "sample"), of(free.choices[i], "sample"))
        assert again.log_prob[i] == free.log_prob[i]
    assert len(again.state) == 4


def test_the_density_at_one_point_is_one_function_for_all_paths():
    made, drawn, density = bridged("mixed")
    (other,) = made.unconstrained([SimpleNamespace(choices=drawn.choices[1])], None)
    assert other.logdensity is density.logdensity
    plain = density.evaluate(density.position, False)
    assert plain.grad_prior is None
    with jax.enable_x64(True):
        parts = density.logdensity(density.position[1], {"side": density.fixed["side"][1]})
    assert float(parts[0]) == pytest.approx(plain.log_prior[1], abs=1e-12)


@pytest.mark.slow
def test_a_prior_that_is_one_normal_law_is_told():
    """b = .7a − 1 + .5ε for each of two, c = (b₀, −2b₁) + correlated noise."""
    mean, factor = bridged("chain")[2].gaussian
    lower = np.array([[1.0, 0, 0, 0, 0], [0.7, 1, 0, 0, 0], [0.7, 0, 1, 0, 0], [0.7, 1, 0, 1, 0], [-1.4, 0, -2, 0, 1]])
    noise = np.diag([4.0, 0.25, 0.25, 1.0, 0.5])
    noise[3, 4] = noise[4, 3] = 0.3
    np.testing.assert_allclose(mean, [0.5, -0.65, -0.65, -0.65, 1.3], atol=1e-9)
    np.testing.assert_allclose(factor @ factor.T, lower @ noise @ lower.T, atol=1e-9)


@pytest.mark.parametrize("name", ["mixed", "walk", pytest.param("funnel", marks=pytest.mark.slow)])
def test_a_prior_that_is_none_is_not(name):
    assert bridged(name)[2].gaussian is None


# -- engines ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_evidence_and_means_are_unbiased():
    """4 comparisons at |z| < 4.26: a correct model fails with probability 4 × 2.0e-5 = 8e-5."""
    for name, site, log_z, mean in (("gaussian", "z", -1.930510309, 1.2), ("poisson", "rate", np.log(1 / 16), 2.0)):
        made = bridged(name)[0]
        posteriors = fk.infer([made] * 1500, fk.SMC(4), seed=3)
        ratios = np.exp([p.log_evidence - log_z for p in posteriors])
        means = np.array([p.expect(itemgetter(site)) for p in posteriors])
        assert abs(z_score(ratios, 1.0)) < Z_LIMIT
        assert abs(z_score(ratios * means, mean)) < Z_LIMIT


@pytest.mark.slow
def test_moves_by_gradient_and_tempering_find_its_posterior():
    """Of G2, whose support is half a line; 3 × |z| < 4.26: a false alarm with probability 3 × 2.0e-5 = 6e-5.

    Without log|det dx/du| the mean would be 1.5. The tempered evidence is consistent, and its bias at 200 is below 1%.
    """
    made = bridged("poisson")[0]
    posterior = fk.infer(made, fk.MCMC(fk.NUTS(), draws=1000, warmup=300, chains=2), seed=0)
    rates = np.array([value["rate"] for value in posterior.values]).reshape(2, -1)
    for power, exact in ((1, 2.0), (2, 5.0)):
        x = rates**power
        error = x.std() / np.sqrt(numpyro.diagnostics.effective_sample_size(x))
        assert abs(x.mean() - exact) / error < Z_LIMIT
    found = [fk.infer(made, fk.TemperedSMC(200, fk.RandomWalk(3)), seed=s).log_evidence for s in range(12)]
    assert abs(z_score(np.exp(found) * 16, 1.0)) < Z_LIMIT


def test_a_scale_on_a_latent_is_a_weight():
    """∫N(z; 0, 1)^s N(1.5; z, .5) dz, which is not that of the law itself; |z| < 4.26 has probability 2e-5."""

    def powered(y):
        with handlers.scale(scale=0.4):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)

    grid = np.linspace(-12, 12, 20001)
    normal = lambda x, m, s: np.exp(-0.5 * ((x - m) / s) ** 2) / s / np.sqrt(2 * np.pi)  # noqa: E731
    exact = (normal(grid, 0, 1) ** 0.4 * normal(1.5, grid, 0.5)).sum() * (grid[1] - grid[0])
    posteriors = fk.infer([fk.from_numpyro(powered, 1.5)] * 400, fk.SMC(20), seed=0)
    assert abs(z_score(np.exp([p.log_evidence for p in posteriors]) / exact, 1.0)) < Z_LIMIT


def exact_mixture(y):
    """Z and the law of (sides, kind) by enumeration."""
    log_normal = lambda x, m: -0.5 * ((x - m) / 0.7) ** 2 - np.log(0.7 * np.sqrt(2 * np.pi))  # noqa: E731
    weights = {}
    for *sides, kind in itertools.product(*[(0, 1)] * len(y), range(3)):
        s = np.array(sides)
        log_w = np.log(np.where(s, 0.3, 0.7)).sum() + np.log([0.2, 0.5, 0.3][kind]) + 0.3 * kind * s.sum()
        weights[(*sides, kind)] = np.exp(log_w + log_normal(y, 2.0 * s - 0.5).sum())
    z = sum(weights.values())
    return z, {key: weight / z for key, weight in weights.items()}


@pytest.mark.slow
def test_discrete_latents_are_drawn_and_weighed():
    """E[Ẑ·1{x}]/Z for 13 values: a correct model fails with probability 13 × 2.0e-5 = 2.6e-4."""
    y = np.array([0.4, 1.9])
    z, law = exact_mixture(y)
    made = fk.from_numpyro(zoo.mixture, y)
    posteriors = fk.infer([made] * 800, fk.ImportanceSampling(8), seed=1)
    ratios = np.exp([p.log_evidence for p in posteriors]) / z
    assert abs(z_score(ratios, 1.0)) < Z_LIMIT
    for value, probability in law.items():
        is_value = lambda v: (*v["side"].tolist(), v["kind"]) == value  # noqa: B023, E731
        assert abs(z_score(ratios * [p.expect(is_value) for p in posteriors], probability)) < Z_LIMIT
    with pytest.raises(fk.errors.Unsupported, match="no continuous site"):
        made.unconstrained([SimpleNamespace(choices=made.start(ROWS).choices[0])], None)


@pytest.mark.parametrize(
    "engine",
    [
        fk.SMC(8, move=fk.SuffixMH(2)),
        fk.SuffixMH(10),
        fk.ParticleGibbs(4, sweeps=4),
        fk.ParallelTempering((1.0, 2.0), sweeps=4),
        fk.BestOfN(8),
        fk.TreeSampling(8),
        fk.BeamSearch(4),
        fk.LookAheadSMC(4),
    ],
    ids=lambda engine: type(engine).__name__,
)
def test_every_kind_of_engine_runs_it(engine):
    posterior = fk.infer(bridged("mixed")[0], engine, seed=0)
    assert set(posterior.values[0]) == {"side", "mean"}
    assert posterior.complete.all()
    assert fk.infer(bridged("mixed")[0], engine, seed=0).values == posterior.values


def test_values_are_sites_deterministics_and_what_is_returned(tmp_path):
    posterior = fk.infer(bridged("walk")[0], fk.SMC(6), seed=0)
    value = posterior.values[0]
    assert list(value) == ["sigma", "x", "up", "output"]
    assert value["output"]["last"] == value["x"][-1]
    assert value["x"].shape == (3,)
    posterior.save(tmp_path / "posterior.fk")
    np.testing.assert_equal(fk.Posterior.load(tmp_path / "posterior.fk").values[0], value)
    recorded = bridged("terms")[0].values(bridged("terms")[1].state)[0]
    assert list(recorded) == ["scale", "z", "doubled", "square"]
    assert recorded["square"] == pytest.approx(recorded["z"] ** 2)
    tree = pytest.importorskip("arviz_base") and posterior.to_datatree(draws=10)
    assert set(tree.posterior) == {"sigma", "x", "up", "output.last"}


def test_it_can_be_nested_in_a_program_and_says_so_where_it_is_awaited():
    made = bridged("gaussian")[0]

    @fk.program
    async def outer():
        inner = await fk.nested("inner", made, fk.SMC(20))
        await fk.factor("Z", inner.log_evidence)
        return inner.draw["z"]

    posterior = fk.infer(outer(), fk.SMC(50), seed=0)
    assert posterior.guarantee == "unbiased"
    assert posterior.log_evidence == pytest.approx(-1.93, abs=0.15)

    @fk.program
    async def wrong():
        return await made

    with pytest.raises(fk.errors.Unsupported, match=r"fk\.nested"):
        fk.simulate(wrong(), seed=0)


def test_nothing_is_compiled_twice_and_the_default_of_jax_stays():
    traced = []

    def counted(y):
        traced.append(1)
        zoo.gaussian(y)

    made = fk.from_numpyro(counted, 1.5)
    assert len(traced) == 1
    for seed in range(3):
        fk.infer(made, fk.SMC(20 + seed), seed=seed)
    assert len(traced) == 2
    paths = [SimpleNamespace(choices=chosen) for chosen in made.start(ROWS).choices]
    for _ in range(2):
        (density,) = made.unconstrained(paths, None)
        density.evaluate(density.position, True)
        density.choices(density.position)
    before = len(traced)
    (density,) = made.unconstrained(paths[:2], None)
    density.evaluate(density.position, True)
    density.choices(density.position)
    assert len(traced) == before
    assert not jax.config.jax_enable_x64
    value = made.start(ROWS).choices[0][0].value
    assert value != float(np.float32(value))


def test_arrays_of_float32_are_taken_in_float64():
    y = jax.numpy.array([0.1, 0.2], jax.numpy.float32)

    def model(y):
        z = numpyro.sample("z", dist.Normal(y, 1.0).to_event(1))
        numpyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)

    made = fk.from_numpyro(model, y)
    assert made.joint.tolerance == 1e-6
    assert made.joint.latents[0].dtype == np.float64


# -- refusals ---------------------------------------------------------------------------------------------------


def subsampled():
    with numpyro.plate("data", 10, subsample_size=3):
        numpyro.sample("z", dist.Normal(0.0, 1.0))


def learned():
    numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))


def improper():
    numpyro.sample("flat", dist.ImproperUniform(dist.constraints.real, (), ()))


def random():
    numpyro.sample("z", dist.Normal(jax.random.normal(numpyro.prng_key()), 1.0))


REFUSED = {
    "plate 'data'": subsampled,
    "param 'm'": learned,
    "site 'flat'": improper,
    "prng_key": random,
    "handlers.condition": handlers.substitute(lambda: zoo.gaussian(1.0), data={"z": 0.3}),
    "key of its own": handlers.seed(lambda: zoo.gaussian(1.0), 0),
}


@pytest.mark.parametrize("match", REFUSED)
def test_what_cannot_be_right_is_refused_at_once(match):
    with pytest.raises(fk.errors.Unsupported, match=match):
        fk.from_numpyro(REFUSED[match])


def test_handlers_of_numpyro_around_a_model_hold():
    made = fk.from_numpyro(handlers.condition(zoo.mixed, data={"mean": 0.4}), 0.7)
    assert made.joint.kinds == {"side": "sample", "mean": "observe", "y": "observe"}
    cut = fk.from_numpyro(handlers.do(zoo.mixed, data={"mean": 0.4}), 0.7)
    assert {latent.name for latent in cut.joint.latents} == {"side", "mean"}  # the one that is not used
    normal = -0.5 * (0.3 / 0.7) ** 2 - np.log(0.7 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(cut.start(ROWS).log_potential, normal)
    hidden = fk.from_numpyro(handlers.scope(zoo.gaussian, prefix="inner"), 1.5)
    assert list(hidden.joint.kinds) == ["inner/z", "inner/y"]


@pytest.mark.parametrize("validate", [False, pytest.param(True, marks=pytest.mark.filterwarnings("ignore:Out-of"))])
def test_an_observation_outside_its_support_has_no_weight_and_is_named(validate):
    def model(y):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Exponential(1.0 + z * z), obs=y)
        numpyro.deterministic("after", z)

    with numpyro.validation_enabled(validate), pytest.raises(fk.errors.AllParticlesDead, match="5 at site 'y'"):
        fk.infer(fk.from_numpyro(model, -1.0), fk.SMC(5), seed=0)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"side": 1}, r"lack \['mean'\]"),
        ({"side": 1, "mean": 0.1, "more": 2.0}, r"have \['more'\]"),
        ({"side": 0.5, "mean": 0.1}, "'side'.*whole"),
        ({"side": 1, "mean": [0.1, 0.2]}, "'mean'.*shape"),
        ({"side": 1, "mean": "a"}, "cannot take"),
        ({"side": 2, "mean": 0.1}, "'side'.*probability 0"),
    ],
)
def test_choices_that_do_not_fit_are_refused(given, match):
    with pytest.raises(fk.errors.ImpossibleChoice, match=match):
        bridged("mixed")[0].start(ROWS[:1], [given])


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="a function and its arguments"):
        fk.from_numpyro(dist.Normal(0.0, 1.0).log_prob(0.0))

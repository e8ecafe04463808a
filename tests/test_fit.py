"""Fitting guides from end to end: what is found, kept, saved and refused."""

from __future__ import annotations

import math
import os
import signal

import numpy as np
import pytest

import feynkac as fk
from feynkac.inference.base.progress import Progress

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
import numpyro.distributions as nd
import optax

dist = fk.dist


@fk.program
async def normal_mean():
    z = await fk.sample("z", dist.Normal(0.0, 1.0))
    await fk.observe("y", dist.Normal(z, 0.5), 1.5)


@fk.program
async def normal():
    await fk.sample("z", dist.Normal(fk.param("loc", 0.0), fk.param("scale", 1.0, "positive")))


SCHEDULE = optax.adam(optax.exponential_decay(0.1, 100, 0.5))


@pytest.fixture(scope="module")
def fitted():
    return fk.fit(normal_mean(), normal(), fk.ELBO(16), steps=400, optimizer=SCHEDULE, seed=0)


def test_the_posterior_of_a_normal_mean_is_found(fitted):
    """Where q is the posterior, every draw has the log-weight log Z, so that nothing moves the parameters."""
    assert fitted.params["loc"] == pytest.approx(1.2, abs=0.03)
    assert fitted.params["scale"] == pytest.approx(math.sqrt(0.2), abs=0.02)
    assert fitted.losses.shape == (400,)
    assert fitted.losses[-50:].mean() == pytest.approx(1.930510309, abs=0.01)
    assert fitted.stopped is None


def test_a_fitted_guide_is_a_program(fitted):
    draws = [fk.simulate(fitted, seed=seed).trace["z"].value for seed in range(400)]
    # Of a right guide the mean of 400 draws is within 4.265 · .45/20 = .095; the false alarm rate is 2e-5.
    assert np.mean(draws) == pytest.approx(fitted.params["loc"], abs=0.095)
    prior = fk.infer([normal_mean()] * 30, fk.ImportanceSampling(10), seed=0)
    guided = fk.infer([fk.handlers.propose(normal_mean(), fitted)] * 30, fk.ImportanceSampling(10), seed=0)
    spread = [np.std([posterior.log_evidence for posterior in each]) for each in (prior, guided)]
    assert spread[1] < 0.2 * spread[0]
    assert np.mean([posterior.log_evidence for posterior in guided]) == pytest.approx(-1.930510309, abs=0.02)

    @fk.program
    async def outer():
        await fitted
        return fk.param("loc", 0.5)

    assert fk.simulate(outer(), seed=0).value == 0.5  # its parameters are its own


def test_a_fitted_guide_is_frozen_and_saved_without_pickle(fitted, tmp_path):
    for change in (lambda: setattr(fitted, "params", {}), lambda: fitted.params.update(loc=0.0)):
        with pytest.raises(AttributeError):
            change()
    with pytest.raises(ValueError, match="read-only"):
        fitted.losses[0] = 0.0
    path = tmp_path / "guide.zip"
    fitted.save(path)
    again = fk.Guide.load(path, normal())
    assert dict(again.params) == dict(fitted.params)
    assert again.losses.tolist() == fitted.losses.tolist()
    assert fk.simulate(again, seed=1).trace["z"] == fk.simulate(fitted, seed=1).trace["z"]

    @fk.program
    async def another():
        await fk.sample("z", dist.Normal(fk.param("other", 0.0), 1.0))

    with pytest.raises(fk.errors.UnreadableGuide, match="no parameter 'other'"):
        fk.Guide.load(path, another())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(fk.errors.UnreadableGuide, match="damaged"):
        fk.Guide.load(path, normal())
    net = {"w": {"a": np.ones((2, 3))}, "b": np.zeros(2)}
    fk.Guide(normal(), {"loc": 0.5, "scale": 1.0, "net": net}, [1.0], "interrupted").save(path)
    again = fk.Guide.load(path, normal())
    assert again.stopped == "interrupted"
    assert again.params["net"]["w"]["a"].tolist() == net["w"]["a"].tolist()


def test_losses_are_drawn(fitted):
    pytest.importorskip("matplotlib")
    ax = fitted.loss_plot().axes[0]
    assert ax.get_title(loc="left") == "Loss"
    assert len(ax.lines[0].get_xdata()) == 400


@pytest.mark.slow
def test_the_same_seed_gives_the_same_guide(fitted):
    again = fk.fit(normal_mean(), normal(), fk.ELBO(16), steps=5, optimizer=SCHEDULE, seed=0)
    assert again.losses.tolist() == fitted.losses[:5].tolist()
    on = fk.fit(normal_mean(), again, fk.ELBO(2), steps=1, seed=3)  # from where it is, with other draws
    assert on.losses[0] not in fitted.losses
    assert 0 < abs(on.params["loc"] - again.params["loc"]) < 0.011


@pytest.mark.slow
def test_a_rate_given_a_count():
    """Gamma(4, 2) by a log-normal law: its mean is within a few per cent, and the guide keeps to what is positive."""

    @fk.program
    async def model():
        rate = await fk.sample("rate", nd.Exponential(1.0))
        await fk.observe("count", nd.Poisson(rate), 3)

    @fk.program
    async def guide():
        await fk.sample("rate", nd.LogNormal(fk.param("mu", 0.0), fk.param("sigma", 1.0, "positive")))

    found = fk.fit(model(), guide(), fk.ELBO(16), 400, SCHEDULE, seed=0).params
    # The optimum has E[4u − 2e^u] at a maximum: mu + sigma²/2 = log 2 and 2·e^(mu + sigma²/2)·sigma² = 1.
    assert found["sigma"] == pytest.approx(0.5, abs=0.03)
    assert found["mu"] == pytest.approx(math.log(2) - 0.125, abs=0.04)


@pytest.mark.slow
def test_a_discrete_and_a_continuous_site():
    """Two modes: the law of the switch is the posterior's, and each mode has its own place."""

    @fk.program
    async def model():
        k = await fk.sample("k", dist.Bernoulli(0.3))
        z = await fk.sample("z", dist.Normal(jnp.where(k == 1, 2.0, -1.0), 0.5))
        await fk.observe("y", dist.Normal(z, 1.0), 0.5)

    @fk.program
    async def guide():
        k = await fk.sample("k", dist.Bernoulli(fk.param("p", 0.5, "unit_interval")))
        at = jnp.asarray(fk.param("at", np.zeros(2)))[k]
        await fk.sample("z", dist.Normal(at, fk.param("scale", 1.0, "positive")))

    found = fk.fit(model(), guide(), fk.ELBO(8), 500, SCHEDULE, seed=0).params
    marginal = [0.7 * math.exp(-((0.5 + 1) ** 2) / 2.5), 0.3 * math.exp(-((0.5 - 2) ** 2) / 2.5)]
    assert found["p"] == pytest.approx(marginal[1] / sum(marginal), abs=0.02)
    assert found["at"] == pytest.approx([(-1 / 0.25 + 0.5) / 5, (2 / 0.25 + 0.5) / 5], abs=0.06)
    assert found["scale"] == pytest.approx(math.sqrt(0.2), abs=0.03)


async def _drift(x, y):
    x = await fk.sample("x", dist.Normal(0.9 * x, 1.0))
    await fk.observe("y", dist.Normal(x, 1.0), y)
    return x, x


@fk.program
async def series(data):
    x = await fk.sample("x", dist.Normal(0.0, math.sqrt(1 / 0.19)))
    await fk.observe("y", dist.Normal(x, 1.0), data[0])
    return await fk.scan(_drift, x, data[1:])


@pytest.mark.slow
def test_a_mean_field_on_a_series_has_its_smoothed_means():
    y = np.array([0.5, -1.0, 2.0, 1.0])

    @fk.program
    async def guide():
        means, scales = fk.param("means", np.zeros(4)), fk.param("scales", np.ones(4), "positive")
        for t in range(4):  # a loop beside the model's scan: sites are matched by address
            await fk.sample("x", dist.Normal(means[t], scales[t]))

    found = fk.fit(series(y), guide(), fk.ELBO(32), 600, SCHEDULE, seed=0).params
    assert found["means"] == pytest.approx([0.280862, 0.068581, 1.044376, 0.969969], abs=0.04)
    precision = np.array([2.0, 2.81, 2.81, 2.0])  # a mean field has the conditional variances
    assert found["scales"] == pytest.approx(precision**-0.5, abs=0.04)


@pytest.mark.slow
def test_an_amortised_filter_proposes_for_smc():
    """Trained on simulations of the model, it lowers the variance of the evidence of data that it has not seen."""
    y = np.array([0.5, -1.0, 2.0, 1.0])

    async def step(x, y):
        a, b, c = fk.param("a", 0.9), fk.param("b", 0.0), fk.param("c", 1.0, "positive")
        return (await fk.sample("x", dist.Normal(a * x + b * y, c))), None

    @fk.program
    async def guide(start, data):
        x = await fk.sample("x", dist.Normal(fk.param("first", 0.0) * start, fk.param("spread", 2.0, "positive")))
        await fk.scan(step, x, data)

    @fk.program
    async def model(start, data):
        x = await fk.sample("x", dist.Normal(0.0, math.sqrt(1 / 0.19)))
        await fk.observe("start", dist.Normal(x, 1.0), start)
        await fk.scan(_drift, x, data)

    objective = fk.ForwardKL({"start": "start", "y": "data"}, simulations=64)
    found = fk.fit(model(0.0, np.zeros(3)), guide(0.0, np.zeros(3)), objective, 600, SCHEDULE, seed=0)
    # The simulations are filtered, not smoothed, step by step: the law of x_t given x_{t−1} and y_t is the best.
    assert [found.params[name] for name in "ab"] == pytest.approx([0.45, 0.5], abs=0.05)
    assert found.params["c"] == pytest.approx(math.sqrt(0.5), abs=0.05)
    guided = fk.handlers.propose(model(y[0], y[1:]), found.bind(guide(y[0], y[1:])))
    prior = model(y[0], y[1:])
    spread = [np.std([p.log_evidence for p in fk.infer([m] * 40, fk.SMC(10), seed=0)]) for m in (prior, guided)]
    assert spread[1] < 0.7 * spread[0]


@pytest.mark.slow
def test_parameters_of_the_model_are_fitted_along():
    @fk.program
    async def model():
        z = await fk.sample("z", dist.Normal(fk.param("prior", 0.0), 1.0))
        await fk.observe("y", dist.Normal(z, 0.5), 1.5)

    guide = fk.fit(model(), normal(), fk.ELBO(8), 400, SCHEDULE, seed=0)
    assert guide.params["prior"] == pytest.approx(1.5, abs=0.05)  # which makes the evidence largest
    prior = [fk.simulate(guide.bind(model()), seed=seed).trace["z"].log_prob for seed in range(3)]
    at = [fk.simulate(guide.bind(model()), seed=seed).trace["z"].value for seed in range(3)]
    assert prior == pytest.approx([dist.Normal(guide.params["prior"], 1.0).log_prob(z) for z in at])


# -- what goes wrong --------------------------------------------------------------------------------------------


def _guide_of(*sites):
    @fk.program
    async def wrong():
        for name, law in sites:
            await fk.sample(name, law)

    return wrong()


@fk.program
async def observing():
    await fk.observe("z", dist.Normal(0.0, 1.0), 0.3)


@fk.program
async def weighing():
    await fk.sample("z", dist.Normal(0.0, 1.0))
    await fk.factor("w", 0.3)


WRONG = [
    (_guide_of(("a", dist.Normal())), fk.errors.UnfitGuide, "draws 'a', and the model 'normal_mean' does not"),
    (_guide_of(("z", dist.Normal()), ("y", dist.Normal())), fk.errors.UnfitGuide, "'y', which the model observes"),
    (_guide_of(), fk.errors.UnfitGuide, "does not draw 'z', which the model 'normal_mean' does"),
    (observing(), fk.errors.UnfitGuide, "observes 'z'"),
    (weighing(), fk.errors.UnfitGuide, "has the factor 'w'"),
    (_guide_of(("z", dist.Uniform(-1.0, 1.0))), fk.errors.UnsupportedProposal, "site 'z'.*cannot reach all"),
    (_guide_of(("z", dist.Bernoulli(0.5))), fk.errors.UnsupportedProposal, "site 'z'.*cannot reach all"),
]


@pytest.mark.parametrize(("guide", "error", "message"), WRONG)
def test_guides_that_do_not_fit_are_refused(guide, error, message):
    with pytest.raises(error, match=message):
        fk.fit(normal_mean(), guide, steps=1)


def test_laws_that_reach_too_far_are_refused():
    @fk.program
    async def positive():
        await fk.sample("z", dist.Exponential(1.0))

    with pytest.raises(fk.errors.UnsupportedProposal, match=r"site 'z'.*reaches beyond the model's"):
        fk.fit(positive(), normal(), steps=1)
    assert fk.fit(positive(), normal(), fk.QWake(4), steps=2).losses.shape == (2,)


def test_runs_that_die_early_are_no_other_addresses():
    """A hard constraint ends the run by which a guide is looked at; its sites are compared all the same."""

    @fk.program
    async def dies():
        await fk.sample("z", dist.Normal(0.0, 1.0))
        await fk.factor("never", -math.inf)
        await fk.sample("v", dist.Normal(0.0, 1.0))

    both = _guide_of(("z", dist.Normal()), ("v", dist.Normal()))
    assert np.isfinite(fk.fit(dies(), both, fk.QWake(2), steps=1).losses).all()
    for guide, message in (
        (_guide_of(("z", dist.Normal())), "'v' is drawn by one of guide and model alone"),
        (_guide_of(("z", dist.Normal()), ("v", dist.Normal()), ("w", dist.Normal())), "draws 'w', and the model"),
    ):
        with pytest.raises(fk.errors.UnfitGuide, match=message):
            fk.fit(dies(), guide, fk.QWake(2), steps=1)


def test_auxiliary_draws_need_a_reverse():
    @fk.program
    async def reverse(latents):
        await fk.sample("a", dist.Normal(latents["z"], 1.0))

    guide = _guide_of(("a", dist.Normal()), ("b", dist.Normal()), ("z", dist.Normal()))
    with pytest.raises(fk.errors.UnfitGuide, match="draws 'b', which neither the model nor its reverse does"):
        fk.fit(normal_mean(), guide, fk.HVI(reverse), steps=1)


def test_settings_are_checked():
    for wrong in ({"objective": fk.ELBO}, {"objective": 3}, {"optimizer": -0.1}, {"optimizer": "adam"}):
        with pytest.raises(TypeError, match="must be one"):
            fk.fit(normal_mean(), normal(), steps=1, **wrong)
    for wrong in (lambda: fk.ELBO(0), lambda: fk.IWAE(2.0), lambda: fk.QWake(2, batch=0), lambda: fk.HVI(3)):
        with pytest.raises(ValueError, match="must be a"):
            wrong()


@fk.program
async def jumps(how):
    z = await fk.sample("z", dist.Normal(0.0, 1.0))
    await fk.factor("w", how(z))


def _branch(z):
    return jax.lax.cond(z > 0.5, lambda: 1.0, lambda: 0.0)


@jax.jit
def _mine(z):
    return jnp.where(z > 0.5, 1.0, 0.0)


@pytest.mark.parametrize(
    "how",
    [
        lambda z: jnp.where(z > 0.5, 1.0, 0.0),
        lambda z: jnp.floor(z),
        lambda z: jnp.array([0.1, 0.2])[jnp.argmax(jnp.stack([z, 0.5]))],
        lambda z: 1.0 * (jnp.exp(z) < 2.0),
        lambda z: jnp.round(z) + z // 2.0,
        _branch,
        _mine,
    ],
)
def test_jumps_along_a_path_are_refused(how):
    with pytest.raises(fk.errors.NotDifferentiable, match=r"site 'z': at test_fit.py, line \d+ the code decides by it"):
        fk.fit(jumps(how), normal(), steps=1)


def test_discrete_draws_are_no_jumps():
    """A switch whose law follows a smooth draw is its own estimator's business."""

    @fk.program
    async def model():
        u = await fk.sample("u", dist.Normal(0.0, 1.0))
        k = await fk.sample("k", dist.Bernoulli(jax.nn.sigmoid(u)))
        await fk.factor("w", jnp.where(k == 1, u, -1.0))

    @fk.program
    async def guide():
        u = await fk.sample("u", dist.Normal(fk.param("m", 0.0), 1.0))
        await fk.sample("k", dist.Bernoulli(jax.nn.sigmoid(u + fk.param("w", 0.0))))

    with jax.enable_x64(True):
        for how in ("enum", "score"):
            fk.ELBO(2).problem(model(), guide(), {"k": how}).check({"m": 0.0, "w": 0.0})


def test_what_is_continuous_is_none_of_them():
    def smooth(z):
        both = jnp.stack([z, 2 * z])
        return (
            jax.nn.relu(z) + jax.nn.elu(z) + jnp.abs(z) + jnp.clip(z, -1.0, 1.0) + jnp.maximum(z, 0.3)
            + jax.nn.logsumexp(both) + jax.nn.log_softmax(both)[0] + jnp.logaddexp(z, 0.0)
            + nd.Laplace(0.0, 1.0).log_prob(z)
        )  # fmt: skip

    for model, chosen in ((jumps(smooth), {}), (jumps(_mine), {"z": "score"}), (jumps(_branch), {"z": "mvd"})):
        with jax.enable_x64(True):
            fk.ELBO(2).problem(model, normal(), chosen).check({"loc": 0.0, "scale": 1.0})


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        ({"a": "score"}, ValueError, r"asked for \['a'\], and the guide draws \['z'\]"),
        ({"z": "best"}, ValueError, "site 'z': the estimator is one of reparam, score, enum, mvd, not 'best'"),
        ({"z": "enum"}, fk.errors.Unsupported, "site 'z': no estimator 'enum', for its values cannot be listed"),
    ],
)
def test_estimators_are_checked(chosen, error, message):
    with pytest.raises(error, match=message):
        fk.fit(normal_mean(), normal(), steps=1, estimators=chosen)
    with pytest.raises(ValueError, match="QWake takes no gradient through draws"):
        fk.fit(normal_mean(), normal(), fk.QWake(2), steps=1, estimators=chosen)


def test_estimators_that_a_law_has_not_are_refused():
    @fk.program
    async def coin():
        z = await fk.sample("z", dist.Bernoulli(0.3))
        await fk.factor("w", 0.3 * z)

    @fk.program
    async def toss():
        fk.estimator("z", "mvd")
        await fk.sample("z", dist.Bernoulli(fk.param("p", 0.5, "unit_interval")))

    with pytest.raises(fk.errors.Unsupported, match="site 'z': no estimator 'mvd', for only normal laws"):
        fk.fit(coin(), toss(), steps=1)
    assert fk.fit(coin(), toss(), steps=1, estimators={"z": "enum"}).losses.shape == (1,)


def test_what_cannot_be_traced_is_named():
    @fk.program
    async def branches():
        z = await fk.sample("z", dist.Normal(0.0, 1.0))
        if z > 0:
            await fk.factor("w", 1.0)

    with pytest.raises(fk.errors.NotTraceable, match="program 'branches', after site 'z'"):
        fk.fit(branches(), normal(), steps=1)


def test_forward_kl_must_know_what_is_shown():
    @fk.program
    async def weighed():
        z = await fk.sample("z", dist.Normal(0.0, 1.0))
        await fk.factor("w", -(z**2))

    for model, objective, error, message in (
        (normal_mean(), fk.ForwardKL(), ValueError, "observes 'y': say which argument"),
        (normal_mean(), fk.ForwardKL({"y": None, "x": "x"}), ValueError, r"names \['x'\]"),
        (normal_mean(), fk.ForwardKL({"y": "data"}), TypeError, "has no argument 'data'"),
        (weighed(), fk.ForwardKL(), fk.errors.Unsupported, "weighs by 'w'"),
    ):
        with pytest.raises(error, match=message):
            fk.fit(model, normal(), objective, steps=1)


def test_what_was_simulated_is_shown_in_order():
    """A first observation before a scan, and constants among the latents."""
    seen = []

    @fk.program
    async def guide(data, fixed):
        seen.append((np.shape(data), np.shape(fixed)))
        await fk.scan(lambda _, y: _around(y), 0.0, data)

    async def _around(y):
        return 0.0, await fk.sample("x", dist.Normal(fk.param("slope", 0.5) * y, 1.0))

    @fk.program
    async def model(data):
        fixed = await fk.sample("fixed", dist.Delta(0.1))
        x = await fk.sample("x", dist.Normal(fixed, 1.0))
        await fk.observe("y", dist.Normal(x, 0.001), data[0])
        await fk.scan(_sharp, x, data[1:])

    async def _sharp(x, y):
        x = await fk.sample("x", dist.Normal(x, 1.0))
        await fk.observe("y", dist.Normal(x, 0.001), y)
        return x, x

    data = np.zeros(3)
    found = fk.fit(model(data), guide(data, 0.1), fk.ForwardKL({"y": "data", "fixed": "fixed"}), 200, 0.05, seed=0)
    assert found.params["slope"] == pytest.approx(1.0, abs=0.05)  # shown in another order it would be less
    assert set(seen[1:]) == {((3,), ())}


def test_parameters_are_checked():
    @fk.program
    async def bad(init, constraint):
        await fk.sample("z", dist.Normal(fk.param("loc", init, constraint), 1.0))

    for init, constraint, message in (
        (-1.0, "positive", "param 'loc': it begins with -1.0"),
        (1.0, "sideways", "param 'loc': 'sideways' is none of"),
    ):
        with pytest.raises(ValueError, match=message):
            fk.fit(normal_mean(), bad(init, constraint), steps=1)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_its_step_and_keeps_what_was_good():
    @fk.program
    async def steep():
        z = await fk.sample("z", dist.Normal(0.0, 1.0))
        await fk.factor("w", jnp.where(fk.param("gain", 1.0) > 2.0, jnp.nan, fk.param("gain", 1.0)) + 0.0 * z)

    with pytest.raises(fk.errors.NonFiniteLoss, match=r"step \d+: the loss, nan, is not finite") as caught:
        fk.fit(steep(), normal(), fk.ELBO(2), 200, optimizer=optax.sgd(0.1), seed=0)
    guide = caught.value.guide
    assert guide.params["gain"] > 2.0
    assert np.isfinite([guide.params["loc"], guide.params["scale"]]).all()
    assert np.isfinite(guide.losses).all()
    assert str(caught.value).startswith(f"step {len(guide.losses)}:")

    @fk.program
    async def edge():
        z = await fk.sample("z", dist.Normal(0.0, 1.0))
        await fk.factor("w", jnp.sqrt(fk.param("root", 0.0)) + 0.0 * z)

    with pytest.raises(fk.errors.NonFiniteLoss, match="step 0: the gradient of 'root' is not finite"):
        fk.fit(edge(), normal(), fk.ELBO(2), 3)


def test_ctrl_c_returns_the_guide_so_far(monkeypatch):
    def update(bar):
        if bar._describe()[0] >= 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", update)
    guide = fk.fit(normal_mean(), normal(), fk.ELBO(2), steps=100_000, seed=0)
    assert guide.stopped == "interrupted"
    assert 5 <= len(guide.losses) < 100_000
    assert guide.params["loc"] != 0.0

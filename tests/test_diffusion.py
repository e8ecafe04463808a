"""Schedules, denoisers, steps and generators of diffusion: against the formulas, and batches against one by one."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import feynkac as fk  # noqa: E402
from feynkac.diffusion import Diffusion, Guided, Mixture, Network, Schedule, Steering, anneal, tilt  # noqa: E402
from feynkac.diffusion.denoiser import estimate  # noqa: E402
from feynkac.diffusion.gaussian.transitions import transition  # noqa: E402
from feynkac.diffusion.generator import InvalidOutput  # noqa: E402
from feynkac.ppl import keys as _keys  # noqa: E402
from laws import Z_LIMIT, z_score  # noqa: E402

SCHEDULES = {
    "vp": Schedule.vp(12),
    "ddpm": Schedule.ddpm(12),
    "all of ddpm": Schedule.ddpm(1000),
    "ve": Schedule.ve(12, 0.01, 20.0),
    "flow": Schedule.flow(12),
    "shifted flow": Schedule.flow(12, shift=3.0),
}
DATA = Mixture([0.3, 0.7], [[-2.0, 1.0], [1.0, 0.5]], [0.2, 0.6])


def model_of(schedule, **settings):
    return Diffusion(DATA.denoiser(schedule), schedule, (2,), **{"dtype": torch.float64, **settings})


def some_keys(n, *more):
    return _keys.fold(_keys.root(7), np.arange(n), *more)


def quadratic(x):
    return -(x - 0.7).square().sum(-1)


# Schedules, predictions and steps


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_go_from_noise_to_data(name):
    schedule = SCHEDULES[name]
    assert schedule.sigma[-1] == 0.0
    assert schedule.alpha[-1] == 1.0
    if name in ("vp", "ddpm", "all of ddpm"):
        np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1.0)
    elif name == "ve":
        assert schedule.sigma[:-1:11].tolist() == pytest.approx([20.0, 0.01])
    else:
        np.testing.assert_allclose(schedule.alpha, 1.0 - schedule.sigma)


def test_ddpm_takes_the_levels_that_trailing_spacing_takes():
    kept = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    schedule = Schedule.ddpm(50)
    assert schedule.time[:-1].tolist() == list(range(999, 0, -20))
    np.testing.assert_allclose(schedule.alpha[:-1] ** 2, kept[999::-20])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Schedule([0.5, 1.0], [0.5, 0.5, 0.0], [1, 0]), "one length"),
        (lambda: Schedule([1.0, 1.0], [0.5, 0.5], [1, 0]), "must fall"),
        (lambda: Schedule([0.5, 1.0], [np.inf, 0.0], [1, 0]), "finite"),
        (lambda: Schedule([0.5, 1.0], [0.5, 0.0], [np.nan, 0]), "finite"),
        (lambda: Schedule.ddpm(2000), "between 1 and the 1000"),
        (lambda: Network(lambda x, t: x, "eps"), "epsilon, sample, v, flow"),
        (lambda: model_of(Schedule.vp(3), eta=1.5), "eta"),
        (lambda: Diffusion(Network(lambda x, t: x, "epsilon"), Schedule.flow(4), (2,)), "start=0.99"),
    ],
)
def test_settings_that_cannot_be(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v", "flow"])
def test_every_prediction_gives_the_data_back(name, prediction):
    schedule = SCHEDULES[name]
    level = slice(1, -1)  # inside, where all four are defined
    alpha, sigma = (torch.tensor(array[level])[:, None] for array in (schedule.alpha, schedule.sigma))
    torch.manual_seed(0)
    data, noise = torch.randn(2, len(alpha), 3, dtype=torch.float64)
    said = {"epsilon": noise, "sample": data, "v": alpha * noise - sigma * data, "flow": noise - data}[prediction]
    found = estimate(prediction, said, alpha * data + sigma * noise, alpha, sigma)
    torch.testing.assert_close(found, data, rtol=1e-8, atol=1e-8)


def pair(schedule, i):
    return tuple(torch.tensor(float(array[i]), dtype=torch.float64) for array in (schedule.alpha, schedule.sigma))


@pytest.mark.parametrize("i", [0, 5, 10])
def test_a_step_is_the_posterior_of_ddpm(i):
    """With β_t = 1 − ᾱ/ᾱ', mean and variance as in equation 7 of Ho et al. (2020)."""
    schedule, x, data = SCHEDULES["ddpm"], torch.tensor([[0.3, -1.2]]).double(), torch.tensor([[0.9, 0.1]]).double()
    a, a2 = schedule.alpha[i] ** 2, schedule.alpha[i + 1] ** 2
    beta = 1.0 - a / a2
    mean, std = transition(x, data, pair(schedule, i), pair(schedule, i + 1), 1.0)
    expected = (np.sqrt(a2) * beta * data + np.sqrt(1 - beta) * (1 - a2) * x) / (1 - a)
    torch.testing.assert_close(mean, expected)
    assert float(std) ** 2 == pytest.approx((1 - a2) / (1 - a) * beta)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_step_is_that_of_ddim(eta):
    """Equations 12 and 16 of Song et al. (2021)."""
    schedule, x, data = SCHEDULES["ddpm"], torch.tensor([[0.3, -1.2]]).double(), torch.tensor([[0.9, 0.1]]).double()
    a, a2 = schedule.alpha[4] ** 2, schedule.alpha[5] ** 2
    noise = (x - np.sqrt(a) * data) / np.sqrt(1 - a)
    variance = eta**2 * (1 - a2) / (1 - a) * (1 - a / a2)
    mean, std = transition(x, data, pair(schedule, 4), pair(schedule, 5), eta)
    torch.testing.assert_close(mean, np.sqrt(a2) * data + np.sqrt(1 - a2 - variance) * noise)
    assert float(std) == pytest.approx(np.sqrt(variance))


def test_a_step_of_a_flow_is_an_euler_step_of_its_sde_as_steps_get_small():
    """mean − x → dt·(v + g²/(2σ)·ε̂) with g² what the variance τ² of the step is per dt."""
    x, data = torch.tensor([[0.3, -1.2]]).double(), torch.tensor([[0.9, 0.1]]).double()
    for eta in (0.0, 0.5, 1.0):
        gaps = []
        for dt in (1e-2, 1e-3):
            level = torch.tensor(0.6).double(), torch.tensor(0.4).double()
            following = level[0] + dt, level[1] - dt
            mean, std = transition(x, data, level, following, eta)
            noise = (x - level[0] * data) / level[1]
            expected = x - dt * (noise - data) - std**2 / (2 * level[1]) * noise
            gaps.append(float((mean - expected).abs().max()))
        assert gaps[1] < 0.02 * gaps[0] + 1e-12  # of second order
        assert eta == 0.0 or float(std) > 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_step_without_noise_keeps_data_and_noise(name):
    """x = α·data + σ·ε goes to α'·data + σ'·ε; with noise, in law: the variance of the noise stays σ'²."""
    schedule, i = SCHEDULES[name], 3
    (alpha, sigma), (alpha2, sigma2) = pair(schedule, i), pair(schedule, i + 1)
    data, noise = torch.tensor([[0.9]]).double(), torch.tensor([[-1.1]]).double()
    mean, std = transition(alpha * data + sigma * noise, data, (alpha, sigma), (alpha2, sigma2), 0.0)
    torch.testing.assert_close(mean, alpha2 * data + sigma2 * noise)
    assert float(std) == 0.0
    mean, std = transition(alpha * data + sigma * noise, data, (alpha, sigma), (alpha2, sigma2), 0.7)
    kept = (mean - alpha2 * data) / noise
    torch.testing.assert_close(kept**2 + std**2, sigma2[None, None] ** 2)


# Mixtures


@pytest.mark.parametrize("name", ["all of ddpm", "ve", "flow", "vp"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_denoiser_of_a_mixture_is_exact_at_every_level(name, dtype):
    """Tweedie: α·E[data | x] = x + σ²·score, the score by autograd."""
    schedule = SCHEDULES[name]
    torch.manual_seed(0)
    x = torch.randn(len(schedule), 2, dtype=dtype).requires_grad_(True)
    alpha, sigma = (torch.tensor(level[:-1], dtype=dtype) for level in (schedule.alpha, schedule.sigma))
    (score,) = torch.autograd.grad(DATA.log_prob(x, alpha, sigma).sum(), x)
    torch.testing.assert_close(DATA.score(x, alpha, sigma), score)
    told = torch.tensor(schedule.time[:-1], dtype=dtype)
    found = DATA.denoiser(schedule)(x, told, None)
    torch.testing.assert_close(alpha[:, None] * found, x + sigma[:, None] ** 2 * score, rtol=1e-3, atol=1e-4)


def test_the_denoiser_of_a_mixture_knows_its_own_levels_alone():
    with pytest.raises(ValueError, match="its own schedule"):
        DATA.denoiser(Schedule.vp(10))(torch.zeros(1, 2), torch.tensor([0.123]), None)


def moments(log_density, low=-8.0, high=8.0, n=1601):
    """Mean and covariance on a grid of two dimensions."""
    axis = np.linspace(low, high, n)
    points = torch.tensor(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2))
    weights = torch.softmax(log_density(points), 0)
    mean = weights @ points
    return mean.numpy(), ((points - mean).T * weights @ (points - mean)).numpy()


OTHER = Mixture([0.6, 0.4], [[0.0, -1.0], [1.5, 1.0]], [0.5, 0.3])
ONE = Mixture([1.0], [[0.4, -0.3]], [1.3])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixtures", "powers"),
    [([DATA, OTHER], None), ([DATA], [3]), ([DATA, ONE], [2, -1]), ([DATA, OTHER, ONE], [2, 1, 0.7])],
)
def test_products_and_powers_of_mixtures(mixtures, powers):
    whole = Mixture.product(mixtures, powers)
    powers = powers or [1] * len(mixtures)
    mean, covariance = moments(lambda x: sum(p * m.log_prob(x) for m, p in zip(mixtures, powers)))
    np.testing.assert_allclose(whole.mean, mean, atol=1e-6)
    np.testing.assert_allclose(whole.covariance, covariance, atol=1e-6)


def test_tilted_mixtures():
    mean, covariance = moments(lambda x: DATA.log_prob(x) + x @ torch.tensor([0.5, -1.0]).double())
    np.testing.assert_allclose(DATA.tilt([0.5, -1.0]).mean, mean, atol=1e-6)
    np.testing.assert_allclose(DATA.tilt([0.5, -1.0]).covariance, covariance, atol=1e-6)


@pytest.mark.parametrize("powers", [[1.5], [0]])
def test_powers_without_a_closed_form(powers):
    with pytest.raises(ValueError, match="powers 1, 2"):
        Mixture.product([DATA], powers)
    with pytest.raises(ValueError, match="no finite mass"):
        Mixture.product([ONE, Mixture([1.0], [[0.0, 0.0]], [0.5])], [1, -1])


# The generator


@pytest.mark.parametrize("name", ["vp", "ve", "flow", "ddpm"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_it_samples_its_data(name, eta):
    """Means and mode mass, each a z-test over 4,000 particles, but for 2% that the steps of 200 leave; fixed seed."""
    schedule = {"vp": Schedule.vp, "ve": Schedule.ve, "flow": Schedule.flow, "ddpm": Schedule.ddpm}[name](200)
    posterior = fk.infer(model_of(schedule, eta=eta), fk.ImportanceSampling(4000), seed=1)
    values = np.stack(posterior.values)
    error = Z_LIMIT * values.std(0) / np.sqrt(len(values)) + 0.02
    assert (np.abs(values.mean(0) - DATA.mean) < error).all()
    mass = DATA.responsibilities(values)[:, 0].mean()
    assert abs(float(mass) - 0.3) < Z_LIMIT * np.sqrt(0.21 / 4000) + 0.005
    np.testing.assert_allclose(np.cov(values.T), DATA.covariance, atol=0.12)


def test_densities_of_steps_are_those_of_normals():
    model = model_of(Schedule.vp(5), eta=0.8)
    first = model.start(some_keys(4))
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(first.state.x).sum(1)
    np.testing.assert_allclose(first.log_prob, expected)
    second = model.advance(first.state, some_keys(4, 1))
    mean, std = transition(
        first.state.x, first.state.fields["estimate"], pair(model.schedule, 0), pair(model.schedule, 1), 0.8
    )
    expected = torch.distributions.Normal(mean, std).log_prob(second.state.x).sum(1)
    np.testing.assert_allclose(second.log_prob, expected)
    np.testing.assert_array_equal(second.log_proposal, second.log_prob)


def run(model, n, given=None):
    """Every Advance of a run of n particles, replaying ``given`` where there is any."""
    made = [model.start(some_keys(n), None if given is None else given[0])]
    for t in range(1, model.steps + 1):
        made.append(model.advance(made[-1].state, some_keys(n, t), None if given is None else given[t]))
    return made


ALL = {
    "plain": lambda schedule: model_of(schedule, eta=0.6),
    "deterministic": lambda schedule: model_of(schedule, eta=0.0),
    "steered": lambda schedule: model_of(schedule, steering=Steering(quadratic, 0.5, "max", every=2)),
    "twisted": lambda schedule: model_of(schedule, steering=Steering(quadratic, 0.5, gradient=True)),
    "corrected": lambda schedule: tilt(anneal(model_of(schedule), 1.5), quadratic, of="estimate"),
}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("name", ["vp", "ve"])
def test_given_choices_are_forced_and_scored_as_they_were(kind, name):
    model = ALL[kind](SCHEDULES[name])
    made = run(model, 5)
    again = run(model, 7, [[*one.choices, None, None] for one in made])
    for one, other in zip(made, again):
        np.testing.assert_array_equal(one.choices, other.choices[:5])
        for term in ("log_prob", "log_proposal", "log_potential"):
            np.testing.assert_allclose(getattr(one, term), getattr(other, term)[:5], rtol=1e-12, atol=1e-12)


def test_an_impossible_given_has_no_probability():
    model = model_of(Schedule.vp(3), eta=0.0)
    first = model.start(some_keys(2))
    here = model.advance(first.state, some_keys(2, 1)).choices
    moved = model.advance(first.state, some_keys(2, 1), [here[0], here[1] + 1.0])
    assert moved.log_prob.tolist() == [0.0, -np.inf]
    with pytest.raises(ValueError, match="particle 1 was given an array of shape"):
        model.start(some_keys(2), [None, np.zeros(3)])


@pytest.mark.parametrize("kind", ALL)
def test_particles_at_different_depths_share_a_batch(kind):
    """What a particle does, finished ones included, does not depend on the batch: equal to the last bit."""
    model = ALL[kind](SCHEDULES["vp"])
    made = run(model, 3)
    depths = [0, 4, 11, 12]
    mixed = model.concat([made[t].state for t in depths])
    keys = np.concatenate([some_keys(3, t + 1) for t in depths])
    together = model.advance(mixed, keys)
    for i, t in enumerate(depths):
        rows, alone = slice(3 * i, 3 * i + 3), model.advance(made[t].state, some_keys(3, t + 1))
        np.testing.assert_array_equal(together.choices[rows], alone.choices)
        for term in ("log_prob", "log_proposal", "log_potential", "done"):
            np.testing.assert_array_equal(getattr(together, term)[rows], getattr(alone, term))
        part = model.select(together.state, np.arange(3 * i, 3 * i + 3))
        assert set(part.fields) == set(alone.state.fields)
        for field, value in alone.state.fields.items():
            assert torch.equal(part.fields[field], value), field
    assert together.done.tolist() == [False] * 6 + [True] * 6
    assert not together.log_prob[9:].any()
    assert not together.log_potential[9:].any()


@pytest.mark.parametrize("kind", ALL)
def test_all_that_belongs_to_a_particle_follows_it(kind):
    """A network that sees the particle's own number: after any forks, every field is what that particle would have."""
    n, schedule = 6, SCHEDULES["vp"]
    own = torch.arange(1.0, n + 1, dtype=torch.float64)[:, None]

    class Numbered:
        prediction, evaluations = "sample", 1

        def __call__(self, x, time, condition):
            return torch.tanh(x * condition) * condition

    settings = {"condition": own, "dtype": torch.float64}
    steering = {"steered": Steering(quadratic, 0.01, "sum"), "twisted": Steering(quadratic, 0.01, gradient=True)}
    model = Diffusion(Numbered(), schedule, (2,), eta=0.9, steering=steering.get(kind), **settings)
    if kind == "corrected":
        model = tilt(anneal(model, 1.5), lambda x: 0.01 * quadratic(x), of="estimate")
    state, rng = model.start(some_keys(n)).state, np.random.default_rng(0)
    for t in range(1, 8):
        ancestors = rng.integers(0, n, n)
        forked = model.select(state, ancestors)
        keys = some_keys(n, t)
        after = model.advance(forked, keys)
        for i, ancestor in enumerate(ancestors):  # the same, alone, from the ancestor
            alone = model.advance(model.select(state, [ancestor]), keys[i : i + 1])
            mine = model.select(after.state, [i])
            torch.testing.assert_close(mine.x, alone.state.x, rtol=1e-10, atol=1e-10)
            for field, value in alone.state.fields.items():
                torch.testing.assert_close(mine.fields[field], value, rtol=1e-9, atol=1e-9, msg=field)
            was = forked.condition[0] if kind == "corrected" else forked.condition
            now = mine.condition[0] if kind == "corrected" else mine.condition
            assert float(now) == float(was[i])
        state = after.state


def test_a_condition_is_for_one_or_for_all():
    labels = {"words": torch.ones(2, 3), "pooled": [torch.zeros(2, 1), None]}
    model = Diffusion(Network(lambda x, t, c: 0 * x, "sample"), Schedule.vp(2), (1,), condition=labels)
    assert model.start(some_keys(2)).state.condition is labels
    with pytest.raises(ValueError, match="batch of 2, but there are 3"):
        model.start(some_keys(3))


def test_guidance_mixes_two_predictions_in_one_call():
    sizes = []

    def network(x, time, condition):
        sizes.append(len(x))
        return x * condition

    guided = Guided(Network(network, "epsilon"), 3.0, torch.tensor([[0.5]]))
    found = guided(torch.ones(4, 1), torch.ones(4), torch.full((4, 1), 2.0))
    assert found.tolist() == [[0.5 + 3.0 * 1.5]] * 4
    assert sizes == [8]


# What it costs, and what goes wrong


class Counting:
    prediction = "sample"
    evaluations = 1

    def __init__(self, schedule):
        self.inner, self.calls, self.rows = DATA.denoiser(schedule), 0, 0

    def __call__(self, x, time, condition):
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return self.inner(x, time, condition)


@pytest.mark.parametrize("engine", [fk.SMC(6), fk.ImportanceSampling(5, chains=2), fk.BestOfN(3)])
def test_cost_is_what_the_network_and_the_reward_saw(engine):
    schedule = Schedule.vp(7)
    network, scored = Counting(schedule), []

    def reward(x):
        scored.append(len(x))
        return quadratic(x)

    def model(**settings):
        return Diffusion(network, schedule, (2,), dtype=torch.float64, **settings)

    models = [
        model(),
        model(steering=Steering(reward, every=3)),
        model(steering=Steering(reward, gradient=True)),
        tilt(anneal(model(), 2.0), reward, of="estimate"),
    ]
    posteriors = fk.infer(models, engine, seed=0)
    n = engine.particles * engine.chains
    assert [p.cost.nfe for p in posteriors[:3]] == [7 * n] * 3
    assert posteriors[3].cost.nfe == (3 * 7 - 1) * n  # three, but for what the data are at the end
    assert [p.cost.reward_calls for p in posteriors] == [0, 4 * n, 8 * n, 14 * n]
    assert sum(p.cost.nfe for p in posteriors) == network.rows
    assert sum(p.cost.model_calls for p in posteriors) == network.calls
    assert sum(scored) == sum(p.cost.reward_calls for p in posteriors)


def test_guidance_costs_twice():
    guided = Guided(Network(lambda x, t, c: 0 * x, "sample"), 2.0, torch.zeros(1, 1))
    model = Diffusion(guided, Schedule.vp(4), (1,), condition=torch.ones(1, 1))
    cost = fk.infer(model, fk.ImportanceSampling(3), seed=0).cost
    assert (cost.nfe, cost.model_calls) == (2 * 4 * 3, 4)


def test_one_seed_one_posterior_and_latents_do_not_depend_on_the_batch():
    model = model_of(Schedule.vp(6))
    one, two = (fk.infer(model, fk.ImportanceSampling(5), seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.values, two.values)
    few = fk.infer(model, fk.ImportanceSampling(2), seed=3)
    np.testing.assert_allclose(few.values, one.values[:2], rtol=1e-12)
    assert np.unique(np.round(one.values, 9)).size == 10


def test_a_value_can_be_changed_without_harm():
    model = model_of(Schedule.vp(4))
    state = model.start(some_keys(2)).state
    model.values(state)[0][:] = np.nan
    assert bool(torch.isfinite(state.fields["estimate"]).all())


def test_finished_and_unfinished_particles_are_decoded():
    model = model_of(Schedule.vp(2), decode=lambda x: 2.0 * x)
    made = run(model, 2)
    np.testing.assert_array_equal(model.values(made[0].state), 2.0 * made[0].state.fields["estimate"])
    np.testing.assert_array_equal(model.values(made[2].state), 2.0 * made[2].state.x)


def test_a_network_that_fails_is_named():
    def broken(x, time):
        return torch.where(torch.arange(len(x))[:, None] == 2, torch.nan, x)

    with pytest.raises(InvalidOutput, match="particle 2"):
        Diffusion(Network(broken, "sample"), Schedule.vp(2), (1,)).start(some_keys(4))
    with pytest.raises(InvalidOutput, match="returned"):
        Diffusion(Network(lambda x, t: x[:, :1], "sample"), Schedule.vp(2), (2,)).start(some_keys(4))


def test_large_noise_begins_as_its_schedule_says():
    assert model_of(Schedule.ve(5, sigma_max=30.0)).scale == pytest.approx(30.0, rel=1e-12)
    assert model_of(Schedule.vp(5)).scale == 1.0
    assert model_of(Schedule.flow(5)).scale == 1.0
    assert abs(z_score(model_of(Schedule.ve(5)).start(some_keys(4000)).choices[:, 0] ** 2 / 80.0**2, 1.0)) < Z_LIMIT


@pytest.mark.parametrize(("sigma_min", "sigma_max"), [(0.002, 80.0), (0.01, 40.0), (0.0317, 51.3)])
def test_the_ends_of_exploding_noise_are_what_was_asked_for(sigma_min, sigma_max):
    schedule = Schedule.ve(18, sigma_min, sigma_max)
    assert (schedule.sigma[0], schedule.sigma[-2], schedule.sigma[-1]) == (sigma_max, sigma_min, 0.0)
    assert model_of(schedule).scale == sigma_max
    assert Schedule.ve(1, sigma_min, sigma_max).sigma.tolist() == [sigma_max, 0.0]


@pytest.mark.parametrize("kind", ALL)
def test_an_empty_batch_is_a_batch(kind):
    model = ALL[kind](Schedule.vp(3))
    made = run(model, 0)
    assert len(made[-1].state) == 0
    assert made[-1].log_increment.shape == (0,)
    assert model.values(made[-1].state) == []
    some = model.start(some_keys(2)).state
    assert len(model.select(some, [])) == 0
    assert len(model.concat([model.select(some, []), some])) == 2


def test_guidance_without_a_condition_is_refused():
    """It would be no guidance at all, at twice the price."""
    guided = Guided(Network(lambda x, t: 0 * x, "sample"), 2.0, torch.zeros(1, 1))
    with pytest.raises(ValueError, match="guidance needs a condition"):
        Diffusion(guided, Schedule.vp(2), (1,)).start(some_keys(2))


@pytest.mark.parametrize("name", ["vp", "ve", "flow"])
def test_densities_in_float32_are_those_of_float64(name):
    """Of 784 pixels: the log-weights of the twisted sampler, whose log p and log q are in the hundreds, to 1e-2."""
    schedule = {"vp": Schedule.vp, "ve": Schedule.ve, "flow": Schedule.flow}[name](30)
    law = Mixture([0.5, 0.5], np.random.default_rng(0).normal(size=(2, 784)), [0.1, 0.1])
    made = []
    for dtype in (torch.float32, torch.float64):
        steering = Steering(lambda x: -0.1 * x.square().sum(-1), gradient=True)
        model = Diffusion(law.denoiser(schedule), schedule, (784,), steering=steering, dtype=dtype)
        given = None if not made else [one.choices for one in made[0]]
        made.append(run(model, 3, given))
    for rough, fine in zip(*made):
        np.testing.assert_allclose(rough.log_prob, fine.log_prob, rtol=2e-6, atol=2e-3)
    totals = [sum(one.log_increment for one in each) for each in made]
    assert np.abs(totals[1]).min() > 50.0
    np.testing.assert_allclose(totals[0], totals[1], atol=1e-2)

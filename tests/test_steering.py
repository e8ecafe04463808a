"""Steering by rewards: one target and one E[Ẑ] for all potentials and proposals; exact twists; what is refused.

The z-tests are at `Z_LIMIT`, a false alarm about twice in 100,000, with fixed seeds.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import feynkac as fk  # noqa: E402
from feynkac.diffusion import Diffusion, Mixture, Network, Schedule, Steering  # noqa: E402
from feynkac.diffusion.gaussian.gaussian import Gaussian  # noqa: E402
from feynkac.diffusion.gaussian.transitions import transition  # noqa: E402
from feynkac.diffusion.generator import Moved  # noqa: E402
from feynkac.diffusion.latents import Latents, replace_fields  # noqa: E402
from feynkac.diffusion.rewards.base import TensorReward  # noqa: E402
from feynkac.ppl import keys as _keys  # noqa: E402
from feynkac.ppl.errors import AmbiguousScore, InvalidWeight, Unsupported  # noqa: E402
from laws import Z_LIMIT, check_unbiased, z_score  # noqa: E402

MEAN, VARIANCE = np.array([0.8, -0.5]), 0.4
NORMAL = Mixture([1.0], [MEAN], [VARIANCE])
TARGET, WIDTH = torch.tensor([1.6, -0.2]).double(), 0.7


def likelihood(x):
    return -0.5 * ((x - TARGET) / WIDTH).square().sum(-1)


def gaussian(schedule, eta=1.0, steering=None):
    return Diffusion(NORMAL.denoiser(schedule), schedule, (2,), eta=eta, steering=steering, dtype=torch.float64)


def chain_law(schedule, eta=1.0):
    """Mean (2,) and variance of what the chain of T steps makes of one normal: each step is a normal too."""
    model = gaussian(schedule, eta)
    mean, variance = np.zeros(2), model.scale**2
    for i in range(len(schedule)):
        levels = [(torch.tensor(schedule.alpha[j])[None, None], torch.tensor(schedule.sigma[j])[None, None])
                  for j in (i, i + 1)]  # fmt: skip
        x = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double()
        time = torch.tensor(schedule.time[[i, i]])
        moved, std = transition(x, model.denoiser(x, time, None), *levels, eta)
        gain = float(moved[1, 0] - moved[0, 0])
        mean, variance = moved[0].numpy() + gain * mean, gain**2 * variance + float(std) ** 2
    return mean, variance


def answer(schedule, scale, eta=1.0):
    """log Z and the mean of the target, of `likelihood` times ``scale``, in closed form."""
    mean, variance = chain_law(schedule, eta)
    noise = WIDTH**2 / scale
    off = TARGET.numpy() - mean
    log_z = (0.5 * math.log(noise / (noise + variance)) - 0.5 * off**2 / (noise + variance)).sum()
    return log_z, mean + variance / (variance + noise) * off


def many_runs(model, runs, n, threshold, seed):
    """Ẑ (runs,) and Ẑ·E[x_data] (runs, d) of independent runs of SMC with multinomial resampling, all in one batch."""
    rng = np.random.default_rng(seed)
    advance = model.start(_keys.fold(_keys.root(seed), np.arange(runs * n), 0))
    log_w = advance.log_increment.reshape(runs, n)
    for t in range(1, model.steps + 1):
        w = np.exp(log_w - log_w.max(1, keepdims=True))
        w /= w.sum(1, keepdims=True)
        ancestors = np.tile(np.arange(n), (runs, 1))
        again = 1.0 / (w**2).sum(1) <= threshold * n * (1 + 1e-12)
        drawn = (rng.random((runs, n, 1)) > w.cumsum(1)[:, None, :-1]).sum(2)
        ancestors[again] = drawn[again]
        level = np.log(np.exp(log_w - log_w.max(1, keepdims=True)).mean(1)) + log_w.max(1)
        log_w[again] = level[again, None]
        state = model.select(advance.state, (ancestors + n * np.arange(runs)[:, None]).ravel())
        advance = model.advance(state, _keys.fold(_keys.root(seed), np.arange(runs * n), t))
        log_w = log_w + advance.log_increment.reshape(runs, n)
    x = np.asarray(advance.choices).reshape(runs, n, -1)
    return np.exp(log_w).mean(1), (np.exp(log_w)[..., None] * x).mean(1)


def slowly(share):
    return 0.7 * share**2  # the last step has all of the scale, whatever this says of it


SETTINGS = {
    "difference": ({}, 0.5),
    "difference, always resampled": ({}, 1.0),
    "difference, never resampled": ({}, 0.0),
    "max": ({"potential": "max"}, 0.5),
    "max, always resampled": ({"potential": "max"}, 1.0),
    "sum": ({"potential": "sum"}, 0.5),
    "sum, always resampled": ({"potential": "sum"}, 1.0),
    "current": ({"potential": "current"}, 0.5),
    "current, always resampled": ({"potential": "current"}, 1.0),
    "every third": ({"every": 3}, 0.5),
    "every third, sum": ({"every": 3, "potential": "sum"}, 1.0),
    "every third, max": ({"every": 3, "potential": "max"}, 1.0),
    "tempered": ({"temper": slowly}, 0.5),
    "tempered max": ({"temper": slowly, "potential": "max"}, 1.0),
    "TDS": ({"gradient": True}, 1.0),
    "TDS, adaptive": ({"gradient": True}, 0.5),
    "TDS, sum": ({"gradient": True, "potential": "sum"}, 0.5),
    "DAS": ({"gradient": True, "temper": slowly}, 0.5),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["vp", "flow"])
def test_all_potentials_share_one_target_and_one_evidence(name, kind):
    settings, threshold = SETTINGS[name]
    schedule = Schedule.vp(6, 0.1, 8.0) if kind == "vp" else Schedule.flow(5)
    eta, scale = (1.0, 0.5) if kind == "vp" else (0.8, 0.4)
    log_z, mean = answer(schedule, scale, eta)
    model = gaussian(schedule, eta, Steering(likelihood, scale, **settings))
    z, zx = many_runs(model, 6000, 6, threshold, seed=11)
    assert abs(z_score(z / math.exp(log_z), 1.0)) < Z_LIMIT, np.mean(z) / math.exp(log_z)
    for i in range(2):
        assert abs(z_score(zx[:, i] / math.exp(log_z), mean[i])) < Z_LIMIT


@pytest.mark.slow
def test_the_engine_itself_agrees():
    schedule = Schedule.vp(4, 0.1, 8.0)
    log_z, _ = answer(schedule, 0.5)
    model = gaussian(schedule, 1.0, Steering(likelihood, 0.5, gradient=True))
    posteriors = fk.infer([model] * 150, fk.SMC(8), seed=0)
    assert abs(z_score(np.exp([p.log_evidence - log_z for p in posteriors]), 1.0)) < Z_LIMIT
    assert {p.guarantee for p in posteriors} == {"unbiased"}


# A chain of three states, by enumeration

START = np.array([0.5, 0.3, 0.2])
STEP = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.1, 0.6]])
REWARD = torch.tensor([0.0, 1.2, -0.7]).double()
HOPE = torch.tensor([[0.4, 0.1, 0.9], [-0.3, 0.6, 0.2], [0.8, -0.5, 0.1]]).double()  # the estimate at step t, state s


class Chain(Gaussian):
    """Three states, three steps; the estimate of the data is any table, whose rewards only guide."""

    steps = 3

    def __init__(self, steering):
        super().__init__(Network(lambda x, t: x, "sample"), Schedule.vp(3), (1,), dtype=torch.float64)
        self.steering = steering

    def start(self, keys, given=None):
        x = self._draw(np.tile(START, (len(keys), 1)), keys)
        latents = Latents(x, np.zeros(len(keys), np.int64), self.steps)
        log_g, latents = self.steering.begin(self, latents)
        log_p = np.log(START[x[:, 0].long()])
        return self._advance(latents, log_p, log_p, log_g)

    def noise(self, keys):
        return self.tensor(_keys.uniform(keys, 1))

    def _draw(self, law, keys):
        return torch.tensor((_keys.uniform(keys, 1) > law.cumsum(1)[:, :-1]).sum(1, keepdims=True)).double()

    def look(self, latents):
        state, t = latents.x[:, 0].long(), torch.tensor(np.minimum(latents.step, 2))
        value = torch.where(torch.tensor(latents.done), REWARD[state], HOPE[t, state])
        return replace_fields(latents, estimate=value[:, None])

    def move(self, latents, noise, given):
        law = STEP[latents.x[:, 0].long()]
        x = torch.tensor((noise.numpy() > law.cumsum(1)[:, :-1]).sum(1, keepdims=True)).double()
        log_p = np.log(law[np.arange(len(x)), x[:, 0].long()])
        log_g, there = self.steering.weigh(self, latents, Latents(x, latents.step + 1, latents.steps))
        return Moved(x, log_p, log_p, log_g, there.fields)

    def values(self, state):
        return [int(s) for s in state.x[:, 0]]


@pytest.mark.parametrize("potential", ["difference", "max", "sum", "current"])
@pytest.mark.parametrize(("every", "threshold", "temper"), [(1, 1.0, None), (2, 0.6, None), (1, 0.5, slowly)])
def test_a_finite_chain_by_enumeration(potential, every, threshold, temper):
    law = START @ STEP @ STEP @ STEP * np.exp(2.0 * REWARD.numpy())
    steering = Steering(lambda x: x[:, 0], 2.0, potential, every, temper=temper)
    engine = fk.SMC(5, ess_threshold=threshold, resampling="multinomial")
    target = dict(enumerate(law / law.sum()))
    check_unbiased(Chain(steering), engine, target, math.log(law.sum()), runs=250, seed=2)


@pytest.mark.parametrize("potential", ["difference", "max", "sum", "current"])
@pytest.mark.parametrize("every", [1, 2])
def test_potentials_along_every_path_are_those_of_the_definition(potential, every):
    """The log G of each of the 81 paths, from the formulas alone; their sum is λ·r(x) for each."""
    model = Chain(Steering(lambda x: x[:, 0], 2.0, potential, every))
    paths = np.array(list(itertools.product(range(3), repeat=4)))
    latents = Latents(torch.tensor(paths[:, :1]).double(), np.zeros(81, np.int64), 3)
    log_g, latents = model.steering.begin(model, latents)
    got = [log_g]
    for t in (1, 2, 3):
        there = Latents(torch.tensor(paths[:, t : t + 1]).double(), np.full(81, t), 3)
        log_g, latents = model.steering.weigh(model, latents, there)
        got.append(log_g)
    r = 2.0 * np.stack([HOPE.numpy()[t, paths[:, t]] for t in range(3)])
    for i in range(81):
        said, expected = [], []
        for t in range(3):
            if t % every:
                expected.append(0.0)
                continue
            before = said[-1] if said else 0.0
            said.append(r[t, i])
            expected.append(
                {"difference": r[t, i] - before, "max": max(said), "sum": sum(said), "current": r[t, i]}[potential]
            )
        expected.append(2.0 * float(REWARD[paths[i, 3]]) - sum(expected))
        np.testing.assert_allclose([g[i] for g in got], expected, atol=1e-12)


# Exact twists

SLOPE = torch.tensor([1.5, -0.8]).double()


def linear(x):
    return x @ SLOPE


class Optimal(Steering):
    """Proposes from p(x'|x)·exp(V(x')): for a linear reward V is linear, and the variance is p's own."""

    def shift(self, latents, data, level):
        schedule = Schedule.vp(9, 0.1, 6.0)
        model = gaussian(schedule)
        (alpha, sigma), (alpha2, sigma2) = model.levels(latents.step), model.levels(latents.step + 1)
        _, std = transition(latents.x, data, (alpha, sigma), (alpha2, sigma2), 1.0)
        reach = alpha2 - (sigma2**2 - std**2).clamp(min=0).sqrt() * alpha / sigma  # of the estimate in the mean
        gain = alpha2 * VARIANCE / (alpha2**2 * VARIANCE + sigma2**2)  # of x' in its own estimate
        return data + std**2 * gain * SLOPE / reach


def test_the_exact_twist_and_the_optimal_proposal_have_weights_without_variance():
    """exp(r(x̂)) is the future weight of a linear reward, but for a constant: all weights are Z, to rounding."""
    schedule = Schedule.vp(9, 0.1, 6.0)
    mean, variance = chain_law(schedule)
    model = gaussian(schedule, 1.0, Optimal(linear, gradient=True))
    log_z = float(SLOPE.numpy() @ mean + 0.5 * variance * SLOPE.square().sum())
    posterior = fk.infer(model, fk.ImportanceSampling(200), seed=0)
    start = posterior.steps[0].log_weights  # M_0 is not twisted: what is left is G_0's
    np.testing.assert_allclose((posterior.log_weights - start).std(), 0.0, atol=1e-10)
    assert start.std() > 0.1
    z, _ = many_runs(model, 4000, 4, 1.0, seed=3)
    assert abs(z_score(z / math.exp(log_z), 1.0)) < Z_LIMIT


class ExactTwist(TensorReward):
    """log p(y | x_t) of a normal likelihood, whose variance holds what is left unknown of the data."""

    def __init__(self, schedule):
        super().__init__(likelihood)
        self.schedule = schedule

    def __call__(self, data, latents, owners):
        alpha, sigma = (torch.tensor(a[latents.step[owners]]) for a in (self.schedule.alpha, self.schedule.sigma))
        left = VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)
        variance = (left + WIDTH**2)[:, None]
        return (-0.5 * (data - TARGET).square() / variance - 0.5 * variance.log() + math.log(WIDTH)).sum(-1)


def spread_of_weights(steps, gradient=True):
    schedule = Schedule.vp(steps)
    steering = Steering(ExactTwist(schedule), gradient=gradient)
    posterior = fk.infer(gaussian(schedule, 1.0, steering), fk.ImportanceSampling(2000), seed=0)
    return float((posterior.log_weights - posterior.steps[0].log_weights).var())


def test_the_exact_twist_leaves_the_twisted_sampler_what_its_variance_and_steps_leave():
    """It keeps p's variance, so its weights vary, and less so with more steps; without the gradient they vary more."""
    coarse, fine = spread_of_weights(25), spread_of_weights(100)
    assert fine < coarse / 2
    assert fine < 0.15
    assert spread_of_weights(100, gradient=False) > 5 * fine


@pytest.mark.slow
def test_the_spread_of_weights_vanishes_with_the_steps():
    assert spread_of_weights(1000) < 0.01


# What is refused


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"potential": "add"}, "difference, max, sum or current"),
        ({"every": 0}, "positive"),
        ({"every": 1.5}, "positive"),
        ({"scale": math.nan}, "finite"),
        ({"scale": math.inf}, "finite"),
        ({"every": 2, "gradient": True}, "every=1"),
    ],
)
def test_settings_that_cannot_be(settings, match):
    with pytest.raises(ValueError, match=match):
        Steering(**{"reward": likelihood, **settings})


def test_a_reward_that_torch_cannot_follow_is_named():
    def outside(x):
        return x.detach().sum(-1)

    with pytest.raises(Unsupported, match="'outside' cannot be differentiated"):
        fk.infer(gaussian(Schedule.vp(3), 1.0, Steering(outside, gradient=True)), fk.SMC(3), seed=0)


@pytest.mark.parametrize("gradient", [False, True])
def test_an_impossible_estimate_is_no_end_but_impossible_data_are(gradient):
    schedule = Schedule.vp(3)

    def floorless(x):
        return torch.where(x[:, 0] > 1.0, -torch.inf, x.sum(-1))

    with pytest.raises(InvalidWeight, match="floor"):
        fk.infer(gaussian(schedule, 1.0, Steering(floorless, gradient=gradient)), fk.SMC(50), seed=0)

    class OnData(TensorReward):
        def __call__(self, data, latents, owners):
            found = super().__call__(data, latents, owners)
            bad = torch.tensor(latents.done[owners]) & (data[:, 0] > 1.0)
            return torch.where(bad, -torch.inf, found)

    steering = Steering(OnData(lambda x: x.sum(-1)), gradient=gradient)
    posterior = fk.infer(gaussian(schedule, 1.0, steering), fk.SMC(200), seed=0)
    values = np.stack(posterior.values)
    assert (posterior.probabilities[values[:, 0] > 1.0] == 0.0).all()
    assert (values[:, 0] > 1.0).any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rewards_that_are_no_numbers_name_the_particle(value):
    def odd(x):
        return torch.where(torch.arange(len(x)) == 3, value, x.sum(-1))

    with pytest.raises(InvalidWeight, match="particle 3"):
        fk.infer(gaussian(Schedule.vp(3), 1.0, Steering(odd)), fk.SMC(5), seed=0)


def test_rewards_see_what_is_decoded():
    seen = []

    def reward(x):
        seen.append(x.shape)
        return x.sum(-1)

    schedule = Schedule.vp(3)
    model = Diffusion(
        NORMAL.denoiser(schedule), schedule, (2,), dtype=torch.float64, steering=Steering(reward, gradient=True),
        decode=lambda x: torch.cat([x, x[:, :1]], 1),
    )  # fmt: skip
    assert fk.infer(model, fk.SMC(4), seed=0).values[0].shape == (3,)
    assert set(seen) == {(4, 3)}


def test_a_reward_of_the_library_steers_too():
    @fk.reward()
    def right(x):
        return float(x[0])

    model = gaussian(Schedule.vp(30), 1.0, Steering(right, 2.0))
    posterior = fk.infer(model, fk.SMC(500), seed=0)
    mean, variance = chain_law(model.schedule)
    error = Z_LIMIT * math.sqrt(variance / posterior.steps[-1].ess)
    assert abs(posterior.expect(lambda x: x[0]) - mean[0] - 2.0 * variance) < error
    assert posterior.cost.reward_calls == 31 * 500


def test_a_probability_is_not_a_reward_to_steer_by():
    @fk.reward(kind="probability")
    def sure(x):
        return 0.9

    with pytest.raises(AmbiguousScore, match="'sure' gives probabilities"):
        Steering(sure)
    with pytest.raises(TypeError, match="a reward is a function"):
        Steering(sure(np.zeros(2)))


def test_a_typed_reward_that_is_no_number_names_the_particle():
    @fk.reward(batched=True)
    def odd(xs):
        return [math.nan if i == 2 else 0.0 for i, _ in enumerate(xs)]

    with pytest.raises(InvalidWeight, match="particle 2: reward 'odd'"):
        fk.infer(gaussian(Schedule.vp(3), 1.0, Steering(odd)), fk.SMC(5), seed=0)


def test_the_gradient_moves_the_estimate_by_the_noise_there_is_and_pure_noise_by_nothing():
    steering = Steering(lambda x: x.sum(1), gradient=True)
    latents = Latents(torch.zeros(3, 1), np.arange(3), 3, None, {"gradient": torch.full((3, 1), 3.0)})
    alpha, sigma = torch.tensor([[0.0], [0.5], [0.8]]), torch.tensor([[1.0], [0.5], [0.4]])
    moved = steering.shift(latents, torch.ones(3, 1), (alpha, sigma))
    assert moved[:, 0].tolist() == pytest.approx([1.0, 1.0 + 3.0 * 0.5, 1.0 + 3.0 * 0.2])


def test_a_tempering_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="temper must give finite"):
        fk.infer(gaussian(Schedule.vp(3), 1.0, Steering(likelihood, temper=lambda s: math.nan)), fk.SMC(3), seed=0)


def test_finished_data_need_no_gradient():
    """log ReLU of the data has none where it is −inf: such a particle dies, and its fellows go on."""

    class OnData(TensorReward):
        def __call__(self, data, latents, owners):
            done = torch.tensor(latents.done[owners])
            return torch.where(done, torch.relu(data[:, 0] - 0.8).log(), data[:, 0])

    posterior = fk.infer(gaussian(Schedule.vp(3), 1.0, Steering(OnData(None), 0.1, gradient=True)), fk.SMC(60), seed=0)
    right = np.stack(posterior.values)[:, 0] > 0.8
    assert 0 < right.sum() < 60
    assert (np.isfinite(posterior.log_weights) == right).all()

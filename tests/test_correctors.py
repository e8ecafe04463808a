"""Feynman–Kac correctors: exact limits for normals at falling step sizes, and mixtures with known answers.

For normals, a step of a corrector is linear and its log-weight quadratic, so that the law of infinitely many weighted
particles is known at every step: those tests draw nothing, and cannot raise a false alarm. Tests of mixtures draw, with
fixed seeds; their tolerances are the steps' error and 4.3 standard deviations between seeds, both measured over 5 seeds
of 8,000 particles (a false alarm about twice in 100,000 seeds), and runs without weights miss by twice as much.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import feynkac as fk  # noqa: E402
from feynkac.diffusion import (  # noqa: E402
    Diffusion,
    Guided,
    Mixture,
    Network,
    Schedule,
    Steering,
    anneal,
    guide,
    product,
    tilt,
)
from feynkac.diffusion.correctors import zeta_for  # noqa: E402
from feynkac.diffusion.latents import Latents  # noqa: E402
from feynkac.ppl.errors import InvalidWeight, Unsupported  # noqa: E402

SCHEDULES = {
    "vp": Schedule.vp,
    "ve": lambda steps: Schedule.ve(steps, 0.01, 40.0),
    "flow": lambda steps: Schedule.flow(steps, shift=5.0, start=0.95),  # 0.95 is 0.99 when shifted
}
UNIT = Mixture([1.0], [[0.0]], [1.0])
LEFT = Mixture([1.0], [[-0.5]], [0.8])
RIGHT = Mixture([1.0], [[1.0]], [0.4])


def model_of(mixture, schedule, **settings):
    shape = (mixture.means.shape[1],)
    return Diffusion(mixture.denoiser(schedule), schedule, shape, dtype=torch.float64, **settings)


def exact(model, weighted=True):
    """Mean and variance of infinitely many particles, and log Ẑ, of a corrector of normals in one dimension.

    At x = −1, 0, 1 one reads off the step x' = Ax + B + Sz and log G = c + lx + qx², and carries a normal along.
    """
    mean, variance, log_z, n = 0.0, model.scale**2, 0.0, 3 * model.steps
    x = torch.tensor([[-1.0], [0.0], [1.0]] * model.steps).double()
    here = Latents(x, np.repeat(np.arange(model.steps), 3), model.steps, model._conditions(n))
    with torch.no_grad():  # all levels in one batch
        log_g, here = model.begin(here)
        still, noisy = (model.move(here, noise * torch.ones(n, 1).double(), None) for noise in (0.0, 1.0))
    weights = [np.asarray(log_g)[:3], *still.log_potential.reshape(-1, 3)]
    low, middle, high = still.x.numpy().reshape(-1, 3).T
    np.testing.assert_allclose(high - middle, middle - low, atol=1e-9)
    steps = list(zip(high - middle, middle, (noisy.x - still.x).numpy().reshape(-1, 3)[:, 1]))
    for i, g in enumerate(weights):  # G_0, then for each step its G, which is of the place that it leaves, and it
        if weighted:
            c, slope, curve = g[1], (g[2] - g[0]) / 2, (g[2] + g[0]) / 2 - g[1]
            shrunk = 1.0 / (1.0 / variance - 2.0 * curve)
            if not shrunk > 0:  # the weights have no mean
                return math.nan, math.inf, math.inf
            pull = mean / variance + slope
            log_z += c + 0.5 * math.log(shrunk / variance) + 0.5 * shrunk * pull**2 - 0.5 * mean**2 / variance
            mean, variance = shrunk * pull, shrunk
        if i:
            gain, shift, std = steps[i - 1]
            mean, variance = gain * mean + shift, gain**2 * variance + std**2
    return mean, variance, log_z


def one(x):
    return 0.7 * x[:, 0]


def bowl(x):
    return -0.3 * (x[:, 0] - 1.0).square()


def normal_of(precision, pull):
    return pull / precision, 1.0 / precision


CASES = {  # a corrector of schedules, and the mean and variance that it is to reach
    "anneal": (lambda s: anneal(model_of(RIGHT, s), 2.0), (1.0, 0.2)),
    "heat": (lambda s: anneal(model_of(RIGHT, s), 0.7), (1.0, 0.4 / 0.7)),
    "product": (
        lambda s: product([model_of(LEFT, s), model_of(RIGHT, s)]),
        normal_of(1 / 0.8 + 1 / 0.4, -0.5 / 0.8 + 1.0 / 0.4),
    ),
    "powers": (
        lambda s: product([model_of(LEFT, s), model_of(RIGHT, s)], [0.4, 0.9]),
        normal_of(0.4 / 0.8 + 0.9 / 0.4, 0.4 * -0.5 / 0.8 + 0.9 * 1.0 / 0.4),
    ),
    "guidance": (
        lambda s: guide(model_of(RIGHT, s), 2.5, model_of(LEFT, s)),
        normal_of(2.5 / 0.4 - 1.5 / 0.8, 2.5 * 1.0 / 0.4 - 1.5 * -0.5 / 0.8),
    ),
    "linear tilt": (lambda s: tilt(model_of(RIGHT, s), one), (1.0 + 0.4 * 0.7, 0.4)),
    "tilt": (
        lambda s: tilt(model_of(LEFT, s), bowl, lambda t: t**2),
        normal_of(1 / 0.8 + 0.6, -0.5 / 0.8 + 0.6),
    ),
    "tilt of the estimate": (
        lambda s: tilt(model_of(LEFT, s), bowl, of="estimate"),
        normal_of(1 / 0.8 + 0.6, -0.5 / 0.8 + 0.6),
    ),
    "tilted from the start": (
        lambda s: tilt(model_of(LEFT, s), one, lambda t: 0.5 + t / 2, of="estimate"),
        (-0.5 + 0.8 * 0.7, 0.8),
    ),
    "all at once": (
        lambda s: tilt(anneal(product([model_of(LEFT, s), model_of(RIGHT, s)]), 1.5), one),
        normal_of(1.5 * (1 / 0.8 + 1 / 0.4), 1.5 * (-0.5 / 0.8 + 1.0 / 0.4) + 0.7),
    ),
    "an annealed tilt": (
        lambda s: anneal(tilt(model_of(RIGHT, s), one), 2.0),
        (1.0 + 0.4 * 0.7, 0.2),
    ),
    "guided by an annealed tilt": (
        lambda s: product([anneal(tilt(model_of(RIGHT, s), one), 2.0), model_of(LEFT, s)], [1.0, -0.5]),
        normal_of(2 / 0.4 - 0.5 / 0.8, 2 * (1.0 / 0.4 + 0.7) + 0.5 * 0.5 / 0.8),
    ),
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name", CASES)
def test_normals_are_reached_as_steps_get_smaller(name, kind):
    """Errors of mean and variance halve with the step size, or nearly, and end below 0.005."""
    make, truth = CASES[name]
    errors = [np.abs(np.array(exact(make(SCHEDULES[kind](steps)))[:2]) - truth) for steps in (400, 800, 1600)]
    assert (errors[1] < 0.62 * errors[0] + 1e-4).all(), errors
    assert (errors[2] < 0.62 * errors[1] + 1e-4).all(), errors
    assert (errors[2] < 0.005).all(), errors


@pytest.mark.parametrize("zeta", [1.0, 1.5, 3.0])
def test_any_amount_of_noise_has_the_same_limit(zeta):
    for make, truth in (CASES["product"], CASES["all at once"]):
        model = make(Schedule.vp(1600))
        model.zeta = zeta
        np.testing.assert_allclose(exact(model)[:2], truth, atol=0.02)


@pytest.mark.parametrize(("beta", "a"), [(2.0, 0.0), (2.0, 0.5), (3.0, 0.0), (3.0, 0.5)])
def test_without_weights_annealing_is_visibly_wrong(beta, a):
    """By mixing scores alone, of N(0, 1): variance ζ²/(β(1 + ζ²) − 1), and not 1/β."""
    zeta = zeta_for(beta, a)
    model = anneal(model_of(UNIT, Schedule.vp(800)), beta, zeta=zeta)
    wrong = zeta**2 / (beta * (1 + zeta**2) - 1)
    assert exact(model, weighted=False)[1] == pytest.approx(wrong, abs=0.005)
    assert abs(wrong - 1 / beta) > 0.05
    if zeta**2 > (beta - 1) / beta:
        assert exact(model)[1] == pytest.approx(1 / beta, abs=0.005)


@pytest.mark.parametrize("beta", [2.0, 3.0, 5.0])
def test_a_small_zeta_lets_errors_grow(beta):
    """Of N(0, 1): the weighted variance comes back to 1/β where ζ² > (β − 1)/β, and leaves it below."""
    bound = math.sqrt((beta - 1) / beta)
    errors = [
        abs(exact(anneal(model_of(UNIT, Schedule.vp(800)), beta, zeta=zeta))[1] - 1 / beta)
        for zeta in (0.8 * bound, 1.2 * bound, 2.0)
    ]
    assert errors[0] > 0.04
    assert max(errors[1:]) < 0.01


def test_evidence_is_the_ratio_of_the_constants_of_data_and_noise():
    """∫ q^β of the data over that of the noise, in the limit of small steps."""
    truth = -0.5 * math.log(0.4)  # √(1/(4π·0.4)) over √(1/4π)
    errors = [exact(anneal(model_of(RIGHT, Schedule.vp(steps)), 2.0))[2] - truth for steps in (800, 1600)]
    assert abs(errors[1]) < 0.55 * abs(errors[0])
    assert abs(2 * errors[1] - errors[0]) < 0.01  # what is left where the step size is 0


def test_the_names_of_the_paper():
    assert zeta_for(3.0, 0.0) == 1.0
    assert zeta_for(3.0, 0.5) == pytest.approx(3.0**-0.5)
    with pytest.raises(ValueError, match="no noise"):
        zeta_for(3.0, 0.8)


# Mixtures


def masses(posterior, truth):
    """Weighted mass of each component."""
    return posterior.probabilities @ truth.responsibilities(np.stack(posterior.values)).numpy()


def check_mixture(model, truth, tolerance, n=4000):
    """Mass of each component and, times 4, the mean, within a tolerance that wrong weights exceed by far."""
    posterior = fk.infer(model, fk.SMC(n, ess_threshold=0.7), seed=0)
    assert np.abs(masses(posterior, truth) - truth.weights).max() < tolerance
    mean = posterior.probabilities @ np.stack(posterior.values)
    assert np.abs(mean - truth.mean).max() < 4 * tolerance


def check_wrong_without_weights(model, truth, tolerance):
    posterior = fk.infer(model, fk.ImportanceSampling(2000), seed=0)
    plain = truth.responsibilities(np.stack(posterior.values)).numpy().mean(0)
    assert np.abs(plain - truth.weights).max() > 2 * tolerance


UNEQUAL = Mixture([0.3, 0.7], [[-2.0, 0.0], [2.0, 1.0]], [0.15, 0.5])
ELSEWHERE = Mixture([0.5, 0.5], [[-2.0, 1.0], [1.5, 0.0]], [1.5, 0.3])
BROAD = Mixture([1.0], [[0.5, 0.0]], [2.0])


@pytest.mark.slow
def test_an_annealed_mixture_has_the_right_mode_masses():
    """q² puts 0.38 where q has 0.3, and scores alone put 0.19 there."""
    truth = Mixture.product([UNEQUAL], [2])
    model = anneal(model_of(UNEQUAL, Schedule.vp(300)), 2.0)
    check_mixture(model, truth, 0.045)
    check_wrong_without_weights(model, truth, 0.045)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ve", "flow"])
def test_annealed_mixtures_of_other_schedules(kind):
    truth = Mixture.product([UNEQUAL], [2])
    check_mixture(anneal(model_of(UNEQUAL, SCHEDULES[kind](800)), 2.0), truth, 0.045)


@pytest.mark.slow
def test_a_product_of_mixtures():
    models = [model_of(one, Schedule.vp(300)) for one in (UNEQUAL, ELSEWHERE)]
    truth = Mixture.product([UNEQUAL, ELSEWHERE])
    check_mixture(product(models), truth, 0.025)
    check_wrong_without_weights(product(models, zeta=0.5), truth, 0.025)


@pytest.mark.slow
def test_guidance_of_mixtures():
    """γ = 2 with one normal as the unconditional law: q1²/q0 is a mixture again."""
    truth = Mixture.product([UNEQUAL, BROAD], [2, -1])
    model = guide(model_of(UNEQUAL, Schedule.vp(300)), 2.0, model_of(BROAD, Schedule.vp(300)))
    check_mixture(model, truth, 0.08)
    check_wrong_without_weights(model, truth, 0.08)


@pytest.mark.slow
def test_a_linear_tilt_of_a_mixture():
    slope = [0.6, -0.4]
    model = tilt(model_of(UNEQUAL, Schedule.vp(300)), lambda x: x @ torch.tensor(slope).double())
    check_mixture(model, UNEQUAL.tilt(slope), 0.012)
    check_wrong_without_weights(model, UNEQUAL.tilt(slope), 0.012)


@pytest.mark.slow
@pytest.mark.parametrize("of", ["noisy", "estimate"])
def test_an_annealed_product_that_is_tilted(of):
    slope = torch.tensor([0.5, -0.3]).double()
    models = [model_of(one, Schedule.vp(800)) for one in (UNEQUAL, ELSEWHERE)]
    model = tilt(anneal(product(models), 2.0), lambda x: x @ slope, of=of, zeta=2.0)
    check_mixture(model, Mixture.product([UNEQUAL, ELSEWHERE], [2, 2]).tilt(slope.tolist()), 0.05)


# One network for several factors, conditions, what is kept and what is refused


class Labelled:
    """A conditional network: label 0 is one mixture, label 1 another."""

    prediction, evaluations = "sample", 1

    def __init__(self, schedule):
        self.laws = [UNEQUAL.denoiser(schedule), BROAD.denoiser(schedule)]
        self.calls = []

    def __call__(self, x, time, condition):
        self.calls.append(len(x))
        each = torch.stack([law(x, time, None) for law in self.laws])
        return each[condition, torch.arange(len(x))]


def test_guidance_by_a_condition_is_guidance_by_a_model_and_makes_one_call():
    schedule = Schedule.vp(20)
    network = Labelled(schedule)
    conditional = Diffusion(network, schedule, (2,), condition=torch.tensor([0]), dtype=torch.float64)
    one = fk.infer(guide(conditional, 2.0, torch.tensor([1])), fk.SMC(10), seed=0)
    assert set(network.calls) == {20}
    assert one.cost.nfe == 20 * 20
    assert one.cost.model_calls == 20
    other = fk.infer(guide(model_of(UNEQUAL, schedule), 2.0, model_of(BROAD, schedule)), fk.SMC(10), seed=0)
    np.testing.assert_allclose(one.values, other.values, rtol=1e-9)
    np.testing.assert_allclose(one.log_weights, other.log_weights, rtol=1e-8)


def test_the_condition_of_each_particle_is_its_own():
    """Particles with labels of their own, and after a fork as well."""
    schedule, labels = Schedule.vp(30), torch.tensor([0, 1, 1, 0])
    network = Labelled(schedule)
    model = anneal(Diffusion(network, schedule, (2,), condition=labels, dtype=torch.float64), 2.0)
    from feynkac.ppl import keys as _keys

    keys = _keys.fold(_keys.root(0), np.arange(4))
    state = model.select(model.start(keys).state, [3, 2, 2, 1])
    scores = model.look(state).fields["scores"]
    alone = {0: anneal(model_of(UNEQUAL, schedule), 2.0), 1: anneal(model_of(BROAD, schedule), 2.0)}
    for i, label in enumerate([0, 1, 1, 1]):
        latents = Latents(state.x[i : i + 1], state.step[i : i + 1], 30, (None,))
        torch.testing.assert_close(alone[label].look(latents).fields["scores"], scores[i : i + 1])


def test_weights_count_only_within_the_interval():
    model = anneal(model_of(UNEQUAL, Schedule.vp(10)), 2.0, interval=(0.3, 0.6))
    steps = fk.infer(model, fk.SMC(5), seed=0).steps
    moved = [bool(step.log_potential.any()) for step in steps]
    assert moved == [False] * 4 + [True] * 4 + [False] * 3
    assert anneal(model, 2.0).interval == (0.3, 0.6)
    tilted = tilt(model_of(RIGHT, Schedule.vp(10)), one, lambda t: 1.0, interval=(0.3, 1.0))
    steps = fk.infer(tilted, fk.SMC(5), seed=0).steps
    assert [bool(step.log_potential.any()) for step in steps] == [False] * 4 + [True] * 7
    assert product([model_of(UNEQUAL, Schedule.vp(10)), model], zeta=3.0).zeta == 3.0


def test_copies_part_and_nothing_is_clamped():
    model = anneal(model_of(UNEQUAL, Schedule.vp(200)), 8.0)
    posterior = fk.infer(model, fk.SMC(50, ess_threshold=1.0), seed=0)
    assert len(np.unique(np.stack(posterior.values)[:, 0])) == 50
    assert max(np.ptp(step.log_potential) for step in posterior.steps) > 4.0


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda m: anneal(m, 2.0, zeta=0.0), Unsupported, "never part"),
        (lambda m: anneal(m, lambda t: t), Unsupported, "log-densities"),
        (lambda m: anneal(anneal(m, 2.0), lambda t: t), Unsupported, "log-densities"),
        (lambda m: product([m, m], [1.0, lambda t: t]), Unsupported, "log-densities"),
        (lambda m: guide(m, lambda t: t, torch.tensor([1])), Unsupported, "log-densities"),
        (lambda m: guide(m, lambda t: t, m), Unsupported, "log-densities"),
        (lambda m: anneal(m, math.inf), ValueError, "add up to inf"),
        (lambda m: anneal(m, 2.0, zeta=math.inf), ValueError, "finite"),
        (lambda m: anneal(m, 2.0, interval=(0.6, 0.3)), ValueError, "later one"),
        (lambda m: product([]), ValueError, "at least one"),
        (lambda m: tilt(m, one, 0.5), ValueError, "lambda s: 2"),
        (lambda m: anneal(m, -1.0), ValueError, "add up to -1"),
        (lambda m: product([m, m], [1.0]), ValueError, "2 models need as many"),
        (lambda m: product([m, model_of(UNEQUAL, Schedule.vp(9))]), ValueError, "one schedule"),
        (lambda m: anneal(model_of(UNEQUAL, Schedule.flow(8)), 2.0), ValueError, "start=0.99"),
        (lambda m: anneal(model_of(UNEQUAL, m.schedule, steering=Steering(one)), 2.0), Unsupported, "tilt"),
        (lambda m: tilt(m, fk.reward(lambda x: 1.0)), Unsupported, "tilt needs its gradient"),
        (lambda m: tilt(m, one, of="data"), ValueError, "noisy or estimate"),
        (lambda m: anneal(object(), 2.0), Unsupported, "object"),
    ],
)
def test_what_is_refused(make, error, match):
    with pytest.raises(error, match=match):
        make(model_of(UNEQUAL, Schedule.vp(8)))


def test_a_tilt_by_an_infinite_reward_is_refused():
    model = tilt(model_of(UNEQUAL, Schedule.vp(4)), lambda x: torch.where(x[:, 0] > 0, x[:, 0], -torch.inf))
    with pytest.raises(InvalidWeight, match="floor"):
        fk.infer(model, fk.SMC(20), seed=0)


def test_the_promise_is_the_weaker_one():
    corrected = anneal(model_of(UNEQUAL, Schedule.vp(4)), 2.0)
    for engine, promise in ((fk.SMC(4), "discretised"), (fk.BestOfN(4), "heuristic")):
        assert fk.infer(corrected, engine, seed=0).guarantee == promise
        assert fk.infer(fk.Blocks(corrected, 2), engine, seed=0).guarantee == promise
    assert fk.infer(model_of(UNEQUAL, Schedule.vp(4)), fk.SMC(4), seed=0).guarantee == "unbiased"


def test_plain_guidance_is_not_what_it_says():
    """`Guided` mixes predictions: without noise and weights it misses q1²/q0 by far."""
    schedule = Schedule.vp(200)
    network = Guided(Labelled(schedule), 2.0, torch.tensor([1]))
    model = Diffusion(network, schedule, (2,), condition=torch.tensor([0]), dtype=torch.float64)
    values = np.stack(fk.infer(model, fk.ImportanceSampling(2000), seed=0).values)
    truth = Mixture.product([UNEQUAL, BROAD], [2, -1])
    assert np.abs(truth.responsibilities(values).numpy().mean(0) - truth.weights).max() > 0.05


def test_predictions_of_noise_do_as_well():
    schedule = Schedule.vp(50)
    exactly = UNEQUAL.denoiser(schedule)

    def noise(x, time):
        at = np.searchsorted(-schedule.time, -time.numpy() - 1e-9)
        alpha, sigma = (torch.tensor(level[at])[:, None] for level in (schedule.alpha, schedule.sigma))
        return (x - alpha * exactly(x, time, None)) / sigma

    model = Diffusion(Network(noise, "epsilon"), schedule, (2,), dtype=torch.float64)
    one, other = (fk.infer(anneal(m, 2.0), fk.SMC(20), seed=0) for m in (model, model_of(UNEQUAL, schedule)))
    np.testing.assert_allclose(one.log_weights, other.log_weights, rtol=1e-6)

"""Generations as functions of their noise: positions, densities, gradients, replays, costs."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import feynkac as fk
from feynkac.diffusion import Diffusion, Mixture, Schedule, Steering
from feynkac.inference.base.engine import Report, Start
from feynkac.inference.base.paths import describe_paths, extend, growing, run_on
from feynkac.ppl.cost import Ledger, recording

DATA = Mixture([1.0], [[1.0]], [0.25])


def cosine(steps):
    u = np.linspace(0.999, 0.0, steps + 1)
    return Schedule(np.cos(np.pi * u / 2), np.sin(np.pi * u / 2), u)


def observed(x):
    """log N(2.5; x, .25), summed over coordinates."""
    return (-0.5 * (2.5 - x) ** 2 / 0.25 - 0.5 * math.log(2 * math.pi * 0.25)).flatten(1).sum(1)


def generator(eta=0.0, potential="difference", steps=10, **kwargs):
    schedule = cosine(steps)
    steering = Steering(kwargs.pop("reward", observed), potential=potential, **kwargs)
    return Diffusion(DATA.denoiser(schedule), schedule, (1,), eta=eta, steering=steering, dtype=torch.float64)


def drive(model, asking):
    """Serve what a part of an engine asks for."""
    try:
        request = next(asking)
        while True:
            if isinstance(request, Start):
                request = asking.send(model.start(request.keys, request.given))
            else:
                request = asking.send(model.advance(request.state, request.keys, request.given))
    except StopIteration as stop:
        return stop.value


def some_paths(model, n=5, horizon=None, seed=0):
    keys = fk.keys.fold(fk.keys.root(seed), np.arange(n))
    return drive(model, run_on(model, [None] * n, keys, horizon))


def numbers(paths, name):
    return np.array([getattr(path, name) for path in paths])


KINDS = [(0.0, "difference", 1), (1.0, "difference", 3), (0.7, "sum", 1), (0.5, "max", 2), (0.5, "current", 1)]


@pytest.mark.parametrize("horizon", [None, 4])
@pytest.mark.parametrize(("eta", "potential", "every"), KINDS)
def test_the_density_is_that_of_the_paths_with_its_gradient_and_its_replay(eta, potential, every, horizon):
    model = generator(eta, potential, every=every)
    paths = some_paths(model, horizon=horizon)
    (density,) = model.unconstrained(paths, horizon)
    u = density.position
    assert u.shape == (5, 1 if eta == 0.0 else {None: 10, 4: 4}[horizon])  # the last step draws no noise
    found = density.evaluate(u, True)
    np.testing.assert_allclose(found.log_prior, numbers(paths, "log_prob") + density.log_jacobian(u), atol=1e-12)
    np.testing.assert_allclose(found.log_potential, numbers(paths, "log_potential"), atol=1e-12)
    np.testing.assert_array_equal(found.grad_prior, -u)
    for j in range(u.shape[1]):
        step = np.zeros_like(u)
        step[:, j] = 1e-5
        ends = [density.evaluate(u + sign * step, False).log_potential for sign in (1, -1)]
        np.testing.assert_allclose(found.grad_potential[:, j], (ends[0] - ends[1]) / 2e-5, atol=1e-6)

    there = u + np.linspace(-1, 1, u.size).reshape(u.shape)
    forced, moved = density.choices(there), [None] * 5
    for t in range(len(forced[0])):
        moved = drive(model, extend(model, moved, np.zeros(5, np.uint64), [one[t] for one in forced]))
    expected = density.evaluate(there, False)
    np.testing.assert_allclose(expected.log_prior, numbers(moved, "log_prob") + density.log_jacobian(u), atol=1e-12)
    np.testing.assert_allclose(expected.log_potential, numbers(moved, "log_potential"), atol=1e-12)
    np.testing.assert_allclose(model.unconstrained(moved, horizon)[0].position, there, atol=1e-9)


@pytest.mark.parametrize(
    ("steps", "a", "b", "mean", "variance"),
    [(10, 0.999327514, 0.428117997, 1.482777, 0.576987), (50, 0.999238434, 0.484827998, None, None)],
)
def test_a_deterministic_generation_of_normal_data_is_the_line_that_it_should_be(steps, a, b, mean, variance):
    model = generator(steps=steps)
    (density,) = model.unconstrained(some_paths(model, 2), None)
    u = np.array([[0.0], [1.0]])
    slope = density.evaluate(u, True).grad_potential[:, 0]
    # d/dz log N(2.5; a + bz, .25) = b(2.5 − a − bz)/.25
    found = math.sqrt((slope[0] - slope[1]) * 0.25)
    assert found == pytest.approx(b, abs=1e-9)
    assert 2.5 - slope[0] * 0.25 / found == pytest.approx(a, abs=1e-9)
    if mean is not None:
        precision = 1.0 + slope[0] - slope[1]
        assert 1.0 / precision == pytest.approx(variance, abs=1e-6)
        assert slope[0] / precision == pytest.approx(mean, abs=1e-6)


def test_proposals_by_the_rewards_gradient_change_no_density():
    plain = generator(1.0)
    guided = generator(1.0, gradient=True)
    (density,) = guided.unconstrained(some_paths(guided), None)
    again = plain.unconstrained(some_paths(plain), None)[0].evaluate(density.position, True)
    for mine, theirs in zip(density.evaluate(density.position, True), again):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)


def test_conditions_and_paths_of_several_batches_stay_with_their_rows():
    def denoise(x, time, condition):
        return condition + 0.1 * x

    schedule = Schedule.vp(3)
    model = Diffusion(
        fk.diffusion.Network(denoise, "sample"),
        schedule,
        (2,),
        eta=1.0,
        steering=Steering(observed),
        condition=torch.arange(3.0, dtype=torch.float64)[:, None],
        dtype=torch.float64,
    )
    one, two = some_paths(model, 3, seed=1), some_paths(model, 3, seed=2)
    mixed = [two[2], one[0], two[1], one[2]]
    (density,) = model.unconstrained(mixed, None)
    found = density.evaluate(density.position, True)
    np.testing.assert_allclose(found.log_potential, numbers(mixed, "log_potential"), atol=1e-12)
    np.testing.assert_allclose(
        found.log_prior, numbers(mixed, "log_prob") + density.log_jacobian(density.position), atol=1e-12
    )


def test_without_a_reward_there_is_only_the_prior():
    model = Diffusion(DATA.denoiser(cosine(4)), cosine(4), (1,), eta=0.0, dtype=torch.float64)
    (density,) = model.unconstrained(some_paths(model), None)
    found = density.evaluate(density.position, True)
    assert not found.log_potential.any()
    assert not found.grad_potential.any()


def test_a_reward_without_a_gradient_gives_values_and_is_named_where_a_gradient_is_asked_for():
    @fk.reward(kind="log_weight")
    def near(x):
        return -float(((x - 2.5) ** 2).sum())

    def detached(x):
        return -((x.detach() - 2.5) ** 2).sum(1)

    for reward in (near, detached):
        model = generator(reward=reward)
        paths = some_paths(model)
        (density,) = model.unconstrained(paths, None)
        found = density.evaluate(density.position, False)
        np.testing.assert_allclose(found.log_potential, numbers(paths, "log_potential"), atol=1e-12)
        with pytest.raises(fk.errors.NotDifferentiable, match=f"reward '{getattr(reward, 'name', 'detached')}'"):
            density.evaluate(density.position, True)


def test_a_gradient_costs_two_runs_of_the_network_and_leaves_its_parameters_alone():
    layer = torch.nn.Linear(2, 2).double()
    calls = []

    def denoise(x, time):
        calls.append(len(x))
        return layer(x)

    model = Diffusion(
        fk.diffusion.Network(denoise, "sample"), Schedule.vp(3), (2,), steering=Steering(observed), dtype=torch.float64
    )
    (density,) = model.unconstrained(some_paths(model, 4), None)
    for gradients, runs in ((False, 3), (True, 5)):  # the first look is not part of a step, and is kept
        calls.clear()
        with recording(Ledger()) as ledger:
            density.evaluate(density.position, gradients)
        assert calls == [4] * runs
        assert ledger.total().nfe == 4 * runs
    assert layer.weight.grad is None


def test_what_an_engine_computes_itself_is_in_its_cost():
    @dataclasses.dataclass(frozen=True)
    class Looking:
        particles: int = 3
        chains: int = 1
        guarantee: str = "heuristic"

        def run(self, model, key):
            paths = yield from run_on(model, [None] * 3, fk.keys.fold(key, np.arange(3)))
            (density,) = model.unconstrained(paths, None)
            density.evaluate(density.position, False)
            made = growing(model, describe_paths(0, paths), paths, np.zeros(3), None)
            assert isinstance(made.report(), Report)
            yield made

    models = [generator(steps=4), generator(steps=6)]
    costs = [posterior.cost.nfe for posterior in fk.infer(models, Looking(), seed=0)]
    assert costs == [2 * 4 * 3, 2 * 6 * 3]

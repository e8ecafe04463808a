"""Denoising steps inside programs: the same law, cost and evidence as the native model."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import feynkac as fk  # noqa: E402
from feynkac.diffusion import (  # noqa: E402
    Diffusion,
    DiscreteDDIM,
    Frames,
    Mixture,
    Network,
    Schedule,
    Steering,
    UniformDiffusion,
    begin,
    denoise,
)
from feynkac.ppl import keys  # noqa: E402
from laws import Z_LIMIT, z_score  # noqa: E402

LEVELS = Schedule.vp(8)
DATA = Mixture([0.3, 0.7], [[-2.0], [1.0]], [0.2, 0.2])


def model(**settings):
    return Diffusion(DATA.denoiser(LEVELS), LEVELS, (1,), dtype=torch.float64, **settings)


def reward(x):
    return 0.8 * x.reshape(len(x), -1).sum(1)


@fk.program
async def steered(model, on_the_way=False):
    particle = await fk.sample("noise", begin(model))
    last = 0.0
    while not particle.done:
        particle = await fk.sample("step", denoise(particle))
        if on_the_way or particle.done:
            now = float(reward(torch.tensor(particle.image)[None])[0])
            await fk.factor("reward", now - last)
            last = now
    return particle.image


@cache
def truth():
    """Log Z and the posterior mass of x > 0 of the discretised model, from many draws."""
    posterior = fk.infer(model(steering=Steering(reward, every=99)), fk.ImportanceSampling(100_000), seed=99)
    return posterior.log_evidence, posterior.expect(lambda x: x[0] > 0)


@pytest.mark.slow
@pytest.mark.parametrize("on_the_way", [False, True])
def test_a_program_has_the_evidence_of_the_native_model(on_the_way):
    """A z-test of E[Ẑ] over 60 runs; a false alarm about twice in 100,000 tests."""
    log_z, mass = truth()
    runs = fk.infer([steered(model(), on_the_way)] * 60, fk.SMC(40), seed=1)
    ratios = [math.exp(run.log_evidence - log_z) for run in runs]
    assert abs(z_score(ratios, 1.0)) < Z_LIMIT
    means = [ratio * run.expect(lambda x: x[0] > 0) for ratio, run in zip(ratios, runs)]
    assert abs(z_score(means, mass)) < Z_LIMIT


def test_steps_of_a_program_are_the_models():
    native, kernel = model(), begin(model())
    some = keys.fold(keys.root(0), np.arange(3))
    noise = kernel.sample_batch([kernel] * 3, some)
    start = native.start(some)
    assert np.array_equal([p.x for p in noise.values], start.choices)
    assert np.allclose(noise.log_prob, start.log_prob)
    # Particles that have made different steps share a call.
    requests = [denoise(p) for p in noise.values]
    first = requests[0].sample_batch(requests[:1], some[:1]).values[0]
    mixed = [denoise(first), *requests[1:]]
    assert len({request.batch_key for request in mixed}) == 1
    moved = mixed[0].sample_batch(mixed, some)
    assert [p.step for p in moved.values] == [2, 1, 1]
    expected = native.advance(start.state, some)
    assert np.allclose([p.x for p in moved.values[1:]], expected.choices[1:])
    assert np.allclose(moved.log_prob[1:], expected.log_prob[1:])
    assert np.allclose(moved.values[1].estimate, expected.state.fields["estimate"][1].numpy())
    # Densities of what was drawn, without the network; and none for a particle that has made another number of steps.
    assert np.allclose(mixed[0].log_prob_batch(mixed, moved.values), moved.log_prob)
    assert mixed[0].log_prob_batch(mixed[:1], [noise.values[0]])[0] == -math.inf
    assert np.allclose(kernel.log_prob_batch([kernel] * 3, noise.values), noise.log_prob)


def test_one_call_of_the_network_for_all_particles_of_a_step():
    sizes = []

    def fn(x, time):
        sizes.append(len(x))
        return 0.1 * x

    plain = Diffusion(Network(fn, "epsilon"), LEVELS, (2,))
    posterior = fk.infer(steered(plain), fk.SMC(6), seed=0)
    assert sizes == [6] * 8
    assert posterior.cost.nfe == 48
    assert posterior.cost.model_calls == 8


def test_a_finished_particle_stays():
    plain = model()
    some = keys.fold(keys.root(0), np.arange(1))
    particle = begin(plain).sample_batch([begin(plain)], some).values[0]
    assert not particle.done
    while not particle.done:
        particle = denoise(particle).sample_batch([denoise(particle)], some).values[0]
    again = denoise(particle).sample_batch([denoise(particle)], some)
    assert again.values[0] is particle
    assert again.log_prob[0] == 0.0
    assert np.array_equal(particle.image, particle.x)
    with pytest.raises(ValueError, match="read-only"):
        particle.image[0] = 1.0


def test_each_particle_has_its_own_condition():
    def fn(x, time, condition):
        return condition.expand_as(x)

    plain = Diffusion(Network(fn, "sample"), LEVELS, (1,))

    @fk.program
    async def pair():
        ends = []
        for place in (-5.0, 5.0):
            particle = await fk.sample("noise", begin(plain, torch.tensor([[place]])))
            while not particle.done:
                particle = await fk.sample("step", denoise(particle))
            ends.append(float(particle.image[0]))
        return tuple(ends)

    assert set(fk.infer(pair(), fk.SMC(3), seed=0).values) == {(-5.0, 5.0)}


def test_models_that_weigh_are_refused():
    with pytest.raises(ValueError, match="steering"):
        begin(model(steering=Steering(reward)))
    cold = fk.diffusion.anneal(model(), 2.0)
    with pytest.raises(ValueError, match="weighs particles itself"):
        fk.infer(steered(cold), fk.SMC(4), seed=0)
    many = Diffusion(Network(lambda x, t, c: c, "sample"), LEVELS, (1,), condition=torch.zeros(3, 1))
    with pytest.raises(ValueError, match="several"):
        begin(many)


def test_a_program_with_particles_is_kept_in_a_file(tmp_path):
    plain = model()

    @fk.program
    async def last():
        particle = await fk.sample("noise", begin(plain))
        while not particle.done:
            particle = await fk.sample("step", denoise(particle))
            await fk.factor("right", float(particle.estimate[0]) / 10)
        return particle

    posterior = fk.infer(last(), fk.SMC(4), seed=0)
    posterior.save(tmp_path / "run")
    again = fk.Posterior.load(tmp_path / "run")
    half = [p.trace(2)["step[3]"].value for p in (posterior, again)]
    for mine, theirs in [*zip(posterior.values, again.values), half]:
        assert (mine.step, mine.done, mine.digest) == (theirs.step, theirs.done, theirs.digest)
        np.testing.assert_array_equal(mine.x, theirs.x)
        np.testing.assert_array_equal(mine.estimate, theirs.estimate)
    assert not half[1].done
    assert repr(half[1]) == "<particle of a file after 4 steps>"
    for act in (denoise, lambda particle: particle.image):
        with pytest.raises(ValueError, match="from a file has no model"):
            act(half[1])


def test_a_forced_value_is_what_the_request_can_give():
    plain = model()
    some = keys.fold(keys.root(0), np.arange(2))
    one, other = begin(plain).sample_batch([begin(plain)] * 2, some).values
    early = denoise(one).sample_batch([denoise(one)], some[:1]).values[0]
    assert denoise(one).log_prob_batch([denoise(one)] * 2, [early, other]).tolist()[1] == -np.inf  # a step too few
    while not one.done:
        one, other = denoise(one).sample_batch([denoise(one), denoise(other)], some).values
    assert denoise(one).log_prob_batch([denoise(one)] * 3, [one, other, early]).tolist() == [0.0, -np.inf, -np.inf]


class Hearing:
    """A network of one token that leans to what it thought one step before."""

    evaluations, prediction, canvas, pad = 1, "logits", 1, 0

    def __call__(self, x, time, condition):
        heard, hears = condition["heard"], condition["hears"]
        lean = 1.0 * (x == 1) - 0.3
        if heard.shape[-1] == 2:
            lean = lean + hears[:, None] * 6 * (heard[..., 1].exp() - 0.5)
        return torch.stack([torch.zeros_like(lean), lean], -1)


def moved_on(requests, seed):
    """Particles that steps lead to."""
    return requests[0].sample_batch(requests, keys.fold(keys.root(seed), np.arange(len(requests)))).values


def test_a_particle_that_remembers_fits_no_past_but_its_own():
    hearing = UniformDiffusion(Hearing(), 1, DiscreteDDIM(3), vocabulary=2)
    still = Network(lambda x, time, condition: condition["past"][:, -1], "sample")
    video = Frames(still, Schedule.flow(1), (1,), 2, past=1, eta=0.0)  # whose second step draws noise, whatever was
    for made in hearing, video:
        noise = moved_on([begin(made)] * 32, 0)
        first = moved_on([denoise(one) for one in noise], 1)
        second = moved_on([denoise(one) for one in first], 2)
        other = next(
            i
            for i in range(32)
            if noise[i].x != noise[0].x and (made is video or np.array_equal(first[i].x, first[0].x))
        )
        steps = [denoise(first[0]), denoise(first[other])]
        own, foreign = steps[0].log_prob_batch(steps, [second[0]] * 2)
        assert own > -np.inf == foreign
        assert steps[0].fingerprint != steps[1].fingerprint


def told(made):
    """A program that draws the condition of a particle."""

    @fk.program
    async def program():
        c = await fk.sample("c", fk.dist.Bernoulli(0.5))
        await fk.factor("more", 0.3 * c)
        particle = await fk.sample("noise", begin(made, torch.tensor([[float(c)]])))
        while not particle.done:
            await fk.factor("nothing", 0.0)
            particle = await fk.sample("step", denoise(particle))
        return int(c), int(particle.image[0])

    return program()


def conditioned():
    """A model of one bit that is nearly its condition."""

    def network(x, share, condition):
        lean = torch.where(condition > 0.5, 3.0, -3.0)
        return torch.stack([torch.zeros_like(lean), lean], -1)

    return UniformDiffusion(Network(network, "logits"), 1, DiscreteDDIM(2), vocabulary=2, condition=torch.zeros(1, 1))


def test_a_particle_fits_no_condition_but_its_own():
    made = conditioned()
    same, another = begin(made, torch.zeros(1, 1)), begin(made, torch.ones(1, 1))
    (noise,) = moved_on([same], 0)
    assert same.log_prob_batch([same, another], [noise] * 2).tolist() == [-math.log(2), -math.inf]
    equal = begin(made, torch.zeros(1, 1))
    assert equal.log_prob_batch([equal], [noise]).tolist() == [-math.log(2)]


@pytest.mark.slow
def test_ancestors_are_drawn_under_their_own_conditions():
    """Within .05 at a fixed seed, where what took the conditions of others was .1 and more away."""
    right, likely = math.exp(0.3) / (1 + math.exp(0.3)), 1 / (1 + math.exp(-3.0))
    engine = fk.ParticleGibbs(3, 25, ancestor_sampling=True, burn_in=5, chains=40)
    posterior = fk.infer(told(conditioned()), engine, seed=1)
    for c in (0, 1):
        for x in (0, 1):
            p = (right if c else 1 - right) * (likely if c == x else 1 - likely)
            assert posterior.expect(lambda found, value=(c, x): found == value) == pytest.approx(p, abs=0.05)

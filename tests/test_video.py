"""Bouncing digits: the motion reward, the frame-autoregressive model, blocks of steps, Tree-of-Frames."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import feynkac as fk  # noqa: E402
from feynkac.diffusion import Frames, Motion, Schedule, centroids  # noqa: E402
from feynkac.diffusion.shipped import zoo  # noqa: E402
from feynkac.ppl import keys  # noqa: E402
from laws import T2_ORDER, T2_POSTERIOR, T2_Z, Z_LIMIT, check_unbiased, t2, z_score  # noqa: E402

T2_LAW = dict(zip(T2_ORDER, T2_POSTERIOR))


# Motion


def fly(n, frames, motion, seed):
    """Draw paths from the law that `Motion` scores."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(motion.low + 3, motion.high - 3, (n, 2))
    velocity = rng.uniform(0.5, 2.0, (n, 2))
    path = [place]
    for t in range(1, frames):
        place = place + velocity + (motion.spread * rng.normal(size=(n, 2)) if t > 1 else 0.0)
        # Where the middle of the law is beyond a wall, all of it is reflected.
        ahead = path[-1] + velocity
        wall = np.where(ahead > motion.high, 2 * motion.high, 2 * motion.low)
        turned = (ahead > motion.high) | (ahead < motion.low)
        place = np.where(turned, wall - place, place)
        velocity = np.where(turned, place - (wall - path[-1]), place - path[-1])
        path.append(place)
    return torch.tensor(np.stack(path, 1))


def test_motion_scores_paths_of_its_own_law():
    motion = Motion(0.0, 12.0, 0.3)
    path = fly(4000, 30, motion, seed=0)
    assert bool(((path[:, 1:] - path[:, :-1]).sign().diff(dim=1) != 0).any(1).all())  # all are turned
    each = -1.0 - math.log(2 * math.pi * 0.3**2)  # E log of a normal in two dimensions
    assert abs(z_score(motion.log_prob(path).numpy(), 28 * each)) < Z_LIMIT
    assert motion.terms(path).shape == (4000, 30)
    assert not motion.terms(path)[:, :2].any()


def test_motion_is_differentiable_and_short_clips_score_nothing():
    clips = (torch.rand(2, 5, 8, 8) * 2 - 1).requires_grad_(True)
    Motion(0.0, 8.0, 1.0)(clips).sum().backward()
    assert clips.grad.abs().amax((1, 2, 3)).min() > 0
    assert Motion(0.0, 8.0, 1.0)(torch.zeros(3, 1, 8, 8)).tolist() == [0.0, 0.0, 0.0]


def test_a_dark_frame_has_its_centre_in_the_middle():
    assert torch.allclose(centroids(torch.full((1, 1, 6, 4), -1.0)), torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize("settings", [(3.0, 3.0, 1.0), (0.0, 1.0, 0.0)])
def test_motion_refuses_what_is_no_law(settings):
    with pytest.raises(ValueError, match=r"walls|spread"):
        Motion(*settings)


# Frames, by a model whose law is known: frame t is N(A·frame t−1 + B, V), pixel by pixel

A, B, V = 0.6, 0.8, 0.25


class Linear:
    prediction = "sample"
    evaluations = 1

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x, time, condition):
        at = abs(self.schedule.time - time.numpy()[:, None]).argmin(1)
        alpha, sigma = (torch.tensor(level[at])[:, None].to(x) for level in (self.schedule.alpha, self.schedule.sigma))
        assert condition["past"].shape == (len(x), 2, 3)
        before = torch.where(condition["known"][:, None] > 0, condition["past"][:, -1], 0.0)
        mean = A * before + B
        return mean + alpha * V / (alpha**2 * V + sigma**2) * (x - alpha * mean)


def linear(frames=3, steps=40, **settings):
    schedule = Schedule.vp(steps)
    return Frames(Linear(schedule), schedule, (3,), frames, past=2, dtype=torch.float64, **settings)


def one_frame():
    """How the 40 steps of a frame move a pixel of mean m: to N(share·m, variance), by its own recursion."""
    schedule = Schedule.vp(40)
    variance, gain = 1.0, 1.0  # of noise, whose mean is α_0·m off
    levels = list(zip(schedule.alpha, schedule.sigma))
    for (a, s), (a2, s2) in itertools.pairwise(levels):
        pull = a * V / (a * a * V + s * s)
        tau = s2 * math.sqrt(1 - (a * s2 / (a2 * s)) ** 2)
        factor = a2 * pull + math.sqrt(s2 * s2 - tau * tau) * (1 - a * pull) / s
        variance = factor**2 * variance + tau**2
        gain *= factor
    return 1.0 - gain * schedule.alpha[0], variance


def check_linear(values):
    """Mean and variance of each frame; pixels are independent."""
    (share, variance), mean, spread = one_frame(), 0.0, 0.0
    clips = np.stack(values)
    for t in range(3):
        mean, spread = share * (A * mean + B), (share * A) ** 2 * spread + variance
        pixels = clips[:, t].ravel()
        assert abs(z_score(pixels, mean)) < Z_LIMIT
        assert abs(z_score((pixels - mean) ** 2, spread)) < Z_LIMIT


def test_frames_follow_the_frames_before():
    posterior = fk.infer(linear(), fk.ImportanceSampling(3000), seed=0)
    check_linear(posterior.values)
    assert posterior.cost.nfe == 3000 * 3 * 40
    assert len(posterior.steps) == 3 * 41


def test_frames_as_blocks_follow_the_same_law():
    video = linear()
    posterior = fk.infer(fk.Blocks(video, video.unit), fk.ImportanceSampling(3000), seed=2)
    check_linear(posterior.values)
    assert len(posterior.steps) == 3


def test_a_frame_begins_with_noise():
    model, key = linear(steps=2), keys.fold(keys.root(0), np.arange(5))
    advance = model.start(key)
    for step in range(3):
        log_prob = -0.5 * (advance.choices**2 + math.log(2 * math.pi)).sum(1)
        assert np.allclose(advance.log_prob, log_prob) == (step == 0)
        advance = model.advance(advance.state, keys.fold(key, step))
    assert np.allclose(advance.log_prob, -0.5 * (advance.choices**2 + math.log(2 * math.pi)).sum(1))


def test_a_program_draws_frames_from_the_same_law():
    video = linear()

    @fk.program
    async def clip():
        frames = []
        for _ in range(3):
            frames.append(await fk.sample("frame", video.frame(frames)))
        return np.stack(frames)

    posterior = fk.infer(clip(), fk.ImportanceSampling(2000), seed=1)
    check_linear(posterior.values)
    assert posterior.cost.nfe == 2000 * 3 * 40
    assert posterior.cost.model_calls == 3 * 40


def test_particles_at_different_frames_share_a_batch():
    model, n = linear(steps=4, reward=lambda clips: clips.sum((1, 2))), 3
    key = keys.fold(keys.root(0), np.arange(n))
    states = [model.start(key).state]
    for step in range(14):
        states.append(model.advance(states[-1], keys.fold(key, step)).state)
    mixed = model.select(model.concat([states[0], states[4], states[7], states[13]]), np.arange(12)[::-1])
    fresh = keys.fold(key, 99)
    together = model.advance(mixed, np.concatenate([fresh] * 4)[::-1])
    for i, state in enumerate([states[0], states[4], states[7], states[13]]):
        alone = model.advance(state, fresh)
        rows = np.arange(12)[::-1][3 * i : 3 * i + 3]
        assert np.allclose(together.log_prob[rows], alone.log_prob)
        assert np.allclose(together.log_potential[rows], alone.log_potential)
        for row, value in zip(rows, model.values(alone.state)):
            assert np.allclose(model.values(together.state)[row], value)


def test_given_frames_are_forced_and_scored():
    model = fk.Blocks(linear(steps=5), 6)
    key = keys.fold(keys.root(0), np.arange(4))
    drawn, forced = model.start(key), None
    forced = model.start(keys.fold(key, 7), drawn.choices)
    for step in range(2):
        assert np.allclose(drawn.log_prob, forced.log_prob)
        assert np.allclose(model.values(drawn.state), model.values(forced.state))
        drawn = model.advance(drawn.state, keys.fold(key, 10 + step))
        forced = model.advance(forced.state, keys.fold(key, 20 + step), drawn.choices)
    assert np.allclose(drawn.log_prob, forced.log_prob)
    assert drawn.done.all()


def test_judges_in_stages_multiply_to_the_last():
    def bright(clips):
        return clips.sum((1, 2))

    every = fk.infer(linear(reward=bright, scale=2.0), fk.ImportanceSampling(5), seed=0)
    staged = fk.infer(linear(reward={1: bright, 3: bright}, scale=2.0), fk.ImportanceSampling(5), seed=0)
    truth = [2.0 * value.sum() for value in every.values]
    assert np.allclose(every.log_potential, truth)
    assert np.allclose(staged.log_potential, truth)
    assert (every.cost.reward_calls, staged.cost.reward_calls) == (15, 10)


def test_an_impossible_clip_stays_impossible():
    never = fk.infer(
        linear(reward=lambda clips: torch.full((len(clips),), -math.inf)),
        fk.ImportanceSampling(3, all_dead="zero"),
        seed=0,
    )
    assert np.isneginf(never.log_weights).all()

    # Whatever a later judge says: it would have to make up for −inf.
    def early(clips):
        return torch.where(clips[:, 0, 0] > 0.8, -math.inf, 0.0)

    for model in (video := linear(steps=3, reward={1: early, 3: lambda c: c[:, 0, 0]}), fk.Blocks(video, video.unit)):
        found = fk.infer(model, fk.ImportanceSampling(40), seed=0)
        first = np.stack(found.values)[:, 0]
        dead = first[:, 0] > 0.8
        assert 5 < dead.sum() < 35
        np.testing.assert_array_equal(found.log_weights, np.where(dead, -np.inf, first[:, 0]))


def test_frames_refuse_bad_settings():
    for settings in ({"frames": 0}, {"eta": 1.5}, {"reward": {4: len}}):
        with pytest.raises(ValueError, match=r"at least 1|eta|judged"):
            linear(**settings)
    with pytest.raises(ValueError, match="shape"):
        linear().frame([np.zeros(2)])
    with pytest.raises(ValueError, match="all of them"):
        linear().frame([np.zeros(3)] * 3)


# Blocks


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 5])
def test_blocks_keep_the_law(size):
    check_unbiased(fk.Blocks(t2(), size), fk.SMC(4), T2_LAW, math.log(T2_Z), runs=1500)


def test_blocks_count_their_own_steps():
    model = fk.Blocks(t2(), 2)
    advance = model.start(keys.fold(keys.root(0), np.arange(20)))
    while not advance.done.all():
        before = advance.state
        advance = model.advance(before, keys.fold(keys.root(1), np.arange(20)))
        assert (advance.state.depth - before.depth == ~before.done).all()
    with pytest.raises(ValueError, match="at least one"):
        fk.Blocks(t2(), 0)


# Tree-of-Frames


def test_a_tree_without_branches_is_best_of_n():
    tree = fk.infer(t2(), fk.TreeOfFrames((12,), keep=12), seed=3)
    best = fk.infer(t2(), fk.BestOfN(12), seed=3)
    assert tree.values == best.values
    assert np.array_equal(tree.log_weights, best.log_weights)
    assert tree.guarantee == "heuristic"
    assert math.isnan(tree.log_evidence)


@fk.program
async def climb():
    """Two steps over 1, 2, 3 with unequal chances; the reward is what they add up to, counted as they come."""
    total = 0
    for _ in range(2):
        step = await fk.sample("step", fk.dist.Categorical([0.6, 0.3, 0.1], values=[1, 2, 3]))
        await fk.factor("G", float(step))
        total += step
    return total


def best_of(n):
    """The law of the largest of n draws."""
    below = np.cumsum([0.0, 0.6, 0.3, 0.1])
    return np.diff(below**n)


@pytest.mark.slow
@pytest.mark.parametrize(("judged", "keep"), [(None, 1), ((0,), 2), ((1,), 1)])
def test_the_law_of_the_winner(judged, keep):
    roots, children = 3, 2
    tree = fk.TreeOfFrames((roots, children), keep=keep, judged=judged)
    posteriors = fk.infer([climb()] * 3000, tree, seed=0)
    won = np.array([p.best() for p in posteriors])
    first = np.array(np.meshgrid(*[[1, 2, 3]] * roots)).reshape(roots, -1).T  # every outcome of the roots
    chance = np.prod(np.array([0.6, 0.3, 0.1])[first - 1], 1)
    survivors = np.sort(first, 1)[:, -keep:] if judged != (1,) else first
    law = dict.fromkeys(range(2, 7), 0.0)
    for row, p in zip(survivors, chance):
        seconds = np.array(np.meshgrid(*[[1, 2, 3]] * len(row))).reshape(len(row), -1).T
        second = np.prod(best_of(children)[seconds - 1], 1)
        for outcome, q in zip((row + seconds).max(1), second):
            law[int(outcome)] += p * q
    assert sum(law.values()) == pytest.approx(1.0)
    for total, probability in law.items():
        assert abs(z_score(won == total, probability)) < Z_LIMIT, total


def test_the_shape_of_the_tree():
    tree = fk.TreeOfFrames((3, 2, 4), keep=5, judged=[1])
    posterior = fk.infer(fk.Blocks(linear(frames=5, steps=2), 3), tree, seed=0)
    assert [len(step.ancestors) for step in posterior.steps] == [3, 6, 20, 20, 20]
    assert tree.particles == 20
    assert posterior.steps[1].ancestors.tolist() == [0, 0, 1, 1, 2, 2]
    clips = np.stack(posterior.values)
    assert len(np.unique(clips[:, 2], axis=0)) == 20  # twins part
    assert len(np.unique(clips[:, 1], axis=0)) == 5


def test_a_tree_whose_width_changes_is_shown_and_kept(tmp_path):
    model = fk.Blocks(linear(frames=4, steps=2, reward=lambda clips: clips.sum((1, 2))), 3)
    posterior = fk.infer(model, fk.TreeOfFrames((3, 2, 4), keep=5, judged=[1], chains=2), seed=0)
    assert posterior.log_potential == pytest.approx([value.sum() for value in posterior.values])
    winners = [chain.log_potential.max() for chain in posterior.chains]
    assert posterior.log_potential[posterior.probabilities > 0] == pytest.approx(winners)
    assert "TreeOfFrames" in posterior._repr_html_()
    posterior.save(tmp_path / "tree.npz")
    assert fk.Posterior.load(tmp_path / "tree.npz").values[0].shape == (4, 3)


def test_finished_particles_are_not_multiplied():
    posterior = fk.infer(t2(), fk.TreeOfFrames((6, 2, 2, 2, 2, 2, 2, 2), keep=100), seed=0)
    finished = [step.done for step in posterior.steps]
    assert any(done.any() for done in finished[:-1])
    for done, following in itertools.pairwise(finished):
        assert done.sum() + 2 * (~done).sum() == len(following)


def test_all_dead_is_an_error_or_not():
    @fk.program
    async def hopeless():
        await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("G", -math.inf)

    with pytest.raises(fk.errors.AllParticlesDead):
        fk.infer(hopeless(), fk.TreeOfFrames((4,), keep=2), seed=0)
    dead = fk.infer(hopeless(), fk.TreeOfFrames((4,), keep=2, all_dead="zero"), seed=0)
    assert np.isneginf(dead.log_weights).all()


@pytest.mark.parametrize(
    "settings", [{"branching": ()}, {"branching": (0,)}, {"keep": 0}, {"judged": (-1,)}, {"all_dead": "no"}]
)
def test_trees_refuse_bad_settings(settings):
    with pytest.raises(ValueError, match=r"branching|keep|depths|all_dead"):
        fk.TreeOfFrames(**{"branching": (2,), "keep": 1, **settings})


# The shipped models


@pytest.mark.slow
def test_shuffled_frames_are_less_likely():
    clips = torch.tensor(np.stack(fk.infer(zoo.bouncing(8, 6), fk.ImportanceSampling(12), seed=0).values))
    shuffled = clips[:, [3, 0, 6, 1, 5, 2, 7, 4]]
    motion = zoo.bouncing_motion(spread=1.0)
    assert (motion(clips) > motion(shuffled)).float().mean() > 0.8
    whole = torch.tensor(np.stack(fk.infer(zoo.bouncing_clip(20), fk.ImportanceSampling(12), seed=0).values))
    assert (motion(whole) > motion(whole[:, [3, 0, 6, 1, 5, 2, 7, 4]])).float().mean() > 0.8


@pytest.mark.slow
def test_a_tree_of_frames_beats_best_of_n_at_equal_cost():
    video = zoo.bouncing(8, 5, reward=zoo.bouncing_motion())
    model = fk.Blocks(video, video.unit)
    tree = fk.infer(model, fk.TreeOfFrames((8, 4, 4, 4, 4, 4, 4, 4), keep=2), seed=0)
    best = fk.infer(model, fk.BestOfN(8), seed=0)
    assert tree.cost.nfe <= best.cost.nfe == 8 * 8 * 5
    assert tree.log_potential.max() > best.log_potential.max() + 5


def test_all_that_belongs_to_a_clip_follows_it():
    """After any forks, of particles at different frames too, each does what it would do alone: all its fields."""
    model, n, rng = linear(steps=2, reward=lambda clips: clips.sum((1, 2))), 6, np.random.default_rng(0)
    key = keys.fold(keys.root(0), np.arange(n))
    state = model.start(key).state
    for step in range(1, 8):
        ancestors = rng.integers(0, n, n)
        own = keys.fold(key, step)
        after = model.advance(model.select(state, ancestors), own)
        for i, ancestor in enumerate(ancestors):
            alone = model.advance(model.select(state, [ancestor]), own[i : i + 1])
            mine = model.select(after.state, [i])
            assert mine.step.tolist() == alone.state.step.tolist()
            assert set(mine.fields) == {"clip", "estimate", "reward"}
            torch.testing.assert_close(mine.x, alone.state.x)
            for name, value in alone.state.fields.items():
                torch.testing.assert_close(mine.fields[name], value, msg=name)
            assert after.log_potential[i] == pytest.approx(alone.log_potential[0])
        state = after.state if step % 3 else model.concat([after.state, state]).select(rng.integers(0, 2 * n, n))

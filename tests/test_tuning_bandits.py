"""Bandits, and engines that they choose."""

from __future__ import annotations

import numpy as np
import pytest

import feynkac as fk
from feynkac import tuning
from feynkac.inference.tuning import UCB, Pull, TsallisINF


def pulled(policy, means, count):
    pulls = []
    for _ in range(count):
        arm = int(policy.chances(pulls).argmax())
        pulls.append(Pull(arm, 1.0, means[arm]))
    return np.bincount([pull.arm for pull in pulls], minlength=policy.arms).tolist()


def test_ucb_pulls_as_its_bound_says():
    assert pulled(UCB(2), (1.0, 0.0), 20) == [17, 3]
    assert pulled(UCB(3), (0.9, 0.5, 0.1), 60) == [42, 12, 6]
    assert pulled(UCB(3, lambda pulls: [0, 0, 0]), (0.9, 0.5, 0.1), 60) == [42, 12, 6]


def test_bonuses_are_added_to_the_bound():
    assert pulled(UCB(2, lambda pulls: [0.0, 1.0]), (1.0, 0.0), 20) == [10, 10]
    rest = UCB(2, lambda pulls: [-5.0 * (pulls[-1].arm == 0), 0.0])  # never the first twice in a row
    assert pulled(rest, (1.0, 0.0), 20) == [10, 10]
    with pytest.raises(ValueError, match="a number for each of the 2 arms"):
        UCB(2, lambda pulls: [1.0]).chances([Pull(0, 1.0, 1.0), Pull(1, 1.0, 0.0)])


def test_pulls_that_are_not_known_yet_count_in_the_bound_alone():
    known = [Pull(0, 1.0, 0.6), Pull(1, 1.0, 0.5)]
    assert UCB(2).chances(known).tolist() == [1, 0]
    assert UCB(2).chances([*known, Pull(0, 1.0)]).tolist() == [0, 1]


def test_tsallis_inf_solves_its_equation():
    chances = TsallisINF.solve([0.0, 1.0, 2.0], 1.0)
    assert chances == pytest.approx([0.534814, 0.286762, 0.178424], abs=1e-6)
    assert -2 / np.sqrt(chances[0]) == pytest.approx(-2.734818, abs=1e-6)  # x, as 4/x² is the first chance
    for losses, rate in (([5, 5], 0.3), ([0, 1e3, 1e6], 1e-3), ([3, 1, 2, 9], 2.0)):
        p = TsallisINF.solve(losses, rate)
        x = np.asarray(losses) - 2 / (rate * np.sqrt(p))
        assert p.sum() == pytest.approx(1, abs=1e-12)
        assert x == pytest.approx(x[0], rel=1e-9)  # one x for all arms


def test_tsallis_inf_weighs_losses_by_their_chances():
    policy = TsallisINF(2, rate=1.0)
    got = policy.chances([Pull(0, 0.25, 0.5), Pull(1, 0.75, 1.0), Pull(0, 0.5, 0.25), Pull(1, 0.1)])
    assert got == pytest.approx(TsallisINF.solve([0.5 / 0.25 + 0.75 / 0.5, 0.0], 1.0))
    with pytest.raises(ValueError, match="rewards from 0 to 1"):
        policy.chances([Pull(0, 1.0, 1.5)])


def test_losses_are_unbiased():
    """Two arms of losses (.7, .2), over three pulls and all their outcomes: E L = 3 (.7, .2), exactly."""
    policy, rewards = TsallisINF(2), (0.3, 0.8)

    def mean_losses(pulls, chance):
        if len(pulls) == 3:
            losses = np.zeros(2)
            for arm, p, reward in pulls:
                losses[arm] += (1 - reward) / p
            return chance * losses
        p = policy.chances(pulls)
        return sum(mean_losses([*pulls, Pull(i, p[i], rewards[i])], chance * p[i]) for i in range(2))

    assert mean_losses([], 1.0) == pytest.approx([2.1, 0.6])


@pytest.mark.parametrize("make", [lambda: UCB(0), lambda: TsallisINF(0), lambda: TsallisINF(2, rate=0.0)])
def test_policies_refuse(make):
    with pytest.raises(ValueError, match="positive"):
        make()


# -- engines ----------------------------------------------------------------------------------------------------


@fk.program
async def die():
    face = await fk.sample("face", fk.dist.DiscreteUniform(1, 6))
    await fk.factor("high", float(face))
    return face


ENGINES = [fk.SMC(1), fk.BestOfN(20), fk.SMC(2)]


def six(posterior, _):
    return float(posterior.best("reward") == 6)


def play(n=30, **more):
    return tuning.play([die()] * n, ENGINES, six, seed=0, **more)


@pytest.mark.parametrize("policy", [None, TsallisINF(3)])
def test_the_better_engine_is_found(policy):
    found = play(60, policy=policy)
    assert found.best == fk.BestOfN(20)
    assert found.counts.sum() == 60
    assert found.counts.min() > 0
    assert found.means[1] > 0.9
    assert [p.engine for p in found.posteriors[:3]] == [p.engine for p in play(3, policy=policy).posteriors]


def test_each_problem_has_the_posterior_of_its_engine():
    for batch in (1, 4):
        found = play(10, batch=batch)
        assert len(found.posteriors) == len(found.pulls) == 10
        for pull, posterior in zip(found.pulls, found.posteriors):
            assert len(posterior) == ENGINES[pull.arm].particles
            assert pull.reward == six(posterior, None)
        assert play(10, batch=batch).pulls == found.pulls


def test_a_batch_is_chosen_before_its_rewards():
    found = play(3, batch=3)
    assert [pull.arm for pull in found.pulls] == [0, 1, 2]


def test_ctrl_c_keeps_the_batches_that_are_done():
    calls = []

    def reward(posterior, _):
        calls.append(posterior)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return 1.0

    found = tuning.play([die()] * 10, ENGINES, reward, seed=0, batch=2)
    assert (len(found.pulls), len(found.posteriors), found.stopped) == (4, 4, "interrupted")


def test_play_refuses():
    with pytest.raises(ValueError, match="the policy has 2 arms, and there are 3 engines"):
        play(policy=UCB(2))
    with pytest.raises(ValueError, match="30 models and 2 problems"):
        play(problems=[1, 2])
    with pytest.raises(TypeError, match="engine"):
        tuning.play([die()], [die()], six, seed=0)

"""Races: what comes first by step ends, what becomes of the others, and that forks and replays know it all."""

from __future__ import annotations

import math

import numpy as np
import pytest

import feynkac as fk
from laws import z_score


@fk.program
async def runner(p, log):
    """Ends after one step with probability p, else after two."""
    short = await fk.sample("short", fk.dist.Bernoulli(p))
    await fk.factor("step", await fk.call("ran", log))
    if not short:
        await fk.factor("step", await fk.call("ran", log))
    return "short" if short else "long"


@fk.program
async def match(log, prize):
    ((winner, how),) = await fk.race(runner(0.5, log), runner(0.2, log))
    fk.deterministic("how", how)
    await fk.factor("prize", prize if winner == 0 else 0.0)
    return winner


def ran():
    return 0.0


Z = 0.1 + 0.9 * math.e
"""P(A wins) is .9."""


def test_enumeration_knows_who_wins():
    exact = fk.enumerate_program(match(ran, 1.0))
    assert math.exp(exact.log_evidence) == pytest.approx(Z) == pytest.approx(2.546454, abs=1e-6)
    assert exact.law()[0] == pytest.approx(0.9 * math.e / Z)


def test_the_others_stop_where_they_are():
    """2.8 steps are run on average, and not 3.3."""
    calls = []

    def counted():
        calls.append(1)
        return 0.0

    fk.infer(match(counted, 0.0), fk.ImportanceSampling(2000), seed=0)
    mean, spread = len(calls) / 2000, 1.0  # steps of a match are 2, 2 or 4: a standard deviation of .98
    assert abs(mean - 2.8) < 4.26 * spread / math.sqrt(2000)  # 2e-5


@pytest.mark.parametrize(
    "engine", [fk.SMC(2, ess_threshold=1.0, all_dead="zero"), fk.SMC(5), fk.ImportanceSampling(3)], ids=repr
)
def test_the_evidence_is_unbiased(engine):
    posteriors = fk.infer([match(ran, 1.0)] * 500, engine, seed=1)
    estimates = np.exp([p.log_evidence for p in posteriors])
    assert abs(z_score(estimates, Z)) < 4.26  # 2e-5
    first = np.array([math.exp(p.log_evidence) * p.expect(lambda w: w == 0) for p in posteriors])
    assert abs(z_score(first, 0.9 * math.e)) < 4.26


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    [fk.SuffixMH(600), fk.ParticleGibbs(8, 400), fk.TreeSampling(400), fk.BeamSearch(4), fk.BestOfN(8)],
    ids=repr,
)
def test_engines_of_every_kind_run_it(engine):
    posterior = fk.infer(match(ran, 1.0), engine, seed=0)
    if posterior.guarantee == "consistent":
        assert posterior.expect(lambda w: w == 0) == pytest.approx(0.9 * math.e / Z, abs=0.06)


# -- who is first -----------------------------------------------------------------------------------------------


@fk.program
async def walker(steps, name, level=0.0):
    for _ in range(steps):
        await fk.gather(fk.factor("g", 0.0), fk.twist("t", level))
    return name


@fk.program
async def field(k, *lengths):
    return await fk.race(*(walker(n, f"w{i}") for i, n in enumerate(lengths)), k=k)


@pytest.mark.parametrize(
    ("k", "lengths", "order"),
    [
        (1, (3, 2, 2), [1]),
        (2, (3, 2, 2), [1, 2]),
        (2, (1, 3, 2), [0, 2]),
        (3, (3, 1, 2), [1, 2, 0]),
        (1, (1, 1), [0]),
        (2, (0, 2, 0), [0, 2]),
        (1, (0, 0), [0]),
        (3, (2, 2, 2), [0, 1, 2]),
    ],
)
@pytest.mark.parametrize("engine", [fk.ImportanceSampling(3), fk.SMC(3, ess_threshold=1.0)], ids=repr)
def test_the_first_are_told_by_step_ends_and_order(k, lengths, order, engine):
    posterior = fk.infer(field(k, *lengths), engine, seed=0)
    assert all(value == tuple((i, f"w{i}") for i in order) for value in posterior.values)


def test_levels_of_the_others_are_gone_and_their_weights_stay():
    @fk.program
    async def guided():
        async def slow():
            for _ in range(5):
                await fk.gather(fk.factor("g", math.log(2.0)), fk.twist("t", 7.0))

        async def quick():
            await fk.gather(fk.factor("g", math.log(3.0)), fk.twist("t", 1.0))

        await fk.race(slow(), quick())
        await fk.factor("after", 0.0)
        await fk.factor("end", 0.0)

    posterior = fk.infer(guided(), fk.SMC(2), seed=0)
    assert posterior.log_evidence == pytest.approx(math.log(6.0))
    assert [step.log_twist.max() for step in posterior.steps] == [1.0, 1.0, 0.0]


def test_what_the_others_wrote_stays():
    @fk.program
    async def told():
        board = fk.cell("board", ())

        async def write(name, steps):
            for i in range(steps):
                await board.add((f"{name}{i}",))
                await fk.factor("g", 0.0)
            return name

        won = await fk.race(write("a", 3), write("b", 2), write("c", 9), k=1)
        return won[0][1], await board.get()

    for engine in (fk.ImportanceSampling(2), fk.SMC(4, ess_threshold=1.0)):
        for value in fk.infer(told(), engine, seed=0).values:
            assert value == ("b", ("a0", "b0", "c0", "a1", "b1", "c1"))


def test_races_within_races_scans_and_gathers():
    @fk.program
    async def nested():
        async def inner(a, b):
            ((_, name),) = await fk.race(walker(a, "x"), walker(b, "y"))
            await fk.factor("g", 0.0)
            return name

        async def step(carry, x):
            ((i, name),) = await fk.race(inner(1 + x, 2), inner(3, 3))
            return carry + name, i

        carry, ys = await fk.scan(step, "", [0, 2])
        both = await fk.gather(inner(2, 1), fk.race(walker(5, "slow"), walker(1, "quick")))
        return carry, ys, both

    for engine in (fk.ImportanceSampling(2), fk.SMC(5, ess_threshold=1.0)):
        for value in fk.infer(nested(), engine, seed=0).values:
            assert value == ("xy", (0, 0), ("y", ((1, "quick"),)))


@pytest.mark.slow
def test_a_fork_in_the_middle_of_a_race_goes_on_with_it():
    """Particles that are resampled while branches run have the same law as those that are not."""

    @fk.program
    async def weighed():
        async def walk(drift):
            x, n = 0.0, 0
            while x < 1.5:
                x += await fk.sample("x", fk.dist.Normal(drift, 1.0))
                n += 1
                await fk.factor("g", -0.1 * x * x)
            return n

        ((winner, n),) = await fk.race(walk(0.6), walk(0.4))
        return winner, n

    truth = fk.infer([weighed()] * 400, fk.ImportanceSampling(20), seed=5)
    found = fk.infer([weighed()] * 400, fk.SMC(20, ess_threshold=1.0), seed=6)
    one, two = (np.exp([p.log_evidence for p in each]) for each in (truth, found))
    error = math.sqrt(one.var() / 400 + two.var() / 400)
    assert abs(one.mean() - two.mean()) < 4.26 * error  # 2e-5
    lead = lambda p: math.exp(p.log_evidence) * p.expect(lambda v: v[0] == 0)  # noqa: E731
    one, two = (np.array([lead(p) for p in each]) for each in (truth, found))
    assert abs(one.mean() - two.mean()) < 4.26 * math.sqrt(one.var() / 400 + two.var() / 400)


def test_a_race_does_not_depend_on_the_batch():
    alone = fk.infer(match(ran, 0.0), fk.ImportanceSampling(1), seed=3).values[0]
    assert fk.infer(match(ran, 0.0), fk.ImportanceSampling(8), seed=3).values[0] == alone


def test_journals_play_races(tmp_path):
    first = fk.infer(match(ran, 1.0), fk.SMC(6), seed=0, journal=tmp_path / "run.fkj")
    again = fk.infer(match(ran, 1.0), fk.SMC(6), seed=0, journal=fk.Journal(tmp_path / "run.fkj", mode="replay"))
    assert again.values == first.values
    assert again.log_evidence == first.log_evidence


@pytest.mark.slow
def test_densities_of_programs_that_race_are_of_forced_runs():
    @fk.program
    async def timed():
        rate = await fk.sample("rate", fk.dist.Normal(0.0, 1.0))

        async def branch(n):
            for _ in range(n):
                await fk.factor("g", -0.5 * rate * rate)
            return n

        await fk.race(branch(1), branch(2))
        return rate

    # Two factors by the first step end: a normal of precision 1 + 2.
    posterior = fk.infer(timed(), fk.MCMC(fk.RandomWalk(), draws=1000, warmup=100), seed=0)
    assert posterior.expect(lambda x: x * x) == pytest.approx(1 / 3, abs=0.12)


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 3, -1])
def test_impossible_numbers_are_refused(k):
    with pytest.raises(ValueError, match="k"):
        fk.simulate(field(k, 1, 2), seed=0)


def test_no_branch_is_no_race():
    with pytest.raises(ValueError, match="waits for 1 of its 0"):
        fk.simulate(field(1), seed=0)


def test_an_error_in_a_branch_is_raised_at_the_race():
    @fk.program
    async def broken():
        async def bad():
            await fk.factor("g", 0.0)
            raise KeyError("no such thing")

        await fk.race(walker(3, "x"), bad())

    with pytest.raises(KeyError, match="no such thing"):
        fk.simulate(broken(), seed=0)


def test_a_branch_that_changes_what_is_around_it_is_refused():
    @fk.program
    async def shared():
        seen = []

        async def writes():
            await fk.sample("x", fk.dist.Normal(0.0, 1.0))
            seen.append(1)
            await fk.factor("g", 0.0)

        await fk.race(writes(), walker(2, "x"))

    with pytest.raises(fk.errors.SharedMutation, match="race"):
        fk.infer(shared(), fk.SMC(2), seed=0)

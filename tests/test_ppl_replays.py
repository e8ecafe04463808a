"""A fork continues as the original would, and a program that does not repeat itself is an error."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from programs import COIN, everything, keyring, run

import feynkac as fk
from feynkac.ppl import errors


def test_a_program_that_does_not_repeat_itself_is_an_error_and_not_a_wrong_answer():
    counter = itertools.count()

    @fk.program
    async def another_name():
        await fk.sample(f"x{next(counter)}", COIN)
        await fk.factor("step", 0.0)
        await fk.sample("y", COIN)

    @fk.program
    async def another_law():
        await fk.sample("x", fk.dist.Normal(float(next(counter)), 1.0))
        await fk.factor("step", 0.0)
        await fk.sample("y", COIN)

    @fk.program
    async def another_number():
        await fk.factor("step", 0.5 * next(counter))
        await fk.sample("y", COIN)

    for model, site in (
        (another_name(), "sample 'x"),
        (another_law(), "sample 'x'"),
        (another_number(), "factor 'step'"),
    ):
        step = model.start(fk.keys.fold(fk.keys.root(0), np.arange(2)))
        twins = model.select(step.state, np.array([0, 0]))
        with pytest.raises(
            errors.NonDeterministicProgram, match=f"replaying particle 1 for a fork: where it had {site}"
        ):
            model.advance(twins, fk.keys.fold(fk.keys.root(1), np.arange(2)))


def test_a_fork_anywhere_continues_exactly_as_the_original_would():
    """Each state is advanced three times: by the live coroutine, by replay, and by replay after the others."""
    model = everything(3)
    keys = fk.keys.fold(fk.keys.root(7), np.arange(5))
    step, depth = model.start(keys), 0
    while not step.done.all():
        depth += 1
        assert (step.state.depth == depth - 1).all()
        here = fk.keys.fold(keys, depth)
        reorder = np.array([3, 3, 0, 4, 1])
        live = model.advance(step.state, here)
        again = model.advance(step.state, here)
        forked = model.advance(model.select(step.state, reorder), here[reorder])
        for a, b, index in ((live, again, np.arange(5)), (live, forked, reorder)):
            assert [a.choices[i] for i in index] == list(b.choices)
            for name in ("log_prob", "log_proposal", "log_potential", "log_twist", "done"):
                assert (getattr(a, name)[index] == getattr(b, name)).all(), name
            assert [model.values(a.state)[i] for i in index] == model.values(b.state)
        step = forked if depth % 2 else again
    assert depth > 10
    assert (step.log_twist == 0).all()


def test_done_particles_pass_through():
    @fk.program
    async def unequal():
        x = await fk.sample("x", fk.dist.Bernoulli(0.5))
        for _ in range(1 + 2 * x):
            await fk.factor("G", -1.0)
        return x

    model = unequal()
    keys = fk.keys.fold(fk.keys.root(0), np.arange(20))
    step = model.start(keys)
    short = step.done.copy()
    assert 2 < short.sum() < 18
    while not step.done.all():
        step = model.advance(step.state, keys)
        assert (step.log_increment[short] == 0).all()
        assert all(len(step.choices[i]) == 0 for i in np.flatnonzero(short))
    assert (step.state.depth[short] == 0).all()
    assert (step.state.depth[~short] == 2).all()


def test_the_output_so_far_follows_a_fork():
    async def branch():
        x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        fk.deterministic("output", ("branch", x))
        await fk.factor("G", 0.0)

    @fk.program
    async def model():
        fk.deterministic("output", "start")
        await fk.gather(branch())
        for _ in range(3):
            await fk.factor("more", 0.0)

    keys = keyring(2)
    step = model().start(keys)
    step = model().advance(model().select(step.state, np.array([0, 0])), keys)
    first, second = model().values(step.state)
    assert first == second
    assert first[0] == "branch"


def test_dropped_particles_leave_quietly_whatever_their_finally_blocks_try():
    @fk.program
    async def tidy():
        try:
            x = await fk.sample("x", fk.dist.Bernoulli(0.5))
            await fk.factor("G", -math.inf if x else 0.0)
            await fk.factor("more", 0.0)
        finally:
            fk.deterministic("bye", 1)
            await fk.factor("last", 0.0)
        return x

    assert {v for v in run(tidy(), n=10, ess_threshold=1.0).values if v is not None} == {0}


def test_changed_arguments_of_scores_calls_and_observations_are_seen_at_a_replay():
    counter = itertools.count()

    @fk.reward
    def length(x):
        return float(x)

    @fk.program
    async def wanders(kind):
        n = next(counter)
        if kind == "score":
            await fk.factor("site", length(n) / 1.0)
        elif kind == "call":
            await fk.call("site", abs, n)
        else:
            await fk.observe("site", fk.dist.Normal(0.0, 1.0), float(n))
        await fk.factor("step", 0.0)
        await fk.sample("y", COIN)

    for kind in ("score", "call", "observe"):
        with pytest.raises(errors.NonDeterministicProgram, match="'site'"):
            run(wanders(kind), ess_threshold=1.0, resampling="multinomial")

"""Branches, scans and programs within programs."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
from programs import COIN, NoScores, run

import feynkac as fk
from feynkac import handlers


@fk.program
async def heavier(x):
    await fk.factor("G", 0.5 * x)


@fk.program
async def gathers_in_steps(branches):
    total = 0
    for _ in range(3):
        x = await fk.sample("x", fk.dist.Bernoulli(0.4))
        total += x
        await fk.gather(*branches(x))
    return total


@pytest.mark.parametrize(
    "branches",
    [
        lambda x: (fk.factor("G", 0.5 * x), fk.twist("later", 0.2 * x)),
        lambda x: (heavier(x), fk.factor("H", -0.1 * x)),
    ],
)
def test_what_a_gather_was_given_is_awaited_also_where_a_fork_skips_it(branches):
    model = gathers_in_steps(branches)
    posterior = fk.infer(model, fk.SMC(200, ess_threshold=1.0), seed=0)
    assert len(posterior.chains[0].steps) == 3  # a gather is one step
    assert posterior.log_evidence == pytest.approx(fk.enumerate_program(model).log_evidence, abs=0.1)


def test_an_effect_is_given_to_one_gather_alone():
    @fk.program
    async def twice():
        draw = fk.sample("x", fk.dist.Bernoulli(0.4))
        await fk.gather(draw, draw)

    with pytest.raises(fk.errors.FeynkacError, match=r"fk\.sample\('x', …\) is awaited twice"):
        fk.simulate(twice(), seed=0)


def test_gather_steps_end_when_every_live_branch_is_at_one_and_branches_share_batches():
    calls = []

    class Counted(NoScores):
        def sample_batch(self, requests, keys):
            calls.append(len(requests))
            return fk.Draws([0] * len(requests), np.zeros(len(requests)))

    async def branch(k):
        for _ in range(k):
            await fk.sample("x", Counted())
            await fk.factor("G", 1.0)
        return k

    @fk.program
    async def both():
        return await fk.gather(branch(3), branch(1))

    posterior = run(both(), n=5)
    assert calls == [10, 5, 5]
    assert len(posterior.steps) == 3
    assert posterior.log_evidence == pytest.approx(4.0)
    assert list(posterior.trace(0)) == [
        "gather.0/x", "gather.1/x", "gather.0/G", "gather.1/G", "gather.0/x[1]", "gather.0/G[1]",
        "gather.0/x[2]", "gather.0/G[2]",
    ]  # fmt: skip


def test_particles_that_need_a_model_wait_for_each_other():
    """Half of the particles draw and call first; the expensive kernel is called once for all."""
    calls = []

    class Counted(NoScores):
        def sample_batch(self, requests, keys):
            calls.append(len(requests))
            return fk.Draws([0] * len(requests), np.zeros(len(requests)))

    @fk.program
    async def unequal():
        for _ in range(await fk.sample("n", fk.dist.Bernoulli(0.5))):
            await fk.sample("light", COIN)
            await fk.call("tool", abs, 1)
        await fk.sample("x", Counted())

    run(unequal(), n=20)
    assert calls == [20]


def test_programs_call_programs():
    @fk.program
    async def inner(p):
        x = await fk.sample("x", fk.dist.Bernoulli(p))
        await fk.factor("G", 1.0 * x)
        return x

    @fk.program
    async def outer():
        with handlers.scope(prefix="first"):
            a = await inner(0.5)
        b = await handlers.scope(inner(0.5), prefix="second")
        c, d = await fk.gather(inner(0.1), inner(0.2))
        return a, b, c, d

    found = fk.simulate(outer(), seed=0)
    assert list(found.trace)[:4] == ["first/x", "first/G", "second/x", "second/G"]
    exact = fk.enumerate_program(outer())
    e = math.e
    assert exact.expect(lambda v: v[2]) == pytest.approx(0.1 * e / (0.9 + 0.1 * e))


def test_long_programs_and_scans_do_not_exhaust_the_stack():
    async def step(carry, x):
        return carry + x, None

    @fk.program
    async def long(n):
        for _ in range(n):
            await fk.sample("x", COIN)
        total, _ = await fk.scan(step, 0, range(n))
        return total

    given = {fk.ppl.sites.address("x", i): 1 for i in range(3000)}
    model = handlers.do(long(3000), data=given)
    assert fk.simulate(model, seed=0).value == sum(range(3000))
    assert fk.simulate(handlers.substitute(long(3000), data=given), seed=0).value == sum(range(3000))


def test_gather_and_scan_refuse_what_is_not_a_coroutine():
    @fk.program
    async def gathers():
        await fk.gather(1)

    @fk.program
    async def scans():
        await fk.scan(lambda c, x: (c, x), 0, [1])

    async def step(carry, x):
        return carry

    @fk.program
    async def no_pair():
        await fk.scan(step, 0, [1])

    for model, message in (
        (gathers(), "branch 0 of 'gather' is a int; it must be a coroutine"),
        (scans(), "it must be a coroutine"),
        (no_pair(), r"must return \(carry, y\), not 0"),
    ):
        with pytest.raises(TypeError, match=message):
            run(model)


def test_a_twist_holds_across_iterations_and_after_a_branch_as_it_does_in_a_loop():
    async def step(carry, x):
        z = await fk.sample("z", fk.dist.Bernoulli(0.5))
        await fk.factor("G", 0.0)
        await fk.twist("guide", 2.0 + z)
        return carry + z, z

    async def branch():
        return await step(0, 0)

    @fk.program
    async def loop():
        carry = 0
        for x in range(3):
            carry, _ = await step(carry, x)
        await fk.factor("end", 0.0)

    @fk.program
    async def scanned():
        await fk.scan(step, 0, range(3))
        await fk.factor("end", 0.0)

    @fk.program
    async def branched():
        for _ in range(3):
            await fk.gather(branch())
            # a branch's level is its parent's, once it has returned
        await fk.factor("end", 0.0)

    for model in (loop(), scanned()):
        levels = [step.log_twist for step in fk.infer(model, fk.SMC(6, ess_threshold=1.0), seed=0).steps]
        assert [(level > 0).all() for level in levels] == [False, True, True, True, True, True, False]
    levels = [step.log_twist for step in fk.infer(branched(), fk.SMC(6), seed=0).steps]
    assert (levels[1] >= 2.0).all()
    assert (levels[-1] == 0.0).all()


def test_effects_may_be_branches_and_programs_may_be_methods():
    class Team:
        size = 2

        @fk.program
        async def play(self, p):
            return await fk.gather(*(fk.sample(f"player {i}", fk.dist.Bernoulli(p)) for i in range(self.size)))

    assert fk.simulate(Team().play(0.5), seed=0).value in {(a, b) for a in (0, 1) for b in (0, 1)}


def test_an_error_while_others_wait_in_a_gather_leaves_no_coroutine_behind():
    async def branch():
        await fk.factor("q", 0.0)

    @fk.program
    async def splits():
        x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("G", 0.0)
        if x > 0:
            await fk.gather(branch(), branch())
        raise LookupError("the user's own")

    with pytest.raises(LookupError):
        run(splits(), n=20)
    gc.collect()  # a coroutine that was never awaited would warn here, and warnings are errors

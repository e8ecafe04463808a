"""Calls of functions from a program, and event loops and threads around it."""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from programs import COIN, copies, everything, keyring, run

import feynkac as fk


def test_calls_are_batched_recorded_and_may_be_asynchronous():
    made = []

    @fk.batched
    def together(inputs):
        made.append(len(inputs))
        return [x * 10 for x in inputs]

    async def slow(x):
        await asyncio.sleep(0.01)
        return x + 1

    @fk.program
    async def tools():
        x = await fk.sample("x", COIN)
        y = await fk.call("batched", together, x)
        z = await fk.call("slow", slow, y)
        await fk.factor("step", 0.0)
        await fk.sample("w", COIN)
        return x, y, z

    posterior = run(tools(), n=8, ess_threshold=1.0)
    assert made == [8]  # forks get the recorded value
    assert all(y == 10 * x and z == y + 1 for x, y, z in posterior.values)


def test_a_budget_of_seconds_gives_up_asynchronous_functions():
    ended = []

    async def slow(x):
        try:
            await asyncio.sleep(30.0 * x)
        finally:
            ended.append(x)

    @fk.program
    async def tool():
        for x in range(3):
            await fk.call("slow", slow, x)
            await fk.factor("step", 0.0)

    steps = fk.steps(tool(), fk.SMC(1), seed=0, budget=fk.Budget(seconds=1000.0))
    while not steps.wave():
        pass
    steps.budget = fk.Budget(seconds=steps.ledger.total().seconds + 0.02)
    assert steps.wave() is None
    assert (steps.stopped, len(steps.posterior.steps)) == ("seconds", 1)
    for _ in range(1000):
        if ended == [0, 1]:
            break
        time.sleep(0.002)
    assert ended == [0, 1]


def test_calls_work_inside_a_running_event_loop():
    async def slow(x):
        await asyncio.sleep(0)
        return x

    @fk.program
    async def tool():
        return await fk.call("slow", slow, 5)

    async def notebook():
        return run(tool(), n=2).values

    assert asyncio.run(notebook()) == (5, 5)


def test_a_failing_call_names_its_own_particle():
    async def fails(x):
        raise KeyError("gone")

    def breaks(x):
        return 1 / x

    @fk.program
    async def tool(fn):
        x = await fk.sample("x", fk.dist.Categorical([0.5, 0.5]))
        return await fk.call("tool", fn, x)

    with pytest.raises(KeyError) as caught:
        run(tool(fails))
    assert "after site 'tool'" in caught.value.__notes__[0]
    zeros = [choices[0].value for choices in tool(lambda x: x).start(keyring(10)).choices]
    with pytest.raises(ZeroDivisionError) as caught:
        tool(breaks).start(keyring(10))
    assert f"particle {zeros.index(0)} of 10" in caught.value.__notes__[0]


def test_a_program_can_catch_what_a_call_raises_also_when_it_is_replayed():
    tries = []

    def fails():
        tries.append(1)
        raise KeyError("gone")

    @fk.program
    async def careful():
        try:
            await fk.call("tool", fails)
            found = "yes"
        except KeyError:
            found = "no"
        for _ in range(3):
            await fk.factor("G", 0.0)
        return found

    assert run(careful(), ess_threshold=1.0, resampling="multinomial").values == ("no",) * 4
    assert len(tries) == 4


def test_inference_can_be_nested_and_run_in_threads():
    @fk.program
    async def outer():
        inside = fk.infer(copies([1]), fk.SMC(3), seed=0)
        return await fk.sample("x", COIN), inside.log_evidence

    assert run(outer()).values[0][1] == 0.0
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda seed: fk.infer(everything(2), fk.SMC(5), seed=seed).values, [0, 0, 1, 1]))
    assert found[0] == found[1] != found[2] == found[3]


def test_asynchronous_generators_work_in_a_running_loop():
    async def numbers():
        for i in range(3):
            await fk.factor("G", -math.inf if i == 1 else 0.0)
            yield i

    @fk.program
    async def counts():
        async for _ in numbers():
            await fk.sample("x", COIN)

    async def notebook():
        return run(counts(), all_dead="zero").log_evidence

    assert asyncio.run(notebook()) == -math.inf

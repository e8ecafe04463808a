"""What the functions of ``fk.call`` spend, and inference inside of them."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

import feynkac as fk
from feynkac.ppl.cost import Ledger, recording


class Letters:
    """A kernel that charges one call, and three tokens for each draw."""

    batch_key = "letters"
    fingerprint = None

    def sample_batch(self, requests, keys):
        draws = (fk.keys.uniform(keys) * 3).astype(int)
        fk.charge(model_calls=1, tokens_in=np.full(len(requests), 2), tokens_out=np.full(len(requests), 3))
        return fk.Draws(draws, np.full(len(requests), -np.log(3)))


@fk.program
async def writes(n=2):
    total = 0
    for _ in range(n):
        total += await fk.sample("x", Letters())
        await fk.factor("G", 0.1 * total)
    return total


def plain(n):
    return fk.infer(writes(n), fk.SMC(5), seed=0).log_evidence


async def later(n):
    await asyncio.sleep(0.001 * n)
    return fk.infer(writes(n), fk.SMC(5), seed=0).log_evidence


@fk.batched
def at_once(inputs):
    return [p.log_evidence for p in fk.infer([writes(n) for n in inputs], fk.SMC(5), seed=0)]


@fk.batched
async def at_once_later(inputs):
    await asyncio.sleep(0)
    return at_once(inputs)


@fk.program
async def calls(fn, n, times=1):
    found = 0.0
    for _ in range(times):
        found = await fk.call("inner", fn, n)
        await fk.factor("G", 0.0)
    return found


@pytest.mark.parametrize("fn", [plain, later, at_once, at_once_later], ids=lambda fn: fn.__name__)
def test_inference_in_a_call_is_counted_where_it_belongs(fn):
    posteriors = fk.infer([calls(fn, 1), calls(fn, 3)], fk.ImportanceSampling(4), seed=0)
    # 4 particles, each with a run of 5 particles and 1 or 3 letters, of 3 tokens.
    assert [p.cost.tokens_out for p in posteriors] == [4 * 5 * 3, 4 * 5 * 3 * 3]
    assert [p.cost.tokens_in for p in posteriors] == [4 * 5 * 2, 4 * 5 * 2 * 3]
    apart = fn in (plain, later)
    assert [p.cost.model_calls for p in posteriors] == ([4, 12] if apart else [1, 3])
    assert posteriors[0].values[0] == plain(1)


def test_a_budget_sees_what_is_spent_in_calls():
    posterior = fk.infer(calls(plain, 1, 5), fk.SMC(4), seed=0, budget=fk.Budget(tokens=61))
    assert (posterior.stopped, len(posterior.steps)) == ("tokens", 2)
    assert posterior.cost.tokens_out == 2 * 4 * 5 * 3


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_function_charges_goes_to_the_problem_that_called_it(asynchronous):
    def spend(amount):
        fk.charge(tokens_in=[amount, 1], reward_calls=2)  # two rows of its own
        return amount

    async def spend_later(amount):
        await asyncio.sleep(0.001 * (3 - amount))
        return await asyncio.to_thread(spend, amount)

    fn = spend_later if asynchronous else spend
    first, second = fk.infer([calls(fn, 1), calls(fn, 2)], fk.ImportanceSampling(3), seed=0)
    assert (first.cost.tokens_in, second.cost.tokens_in) == (3 * 2, 3 * 3)
    assert (first.cost.reward_calls, second.cost.reward_calls) == (6, 6)


def test_a_run_in_a_run_in_a_run_counts_in_all():
    def middle(n):
        found = fk.infer(calls(plain, n), fk.ImportanceSampling(2), seed=0)
        assert found.cost.tokens_out == 2 * 5 * 3 * n
        return n

    with recording(Ledger()) as ledger:
        outer = fk.infer(calls(middle, 2), fk.ImportanceSampling(3), seed=0)
    assert outer.cost.tokens_out == ledger.total().tokens_out == 3 * 2 * 5 * 3 * 2
    assert outer.cost.model_calls == ledger.total().model_calls == 3 * 2 * 2


def test_charge_names_what_it_does_not_know_and_is_silent_outside_a_run():
    fk.charge(tokens_in=3)

    def wrong(n):
        fk.charge(tokens=n)

    with pytest.raises(ValueError, match=r"charge knows model_calls, .* and not tokens"):
        fk.infer(calls(wrong, 1), fk.SMC(2), seed=0)


def test_asynchronous_calls_within_asynchronous_calls_do_not_wait_for_each_other():
    async def leaf(n):
        await asyncio.sleep(0)
        return n

    async def middle(n):
        await asyncio.sleep(0)
        return fk.infer(calls(leaf, n), fk.ImportanceSampling(2), seed=0).values[0]

    async def top(n):
        return fk.infer(calls(middle, n), fk.ImportanceSampling(2), seed=0).values[0] + n

    found = []
    thread = threading.Thread(
        target=lambda: found.append(fk.infer(calls(top, 7), fk.ImportanceSampling(3), seed=0).values), daemon=True
    )
    thread.start()
    thread.join(20.0)
    assert found == [(14, 14, 14)]

"""What particles share cannot be changed behind their backs."""

from __future__ import annotations

import traceback

import numpy as np
import pytest
from programs import COIN, copies, run

import feynkac as fk
from feynkac import handlers
from feynkac.ppl import errors


def test_shared_arguments_cannot_be_changed_by_a_particle():
    @fk.program
    async def appends(notes):
        await fk.sample("x", COIN)
        notes.append(1)

    @fk.program
    async def writes(table):
        await fk.sample("x", COIN)
        table["a"]["b"] = 2

    @fk.program
    async def sets(array):
        await fk.sample("x", COIN)
        array[0] = 1.0

    with pytest.raises(errors.SharedMutation, match=r"this list is shared .* mine = list\(shared\)") as caught:
        run(appends([]))
    assert "notes.append(1)" in "".join(traceback.format_exception(caught.value))
    with pytest.raises(errors.SharedMutation, match="this dict is shared"):
        run(writes({"a": {"b": 1}}))
    with pytest.raises(ValueError, match="read-only"):
        run(sets(np.zeros(3)))
    mine = [3, 1]
    assert sorted(fk.infer(copies(mine), fk.SMC(1), seed=0).values[0]) == [1, 1, 3]
    assert mine == [3, 1]


def test_values_of_calls_are_shared_by_forks_and_so_read_only():
    @fk.program
    async def calls():
        found = await fk.call("search", lambda: ["a", "b"])
        await fk.factor("step", 0.0)
        found.append("c")

    with pytest.raises(errors.SharedMutation, match="this list is shared"):
        run(calls(), ess_threshold=1.0)


def test_a_shared_scan_carry_is_read_only():
    async def step(carry, x):
        carry.append(x)
        return carry, None

    @fk.program
    async def collects():
        await fk.scan(step, [], [1, 2])

    with pytest.raises(errors.SharedMutation):
        run(collects())


def test_what_a_scan_returns_and_what_is_drawn_cannot_be_changed_behind_a_forks_back():
    class Draws:
        batch_key = fingerprint = "lists"

        def sample_batch(self, requests, keys):
            return fk.Draws([[3] for _ in requests], np.zeros(len(requests)))

    async def step(carry, x):
        return carry, [x]

    @fk.program
    async def draws():
        drawn = await fk.sample("xs", Draws())
        drawn.append(99)

    @fk.program
    async def outputs():
        _, ys = await fk.scan(step, 0, [1])
        ys[0].append(99)

    @fk.program
    async def intervened():
        xs = await fk.sample("x", fk.dist.Normal(np.zeros(2), 1.0))
        xs[0] += 1

    for model in (draws(), outputs(), handlers.do(draws(), data={"xs": [1.0]})):
        with pytest.raises(errors.SharedMutation):
            run(model)
    mine = np.zeros(2)
    with pytest.raises(ValueError, match="read-only"):
        run(handlers.substitute(intervened(), data={"x": mine}))
    assert (mine == 0).all()


def test_recorded_quantities_are_kept_as_they_were():
    @fk.program
    async def grows():
        seen = []
        for _ in range(3):
            seen.append(await fk.sample("x", COIN))
            fk.deterministic("output", seen)
            await fk.factor("G", 0.0)
        return seen

    session = fk.steps(grows(), fk.SMC(3, ess_threshold=1.0), seed=0)
    lengths = []
    for _ in session:
        lengths.append([len(value) for value in session.posterior.values])
    assert lengths == [[1] * 3, [2] * 3, [3] * 3]


def test_a_program_that_is_pickled_shares_its_arguments_read_only_and_keeps_nothing_of_its_process():
    cloudpickle = pytest.importorskip("cloudpickle")

    @fk.program
    async def appends(notes, array):
        array.sum()
        notes.append(1)

    model = handlers.condition(appends([0], np.zeros(3)), data={"x": 1.0})
    model.surroundings  # by the identity of what is around it
    copy = cloudpickle.loads(cloudpickle.dumps(model))
    assert "surroundings" not in vars(copy)
    assert len(copy.handlers) == 1
    assert repr(copy) == repr(model)
    assert not copy._args[1].flags.writeable
    with pytest.raises(errors.SharedMutation, match="this list is shared"):
        run(copy)

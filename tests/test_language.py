"""The rules of the language, each with the error that keeps it."""

from __future__ import annotations

import asyncio
import math
import traceback

import numpy as np
import pytest

import feynkac as fk
from feynkac import handlers
from feynkac.ppl import errors

COIN = fk.dist.Bernoulli(0.3)


def run(model, n=4, **settings):
    return fk.infer(model, fk.SMC(n, **settings), seed=0)


# -- effects ----------------------------------------------------------------------------------------------------


def test_a_program_must_be_an_async_function():
    with pytest.raises(TypeError, match="needs an `async def` function"):
        fk.program(lambda: 1)


def test_a_wrong_call_fails_when_the_arguments_are_bound():
    @fk.program
    async def two(a, b):
        return a + b

    with pytest.raises(TypeError, match="missing a required argument: 'b'"):
        two(1)


def test_an_unbound_program_is_refused_with_the_fix():
    @fk.program
    async def nothing():
        return 1

    with pytest.raises(TypeError, match="call the program with its arguments first"):
        fk.infer(nothing, fk.SMC(2), seed=0)
    assert fk.infer(nothing(), fk.SMC(2), seed=0).values == (1, 1)


@pytest.mark.parametrize("where", ["body", "helper", "branch", "step"])
def test_a_missing_await_is_an_error_at_once(where):
    async def forgets(*_):
        fk.factor("lost", -1.0)
        await fk.sample("x", COIN)
        return 0, 0

    @fk.program
    async def body():
        await fk.sample("first", COIN)
        if where == "branch":
            await fk.gather(forgets())
        elif where == "step":
            await fk.scan(forgets, 0, [1])
        elif where == "helper":
            await forgets()
        else:
            fk.factor("lost", -1.0)
            await fk.sample("x", COIN)

    with pytest.raises(
        errors.UnawaitedEffect, match=r"fk\.factor\('lost', …\) was created but never awaited"
    ) as caught:
        run(body())
    assert "particle 0 of 4 of program 'body'" in caught.value.__notes__[0]


def test_a_missing_await_at_the_end_or_returned_is_found_too():
    @fk.program
    async def at_the_end():
        await fk.sample("x", COIN)
        fk.factor("lost", -1.0)

    @fk.program
    async def returned():
        return fk.sample("x", COIN)

    for model in (at_the_end(), returned()):
        with pytest.raises(errors.UnawaitedEffect, match="never awaited"):
            run(model)


def test_an_effect_kept_and_awaited_later_is_fine():
    @fk.program
    async def later():
        effect = fk.sample("x", COIN)
        await fk.sample("y", COIN)
        return await effect

    assert set(run(later(), n=50).values) == {0, 1}


def test_a_foreign_awaitable_is_an_error_that_names_the_fix():
    class Foreign:
        def __await__(self):
            yield "something"

    @fk.program
    async def awaits_it():
        await Foreign()

    with pytest.raises(errors.ForeignAwaitable, match=r"awaited a str.*await fk\.call\(name, fn"):
        run(awaits_it())

    @fk.program
    async def sleeps():
        await asyncio.sleep(1.0)

    with pytest.raises(RuntimeError, match="no running event loop") as caught:
        run(sleeps())
    assert any("await fk.call" in note for note in caught.value.__notes__)


def test_effects_outside_a_program_are_refused():
    with pytest.raises(errors.OutsideProgram, match="no program is running"):
        fk.sample("x", COIN)
    with pytest.raises(errors.OutsideProgram, match="no program is running"):
        fk.deterministic("x", 1)
    with pytest.raises(errors.OutsideProgram), handlers.mask(mask=False):
        pass


def test_a_user_error_names_the_particle_the_site_and_the_trace_and_keeps_the_users_line():
    @fk.program
    async def divides():
        x = await fk.sample("x", fk.dist.Categorical([0.5, 0.5]))
        await fk.factor("step", 0.0)
        await fk.sample("y", COIN)
        return 1 / (x - 1)  # the user's own line

    with pytest.raises(ZeroDivisionError) as caught:
        run(divides(), n=20)
    (note,) = [n for n in caught.value.__notes__ if "particle" in n]
    assert "of 20 of program 'divides', after site 'y'; its trace so far: x=1, step=None, y=" in note
    assert "the user's own line" in "".join(traceback.format_exception(caught.value))
    assert len(caught.value.posterior) == 20  # the step before is kept
    assert not caught.value.posterior.complete.any()


# -- weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_positive_infinity_are_not_weights(bad):
    @fk.program
    async def weighs():
        await fk.factor("bad", bad)

    with pytest.raises(errors.InvalidWeight, match=rf"particle 0, factor 'bad': the log-weight is {bad}") as caught:
        run(weighs())
    assert 'await fk.factor("bad", bad)' in "".join(traceback.format_exception(caught.value))


def test_a_twist_must_be_finite():
    @fk.program
    async def twists():
        await fk.twist("guide", -math.inf)

    with pytest.raises(errors.InvalidWeight, match="a twist must be finite; −inf belongs in a factor"):
        run(twists())


def test_a_bool_is_not_a_log_weight():
    @fk.program
    async def says(ok):
        await fk.factor("ok", ok)

    for ok in (True, np.bool_(True)):
        with pytest.raises(errors.AmbiguousScore, match=r"a bool, not a number: .*write 0\.0 if ok else"):
            run(says(ok))
    with pytest.raises(errors.AmbiguousScore, match="a str, not a number: 'high'"):
        run(says("high"))


def test_minus_infinity_ends_a_particle_at_once():
    reached = []

    @fk.program
    async def dies():
        x = await fk.sample("x", fk.dist.Bernoulli(0.5))
        await fk.factor("G", -math.inf if x else 0.0)
        reached.append(x)
        await fk.sample("y", COIN)
        return x

    posterior = run(dies(), n=40, ess_threshold=0.0)
    assert set(reached) == {0}
    dead = np.isneginf(posterior.log_weights)
    assert 5 < dead.sum() < 35
    assert all(value is None for value, gone in zip(posterior.values, dead) if gone)


def test_a_dead_branch_kills_its_particle_and_no_coroutine_is_left_unawaited():
    async def branch(fatal):
        await fk.sample("x", COIN)
        await fk.factor("G", -math.inf if fatal else 0.0)
        return 1

    @fk.program
    async def two():
        fatal = await fk.sample("fatal", fk.dist.Bernoulli(0.5))
        return await fk.gather(branch(fatal), branch(False))

    posterior = run(two(), n=30, ess_threshold=0.0)
    assert {value for value in posterior.values if value is not None} == {(1, 1)}


# -- proposals --------------------------------------------------------------------------------------------------


def test_a_proposal_of_smaller_support_is_refused():
    @fk.program
    async def narrow(q):
        await fk.sample("x", fk.dist.Categorical([0.5, 0.5]), proposal=fk.dist.Categorical(q))

    with pytest.raises(errors.UnsupportedProposal, match=r"particle 0, sample 'x': the proposal .* cannot reach all"):
        run(narrow([1.0, 0.0]))
    run(narrow([0.9, 0.1]))


class NoScores:
    """A kernel like an API that gives no log-probabilities."""

    batch_key = "no scores"
    fingerprint = None
    expensive = True

    def sample_batch(self, requests, keys):
        return fk.Draws([f"text {int(k) % 7}" for k in keys], None)


def test_a_kernel_without_scores_runs_but_refuses_by_name_what_needs_them():
    @fk.program
    async def free():
        return await fk.sample("x", NoScores())

    assert fk.infer(free(), fk.SMC(3), seed=0).log_evidence == 0.0
    step = free().start(fk.keys.fold(fk.keys.root(0), np.arange(3)))
    assert not step.scored.any()

    @fk.program
    async def observes():
        await fk.observe("x", NoScores(), "text 1")

    with pytest.raises(errors.CannotScore, match="particle 0, sample 'x': NoScores has no log_prob_batch"):
        run(observes())
    with pytest.raises(errors.CannotScore, match="NoScores has no log_prob_batch"):
        free().start(fk.keys.root(0), given=[{"x": "text 1"}])

    @fk.program
    async def proposes():
        await fk.sample("x", COIN, proposal=NoScores())

    with pytest.raises(errors.CannotScore, match="gives no log-probabilities"):
        run(proposes())


# -- given ------------------------------------------------------------------------------------------------------


def test_given_choices_are_forced_and_scored_and_must_be_met():
    @fk.program
    async def model():
        x = await fk.sample("x", fk.dist.Bernoulli(0.3), proposal=fk.dist.Bernoulli(0.8))
        await fk.factor("G", 1.0)
        return x

    step = model().start(fk.keys.fold(fk.keys.root(0), np.arange(3)), given=[{"x": 1}, None, {"x": 0}])
    assert [choices[0].value for choices in step.choices][::2] == [1, 0]
    assert step.log_prob[[0, 2]] == pytest.approx([math.log(0.3), math.log(0.7)])
    assert step.log_proposal[[0, 2]] == pytest.approx([math.log(0.8), math.log(0.2)])
    with pytest.raises(errors.ImpossibleChoice, match=r"forced choices \['y'\] were not met"):
        model().start(fk.keys.root(0), given=[{"y": 1}])


# -- sharing ----------------------------------------------------------------------------------------------------


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
    assert sorted(fk.infer(_copies(mine), fk.SMC(1), seed=0).values[0]) == [1, 1, 3]
    assert mine == [3, 1]


@fk.program
async def _copies(notes):
    notes = list(notes)
    notes.append(1)
    return notes


def test_values_of_calls_are_shared_by_forks_and_so_read_only():
    @fk.program
    async def calls():
        found = await fk.call("search", lambda: ["a", "b"])
        await fk.factor("step", 0.0)
        found.append("c")

    with pytest.raises(errors.SharedMutation, match="this list is shared"):
        run(calls(), ess_threshold=1.0)


# -- forks ------------------------------------------------------------------------------------------------------


def test_a_program_that_does_not_repeat_itself_is_an_error_and_not_a_wrong_answer():
    import itertools

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


@fk.program
async def everything(n):
    """Sites of all kinds, to be forked anywhere."""

    async def branch(k):
        total = await fk.sample("start", fk.dist.Normal(0.0, 1.0))
        for _ in range(k):
            await fk.twist("guide", 0.1 * total)
            total = total + await fk.sample("more", fk.dist.Normal(0.0, 1.0))
            await fk.factor("G", -0.1 * total * total)
        return total

    async def step(carry, x):
        z = await fk.sample("z", fk.dist.Normal(carry, 1.0))
        await fk.observe("y", fk.dist.Normal(z, 1.0), x)
        noted = await fk.call("note", lambda: z * 2)
        inner, _ = await fk.scan(inner_step, noted, [0, 1])
        return inner, z

    async def inner_step(carry, x):
        await fk.factor("inner", -0.01 * carry * carry)
        return carry * 0.5, None

    async def nested():
        return await fk.gather(branch(1), branch(2), name="inner")

    fk.deterministic("output", "begun")
    first = await fk.gather(branch(2), branch(0), branch(1))
    with handlers.scope(prefix="chain"):
        last, zs = await fk.scan(step, first[0], [1.0] * n)
    second = await fk.gather(branch(1), nested())
    fk.deterministic("output", last)
    await fk.factor("end", -abs(last))
    return round(last, 6), [round(z, 6) for z in zs], second


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


# -- calls ------------------------------------------------------------------------------------------------------


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
    zeros = [choices[0].value for choices in tool(lambda x: x).start(_keys(10)).choices]
    with pytest.raises(ZeroDivisionError) as caught:
        tool(breaks).start(_keys(10))
    assert f"particle {zeros.index(0)} of 10" in caught.value.__notes__[0]


def _keys(n):
    return fk.keys.fold(fk.keys.root(0), np.arange(n))


def test_a_shared_scan_carry_is_read_only():
    async def step(carry, x):
        carry.append(x)
        return carry, None

    @fk.program
    async def collects():
        await fk.scan(step, [], [1, 2])

    with pytest.raises(errors.SharedMutation):
        run(collects())


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


# -- what an adversary found ------------------------------------------------------------------------------------


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

    keys = _keys(2)
    step = model().start(keys)
    step = model().advance(model().select(step.state, np.array([0, 0])), keys)
    first, second = model().values(step.state)
    assert first == second
    assert first[0] == "branch"


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


def test_names_that_look_like_addresses_are_refused():
    @fk.program
    async def names(name):
        await fk.sample(name, COIN)

    for name in ("a/b", "x[1]"):
        with pytest.raises(ValueError, match=r"must hold neither '/' nor '\['"):
            run(names(name))
    with pytest.raises(TypeError, match="must be a string, not 3"):
        run(names(3))
    with pytest.raises(ValueError, match="ends like a branch"):
        handlers.scope(names("x"), prefix="gather.0")


def test_forgotten_programs_and_effects_in_containers_are_found():
    @fk.program
    async def inner():
        await fk.factor("G", -1.0)

    @fk.program
    async def forgets_a_program():
        inner()
        return await fk.sample("x", COIN)

    @fk.program
    async def returns_effects():
        return [fk.sample("x", COIN) for _ in range(2)]

    for model in (forgets_a_program(), returns_effects()):
        with pytest.raises(errors.UnawaitedEffect):
            run(model)


def test_an_effect_is_awaited_once():
    @fk.program
    async def twice():
        effect = fk.sample("x", COIN)
        await effect
        await effect

    with pytest.raises(errors.FeynkacError, match="awaited twice"):
        run(twice())


def test_effects_may_be_branches_and_programs_may_be_methods():
    class Team:
        size = 2

        @fk.program
        async def play(self, p):
            return await fk.gather(*(fk.sample(f"player {i}", fk.dist.Bernoulli(p)) for i in range(self.size)))

    assert fk.simulate(Team().play(0.5), seed=0).value in {(a, b) for a in (0, 1) for b in (0, 1)}


def test_a_kernel_that_returns_too_little_is_named():
    class Short:
        batch_key = fingerprint = "short"

        def sample_batch(self, requests, keys):
            return fk.Draws([1] * (len(requests) - 1), None)

        def log_prob_batch(self, requests, values):
            return np.zeros(1)

    @fk.program
    async def draws():
        await fk.sample("x", Short())

    @fk.program
    async def observes():
        await fk.observe("x", Short(), 1)

    with pytest.raises(ValueError, match=r"Short\.sample_batch got 4 requests and returned 3 results"):
        run(draws())
    with pytest.raises(ValueError, match=r"Short\.log_prob_batch got 4 requests and returned 1 results"):
        run(observes())


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


def test_a_program_that_swallows_its_own_error_ends_with_it():
    @fk.program
    async def stubborn():
        while True:
            try:
                await fk.factor("x", math.nan)
            except Exception:
                await fk.factor("y", 0.0)

    with pytest.raises(errors.InvalidWeight, match="factor 'x'"):
        run(stubborn())


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


def test_an_error_while_others_wait_in_a_gather_leaves_no_coroutine_behind():
    import gc

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


def test_inference_can_be_nested_and_run_in_threads():
    from concurrent.futures import ThreadPoolExecutor

    @fk.program
    async def outer():
        inside = fk.infer(_copies([1]), fk.SMC(3), seed=0)
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


def test_changed_arguments_of_scores_calls_and_observations_are_seen_at_a_replay():
    import itertools

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

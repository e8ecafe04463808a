"""Handlers: as wrappers and as context managers, alone and together, under forks, and against exact enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest

import feynkac as fk
from feynkac import handlers
from handled import PATHS, agrees, chain, weight

# -- each alone -------------------------------------------------------------------------------------------------


def test_the_program_itself():
    assert agrees(chain(), {path: weight(path) for path in PATHS})


def test_condition_observes_a_visit():
    assert agrees(handlers.condition(chain(), data={"x[1]": 1}), {p: weight(p) for p in PATHS if p[1] == 1})
    run = fk.simulate(handlers.condition(chain(), data={"x": 0, "x[1]": 1, "x[2]": 0}), seed=0)
    assert run.value == (0, 1, 0)
    assert run.log_prob == 0.0
    assert run.log_weight == pytest.approx(math.log(weight((0, 1, 0))))
    assert [site.kind for site in run.sites] == ["observe", "factor"] * 3
    # An observation ends a step: six step ends here, where the last is the factor.
    assert len(fk.infer(handlers.condition(chain(), data={"x": 0}), fk.SMC(3), seed=0).steps) == 4


def test_a_condition_that_cannot_be_met_kills():
    @fk.program
    async def sure():
        await fk.sample("x", fk.dist.Categorical([0.4, 0.6, 0.0]))

    posterior = fk.infer(handlers.condition(sure(), data={"x": 2}), fk.SMC(3, all_dead="zero"), seed=0)
    assert posterior.log_evidence == -math.inf


def test_do_cuts_the_law_of_the_site_and_keeps_what_follows():
    fixed = {p: weight(p) / (0.3 if p[0] else 0.6) for p in PATHS if p[1] == 1}
    assert agrees(handlers.do(chain(), data={"x[1]": 1}), fixed)
    run = fk.simulate(handlers.do(chain(), data={"x": 1, "x[1]": 0, "x[2]": 1}), seed=0)
    assert run.log_prob == 0.0
    assert run.log_weight == pytest.approx(1.4)
    # Doing is not conditioning: the law of what comes before differs.
    seen = fk.enumerate_program(handlers.condition(chain(), data={"x[1]": 1})).expect(lambda p: p[0])
    done = fk.enumerate_program(handlers.do(chain(), data={"x[1]": 1})).expect(lambda p: p[0])
    assert abs(seen - done) > 0.1


def test_substitute_forces_and_scores_without_weighing():
    model = handlers.substitute(chain(), data={"x[1]": 1})
    run = fk.simulate(model, seed=0, given={"x": 0, "x[2]": 0})
    assert run.value == (0, 1, 0)
    assert run.log_prob == pytest.approx(math.log(0.4 * 0.6 * 0.7))
    assert run.log_weight == pytest.approx(0.7)
    for particle in range(20):
        posterior = fk.infer(model, fk.SMC(20, ess_threshold=1.0), seed=1)
        assert posterior.trace(particle)["x[1]"].value == 1
    # Its weight is that of `do`, as nothing was drawn there; its log p counts.
    start = model.start(fk.keys.root(0))
    step = model.advance(start.state, fk.keys.root(1))
    assert step.log_prob[0] == step.log_proposal[0] < 0


def test_replay_repeats_a_trace_with_its_calls():
    made = []

    @fk.program
    async def tool(p):
        x = await fk.sample("x", fk.dist.Bernoulli(p))
        y = await fk.call("ask", lambda: made.append(1) or len(made))
        z = await fk.sample("x", fk.dist.Normal(y, 1.0))
        await fk.factor("G", -z)
        return x, y, z

    first = fk.simulate(tool(0.5), seed=3)
    again = fk.simulate(handlers.replay(tool(0.2), trace=first.trace), seed=9)
    assert again.value == first.value
    assert made == [1]
    assert again.log_prob - first.log_prob == pytest.approx(math.log((0.2 if first.value[0] else 0.8) / 0.5))
    posterior = fk.infer(tool(0.5), fk.SMC(5), seed=0)
    fifth = fk.simulate(handlers.replay(tool(0.5), trace=posterior.trace(4)), seed=1)
    assert fifth.value == posterior.values[4]


def test_mask_removes_factors_and_observations():
    @fk.program
    async def seen(mask):
        x = await fk.sample("x", fk.dist.Bernoulli(0.3))
        with handlers.mask(mask=mask):
            await fk.factor("G", 1.0 * x)
            y = await fk.observe("y", fk.dist.Bernoulli(0.9 if x else 0.2), 1)
        await fk.factor("always", -0.5 * x)
        assert y == 1
        return x

    assert agrees(seen(True), {0: 0.7 * 0.2, 1: 0.3 * math.exp(0.5) * 0.9})
    assert agrees(seen(False), {0: 0.7, 1: 0.3 * math.exp(-0.5)})
    assert agrees(handlers.mask(seen(True), mask=True), {0: 0.7 * 0.2, 1: 0.3 * math.exp(0.5) * 0.9})
    off = fk.simulate(handlers.mask(seen(True), mask=False), seed=0)
    assert off.log_weight == 0.0
    assert off.log_prob == pytest.approx(math.log(0.3 if off.value else 0.7))  # samples are drawn as ever


def test_a_masked_impossibility_does_not_kill():
    @fk.program
    async def strict(mask):
        with handlers.mask(mask=mask):
            await fk.factor("G", -math.inf)
            await fk.observe("y", fk.dist.Categorical([1.0, 0.0]), 1)
        return "alive"

    assert fk.infer(strict(False), fk.SMC(2), seed=0).values == ("alive", "alive")
    assert fk.infer(strict(True), fk.SMC(2, all_dead="zero"), seed=0).log_evidence == -math.inf


def test_scope_prefixes_names_and_nests():
    @fk.program
    async def scoped():
        with handlers.scope(prefix="a"):
            x = await fk.sample("x", fk.dist.Bernoulli(0.3))
            with handlers.scope(prefix="b"):
                await fk.sample("x", fk.dist.Bernoulli(0.3))
                fk.deterministic("noted", 5)
                await fk.factor("G", 0.0)
            await fk.sample("x", fk.dist.Bernoulli(0.3))
        await fk.sample("x", fk.dist.Bernoulli(0.3))
        await handlers.scope(chain(2), prefix="in")
        return x

    inside = ["in/x", "in/G", "in/x[1]", "in/G[1]"]
    assert list(fk.simulate(scoped(), seed=0).trace) == ["a/x", "a/b/x", "a/b/noted", "a/b/G", "a/x[1]", "x", *inside]
    outer = fk.simulate(handlers.scope(scoped(), prefix="top"), seed=0).trace
    assert list(outer)[:2] == ["top/a/x", "top/a/b/x"]
    posterior = fk.infer(scoped(), fk.SMC(5, ess_threshold=1.0), seed=0)  # with forks within and without
    assert list(posterior.trace(3)) == ["a/x", "a/b/x", "a/b/noted", "a/b/G", "a/x[1]", "x", *inside]


def test_scope_changes_the_names_and_not_the_law():
    assert agrees(handlers.scope(chain(), prefix="s"), {path: weight(path) for path in PATHS})


def test_block_hides_sites_from_traces():
    def hidden(**how):
        return list(fk.simulate(handlers.block(chain(2), **how), seed=0).trace)

    assert hidden() == []
    assert hidden(hide=["G"]) == ["x", "x[1]"]
    assert hidden(hide_fn=lambda name: name == "x") == ["G", "G[1]"]
    posterior = fk.infer(handlers.block(chain(2), hide=["x"]), fk.SMC(4, ess_threshold=1.0), seed=0)
    assert list(posterior.trace(0)) == ["G", "G[1]"]
    assert fk.infer(chain(2), fk.SMC(4, ess_threshold=1.0), seed=0).values == posterior.values


def test_block_keeps_sites_from_outer_handlers_but_not_from_inner_ones():
    data = {"x": 1, "x[1]": 1, "x[2]": 1}
    run = fk.simulate(handlers.condition(handlers.block(chain(), hide=["x"]), data=data), seed=3)
    assert [site.kind for site in run.sites] == ["sample", "factor"] * 3
    run = fk.simulate(handlers.block(handlers.condition(chain(), data=data), hide=["x"]), seed=3)
    assert run.value == (1, 1, 1)
    assert list(run.trace) == ["G", "G[1]", "G[2]"]


def test_seed_serves_simulate_and_trace():
    seeded = handlers.seed(chain(), rng_seed=5)
    assert fk.simulate(seeded).value == fk.simulate(chain(), seed=5).value
    assert handlers.trace(seeded).get_trace() == fk.simulate(chain(), seed=5).trace
    assert handlers.trace(seeded).get_trace(seed=8) == fk.simulate(chain(), seed=8).trace
    with pytest.raises(TypeError, match=r"simulate needs a seed: simulate\(model, seed=0\), or wrap"):
        fk.simulate(chain())
    assert fk.infer(seeded, fk.SMC(5), seed=0).values == fk.infer(chain(), fk.SMC(5), seed=0).values


def test_trace_has_all_kinds_of_sites_by_address_and_in_order():
    @fk.program
    async def all_kinds():
        x = await fk.sample("x", fk.dist.Bernoulli(0.5), proposal=fk.dist.Bernoulli(0.2))
        await fk.twist("guide", 0.5)
        await fk.observe("y", fk.dist.Bernoulli(0.5), 1)
        await fk.call("ask", lambda: "answer")
        fk.deterministic("noted", 7)
        await fk.factor("G", -1.0)
        await fk.sample("x", fk.dist.Bernoulli(0.5))
        return x

    trace = handlers.trace(handlers.seed(all_kinds(), rng_seed=0)).get_trace()
    assert {a: site.kind for a, site in trace.items()} == {
        "x": "sample", "guide": "twist", "y": "observe", "ask": "call", "noted": "deterministic", "G": "factor",
        "x[1]": "sample",
    }  # fmt: skip
    assert [trace[a].value for a in ("guide", "y", "ask", "noted", "G")] == [0.5, 1, "answer", 7, -1.0]
    assert trace["x"].log_prob == pytest.approx(math.log(0.5))
    assert trace["x"].log_proposal == pytest.approx(math.log(0.2 if trace["x"].value else 0.8))
    assert trace["y"].log_prob == pytest.approx(math.log(0.5))
    assert (trace["x[1]"].name, trace["x[1]"].visit, trace["x[1]"].address) == ("x", 1, "x[1]")


# -- as context managers ----------------------------------------------------------------------------------------


@fk.program
async def within(handler, n=3):
    """`chain`, with the handler around all but the last round, so that forks happen within it."""
    x, path = 0, []
    with handler:
        for _ in range(n - 1):
            x = await fk.sample("x", fk.dist.Bernoulli(0.3 if x else 0.6))
            path.append(x)
            await fk.factor("G", 0.7 * x)
    x = await fk.sample("x", fk.dist.Bernoulli(0.3 if x else 0.6))
    await fk.factor("G", 0.7 * x)
    return (*path, x)


def test_context_managers_act_within_their_block_alone():
    both = {"x[1]": 1, "x[2]": 1}  # the last visit lies outside the block
    assert agrees(within(handlers.condition(data=both)), {p: weight(p) for p in PATHS if p[1]})
    assert agrees(within(handlers.do(data=both)), {p: weight(p) / (0.3 if p[0] else 0.6) for p in PATHS if p[1]})
    run = fk.simulate(within(handlers.mask(mask=False)), seed=0)
    ones = zip((0, *run.value), run.value)
    chances = [(0.3 if before else 0.6) if x else (0.7 if before else 0.4) for before, x in ones]
    assert run.log_prob == pytest.approx(math.log(math.prod(chances)))
    assert run.log_weight == pytest.approx(0.7 * run.value[2])
    assert list(fk.simulate(within(handlers.block(hide=["x"])), seed=0).trace) == ["G", "G[1]", "x[2]", "G[2]"]
    assert list(fk.simulate(within(handlers.scope(prefix="s")), seed=0).trace)[2:] == ["s/x[1]", "s/G[1]", "x", "G"]


def test_an_exception_leaves_the_block():
    @fk.program
    async def leaves():
        try:
            with handlers.scope(prefix="in"):
                await fk.factor("G", 0.0)
                raise KeyError
        except KeyError:
            pass
        await fk.factor("G", 0.0)

    assert list(fk.infer(leaves(), fk.SMC(3, ess_threshold=1.0), seed=0).trace(2)) == ["in/G", "G"]


@pytest.mark.slow
def test_handlers_reach_into_branches_scans_and_inner_programs():
    async def branch(p):
        x = await fk.sample("x", fk.dist.Bernoulli(p))
        await fk.factor("G", 0.5 * x)
        return x

    async def step(carry, i):
        x = await fk.sample("z", fk.dist.Bernoulli(0.3))
        await fk.factor("G", 0.2 * x)
        return carry + x, x

    @fk.program
    async def deep():
        pair = await fk.gather(branch(0.3), branch(0.6))
        last, zs = await fk.scan(step, 0, [0, 1])
        rest = await handlers.condition(chain(1), data={"x": 1})
        return pair, last, tuple(zs), rest

    model = handlers.condition(deep(), data={"gather.1/x": 1, "z[1]": 1})
    e = math.exp
    weights = {
        ((a, 1), b + 1, (b, 1), (1,)): (0.3 * e(0.5) if a else 0.7)
        * 0.6 * e(0.5)
        * (0.3 * e(0.2) if b else 0.7)
        * 0.3 * e(0.2)
        * 0.6 * e(0.7)
        for a in (0, 1)
        for b in (0, 1)
    }  # fmt: skip
    assert agrees(model, weights)


# -- together ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_innermost_handler_sees_the_innermost_name():
    inner = handlers.scope(handlers.condition(chain(), data={"x": 1}), prefix="s")
    outer = handlers.condition(handlers.scope(chain(), prefix="s"), data={"s/x": 1, "x": 0})
    weights = {p: weight(p) for p in PATHS if p[0] == 1}
    assert agrees(inner, weights)
    assert agrees(outer, weights)
    # An inner name means nothing outside.
    assert agrees(handlers.condition(handlers.scope(chain(), prefix="s"), data={"x": 1}), {p: weight(p) for p in PATHS})


def test_visits_are_counted_by_full_name():
    @fk.program
    async def twice():
        with handlers.scope(prefix="a"):
            await fk.factor("G", 0.0)
        with handlers.scope(prefix="b"):
            await fk.factor("G", 0.0)
        with handlers.scope(prefix="a"):
            await fk.factor("G", 0.0)

    assert list(fk.simulate(twice(), seed=0).trace) == ["a/G", "b/G", "a/G[1]"]


def test_handlers_of_several_kinds_together():
    model = handlers.do(handlers.condition(handlers.scope(chain(), prefix="s"), data={"s/x[2]": 1}), data={"s/x": 1})
    assert agrees(model, {p: weight(p) / 0.6 for p in PATHS if p[0] == 1 and p[2] == 1})
    # The outermost handler has the last word on a site.
    last = handlers.do(handlers.do(chain(), data={"x": 0}), data={"x": 1})
    assert fk.simulate(last, seed=0).value[0] == 1


def test_conditioning_ignores_the_proposal():
    @fk.program
    async def proposed():
        x = await fk.sample("x", fk.dist.Bernoulli(0.3), proposal=fk.dist.Bernoulli(0.9))
        y = await fk.sample("y", fk.dist.Bernoulli(0.8 if x else 0.1), proposal=fk.dist.Bernoulli(0.5))
        await fk.factor("end", 0.0)
        return x, y

    assert agrees(handlers.condition(proposed(), data={"y": 1}), {(0, 1): 0.07, (1, 1): 0.24})
    assert agrees(handlers.do(proposed(), data={"x": 1}), {(1, 0): 0.2, (1, 1): 0.8})
    run = fk.simulate(handlers.substitute(proposed(), data={"x": 1, "y": 0}), seed=0)
    assert run.log_prob == pytest.approx(math.log(0.3 * 0.2))
    assert run.log_weight == pytest.approx(math.log(0.3 * 0.2 / (0.9 * 0.5)))


def test_handlers_leave_the_model_they_wrap_as_it_was():
    model = chain()
    handlers.condition(model, data={"x": 1})
    handlers.mask(model, mask=False)
    assert agrees(model, {path: weight(path) for path in PATHS})


@pytest.mark.parametrize("wrap", [lambda m: handlers.block(m), lambda m: handlers.block(m, hide=["x"])])
def test_hidden_sites_are_enumerated_too(wrap):
    assert agrees(wrap(chain()), {path: weight(path) for path in PATHS})


def test_given_values_reach_hidden_sites():
    for model in (handlers.block(chain(), hide=["x"]), handlers.block(chain())):
        for path in PATHS:
            run = fk.simulate(model, seed=0, given={"x": path[0], "x[1]": path[1], "x[2]": path[2]})
            assert run.value == path


# -- misuse -----------------------------------------------------------------------------------------------------


def test_handlers_refuse_what_is_not_a_bound_program():
    for wrap in (
        lambda m: handlers.condition(m, data={}),
        lambda m: handlers.scope(m, prefix="s"),
        lambda m: handlers.block(m),
        lambda m: handlers.mask(m, mask=True),
        lambda m: handlers.seed(m, rng_seed=0),
    ):
        with pytest.raises(TypeError, match=r"handlers work on bound programs, not on .*; write f\(args\), not f"):
            wrap(chain)


def test_context_managers_belong_in_programs():
    for handler in (
        handlers.scope(prefix="s"),
        handlers.condition(data={}),
        handlers.block(),
        handlers.seed(rng_seed=1),
    ):
        with pytest.raises(fk.errors.OutsideProgram, match="inside a program"), handler:
            pass


def test_given_addresses_that_no_site_has_are_refused():
    with pytest.raises(fk.errors.ImpossibleChoice, match=r"the given values \['y'\] belong to no site"):
        fk.simulate(chain(), seed=0, given={"y": 1, "x": 1})
    with pytest.raises(fk.errors.ImpossibleChoice, match=r"\['x\[1\]'\] were not met in this step"):
        chain().start(fk.keys.root(0), given=[{"x": 1, "x[1]": 0}])


def test_forced_values_must_be_possible():
    model = handlers.substitute(chain(), data={"x": 2})
    step = model.start(fk.keys.fold(fk.keys.root(0), np.arange(2)))
    assert np.isneginf(step.log_prob).all()
    assert step.done.all()
    assert np.isneginf(step.log_increment).all()

"""Random finite programs: enumeration equals a brute force written without the library, and SMC is unbiased."""

from __future__ import annotations

import math
from collections import Counter

import feynkac as fk
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from laws import check_unbiased

# With 300 runs the means are less normal than a z-test assumes: 5.5 allows for that. Examples are derandomised.
RUNS, LIMIT = 300, 5.5

# A program is a list of statements. Everything in it depends on the values so far through `row`, a table's row.
#   ("sample", laws, proposals or None)     draw 0, 1 or 2
#   ("factor", log-weights)   ("twist", levels)   ("observe", laws, value)
#   ("return", rows)                        return early where the row says so
#   ("gather", [block, block])   ("scan", block, length)   ("if", block, block)


def row(table, env):
    return table[sum(env) % len(table)]


async def play(block, env):
    """Run a block as part of a program. Returns the values drawn, and whether the block returned early."""
    for kind, *args in block:
        if kind == "sample":
            laws, proposals = args
            q = None if proposals is None else fk.dist.Categorical(row(proposals, env))
            env = (*env, await fk.sample("x", fk.dist.Categorical(row(laws, env)), proposal=q))
        elif kind == "factor":
            await fk.factor("G", row(args[0], env))
        elif kind == "twist":
            await fk.twist("guide", row(args[0], env))
        elif kind == "observe":
            await fk.observe("y", fk.dist.Categorical(row(args[0], env)), args[1])
        elif kind == "return" and row(args[0], env):
            return env, True
        elif kind == "if":
            env, stop = await play(args[sum(env) % 2], env)
            if stop:
                return env, True
        elif kind == "gather":
            parts = await fk.gather(*(play(branch, env) for branch in args[0]))
            env = (*env, *(sum(part) for part, _ in parts))
        elif kind == "scan":

            async def step(carry, i, inside=args[0]):
                values, _ = await play(inside, (carry, i))
                return sum(values) % 3, None

            carry, _ = await fk.scan(step, sum(env) % 3, range(args[1]))
            env = (*env, carry)
    return env, False


@fk.program
async def random_program(block):
    env, _ = await play(block, ())
    return sum(env) % 3


def brute(block, env):
    """Yield each run of a block as (values, returned early, probability, log-potential), in plain Python."""
    if not block:
        yield env, False, 1.0, 0.0
        return
    (kind, *args), rest = block[0], block[1:]
    if kind == "sample":
        heads = [((*env, x), False, p, 0.0) for x, p in enumerate(row(args[0], env))]
    elif kind == "factor":
        heads = [(env, False, 1.0, row(args[0], env))]
    elif kind == "observe":
        heads = [(env, False, 1.0, math.log(row(args[0], env)[args[1]]))]
    elif kind == "return":
        heads = [(env, row(args[0], env), 1.0, 0.0)]
    elif kind == "if":
        heads = list(brute(args[sum(env) % 2], env))
    elif kind == "gather":
        heads = [(env, False, 1.0, 0.0)]
        for branch in args[0]:
            heads = [
                ((*had, sum(values)), False, p * q, g + h)
                for had, _, p, g in heads
                for values, _, q, h in brute(branch, env)
            ]
    elif kind == "scan":
        carries = [(sum(env) % 3, 1.0, 0.0)]
        for i in range(args[1]):
            carries = [
                (sum(values) % 3, p * q, g + h)
                for carry, p, g in carries
                for values, _, q, h in brute(args[0], (carry, i))
            ]
        heads = [((*env, carry), False, p, g) for carry, p, g in carries]
    else:
        heads = [(env, False, 1.0, 0.0)]
    for values, stop, p, g in heads:
        if stop:
            yield values, True, p, g
            continue
        for final, stopped, q, h in brute(rest, values):
            yield final, stopped, p * q, g + h


def exact(block):
    """Return Z and the unnormalised mass of each value."""
    masses = Counter()
    for values, _, p, g in brute(block, ()):
        masses[sum(values) % 3] += p * math.exp(g)
    return sum(masses.values()), masses


weight = st.floats(-0.9, 0.9).map(lambda x: round(x, 3))
deadly = st.one_of(weight, weight, weight, st.just(-math.inf))


@st.composite
def law(draw):
    parts = draw(st.lists(st.integers(1, 6), min_size=2, max_size=3))
    if len(set(parts)) == 1:
        parts[0] += 2  # no symmetric law
    return [part / sum(parts) for part in parts]


@st.composite
def covering(draw, laws):
    """Proposals that reach all that the laws can."""
    parts = [draw(st.lists(st.integers(2, 6), min_size=len(p), max_size=len(p))) for p in laws]
    return [[part / sum(row) for part in row] for row in parts]


@st.composite
def sample(draw):
    laws = draw(st.lists(law(), min_size=1, max_size=2))
    return ("sample", laws, draw(st.none() | covering(laws)))


@st.composite
def observe(draw):
    return ("observe", draw(st.lists(law(), min_size=1, max_size=2)), draw(st.integers(0, 1)))


def tables(of):
    return st.lists(of, min_size=2, max_size=3)


leaf = st.one_of(
    sample(),
    st.tuples(st.just("factor"), tables(weight)),
    st.tuples(st.just("factor"), tables(deadly)),
    st.tuples(st.just("twist"), tables(weight)),
    observe(),
)
early = st.tuples(st.just("return"), tables(st.booleans()))


def blocks(inner, longest):
    """A short block: it draws first, and weighs at its end."""
    weigh = st.tuples(st.just("factor"), tables(weight))
    middle = st.lists(inner, min_size=0, max_size=longest)
    return st.tuples(sample(), middle, weigh).map(lambda t: [t[0], *t[1], t[2]])


small = blocks(st.one_of(leaf, leaf, early), 2)
nested = st.one_of(
    st.tuples(st.just("gather"), st.lists(small, min_size=1, max_size=2)),
    st.tuples(st.just("scan"), small, st.integers(0, 2)),
    st.tuples(st.just("if"), small, small),
)
programs = blocks(st.one_of(leaf, nested, nested, early), 3).filter(lambda b: sum(1 for _ in brute(b, ())) < 600)
engines = st.builds(
    fk.SMC,
    st.sampled_from([1, 2, 3, 5]),
    ess_threshold=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    resampling=st.sampled_from(["multinomial", "stratified", "systematic", "residual", "ssp"]),
    all_dead=st.just("zero"),
)
repeatable = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


@given(programs)
@settings(repeatable, max_examples=40)
def test_enumeration_equals_a_brute_force_written_without_the_library(block):
    z, masses = exact(block)
    found = fk.enumerate_program(random_program(block))
    assert found.log_evidence == pytest.approx(math.log(z) if z else -math.inf)
    if z:
        assert found.law() == pytest.approx({x: m / z for x, m in masses.items() if m > 0})
    assert len(found.values) <= sum(1 for _ in brute(block, ()))


@given(programs, engines, st.integers(0, 1000))
@settings(repeatable, max_examples=25)
def test_smc_is_unbiased_on_random_programs(block, engine, seed):
    z, masses = exact(block)
    model = random_program(block)
    event(" ".join(sorted({kind for kind, *_ in block})))
    if z == 0:
        assert all(p.log_evidence == -math.inf for p in fk.infer([model] * 20, engine, seed=seed))
        return
    # A mass that hardly any run sees has no normal mean; the rest of the law says the same.
    law = {x: m / z for x, m in masses.items() if m / z > 0.05}
    check_unbiased(model, engine, law, math.log(z), runs=RUNS, seed=seed, limit=LIMIT)


def test_the_random_programs_have_all_that_the_language_has():
    seen, lengths, deaths = Counter(), 0, 0

    def look(block):
        for kind, *args in block:
            seen[kind] += 1
            if kind == "sample" and args[1] is not None:
                seen["proposal"] += 1
            for inside in args[0] if kind == "gather" else args if kind == "if" else args[:1] if kind == "scan" else ():
                look(inside)

    @given(programs, engines, st.integers(0, 1000))
    @settings(repeatable, max_examples=25)
    def count(block, engine, seed):
        nonlocal lengths, deaths
        look(block)
        step = random_program(block).start(fk.keys.fold(fk.keys.root(seed), np.arange(40)))
        state, t = step, 0
        dead = np.isneginf(step.log_potential)
        while not state.done.all():
            t += 1
            state = random_program(block).advance(state.state, fk.keys.fold(fk.keys.root(seed), np.arange(40), t))
            dead |= np.isneginf(state.log_potential)
        deaths += bool(dead.any())
        lengths += len({d for d, gone in zip(state.state.depth.tolist(), dead) if not gone}) > 1

    count()
    assert {"sample", "proposal", "factor", "twist", "observe", "return", "gather", "scan", "if"} <= set(seen)
    assert lengths >= 5
    assert deaths >= 2

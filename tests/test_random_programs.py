"""Random finite programs: enumeration equals a brute force written without the library, and SMC is unbiased."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import feynkac as fk
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


MOST = 400  # runs of a program


def few(runs):
    runs = list(itertools.islice(runs, MOST + 1))
    if len(runs) > MOST:
        raise OverflowError
    return runs


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
        heads = few(brute(args[sum(env) % 2], env))
    elif kind == "gather":
        heads = [(env, False, 1.0, 0.0)]
        for branch in args[0]:
            heads = few(
                ((*had, sum(values)), False, p * q, g + h)
                for had, _, p, g in heads
                for values, _, q, h in brute(branch, env)
            )
    elif kind == "scan":
        carries = [(sum(env) % 3, 1.0, 0.0)]
        for i in range(args[1]):
            carries = few(
                (sum(values) % 3, p * q, g + h)
                for carry, p, g in carries
                for values, _, q, h in brute(args[0], (carry, i))
            )
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


class Maker:
    """Makes programs from a seed. (Strategies built of lists make nearly only trivial ones.)"""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def law(self, least=1):
        parts = self.rng.integers(least, 7, size=self.rng.integers(2, 4)).tolist()
        parts[0] += 2 * (len(set(parts)) == 1)  # no symmetric law
        return [part / sum(parts) for part in parts]

    def table(self, of):
        return [of() for _ in range(self.rng.integers(2, 4))]

    def weight(self):
        return round(self.rng.uniform(-0.9, 0.9), 3)

    def deadly(self):
        return -math.inf if self.rng.random() < 0.3 else self.weight()

    def sample(self):
        laws = self.table(self.law)
        if self.rng.random() < 0.5:
            return ("sample", laws, None)
        parts = [self.rng.integers(2, 7, size=len(law)) for law in laws]
        return ("sample", laws, [(part / part.sum()).tolist() for part in parts])

    def statement(self, depth):
        kinds = ["sample", "factor", "deadly", "twist", "twist", "observe", "return"]
        kind = self.rng.choice(kinds + ["gather", "scan", "if"] * 2 * (depth > 0))
        if kind == "sample":
            return self.sample()
        if kind == "deadly":
            return ("factor", self.table(self.deadly))
        if kind == "observe":
            return ("observe", self.table(self.law), int(self.rng.integers(2)))
        if kind == "return":
            return ("return", self.table(lambda: bool(self.rng.random() < 0.4)))
        if kind == "gather":
            return ("gather", [self.block(depth - 1, 2) for _ in range(self.rng.integers(1, 4))])
        if kind == "scan":
            return ("scan", self.block(depth - 1, 2), int(self.rng.integers(0, 4)))
        if kind == "if":
            return ("if", self.block(depth - 1, 2), self.block(depth - 1, 2))
        scale = 2.5 if kind == "twist" else 1.0  # guides may mislead a lot
        return (str(kind), self.table(lambda: scale * self.weight()))

    def block(self, depth, longest):
        """Draw first, weigh last, and anything in between."""
        middle = [self.statement(depth) for _ in range(self.rng.integers(0, longest + 1))]
        return [self.sample(), *middle, ("factor", self.table(self.weight))]


def program_of(seed):
    """The first random program, from a seed on, that is neither trivial nor too large to enumerate quickly."""
    for attempt in range(1000):
        block = Maker([seed, attempt]).block(2, 4)
        with contextlib.suppress(OverflowError):
            if len(few(brute(block, ()))) >= 8:
                return block
    raise AssertionError("no program found")


programs = st.integers(0, 2**32).map(program_of)
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
    phases=[Phase.generate],  # a smaller seed is no simpler program
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.slow
@given(programs)
@settings(repeatable, max_examples=40)
def test_enumeration_equals_a_brute_force_written_without_the_library(block):
    z, masses = exact(block)
    found = fk.enumerate_program(random_program(block))
    assert found.log_evidence == pytest.approx(math.log(z) if z else -math.inf)
    if z:
        assert found.law() == pytest.approx({x: m / z for x, m in masses.items() if m > 0})
    assert len(found.values) <= sum(1 for _ in brute(block, ()))


@pytest.mark.slow
@given(programs, engines, st.integers(0, 1000))
@settings(repeatable, max_examples=25)
def test_smc_is_unbiased_on_random_programs(block, engine, seed):
    z, masses = exact(block)
    model = random_program(block)
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

"""fk.race by its rules: who is first, what is left of the others, and random races against an interpreter."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from programs import NoScores, run

import feynkac as fk
from feynkac import handlers
from laws import check_unbiased

FORKS = {"ess_threshold": 1.0, "resampling": "multinomial"}


class Counted(NoScores):
    """What counts the draws that are made."""

    draws = 0

    def sample_batch(self, requests, keys):
        Counted.draws += len(requests)
        return super().sample_batch(requests, keys)


@fk.program
async def toy(words=fk.race):
    """A ends after 1 step with .5, else 2, B with .2, else 2."""

    async def work(early):
        rounds = 1 if await fk.sample("early", fk.dist.Bernoulli(early)) else 2
        for _ in range(rounds):
            await fk.sample("work", Counted())
            await fk.factor("round", 0.0)

    return await words(work(0.5), work(0.2))


@fk.program
async def coins(prize=1.0, k=1, probs=(0.5, 0.2), level=None):
    """The toy without work, which can be enumerated: P(A) = .5 + .5 * .8 = .9."""

    async def one(early):
        rounds = 1 if await fk.sample("early", fk.dist.Bernoulli(early)) else 2
        for _ in range(rounds):
            if level is not None:
                await fk.twist("guide", level)
            await fk.factor("round", 0.0)
        return rounds

    won = await fk.race(*map(one, probs), k=k)
    await fk.factor("prize", prize * (won[0][0] == 0))
    return won


def test_who_wins_and_what_it_weighs_exactly():
    free = fk.enumerate_program(coins(prize=0.0))
    assert free.law() == pytest.approx({((0, 1),): 0.5, ((1, 1),): 0.1, ((0, 2),): 0.4})
    assert math.exp(fk.enumerate_program(coins()).log_evidence) == pytest.approx(0.1 + 0.9 * math.e)
    assert 0.1 + 0.9 * math.e == pytest.approx(2.546454, abs=5e-7)
    both = fk.enumerate_program(coins(prize=0.0, k=2)).law()
    assert both == pytest.approx(
        {((0, 1), (1, 1)): 0.1, ((0, 1), (1, 2)): 0.4, ((1, 1), (0, 2)): 0.1, ((0, 2), (1, 2)): 0.4}
    )
    three = fk.enumerate_program(coins(prize=0.0, k=2, probs=(0.5, 0.5, 0.5))).law()
    assert three[((0, 1), (1, 1))] == pytest.approx(0.25)  # the third, which may be early as well, is third
    assert three[((2, 1), (0, 2))] == pytest.approx(0.125)
    assert sum(three.values()) == pytest.approx(1.0)


def test_the_model_calls_of_a_cancelled_branch_do_not_happen():
    means = {}
    for words in (fk.race, fk.gather):
        means[words] = 0.0
        for a, b in itertools.product((0, 1), repeat=2):
            Counted.draws = 0
            fk.simulate(toy(words=words), seed=0, given={f"{words.__name__}.{i}/early": x for i, x in ((0, a), (1, b))})
            means[words] += 0.5 * (0.2 if b else 0.8) * Counted.draws
    assert means == pytest.approx({fk.race: 2.8, fk.gather: 3.3})
    Counted.draws = 0
    posterior = run(toy(), 50, **FORKS)  # and so in forks
    sites = [site.address for step in posterior.chains[0].steps for sites in step.choices for site in sites]
    assert 100 < Counted.draws == sum("work" in address for address in sites) < 200


@pytest.mark.parametrize("n", [1, 5])
def test_smc_is_exact_at_every_number_of_particles(n):
    # 2 N, 4 comparisons each at |z| < 4.26: a correct engine fails with probability 8 × 2.0e-5 = 1.6e-4.
    law = fk.enumerate_program(coins()).law()
    check_unbiased(coins(level=-0.7), fk.SMC(n, **FORKS), law, math.log(2.546454), runs=400)


def test_levels_of_those_who_lose_are_zero_and_their_factors_stay():
    @fk.program
    async def model():
        async def branch(rounds, level, weight):
            for _ in range(rounds):
                await fk.gather(fk.twist("guide", level), fk.factor("G", weight))

        won = await fk.race(branch(2, 0.25, 0.5), branch(1, 0.75, 1.5), branch(1, 4.0, 8.0))
        await fk.factor("end", 0.0)
        return won

    step = model().start(fk.keys.fold(fk.keys.root(0), np.arange(1)))
    assert step.log_potential.tolist() == [10.0]
    assert step.log_twist.tolist() == [0.75]  # the winner's, which holds; not those of the late and of the third
    last = model().advance(step.state, fk.keys.fold(fk.keys.root(1), np.arange(1)))
    assert last.done.all()
    assert model().values(last.state) == [((1, None),)]


def test_what_a_cancelled_branch_wrote_before_the_step_end_stays():
    @fk.program
    async def model():
        board = fk.cell("board", ())

        async def branch(name, rounds):
            for t in range(rounds):
                await board.add(((name, t),))
                await fk.factor("G", 0.0)
                await board.add(((name, "after"),))

        won = await fk.race(branch("slow", 9), branch("quick", 2))
        return won, await board.get()

    _, written = fk.simulate(model(), seed=0).value
    assert [what for what in written if what[0] == "slow"] == [("slow", 0), ("slow", "after"), ("slow", 1)]
    assert [what for what in written if what[0] == "quick"] == [
        ("quick", 0), ("quick", "after"), ("quick", 1), ("quick", "after")
    ]  # fmt: skip


def test_where_all_return_without_a_step_end_the_first_by_index_win():
    @fk.program
    async def model():
        board = fk.cell("board", 0)

        async def branch(x):
            await board.set(x)  # no conflict: what one who lost has not committed is lost
            return await fk.sample("x", fk.dist.Delta(x)) if x else 0

        return await fk.race(branch(5), branch(0), branch(7)), await board.get()

    assert fk.simulate(model(), seed=0).value == (((0, 5),), 5)


def test_a_branch_that_draws_on_has_not_returned_and_one_step_end_less_is_earlier():
    @fk.program
    async def model(k):
        async def draws_on():
            await fk.factor("G", 0.0)
            await fk.sample("more", fk.dist.Bernoulli(0.5))

        async def returns():
            await fk.factor("G", 0.0)

        async def at_once():
            await fk.sample("x", fk.dist.Bernoulli(0.5))

        return [i for i, _ in await fk.race(draws_on(), returns(), at_once(), k=k)]

    orders = [fk.simulate(model(k), seed=0).value for k in (1, 2, 3)]
    assert orders == [[2], [2, 1], [2, 1, 0]]  # the first k of all


def test_sites_are_named_by_race_visit_and_branch():
    @fk.program
    async def model():
        for _ in range(2):
            await fk.race(fk.factor("G", 0.0), fk.sample("x", fk.dist.Bernoulli(0.5)))

    assert list(fk.simulate(model(), seed=0).trace) == ["race.0/G", "race.1/x", "race[1].0/G", "race[1].1/x"]


def test_what_a_cancelled_branch_had_made_and_not_awaited_is_no_mistake():
    @fk.program
    async def model():
        async def branch():
            later, other = fk.sample("x", fk.dist.Bernoulli(0.5)), coins()
            await fk.factor("G", 0.0)
            await fk.factor("G", 0.0)
            await fk.gather(later, other)

        won = await fk.race(branch(), fk.factor("H", 0.0))
        await fk.factor("end", 0.0)
        return won

    assert fk.simulate(model(), seed=0).value == ((1, None),)
    assert set(run(model(), 8, **FORKS).values) == {((1, None),)}


def test_a_nested_run_may_race_and_a_race_may_nest():
    @fk.program
    async def model():
        async def branch(p):
            found = await fk.nested("inner", coins(), fk.SMC(3))
            if not await fk.sample("early", fk.dist.Bernoulli(p)):
                await fk.factor("late", 0.2)
                await fk.nested("inner", coins(), fk.SMC(3))
            return found.log_evidence

        return await fk.race(branch(0.5), branch(0.2))

    posterior = run(model(), 20, **FORKS)
    assert all(0.0 <= won[0][1] <= 1.0 for won in posterior.values)


def test_changes_around_a_branch_are_refused_as_in_a_gather():
    @fk.program
    async def model():
        seen = []

        async def branch():
            seen.append(1)
            await fk.factor("G", 0.0)

        await fk.race(branch(), branch())

    with pytest.raises(fk.errors.SharedMutation, match="branch 0 of race 'race' has changed `seen`"):
        fk.simulate(model(), seed=0)


def test_nothing_traces_a_race():
    @fk.program
    async def model():
        async def walk():
            x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
            await fk.factor("G", -x * x)
            return x

        return await fk.race(walk(), walk())

    with pytest.raises(fk.errors.NotDifferentiable, match="race"):
        fk.infer(model(), fk.MCMC(fk.HMC(), draws=5), seed=0)
    posterior = fk.infer(model(), fk.MCMC(fk.RandomWalk(), draws=20, warmup=0, chains=1), seed=0)
    assert len(posterior.values) > 0


def test_a_guide_races_as_its_model_does():
    @fk.program
    async def model(k=1):
        async def one(p):
            x = await fk.sample("x", fk.dist.Bernoulli(p))
            await fk.factor("G", 1.0 * x)
            if not x:
                await fk.factor("H", 0.5)
            return x

        return await fk.race(one(0.3), one(0.6), k=k)

    @fk.program
    async def guide(k=1):
        async def one():
            return await fk.sample("x", fk.dist.Bernoulli(0.5))

        await fk.race(one(), one(), k=k)

    for k in (1, 2):
        truth = fk.enumerate_program(model(k))
        proposed = handlers.propose(model(k), guide(2))
        if k == 1:
            with pytest.raises(fk.errors.UnfitGuide, match="2 branches with k=2, and the model's 2 with k=1"):
                fk.simulate(proposed, seed=0)
            continue
        check_unbiased(proposed, fk.SMC(3, **FORKS), truth.law(), truth.log_evidence, runs=150)
    truth = fk.enumerate_program(model(1))
    check_unbiased(handlers.propose(model(1), guide(1)), fk.SMC(3, **FORKS), truth.law(), truth.log_evidence, runs=150)


# -- random programs of races within gathers within races, against an interpreter of the rules -------------------------


def row(table, env):
    return table[sum(env) % len(table)]


def value(env):
    return sum(i * x for i, x in enumerate(env)) % 5


async def play(block, env):
    for kind, *args in block:
        if kind == "sample":
            env = (*env, await fk.sample("x", fk.dist.Bernoulli(row(args[0], env))))
        elif kind == "factor":
            await fk.factor("G", row(args[0], env))
        elif kind == "twist":
            await fk.twist("T", row(args[0], env))
        elif kind == "return" and row(args[0], env):
            return env
        elif kind == "gather":
            env = (*env, *map(sum, await fk.gather(*(play(inside, env) for inside in args[0]))))
        elif kind == "race":
            for i, values in await fk.race(*(play(inside, env) for inside in args[0]), k=args[1]):
                env = (*env, i, sum(values))
        elif kind == "scan":

            async def step(carry, i, inside=args[0]):
                return sum(await play(inside, (carry, i))) % 3, None

            env = (*env, (await fk.scan(step, sum(env) % 3, range(args[1])))[0])
    return env


@fk.program
async def played(block):
    return value(await play(block, (0,)))


def told(block, env, pick):
    """The rules, as a generator: it yields "hold" before whatever it awaits, and "end" at a step end."""
    for kind, *args in block:
        if kind == "return":
            if row(args[0], env):
                return env
            continue
        yield "hold"
        if kind == "sample":
            env = (*env, pick(row(args[0], env)))
        elif kind in ("factor", "twist"):
            pick(None, row(args[0], env) if kind == "factor" else 0.0)
            yield "end"
        elif kind == "scan":
            carry = sum(env) % 3
            for i in range(args[1]):
                carry = sum((yield from told(args[0], (carry, i), pick))) % 3
            env = (*env, carry)
        else:
            inside = args[0]
            placed = yield from beside([told(b, env, pick) for b in inside], args[1] if kind == "race" else len(inside))
            if kind == "race":
                for i, values in placed[: args[1]]:
                    env = (*env, i, sum(values))
            else:
                env = (*env, *(sum(values) for _, values in sorted(placed)))
    return env


def beside(branches, k):
    live, placed = dict(enumerate(branches)), []

    def go_on(until):
        for i, branch in list(live.items()):
            try:
                while next(branch) != until:
                    pass
            except StopIteration as stop:
                placed.append((i, stop.value))
                del live[i]

    while True:
        go_on("end")
        if not live:
            return placed
        yield "end"
        if len(placed) < k:
            go_on("hold")
        if len(placed) >= k or not live:
            return placed
        yield "hold"


class Choices:
    """Choices that are made already; one more raises LookupError."""

    def __init__(self, made):
        self.left, self.total = list(made), 0.0

    def __call__(self, p, log_weight=0.0):
        self.total += log_weight
        if p is None:
            return None
        if not self.left:
            raise LookupError
        x = self.left.pop(0)
        self.total += math.log(p if x else 1 - p)
        return x


def brute(block):
    """Return the mass of each value, in plain Python: run the rules for each sequence of choices."""
    masses, waiting = Counter(), [()]
    while waiting:
        made = waiting.pop()
        pick = Choices(made)
        rules = told(block, (0,), pick)
        try:
            while True:
                next(rules)
        except LookupError:
            waiting += [(*made, 0), (*made, 1)]
        except StopIteration as stop:
            masses[value(stop.value)] += math.exp(pick.total)
    return masses


def block_of(rng, depth, longest=3):
    def table(of):
        return [of() for _ in range(rng.integers(2, 4))]

    def statement():
        deep = [*["race"] * 4 * depth, *["gather", "scan"] * (depth > 0)]
        kind = str(rng.choice(["sample", "factor", "factor", "twist", "return", *deep]))
        if kind == "sample":
            return (kind, table(lambda: round(rng.uniform(0.1, 0.9), 3)))
        if kind in ("factor", "twist"):
            return (kind, table(lambda: round(rng.uniform(-1.0, 1.0), 3)))
        if kind == "return":
            return (kind, table(lambda: bool(rng.random() < 0.4)))
        if kind == "scan":
            return (kind, block_of(rng, depth - 1, 2), int(rng.integers(1, 3)))
        inside = [block_of(rng, depth - 1, 2) for _ in range(rng.integers(2, 4))]
        return (kind, inside, int(rng.integers(1, len(inside) + 1))) if kind == "race" else (kind, inside)

    return [statement() for _ in range(rng.integers(1, longest + 1))]


def small_blocks(seed, count, fewest=6, most=60):
    """Return random blocks in which somebody races, and that have so many runs."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        block = block_of(rng, 2)
        text = str(block)
        if "'race'" in text and fewest <= 2 ** text.count("'sample'") <= most:
            found.append(block)
    return found


@pytest.mark.slow
def test_random_races_are_decided_as_the_rules_say():
    for block in small_blocks(0, 16):
        masses = brute(block)
        z = sum(masses.values())
        found = fk.enumerate_program(played(block))
        assert found.log_evidence == pytest.approx(math.log(z)), block
        assert found.law() == pytest.approx({x: m / z for x, m in masses.items()}), block


@pytest.mark.slow
def test_forks_of_random_races_are_exact():
    # 6 programs, up to 6 comparisons each at |z| < 5: false alarms 36 × 5.7e-7 = 2.1e-5.
    for seed, block in enumerate(small_blocks(1, 6)):
        masses = brute(block)
        z = sum(masses.values())
        law = {x: m / z for x, m in masses.items() if m / z > 0.05}
        check_unbiased(played(block), fk.SMC(3, **FORKS), law, math.log(z), runs=200, seed=seed, limit=5.0)

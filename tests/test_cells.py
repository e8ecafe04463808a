"""fk.cell: state that branches share, committed at step ends, and restored wherever a particle forks."""

import math

import numpy as np
import pytest

import feynkac as fk
from feynkac import errors

COIN = fk.dist.Bernoulli(0.5)
FORKS = {"ess_threshold": 1.0, "resampling": "multinomial"}


@fk.program
async def posted():
    """Two branches add a coin each to a board that is read later: Z = 57.303186."""
    board = fk.cell("board", 0)

    async def work():
        x = await fk.sample("x", COIN)
        await board.add(x)
        return x

    xs = await fk.gather(work(), work())
    await fk.factor("G", sum(xs))
    y = await fk.sample("y", COIN)
    await fk.factor("H", 2 * await board.get() * y)
    return (*xs, y)


@fk.program
async def ticks():
    """Two workers, two ticks; a worker draws 1 more often where more ones are visible."""
    ones = fk.cell("ones", 0)

    async def work():
        drawn = []
        for _ in range(2):
            x = await fk.sample("x", fk.dist.Bernoulli(0.2 + 0.15 * await ones.get()))
            await ones.add(x)
            await fk.factor("G", x)
            drawn.append(x)
        return drawn

    first, second = await fk.gather(work(), work())
    return (*first, *second)


@fk.program
async def scanned():
    """Three iterations add a coin each to a total, which is read at the end."""
    total = fk.cell("total", ())

    async def step(carry, _):
        x = await fk.sample("x", COIN)
        await total.add((x,))
        await fk.factor("G", x)
        return carry, 0

    await fk.scan(step, 0, range(3))
    y = await fk.sample("y", COIN)
    await fk.factor("H", 2 * sum(await total.get()) * y)
    return await total.get()


Z = {"posted": 57.303186, "ticks": 4.407758, "scanned": (1 + math.e) ** 3 / 16 + (1 + math.e**3) ** 3 / 16}
MODELS = {"posted": posted, "ticks": ticks, "scanned": scanned}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_evidence_is_that_of_the_program_under_enumeration_and_forks(name):
    exact = fk.enumerate_program(MODELS[name]())
    assert math.exp(exact.log_evidence) == pytest.approx(Z[name], rel=1e-6)
    for n, runs in ((2, 300), (8, 150)):
        ratios = np.array(
            [math.exp(fk.infer(MODELS[name](), fk.SMC(n, **FORKS), seed=s).log_evidence) / Z[name] for s in range(runs)]
        )
        # 6 comparisons at |z| < 4.75: a correct engine fails this test with probability 6 × 2.0e-6 = 1.2e-5.
        assert abs(ratios.mean() - 1) < 4.75 * ratios.std() / math.sqrt(runs), n


def test_a_branch_sees_the_others_only_after_the_step_end():
    exact = fk.enumerate_program(ticks())
    assert exact.probability((1, 1, 1, 1)) == pytest.approx(0.123868, abs=1e-6)  # 0.228792 if seen within the tick


def test_a_particle_is_the_same_whatever_else_is_in_the_batch():
    for model in (posted(), ticks(), scanned()):
        key = fk.keys.root(3)
        alone, many = (model.start(fk.keys.fold(key, np.arange(n))) for n in (1, 8))
        while not alone.done[0]:
            assert alone.choices[0] == many.choices[0]
            keys = fk.keys.fold(key, len(alone.choices[0]) + np.arange(8))
            alone, many = model.advance(alone.state, keys[:1]), model.advance(many.state, keys)
        assert alone.choices[0] == many.choices[0]


ENGINES = [
    fk.SMC(64, chains=2), fk.ImportanceSampling(64), fk.SuffixMH(400), fk.ParticleGibbs(8, sweeps=60),
    fk.ParticleGibbs(8, sweeps=60, ancestor_sampling=True), fk.TreeSampling(300), fk.BestOfN(8), fk.BeamSearch(4),
    fk.TreeSearch(8), fk.ParticleFilter(16), fk.MCTS(60), fk.SMC(32, move=fk.SuffixMH(1)),
]  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: type(engine).__name__)
@pytest.mark.parametrize("name", MODELS)
def test_every_engine_restores_cells(name, engine):
    posterior = fk.infer(MODELS[name](), engine, seed=1)
    law = fk.enumerate_program(MODELS[name]()).law()
    assert {value for value, p in zip(posterior.values, posterior.probabilities) if p > 0} <= set(law)


def test_particle_gibbs_gives_choices_back_and_has_the_right_law():
    law = fk.enumerate_program(ticks()).law()
    chain = fk.infer(ticks(), fk.ParticleGibbs(8, sweeps=150), seed=0)
    ones = sum(p for value, p in zip(chain.values, chain.probabilities) if sum(value) >= 3)
    truth = sum(p for value, p in law.items() if sum(value) >= 3)  # .398
    # 150 sweeps of 8 particles are worth 50 independent draws or more: within 0.32 is 4.6 of their standard errors.
    assert ones == pytest.approx(truth, abs=0.32)


def test_the_posterior_is_saved_and_loaded_as_ever(tmp_path):
    posterior = fk.infer(posted(), fk.SMC(8), seed=0)
    posterior.save(tmp_path / "p.fk")
    assert fk.Posterior.load(tmp_path / "p.fk").values == posterior.values
    assert posterior.cost.model_calls == posterior.cost.tokens_in == 0
    assert {site.kind for site in fk.simulate(posted(), seed=0).sites} == {"sample", "factor"}


# -- what is seen, and when -------------------------------------------------------------------------------------------


def noted(program):
    """Run a program of no arguments under forks at every step, and return what all its particles return."""
    values = fk.infer(program(), fk.SMC(6, **FORKS), seed=0).values
    assert all(value == values[0] for value in values)
    assert fk.simulate(program(), seed=1).value == values[0]
    return values[0]


def test_writes_are_seen_by_oneself_at_once_by_others_after_a_step_and_by_all_after_a_join():
    @fk.program
    async def model():
        c = fk.cell("c", "")
        await c.set("r")

        async def branch(mark, steps):
            seen = [await c.get()]
            for _ in range(steps):
                await c.add(mark)
                seen.append(await c.get())
                await fk.factor("G", 0.0)
                seen.append(await c.get())
            return seen

        one, two = await fk.gather(branch("a", 2), branch("b", 1))
        joined = await c.get()
        await c.add("!")
        return one, two, joined, await c.get()

    one, two, joined, last = noted(model)
    assert one == ["r", "ra", "rab", "raba", "raba"]
    assert two == ["r", "rb", "rab"]
    assert (joined, last) == ("raba", "raba!")


def test_a_join_inside_a_branch_is_seen_by_that_branch_and_not_by_its_siblings():
    @fk.program
    async def model():
        c = fk.cell("c", ())

        async def leaf(mark):
            await c.add((mark,))
            return await c.get()

        async def outer(mark):
            inside = await fk.gather(leaf(mark + 1), leaf(mark + 2))
            here = await c.get()
            await fk.factor("G", 0.0)
            return inside, here, await c.get()

        one, two = await fk.gather(outer(10), outer(20))
        return one, two, await c.get()

    one, two, last = noted(model)
    assert one == (((11,), (12,)), (11, 12), (11, 12, 21, 22))
    assert two == (((21,), (22,)), (21, 22), (11, 12, 21, 22))
    assert last == (11, 12, 21, 22)


def test_commits_go_in_branch_order_whoever_comes_first():
    @fk.program
    async def model():
        c = fk.cell("c", (), merge=lambda value, delta: (*value, delta))

        async def late():
            await fk.sample("x", fk.dist.Bernoulli(0.0))
            await fk.call("wait", lambda: None)
            await c.add("late")
            await fk.factor("G", 0.0)

        async def early():
            await c.add("early")
            await fk.factor("G", 0.0)
            await fk.factor("H", 0.0)

        await fk.gather(late(), early())
        return await c.get()

    assert noted(model) == ("late", "early")


def test_what_a_branch_wrote_past_a_step_end_and_then_returned_outlives_a_fork():
    @fk.program
    async def model():
        c = fk.cell("c", "")

        async def ends():
            await fk.factor("G", 0.0)
            await c.add("z")  # before the next step, at whose end it is committed

        async def goes_on():
            await fk.factor("G", 0.0)
            before = await c.get()
            await fk.factor("H", 0.0)
            return before, await c.get()

        _, seen = await fk.gather(ends(), goes_on())
        return seen

    assert noted(model) == ("", "z")


def test_two_branches_that_set_one_cell_in_one_step_are_in_conflict():
    @fk.program
    async def model(words, apart):
        c = fk.cell("best", 0)

        async def branch(i, word):
            if apart and i:
                await fk.factor("wait", 0.0)
            await (c.set(i) if word == "set" else c.add(i))
            await fk.factor("G", 0.0)

        await fk.gather(*(branch(i, word) for i, word in enumerate(words)))
        return await c.get()

    for words in (("set", "set"), ("set", "add"), ("add", "set")):
        with pytest.raises(errors.WriteConflict, match="particle 0: branches of gather 'gather' wrote to cell 'best'"):
            fk.simulate(model(words, apart=False), seed=0)
        assert fk.simulate(model(words, apart=True), seed=0).value == 1
    assert fk.simulate(model(("add", "add"), apart=False), seed=0).value == 1


def test_cells_have_the_names_of_their_scopes_and_a_repeated_name_is_another_cell():
    @fk.program
    async def inner(name):
        c = fk.cell(name, 0)
        await c.add(1)
        await fk.factor("G", 0.0)
        return await c.get()

    @fk.program
    async def model():
        first, again = fk.cell("c", 10), fk.cell("c", 20)
        await again.add(1)
        with fk.handlers.scope(prefix="s"):
            scoped = await inner("c")
        branches = await fk.gather(inner("c"), fk.handlers.mask(inner("c"), mask=False))
        c = await fk.sample("c", fk.dist.Bernoulli(1.0))

        async def step(carry, x):
            return carry + await inner("c"), x

        carried, _ = await fk.scan(step, 0, [1, 2])
        return await first.get(), await again.get(), scoped, branches, c, carried

    assert noted(lambda: fk.handlers.block(model(), hide=["c"])) == (10, 21, 1, (1, 1), 1, 2)
    run = fk.simulate(fk.handlers.condition(fk.handlers.scope(model(), prefix="p"), data={"p/c": 1}), seed=0)
    assert run.value == (10, 21, 1, (1, 1), 1, 2)


def test_values_are_immutable_and_a_cell_belongs_to_a_running_program():
    @fk.program
    async def model():
        c = fk.cell("c", [1])
        (await c.get()).append(2)

    with pytest.raises(errors.SharedMutation, match="this list is shared"):
        fk.simulate(model(), seed=0)
    with pytest.raises(errors.OutsideProgram, match=r"fk\.cell"):
        fk.cell("c", 0)

    @fk.program
    async def adds():
        await fk.cell("c", "").add(1)

    with pytest.raises(TypeError) as caught:
        fk.simulate(adds(), seed=0)
    assert "particle 0 of 1" in "".join(caught.value.__notes__)

    @fk.program
    async def forgets():
        fk.cell("c", 0).add(1)

    with pytest.raises(errors.UnawaitedEffect, match="touch"):
        fk.simulate(forgets(), seed=0)


def test_a_program_whose_last_word_is_a_cells_is_done_with_its_last_step():
    posterior = fk.infer(posted(), fk.SMC(4), seed=0)
    assert len(posterior.chains[0].steps) == 2

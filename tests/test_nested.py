"""``fk.nested``: inference within a program, its law, its labels, its cost, and its place under every engine."""

from __future__ import annotations

import gc
import math
import subprocess
import sys

import numpy as np
import pytest

import feynkac as fk
from feynkac.ppl.effects import fingerprint

P, W = (0.5, 0.3, 0.2), (1.0, 2.0, 4.0)
Z = 1.9  # Σ p w


@fk.program
async def inner(times=1.0):
    x = await fk.sample("x", fk.dist.Categorical(P))
    await fk.factor("w", math.log(W[x] * times))
    return x


@fk.program
async def once(engine, weigh=True):
    found = await fk.nested("inner", inner(), engine)
    if weigh:
        await fk.factor("Z", found.log_evidence)
    return found.draw


@fk.program
async def theta(engine):
    t = await fk.sample("theta", fk.dist.Bernoulli(0.5))
    found = await fk.nested("inner", inner(3.0 if t else 1.0), engine)
    await fk.factor("Z", found.log_evidence)
    return t


def runs(model, engine, seeds):
    return fk.infer([model] * seeds, engine, seed=0)


def agree(samples, truth, z=4.75):
    """Each column's mean is the truth. |z| < 4.75: a correct engine fails each with probability 2.0e-6."""
    samples = np.asarray(samples, float).reshape(len(samples), -1)
    error = samples.std(0, ddof=1) / math.sqrt(len(samples))
    assert (np.abs(samples.mean(0) - truth) < z * error).all(), (samples.mean(0), truth, error)


# -- the law ----------------------------------------------------------------------------------------------------


def test_a_draw_is_properly_weighted_with_its_evidence():
    # 3 comparisons: 6.0e-6.
    found = runs(once(fk.ImportanceSampling(2)), fk.ImportanceSampling(1), 1000)
    agree([[math.exp(p.log_evidence) * (p.values[0] == k) for k in range(3)] for p in found], (0.5, 0.6, 0.8))
    assert {p.guarantee for p in found} == {"unbiased"}


@pytest.mark.parametrize("outer", [fk.SMC(4, ess_threshold=1.0), fk.ImportanceSampling(3)], ids=repr)
def test_the_evidence_of_an_unbiased_run_is_exact_as_a_weight(outer):
    # 4 comparisons of 2 engines: 8.0e-6.
    found = runs(theta(fk.ImportanceSampling(2)), outer, 250)
    agree([[math.exp(p.log_evidence), math.exp(p.log_evidence) * p.expect(float)] for p in found], (3.8, 3.8 * 0.75))
    assert found[0].guarantee == "unbiased"


def test_without_its_evidence_it_weighs_nothing_and_has_the_law_of_its_engine():
    # 3 comparisons: 6.0e-6. Best-of-2: P(2) = 1 − .8², P(1) = .8² − .5².
    (found,) = runs(once(fk.BestOfN(2), weigh=False), fk.ImportanceSampling(1200), 1)
    agree([[value == k for k in range(3)] for value in found.values], (0.25, 0.39, 0.36))
    assert found.log_evidence == 0.0
    assert found.guarantee == "unbiased"  # of the program's own law


def test_each_particle_has_a_run_of_its_own_and_the_same_again():
    @fk.program
    async def normal():
        return await fk.sample("x", fk.dist.Normal(0.0, 1.0))

    @fk.program
    async def outer():
        found = await fk.nested("inner", normal(), fk.ImportanceSampling(1))
        again = await fk.nested("inner", normal(), fk.ImportanceSampling(1))
        return found.draw, again.draw

    eight = fk.infer(outer(), fk.ImportanceSampling(8), seed=0).values
    assert len({x for pair in eight for x in pair}) == 16
    assert fk.infer(outer(), fk.ImportanceSampling(8), seed=0).values == eight
    assert fk.infer(outer(), fk.ImportanceSampling(1), seed=0).values == eight[:1]  # whatever else is in the wave


def test_it_is_the_run_that_infer_makes_with_its_seed():
    @fk.program
    async def outer():
        return await fk.nested("inner", inner(), fk.SMC(5, chains=2))

    for found in fk.infer(outer(), fk.ImportanceSampling(3), seed=1).values:
        again = fk.infer(inner(), fk.SMC(5, chains=2), seed=found.seed)
        assert again.values == found.values
        assert (again.log_weights == found.log_weights).all()
        assert (again.log_evidence, again.draw, again.cost.tokens_out) == (found.log_evidence, found.draw, 0)


# -- the label --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "promise"), [(fk.SMC(4), "unbiased"), (fk.BestOfN(4), "heuristic")])
def test_evidence_that_is_not_unbiased_makes_the_outer_label_heuristic(engine, promise):
    weighed, free = fk.infer([once(engine), once(engine, weigh=False)], fk.SMC(4), seed=0)
    assert (weighed.guarantee, free.guarantee) == (promise, "unbiased")


def test_an_engine_without_evidence_gives_no_weight():
    with pytest.raises(fk.errors.InvalidWeight, match="factor 'Z': the log-weight is nan"):
        fk.infer(once(fk.SuffixMH(5)), fk.SMC(4), seed=0)


# -- records, replays, refusals ---------------------------------------------------------------------------------


class Counted:
    """A kernel that charges three tokens a draw."""

    batch_key = "counted"
    fingerprint = None
    batches: list[int] = []  # noqa: RUF012

    def sample_batch(self, requests, keys):
        n = len(requests)
        self.batches.append(n)
        fk.charge(model_calls=1, tokens_in=np.full(n, 2), tokens_out=np.full(n, 3))
        return fk.Draws((fk.keys.uniform(keys) * 3).astype(int), np.full(n, -math.log(3)))


@fk.program
async def spends(n=2):
    total = 0
    for _ in range(n):
        total += await fk.sample("x", Counted())
        await fk.factor("G", 0.3 * total)
    return total


@fk.program
async def spender(n, times=1, engine=None):
    found = None
    for _ in range(times):
        found = await fk.nested("inner", spends(n), engine or fk.SMC(5))
        await fk.factor("Z", found.log_evidence)
    return found.draw


def test_a_fork_gets_the_same_posterior_and_no_new_run():
    Counted.batches.clear()
    posterior = fk.infer(spender(2, 3), fk.SMC(6, ess_threshold=1.0, resampling="multinomial"), seed=0)
    assert Counted.batches == [30] * 6  # one call for all, and none for the copies
    assert posterior.cost.tokens_out == 6 * 30 * 3
    by_founder = {}
    for i in range(6):
        seeds = [posterior.trace(i)[a].value.seed for a in ("inner", "inner[1]", "inner[2]")]
        by_founder.setdefault(posterior.genealogy(i)[0], []).append(seeds)
    assert max(map(len, by_founder.values())) > 1  # some are copies
    assert all(len({seeds[0] for seeds in family}) == 1 for family in by_founder.values())
    assert len({seeds[2] for family in by_founder.values() for seeds in family}) == 6


def test_given_replays_it():
    first = fk.simulate(once(fk.SMC(3)), seed=0)
    again = fk.simulate(once(fk.SMC(3)), seed=1, given={"inner": first.trace["inner"].value})
    assert (again.value, again.log_weight) == (first.value, first.log_weight)
    assert first.trace["inner"].kind == "call"
    model = once(fk.SMC(3))
    key = fk.keys.root(5)
    one = model.start(key)
    two = model.start(fk.keys.root(6), [one.choices[0]])
    assert two.choices[0][0].value is one.choices[0][0].value
    assert not one.scored[0]  # how likely it was is not known


def test_two_equal_models_have_one_fingerprint():
    assert fingerprint(inner(2.0)) == fingerprint(inner(2.0)) != fingerprint(inner(3.0))


def test_its_models_count_as_awaited():
    @fk.program
    async def outer():
        made = inner()
        await fk.nested("inner", made, fk.SMC(2))
        await fk.factor("G", 0.0)

    fk.infer(outer(), fk.SMC(2), seed=0)

    @fk.program
    async def forgetful():
        fk.nested("inner", inner(), fk.SMC(2))
        await fk.factor("G", 0.0)

    with pytest.raises(fk.errors.UnawaitedEffect, match=r"fk\.nested\('inner', …\) was created but never awaited"):
        fk.infer(forgetful(), fk.SMC(2), seed=0)


def test_enumeration_refuses_it_by_name():
    with pytest.raises(fk.errors.Unsupported, match=r"cannot enumerate what fk\.nested\('inner', …\)"):
        fk.enumerate_program(once(fk.SMC(2)))


def test_wrong_arguments_are_raised_where_it_is_awaited():
    for model, engine, message in (
        (inner, fk.SMC(2), "nested takes Feynman-Kac models, not ProgramFactory"),
        (inner(), fk.SMC, "nested takes an engine with its settings"),
    ):

        @fk.program
        async def wrong(model=model, engine=engine):
            await fk.nested("inner", model, engine)

        with pytest.raises(TypeError, match=message):
            fk.infer(wrong(), fk.SMC(2), seed=0)


# -- failures ---------------------------------------------------------------------------------------------------


@fk.program
async def mortal(alive):
    await fk.factor("G", 0.0 if alive else -math.inf)
    return "alive"


@fk.program
async def catches():
    alive = await fk.sample("alive", fk.dist.Bernoulli(0.5))
    try:
        return (await fk.nested("inner", mortal(alive), fk.SMC(2))).draw
    except fk.errors.AllParticlesDead:
        return "dead"


def test_dead_runs_are_raised_at_their_await_alone():
    posterior = fk.infer(catches(), fk.ImportanceSampling(20), seed=0)
    alive = posterior.site("alive")
    assert posterior.values == tuple("alive" if a else "dead" for a in alive)
    assert 0 < sum(alive) < 20

    @fk.program
    async def uncaught():
        await fk.nested("inner", mortal(False), fk.SMC(2))

    with pytest.raises(fk.errors.AllParticlesDead, match="all 2 particles have weight zero") as caught:
        fk.infer(uncaught(), fk.SMC(2), seed=0)
    assert any("program 'uncaught'" in note for note in caught.value.__notes__)


def test_an_error_in_a_shared_batch_is_that_of_its_own_run():
    @fk.program
    async def breaks(x):
        await fk.factor("G", 0.0)
        if x:
            raise KeyError("mine")
        return "whole"

    @fk.program
    async def outer():
        x = await fk.sample("x", fk.dist.Bernoulli(0.5))
        try:
            return x, (await fk.nested("inner", breaks(x), fk.SMC(2))).draw
        except KeyError:
            return x, "broken"

    values = fk.infer(outer(), fk.ImportanceSampling(12), seed=0).values
    assert set(values) == {(0, "whole"), (1, "broken")}


# -- cost -------------------------------------------------------------------------------------------------------


def test_its_cost_is_that_of_the_runs_and_belongs_to_the_particles_problem():
    Counted.batches.clear()
    one, other = fk.infer([spender(1), spender(3)], fk.ImportanceSampling(4), seed=0)
    assert Counted.batches == [40, 20, 20]  # all the runs of the wave share their batches
    assert (one.cost.tokens_out, other.cost.tokens_out) == (4 * 5 * 3, 4 * 5 * 3 * 3)
    assert (one.cost.model_calls, other.cost.model_calls) == (1, 3)
    assert one.trace(0)["inner"].value.cost.tokens_out == 5 * 3

    @fk.program
    async def gathered():
        await fk.gather(*(spends(3) for _ in range(4 * 5)))

    assert fk.infer(gathered(), fk.ImportanceSampling(1), seed=0).cost.tokens_out == other.cost.tokens_out


def test_the_outer_budget_sees_it():
    posterior = fk.infer(spender(1, 4), fk.SMC(2), seed=0, budget=fk.Budget(tokens=1))
    assert (posterior.stopped, posterior.guarantee, len(posterior.steps)) == ("tokens", "prefix", 1)
    assert posterior.cost.tokens_out == 2 * 5 * 3


# -- where it may stand -----------------------------------------------------------------------------------------


@fk.program
async def middle(engine):
    found = await fk.nested("deep", inner(), engine)
    await fk.factor("Z", found.log_evidence)
    return found.draw


def test_nested_inside_nested():
    # 3 comparisons: 6.0e-6.
    @fk.program
    async def outer():
        found = await fk.nested("middle", middle(fk.ImportanceSampling(2)), fk.SMC(2))
        await fk.factor("Z", found.log_evidence)
        return found.draw

    found = runs(outer(), fk.ImportanceSampling(1), 500)
    agree([[math.exp(p.log_evidence) * (p.values[0] == k) for k in range(3)] for p in found], (0.5, 0.6, 0.8))
    assert found[0].guarantee == "unbiased"


def test_it_costs_what_it_does_at_any_depth():
    @fk.program
    async def outer():
        found = await fk.nested("middle", spender(2), fk.ImportanceSampling(3))
        await fk.factor("Z", found.log_evidence)

    posterior = fk.infer(outer(), fk.ImportanceSampling(4), seed=0)
    assert (posterior.cost.tokens_out, posterior.cost.model_calls) == (4 * 3 * 5 * 2 * 3, 2)


async def branch(engine):
    found = await fk.nested("inner", inner(), engine)
    await fk.factor("Z", found.log_evidence)
    return found.draw


async def step(carry, x):
    return carry + await branch(fk.ImportanceSampling(2)), None


@fk.program
async def gathers():
    return sum(await fk.gather(branch(fk.ImportanceSampling(2)), branch(fk.SMC(1))))


@fk.program
async def scans():
    total, _ = await fk.scan(step, 0, range(2))
    return total


@pytest.mark.parametrize("model", [gathers(), scans()], ids=["gather", "scan"])
def test_in_branches_and_iterations(model):
    # Two independent runs: Z² and the mean of the sum of two draws from the posterior. 2 × 2 comparisons: 8.0e-6.
    found = runs(model, fk.SMC(3, ess_threshold=1.0), 200)
    mean = 2 * (0.6 + 2 * 0.8) / Z
    agree([[math.exp(p.log_evidence), math.exp(p.log_evidence) * p.expect(float)] for p in found], (Z**2, Z**2 * mean))


@pytest.mark.parametrize("engine", [fk.SuffixMH(60), fk.SuffixMH(60, block=1), fk.TreeSampling(60)], ids=repr)
def test_under_chains_and_trees(engine):
    # P(θ = 1) = .75; .5 where the evidence is not heard. Short runs are biased a little: |z| < 4.75 and .03 more.
    found = [p.expect(float) for p in runs(theta(fk.ImportanceSampling(2)), engine, 12)]
    error = np.std(found, ddof=1) / math.sqrt(len(found))
    assert abs(np.mean(found) - 0.75) < 4.75 * error + 0.03
    assert 4.75 * error + 0.03 < 0.2


def test_engines_that_need_every_probability_refuse_it():
    with pytest.raises(fk.errors.Unsupported, match="needs log-probabilities"):
        fk.infer(theta(fk.SMC(2)), fk.PowerSampling(4, power=2.0), seed=0)


def test_it_works_outside_of_infer():
    assert fk.simulate(once(fk.SMC(4)), seed=0).value in (0, 1, 2)
    step = once(fk.SMC(4)).start(fk.keys.root(0))
    assert step.choices[0][0].value.engine == repr(fk.SMC(4))


def test_what_particles_share_of_it_they_cannot_change():
    @fk.program
    async def lists():
        await fk.factor("G", 0.0)
        return [1]

    @fk.program
    async def outer():
        (await fk.nested("inner", lists(), fk.SMC(2))).draw.append(2)

    with pytest.raises(fk.errors.SharedMutation):
        fk.infer(outer(), fk.SMC(2), seed=0)


def test_a_file_keeps_the_facts_of_nested_runs(tmp_path):
    posterior = fk.infer(once(fk.SMC(2)), fk.SMC(3), seed=0)
    posterior.save(tmp_path / "outer.fk")
    loaded = fk.Posterior.load(tmp_path / "outer.fk")
    kept, was = loaded.trace(1)["inner"].value, posterior.trace(1)["inner"].value
    assert (kept["values"], kept["seed"], kept["log_evidence"]) == (was.values, was.seed, was.log_evidence)
    assert fk.infer(inner(), fk.SMC(2), seed=kept["seed"]).values == was.values


def test_nothing_of_it_lives_on():
    fk.infer(spender(1, 2), fk.SMC(3), seed=0)
    gc.collect()
    assert not [x for x in gc.get_objects() if type(x).__name__ == "Tolerant"]


@pytest.mark.filterwarnings("ignore:.*texts do not fit")
def test_a_run_whose_texts_do_not_fit_is_dead_whatever_else_is_in_the_wave():
    from feynkac.models.testing import tiny_lm

    lm = tiny_lm(0)
    limit = lm.context

    @fk.program
    async def writes(n):
        text = lm.prompt("a" * n)
        for _ in range(2):
            text = await fk.sample("step", lm.tokens(text, 2))
            await fk.factor("G", 0.0)
        return "whole"

    @fk.program
    async def outer(long):
        try:
            return (await fk.nested("inner", writes(4 * limit if long else 2), fk.SMC(2))).draw
        except (fk.errors.AllParticlesDead, fk.errors.ContextOverflow):
            return "dead"

    both = [p.values for p in fk.infer([outer(True), outer(False)], fk.ImportanceSampling(1), seed=0)]
    assert both == [("dead",), ("whole",)]
    assert fk.infer(outer(True), fk.ImportanceSampling(1), seed=0).values == ("dead",)


def test_nested_runs_are_served_whoever_asks_for_them(tmp_path):
    """Of all that runs programs, `infer` is not the only one: here it is never imported."""
    code = """
import sys, feynkac as fk
@fk.program
async def inner():
    return await fk.sample("x", fk.dist.Normal(0.0, 1.0))
@fk.program
async def outer():
    return (await fk.nested("n", inner(), fk.SMC(3))).draw
fk.compare([outer()], [fk.SMC(2)], metric=lambda p: 1.0, seeds=[0])
assert "feynkac.inference.infer" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)

"""Each step says what its run had cost when it was made, and rewards can be evaluated outside any run."""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import pytest

import feynkac as fk
from feynkac.ppl.cost import Ledger, recording
from feynkac.ppl.score import ScoreError
from flips import Counted


@fk.program
async def walk(lm, steps):
    x = 0
    for _ in range(steps):
        x += await fk.sample("x", lm.coin(0.3))
        await fk.factor("G", 0.5 * x)
    return x


def counts(cost):
    return astuple(replace(cost, seconds=0.0))


def test_a_step_says_what_the_model_had_been_asked_for():
    lm, seen = Counted(), []
    posterior = fk.infer(
        walk(lm, 4), fk.SMC(5), seed=0, callbacks=[lambda step: seen.append((step.cost, lm.calls, lm.tokens)) or False]
    )
    assert [(cost.model_calls, cost.tokens_out) for cost, _, _ in seen] == [one[1:] for one in seen]
    assert [step.cost.tokens_out for step in posterior.steps] == [15, 30, 45, 60]
    assert counts(posterior.steps[-1].cost) == counts(posterior.cost)
    times = [step.cost.seconds for step in posterior.steps]
    assert times == sorted(times)
    assert 0 < times[0] <= times[-1] <= posterior.cost.seconds


def test_it_is_that_of_a_model_of_its_own_and_of_all_its_chains():
    lm = Counted()
    one, two = fk.infer([walk(lm, 2), walk(lm, 3)], [fk.SMC(4, chains=2), fk.SMC(5)], seed=0)
    assert [[step.cost.tokens_out for step in chain.steps] for chain in one.chains] == [[24, 48]] * 2
    assert [step.cost.tokens_out for step in two.steps] == [15, 30, 45]
    assert [step.cost.model_calls for step in two.steps] == [1, 2, 3]


@pytest.mark.parametrize(
    "engine", [fk.BeamSearch(4), fk.SuffixMH(6), fk.TreeSampling(6), fk.BestOfN(4), fk.AdaptiveBestOfN(4, 0.5)]
)
def test_who_watches_sees_it_in_every_step_of_every_engine(engine):
    costs = [step.cost for step in fk.steps(walk(Counted(), 3), engine, seed=0)]
    assert None not in costs
    assert [cost.tokens_out for cost in costs] == sorted(cost.tokens_out for cost in costs)
    assert costs[-1].tokens_out > 0


def test_it_is_kept_in_files_and_comes_from_workers(tmp_path):
    posterior = fk.infer(walk(Counted(), 3), fk.SMC(5), seed=0)
    posterior.save(tmp_path / "p.fk")
    assert [s.cost for s in fk.Posterior.load(tmp_path / "p.fk").steps] == [s.cost for s in posterior.steps]
    seen = []
    (away,) = fk.infer([walk(Counted(), 3)], fk.SMC(5), seed=0, workers=fk.InProcess(1), callbacks=[seen.append])
    assert [counts(s.cost) for s in away.steps] == [counts(s.cost) for s in posterior.steps]
    assert [counts(s.cost) for s in seen] == [counts(s.cost) for s in posterior.steps]


@fk.reward(kind="probability")
def short(text):
    return 1.0 / (1 + len(text))


def test_a_score_is_evaluated_outside_programs_and_charged():
    with recording(Ledger()) as ledger:
        assert short("abcd").evaluate() == 0.2
        assert (short("a").log() + short("abc").log()).evaluate() == pytest.approx(math.log(0.125))
    assert ledger.total().reward_calls == 3
    with pytest.raises(ScoreError, match="wrong"):
        fk.reward(lambda text: math.nan, kind="real", name="wrong")("a").evaluate()


def test_inside_programs_it_is_refused():
    @fk.program
    async def hasty():
        return short("abcd").evaluate()

    with pytest.raises(TypeError, match=r"inside a program, await fk\.call\(name, score\)"):
        fk.infer(hasty(), fk.ImportanceSampling(2), seed=0)

    @fk.program
    async def patient():
        return await fk.call("number", lambda: short("abcd").evaluate())

    posterior = fk.infer(patient(), fk.ImportanceSampling(2), seed=0)
    assert posterior.values == (0.2, 0.2)

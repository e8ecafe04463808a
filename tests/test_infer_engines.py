"""One engine for each model of a list: each finds what it finds alone, and they share their batches."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

import feynkac as fk
from flips import Counted


@fk.program
async def walk(lm, steps, p):
    x = 0
    for _ in range(steps):
        x += await fk.sample("x", lm.coin(p))
        await fk.factor("G", 0.5 * x)
    return x


ENGINES = [
    fk.SMC(6, ess_threshold=1.0, chains=2),
    fk.BestOfN(5),
    fk.BeamSearch(4),
    fk.SuffixMH(5),
    fk.TreeSampling(6),
    fk.SMC(3),
]


def facts(posterior):
    parts = pickle.loads(pickle.dumps((posterior.values, posterior.chains)))
    return repr((parts, replace(posterior.cost, seconds=0.0), posterior.engine, posterior.guarantee, posterior.ranking))


def models(lm):
    return [walk(lm, 2 + i % 3, 0.3 + i / 10) for i in range(len(ENGINES))]


def test_each_finds_what_it_finds_alone():
    found = fk.infer(models(Counted()), ENGINES, seed=4)
    for i, engine in enumerate(ENGINES):
        alone = fk.infer(models(Counted()), engine, seed=4)[i]
        assert facts(replace(found[i], cost=alone.cost)) == facts(alone)


def test_equal_engines_are_one_engine():
    one = fk.infer(models(Counted()), ENGINES[0], seed=4)
    several = fk.infer(models(Counted()), [ENGINES[0]] * len(ENGINES), seed=4)
    assert list(map(facts, one)) == list(map(facts, several))


def test_the_longest_run_says_how_often_models_are_called():
    lengths, engines = [2, 5, 3], [fk.SMC(4), fk.SMC(9), fk.ImportanceSampling(7)]
    lm = Counted()
    fk.infer([walk(lm, n, 0.4) for n in lengths], engines, seed=0)
    assert lm.calls == max(lengths)


def test_budgets_callbacks_and_journals_see_them_all(tmp_path):
    steps = []
    found = fk.infer(models(Counted()), ENGINES, seed=4, callbacks=[steps.append], journal=tmp_path / "run.fkj")
    assert steps
    again = fk.infer(models(Counted()), ENGINES, seed=4, journal=fk.Journal(tmp_path / "run.fkj", mode="replay"))
    assert [repr(one.values) for one in again] == [repr(one.values) for one in found]
    short = fk.infer(models(Counted()), ENGINES, seed=4, budget=fk.Budget(model_calls=1))
    assert any(one.stopped for one in short)


@fk.program
async def coin(steps, p):
    x = 0
    for _ in range(steps):
        x += await fk.sample("x", fk.dist.Bernoulli(p))
        await fk.factor("G", 0.5 * x)
    return x


COINS = [(2 + i % 3, 0.3 + i / 10) for i in range(len(ENGINES))]


def coins():
    return [coin(*one) for one in COINS]


@pytest.mark.parametrize("chunk", [1, 4])
def test_workers_run_the_engine_of_each(chunk):
    here = fk.infer(coins(), ENGINES, seed=4)
    away = fk.infer(coins(), ENGINES, seed=4, workers=fk.InProcess(chunk))
    made_there = fk.infer(coins, ENGINES, seed=4, workers=fk.InProcess(chunk))
    assert list(map(facts, away)) == list(map(facts, made_there)) == list(map(facts, here))


def test_a_folder_is_gone_on_with_by_the_same_engines_alone(tmp_path):
    here = fk.infer(coins(), ENGINES, seed=4)
    folder = tmp_path / "folder"
    found = fk.infer(coins(), ENGINES, seed=4, save=folder)
    assert list(map(facts, found)) == list(map(facts, here))
    found.path(3).unlink()
    again = fk.infer(coins(), tuple(ENGINES), seed=4, save=folder)
    assert again.missing == ()
    assert facts(again[3]) == facts(here[3])
    voted = [fk.SelfConsistency(3, key=str), *ENGINES[1:]]
    fk.infer(coins(), voted, seed=4, save=tmp_path / "other")
    for other, before, told in (
        ([*ENGINES[:5], fk.SMC(4)], folder, r"engine of problem 5: .SMC\(particles=3.*not .SMC\(particles=4"),
        (ENGINES[0], folder, r"engine: \[.SMC.* and not .SMC"),
        ([fk.SelfConsistency(3, key=repr), *ENGINES[1:]], tmp_path / "other", "with other functions"),
    ):
        with pytest.raises(FileExistsError, match=told):
            fk.infer(coins(), other, seed=4, save=before)


@pytest.mark.parametrize("models", [coins, coins()])
@pytest.mark.parametrize("engines", [ENGINES[:2], ENGINES[:1], []])
def test_workers_refuse_other_numbers_of_engines(models, engines, tmp_path):
    with pytest.raises(ValueError, match=f"as many as models, not {len(engines)} for 6"):
        fk.infer(models, engines, seed=0, workers=fk.InProcess(1))
    with pytest.raises(ValueError, match=f"as many as models, not {len(engines)} for 6"):
        fk.infer(models, engines, seed=0, save=tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    with pytest.raises(TypeError, match="one engine"):
        fk.infer(coin(2, 0.5), ENGINES, seed=0, workers=fk.InProcess(1))


def test_other_numbers_of_engines_are_refused():
    lm = Counted()
    with pytest.raises(ValueError, match="as many as models, not 2 for 6"):
        fk.infer(models(lm), ENGINES[:2], seed=0)
    with pytest.raises(TypeError, match="one engine"):
        fk.infer(walk(lm, 2, 0.5), ENGINES, seed=0)
    with pytest.raises(TypeError, match="not the class alone"):
        fk.infer(models(lm)[:1], [fk.SMC], seed=0)
    assert lm.calls == 0
    assert fk.infer([], [], seed=0) == []

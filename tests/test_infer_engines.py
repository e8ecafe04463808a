"""One engine for each model of a list: each finds what it finds alone, and they share their batches."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace

import pytest

import feynkac as fk
from feynkac.ppl import cost


class Counted:
    """A model whose calls are counted: a kernel of coin flips."""

    def __init__(self):
        self.calls = 0

    def coin(self, p):
        return Flip(self, p)


@dataclass(frozen=True)
class Flip:
    lm: Counted
    p: float

    @property
    def batch_key(self):
        return self.lm

    def sample_batch(self, requests, keys):
        self.lm.calls += 1
        cost.charge(model_calls=1)
        return fk.dist.Bernoulli(0.5).sample_batch([fk.dist.Bernoulli(one.p) for one in requests], keys)

    def log_prob_batch(self, requests, values):
        return fk.dist.Bernoulli(0.5).log_prob_batch([fk.dist.Bernoulli(one.p) for one in requests], values)


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


@pytest.mark.parametrize("more", [{"workers": fk.InProcess(2)}, {"save": "folder"}])
def test_several_on_workers_are_refused(more, tmp_path):
    lm = Counted()
    more = {name: tmp_path / "f" if value == "folder" else value for name, value in more.items()}
    with pytest.raises(ValueError, match="one engine on all models"):
        fk.infer(models(lm), ENGINES, seed=0, **more)
    assert lm.calls == 0


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

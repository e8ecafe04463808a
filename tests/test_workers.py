"""Runs on workers, through the protocol of their pool: what is handed out, what comes back, what is lost."""

from __future__ import annotations

import math
import os
import pickle
import signal
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

import feynkac as fk
from feynkac.inference.workers.job import Job
from feynkac.inference.workers.pool import Here, Lost, News
from feynkac.inference.workers.ray import Ray
from feynkac.inference.workers.sending import carried
from feynkac.inference.workers.travel import pack, pack_steps, unpack, unpack_steps

ENGINE = fk.SMC(6, ess_threshold=1.0, chains=2)


class Trouble(Exception):
    """Has another signature than its arguments."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(f"{why} ({code})")
        self.code = code


@fk.program
async def walk(steps, scale=1.0, fault=None):
    x = 0.0
    for t in range(steps):
        x = await fk.sample("x", fk.dist.Normal(x, scale))
        await fk.factor("G", -x * x if fault != "dead" else -math.inf)
        if fault == "raises" and t == 1:
            raise Trouble(7, "a bad problem")
        if fault == "interrupts" and t == 1:
            raise KeyboardInterrupt
    return object() if fault == "unsaved" else x


MODELS = [walk(i % 4 + 1, 1.0 + i / 10) for i in range(11)]
ALONE = fk.infer(MODELS, ENGINE, seed=3)


def facts(posterior):
    """All that a posterior says, but for the seconds that it took."""
    parts = pickle.loads(pickle.dumps((posterior.values, posterior.chains)))
    names = ("guarantee", "engine", "model", "seed", "stopped", "ranking")
    return repr((parts, replace(posterior.cost, seconds=0.0), [getattr(posterior, name) for name in names]))


@dataclass
class Fake:
    """Workers that are this process, taken in turns, of which some die: chunks by the number of the start."""

    chunk: int = 3
    max_retries: int = 1
    count: int = 2
    deaths: Any = ()
    log: list[Any] = field(default_factory=list)

    def open(self, job, chunks, follow):
        self.log.append(("opened", chunks, follow))
        return Crowd(self, job)


class Crowd:
    """Several pools of one worker each; the last one with something to do is the first that goes on."""

    def __init__(self, fake, job):
        self.fake, self.pools, self.starts, self.turn = fake, [Here(job) for _ in range(fake.count)], 0, 0

    @property
    def free(self):
        return sum(pool.free for pool in self.pools)

    @property
    def busy(self):
        return any(pool.busy for pool in self.pools)

    def submit(self, units):
        pool = next(pool for pool in self.pools if pool.free)
        pool.submit(units)
        pool.start, self.starts = self.starts, self.starts + 1
        self.fake.log.append(tuple(units))

    def wait(self):
        new = [pool for pool in self.pools if pool._worker is None]
        pools = new or [pool for pool in self.pools if pool.busy]
        pool = pools[-1 - self.turn % len(pools)]
        self.turn += 1
        events = list(pool.wait())
        if isinstance(events[0], News) and self.fake.deaths and self.fake.deaths(pool.start, events[0]):
            events = [Lost(events[0].units, "it was killed")]
            self.pools[self.pools.index(pool)] = Here(pool._job)
        return events

    def stop(self, reason):
        for pool in self.pools:
            pool.stop(reason)

    def close(self):
        self.fake.log.append("closed")


# -- the same posteriors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [fk.InProcess(4), Fake(1), Fake(3, count=3), Fake(64)], ids=repr)
def test_posteriors_are_those_of_one_run_for_any_workers_and_chunks(workers):
    found = fk.infer(MODELS, ENGINE, seed=3, workers=workers)
    assert type(found) is list
    assert list(map(facts, found)) == list(map(facts, ALONE))


@pytest.mark.parametrize("engine", [fk.SuffixMH(6, chains=2), fk.BeamSearch(4), fk.TreeSampling(6)], ids=repr)
def test_any_engine_runs_on_workers(engine):
    found = fk.infer(MODELS[:4], engine, seed=3, workers=Fake(2))
    assert list(map(facts, found)) == list(map(facts, fk.infer(MODELS[:4], engine, seed=3)))


def test_chains_of_one_model_are_shared_out():
    engine = replace(ENGINE, chains=5)
    fake = Fake(2)
    found = fk.infer(MODELS[3], engine, seed=3, workers=fake)
    assert facts(found) == facts(fk.infer(MODELS[3], engine, seed=3))
    assert [one for one in fake.log if type(one) is tuple and one[0] != "opened"] == [(0, 1), (2, 3), (4,)]


def test_a_function_makes_the_models_once_for_each_worker():
    calls = []

    def models():
        calls.append(1)
        return (walk(i % 4 + 1, 1.0 + i / 10) for i in range(11))

    fake = Fake(2, count=3)
    found = fk.infer(models, ENGINE, seed=3, workers=fake)
    assert list(map(facts, found)) == list(map(facts, ALONE))
    assert len(calls) == 3
    assert fake.log[0] == ("opened", None, False)
    alone = fk.infer(lambda: MODELS[3], ENGINE, seed=3, workers=Fake())
    assert facts(alone) == facts(fk.infer(MODELS[3], ENGINE, seed=3))


def test_a_function_that_makes_other_models_each_time_is_refused():
    count = iter(range(9))
    with pytest.raises(ValueError, match=r"walk\(1\).* and .*walk\(2\).*the same ones must come of it everywhere"):
        fk.infer(lambda: [walk(next(count) + 1)], ENGINE, seed=0, workers=Fake())


def test_no_models_give_no_posteriors():
    assert fk.infer([], ENGINE, seed=0, workers=Fake()) == []


# -- budgets, callbacks, cost -----------------------------------------------------------------------------------


def test_a_budget_is_for_each_problem():
    @fk.program
    async def charges(steps):
        for _ in range(steps):
            await fk.call("c", fk.batched(lambda xs: fk.charge(tokens_out=np.full(len(xs), 10)) or xs), 0)
            await fk.factor("G", 0.0)

    models = [charges(n) for n in (1, 9, 2, 9)]
    budget = fk.Budget(tokens=3 * 2 * 6 * 10)
    found = fk.infer(models, ENGINE, seed=0, workers=Fake(3), budget=budget)
    assert [len(p.steps) for p in found] == [1, 3, 2, 3]
    assert [p.stopped for p in found] == [None, "tokens", None, "tokens"]
    assert [p.guarantee for p in found] == ["unbiased", "prefix", "unbiased", "prefix"]
    with pytest.raises(ValueError, match="budget= of a single model counts all its chains"):
        fk.infer(models[0], ENGINE, seed=0, workers=Fake(), budget=budget)


def test_seconds_that_are_spent_give_up_what_is_under_way():
    import asyncio

    async def answers(seconds):
        await asyncio.sleep(seconds)

    @fk.program
    async def waits(n):
        for t in range(n):
            await fk.factor("G", 0.0)
            await fk.call("server", answers, 60.0 * t)

    began = time.perf_counter()
    found = fk.infer([waits(0), waits(3)], fk.SMC(2), seed=0, workers=Fake(2), budget=fk.Budget(seconds=0.3))
    assert time.perf_counter() - began < 30
    assert [p.stopped for p in found] == [None, "seconds"]
    assert [p.guarantee for p in found] == ["unbiased", "prefix"]


def test_callbacks_see_every_step_and_can_end_the_run():
    seen: list[Any] = []
    found = fk.infer(MODELS, ENGINE, seed=3, workers=Fake(), callbacks=[seen.append])
    assert len(seen) == sum(len(chain.steps) for p in found for chain in p.chains)
    fake, few = Fake(), []
    found = fk.infer(MODELS, ENGINE, seed=3, workers=fake, callbacks=[lambda step: few.append(step) or len(few) == 9])
    assert fake.log[-1] == "closed"
    assert {p.stopped for p in found} == {None, "callback"}
    done = [i for i, p in enumerate(found) if p.stopped is None]
    assert [facts(found[i]) for i in done] == [facts(ALONE[i]) for i in done]
    assert len(found[-1]) == 0  # its chunk was never begun
    with pytest.raises(ValueError, match="the posterior is empty: the run was cut short"):
        found[-1].best()


def test_what_workers_spend_is_counted_where_they_are_this_process():
    @fk.program
    async def outer():
        await fk.call("inner", lambda: fk.infer([charged(), charged()], fk.SMC(3), seed=0, workers=Fake(1))[0].values)

    @fk.program
    async def charged():
        await fk.call("c", fk.batched(lambda xs: fk.charge(tokens_out=np.ones(len(xs))) or xs), 0)

    assert fk.infer(outer(), fk.SMC(2), seed=0).cost.tokens_out == 2 * 2 * 3


def test_the_progress_line_counts_problems(monkeypatch):
    shown = []

    class Bar:
        shown = True

        def __init__(self, describe, show):
            self.describe = describe

        def __enter__(self):
            return self

        def __exit__(self, *_):
            shown.append(self.describe())

        def update(self):
            shown.append(self.describe())

    monkeypatch.setattr("feynkac.inference.workers.dispatch.Progress", Bar)
    fk.infer(MODELS, ENGINE, seed=3, workers=Fake(), progress=True)
    assert shown[-1] == (11, 11, "11 of 11 problems finished")
    assert [done for done, _, _ in shown] == sorted(done for done, _, _ in shown)
    assert any("particles now" in text for _, _, text in shown)


# -- what goes wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind"), [("raises", Trouble), ("dead", fk.errors.AllParticlesDead), ("unsaved", TypeError)]
)
def test_a_problem_that_fails_loses_no_other(fault, kind):
    bad = {4: walk(3, 1.0, fault), 9: walk(2, 1.0, fault)}
    models = [bad.get(i, model) for i, model in enumerate(MODELS)]
    fake = Fake(5)
    with pytest.raises(kind) as caught:
        fk.infer(models, ENGINE, seed=3, workers=fake)
    error: Any = caught.value
    assert sorted(error.failures) == [4, 9]
    assert error is error.failures[4]
    good = [i for i in range(11) if i not in bad]
    assert [facts(error.posterior[i]) for i in good] == [facts(ALONE[i]) for i in good]
    assert error.posterior[4].stopped == "error"
    notes = "\n".join(error.__notes__)
    assert f"in problem 4 of 11, walk(3, 1.0, '{fault}')" in notes
    assert "1 more failed, [9]" in notes
    assert len([one for one in fake.log if type(one) is tuple and one[0] != "opened"]) == 3  # nothing was tried again
    if fault == "unsaved":
        assert "cannot save the value of particle 0: a object" in str(error)
    else:
        assert len(error.posterior[4].steps) == (1 if fault == "raises" else 0)


@pytest.mark.filterwarnings("ignore::feynkac.ppl.errors.ContextWarning")
def test_texts_that_do_not_fit_are_no_failure_of_many_problems_in_whatever_chunks():
    @fk.program
    async def overflows(n):
        await fk.factor("G", 0.0)
        if n == 1:
            raise fk.errors.ContextOverflow("too long")
        return n

    models = [overflows(n) for n in range(3)]
    alone = fk.infer(models, ENGINE, seed=0)
    assert alone[1].log_evidence == -math.inf
    for chunk in (1, 3):
        assert list(map(facts, fk.infer(models, ENGINE, seed=0, workers=Fake(chunk)))) == list(map(facts, alone))
    for one in ([models[1]], models[1]):
        with pytest.raises(fk.errors.AllParticlesDead, match="all 6 particles"):
            fk.infer(one, ENGINE, seed=0, workers=Fake(1))


def test_a_dead_worker_is_replaced_and_its_chunk_run_again():
    fake = Fake(3, deaths=lambda start, news: start in (0, 1))
    found = fk.infer(MODELS, ENGINE, seed=3, workers=fake)
    assert list(map(facts, found)) == list(map(facts, ALONE))
    chunks = [one for one in fake.log if type(one) is tuple and one[0] != "opened"]
    assert len(chunks) == 6
    assert set(chunks) == {(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10)}


def test_a_problem_that_kills_its_workers_loses_no_other():
    fake = Fake(3, deaths=lambda start, news: 4 in news.units)
    with pytest.raises(fk.errors.WorkerLost, match=r"problem 4 of 11, walk\(1, 1.4\) died.*it was killed") as caught:
        fk.infer(MODELS, ENGINE, seed=3, workers=fake)
    error: Any = caught.value
    assert list(error.failures) == [4]
    others = [i for i in range(11) if i != 4]
    assert [facts(error.posterior[i]) for i in others] == [facts(ALONE[i]) for i in others]
    assert [one for one in fake.log if one == (4,)] == [(4,)]  # once alone, when its chunk had been lost twice
    assert fake.log.count((3, 4, 5)) == 2


def test_ctrl_c_keeps_what_is_there():
    def interrupt(step):
        if len(seen) == 30:
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(step)

    seen: list[Any] = []
    found = fk.infer(MODELS, ENGINE, seed=3, workers=Fake(3), callbacks=[interrupt])
    stopped = [p.stopped for p in found]
    assert set(stopped) == {None, "interrupted"}
    done = [i for i, why in enumerate(stopped) if why is None]
    assert [facts(found[i]) for i in done] == [facts(ALONE[i]) for i in done]
    assert any(len(found[i]) > 0 and found[i].guarantee == "prefix" for i in range(11) if i not in done)
    assert len(seen) == 30  # and no callback is called after it


def test_ctrl_c_in_a_wave_gives_that_wave_up():
    models = [walk(2), walk(4, 1.0, "interrupts"), walk(3)]
    found = fk.infer(models, ENGINE, seed=3, workers=fk.InProcess(1))
    assert [(len(p), p.stopped) for p in found] == [(12, None), (12, "interrupted"), (0, "interrupted")]
    assert (len(found[1].steps), found[1].guarantee) == (1, "prefix")


def test_ctrl_c_before_anything_is_there_is_raised():
    def models():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fk.infer(models, ENGINE, seed=3, workers=Fake())


def test_what_is_wrong_is_said_before_a_worker_is_woken():
    fake = Fake()
    for models, error, words in (
        ([walk], TypeError, "not ProgramFactory; call the program with its arguments first"),
        (walk, TypeError, "not ProgramFactory; call the program with its arguments first"),
        ([walk(1), 3], TypeError, "takes Feynman-Kac models, not int"),
        (3, TypeError, "takes Feynman-Kac models, not int"),
    ):
        with pytest.raises(error, match=words):
            fk.infer(models, ENGINE, seed=0, workers=fake)
    with pytest.raises(TypeError, match="infer takes an engine with its settings"):
        fk.infer(MODELS, fk.SMC, seed=0, workers=fake)
    with pytest.raises(TypeError, match=r"workers= says who works, such as fk.Ray\(num_workers=2\), and is not 4"):
        fk.infer(MODELS, ENGINE, seed=0, workers=4)
    assert fake.log == []
    with pytest.raises(TypeError, match="the function that makes the models returned 7, and no list of them"):
        fk.infer(lambda: 7, ENGINE, seed=0, workers=fake)
    with pytest.raises(ZeroDivisionError):
        fk.infer(lambda: 1 // 0, ENGINE, seed=0, workers=fake)


def test_settings_are_checked():
    for words, make in (
        ("num_workers must be a positive integer", lambda: Ray(0)),
        ("chunk must be a positive integer", lambda: Ray(chunk=0)),
        ("chunk must be a positive integer", lambda: fk.InProcess(1.5)),
        ("gpus must be a number from 0 up", lambda: Ray(gpus=-1)),
        ("max_retries must be an integer from 0 up", lambda: Ray(max_retries=True)),
    ):
        with pytest.raises(ValueError, match=words):
            make()


# -- on their way -----------------------------------------------------------------------------------------------


def test_posteriors_and_steps_are_the_same_after_the_way():
    for posterior in ALONE[:3]:
        assert facts(unpack(pack(posterior), "it")) == facts(posterior)
        steps = posterior.steps
        assert repr(list(unpack_steps(pack_steps(steps)))) == repr(list(steps))


def test_errors_arrive_in_their_own_type():
    pytest.importorskip("ray")
    from ray import cloudpickle

    for error in (Trouble(7, "why"), KeyError("k"), UnicodeDecodeError("utf8", b"a", 0, 1, "bad"), OSError(2, "no")):
        try:
            raise error
        except Exception as raised:
            arrived = cloudpickle.loads(cloudpickle.dumps(carried(raised)))
        assert type(arrived) is type(error)
        assert str(arrived) == str(error)
        assert "in test_errors_arrive_in_their_own_type" in arrived.__notes__[0]
    held = Trouble(7, "why")
    held.lock = __import__("threading").Lock()  # type: ignore[attr-defined]
    arrived = cloudpickle.loads(cloudpickle.dumps(carried(held)))
    assert type(arrived) is fk.errors.WorkerError
    assert str(arrived) == "Trouble: why (7)"


def test_a_model_behind_a_server_is_sent_without_weights_or_keys(monkeypatch):
    pytest.importorskip("httpx2")
    cloudpickle = pytest.importorskip("cloudpickle")
    from feynkac.models.testing import FakeServer, tiny_tokenizer

    @fk.program
    async def writes(lm, topic):
        text = await fk.sample("a", lm.tokens(lm.prompt(topic), 3))
        await fk.factor("G", 0.1 * len(str(text)))
        return await fk.sample("b", lm.tokens(text, 3))

    monkeypatch.setenv("FEYNKAC_API_KEY", "sk-secret")
    with FakeServer(api_key="sk-secret") as server:
        lm = fk.models.ServerLM(server.url, tokenizer=tiny_tokenizer(), api_key="sk-secret")
        models = [writes(lm, topic) for topic in ("rivers", "hills", "the sea")]
        sent = cloudpickle.dumps(models)
        assert len(sent) < 20_000
        assert b"sk-secret" not in sent
        found = fk.infer(cloudpickle.loads(sent), ENGINE, seed=0, workers=Fake(2))
        assert [p.values for p in found] == [p.values for p in fk.infer(models, ENGINE, seed=0)]


def test_what_cannot_be_sent_is_named():
    pytest.importorskip("ray")
    lock = __import__("threading").Lock()

    @fk.program
    async def holds(name, thing):
        return 1.0

    def opened(models, engine=ENGINE):
        Ray().open(Job(models, engine, 0, None, False), None, False)

    with pytest.raises(fk.errors.CannotSend, match=r"holds\('b', <unlocked.*cannot pickle.*: pass a function that"):
        opened([holds("a", 1), holds("b", lock)])
    with pytest.raises(fk.errors.CannotSend, match=r"what <function .* refers to cannot be sent.*make it inside"):
        opened(lambda: [holds("a", lock)])

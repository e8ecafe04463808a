"""Threads: what several do at once is what each would have done alone."""

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers as hf
from random_models import random_weights

import feynkac as fk
from feynkac.models.rewards import Classifier, Grader, Judge, StepTokenPRM
from feynkac.models.testing import tiny_lm, tiny_tokenizer
from feynkac.ppl.memory import Memory, afresh
from feynkac.ppl.running import collector
from feynkac.ppl.score import evaluate

THREADS = 4


@pytest.fixture(autouse=True)
def _often():
    """Let threads change places often, so that what can go wrong does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(fn, items):
    """``fn`` of each item, each in a thread of its own, all begun together."""
    together = threading.Barrier(len(items))

    def begin(item):
        together.wait()
        return fn(item)

    with ThreadPoolExecutor(len(items)) as threads:
        return list(threads.map(begin, items))


@fk.program
async def story(lm, rewards, prompt):
    text = lm.prompt(prompt)
    for i in range(3):
        text = await fk.sample("words", lm.tokens(text, 2) if i % 2 else lm.until(text, "e", max_tokens=4))
        await fk.factor("mass", lm.log_mass(text, np.arange(lm.vocab_size) % 3 > 0))
        await fk.factor("odd", lm.score(text) / 7)
        for reward in rewards:
            await fk.factor("reward", reward("Who?", [str(text) + "."]).log())
    return text


def same(one, other):
    """Whether two runs drew the same; numbers agree but for rounding, which depends on what is still in the cache."""
    assert [text.tokens for text in one.values] == [text.tokens for text in other.values]
    assert np.allclose(one.log_weights, other.log_weights, atol=1e-4)
    assert one.log_evidence == pytest.approx(other.log_evidence, abs=1e-4)


@pytest.mark.parametrize("cache_bytes", [2 << 30, 1 << 18], ids=["roomy", "tight"])
def test_threads_that_share_a_model_draw_what_each_would_draw_alone(cache_bytes):
    prompts = ["Once upon a time", "Once upon a hill", "The sea said:", "Once upon a time"]
    lm = tiny_lm(cache_bytes=cache_bytes)
    prm = StepTokenPRM(lm, tag="?")

    def run(seed, lm=lm, prm=prm):
        return fk.infer(story(lm, [prm], prompts[seed]), fk.SMC(6, ess_threshold=0.9), seed=seed)

    alone = []
    for seed in range(THREADS):
        other = tiny_lm(cache_bytes=cache_bytes)
        alone.append(run(seed, other, StepTokenPRM(other, tag="?")))
    for _ in range(2):
        for one, other in zip(alone, at_once(run, range(THREADS))):
            same(one, other)


def test_threads_share_rewards_tokenizers_and_constraints():
    config = hf.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_labels=2, pad_token_id=1, max_position_embeddings=64,
    )  # fmt: skip
    model = random_weights(lambda: hf.LlamaForSequenceClassification(config))
    lm = tiny_lm()
    cut = Classifier(model, tiny_tokenizer(), label=1, truncate="left", max_length=6)
    short = Classifier(model, tiny_tokenizer(), label=1, truncate="right", max_length=4)
    judge, grader = Judge(lm, "Polite? {text}"), Grader(lm, "How polite, from 1 to 5? {text}")
    digits = fk.constraints.regex(lm, "[0-9]{1,6}")
    texts = ["The sea said: who are you?", "Yes, said the hill.", "I am the rain that fell.", "Once."]

    def said(i):
        out = []
        for k in range(6):
            text = f"{texts[i]} {k}"
            out.append(evaluate([cut(text), short(text), judge(text), grader(text)]))
            out.append([len(lm.encode(text)), float(digits.allowed(lm.encode(f"{i}{k}")).sum())])
        return out

    with afresh():
        model.train()  # a pass of one thread must not put it back while another's goes on
        right = [said(i) for i in range(THREADS)]
    for _ in range(3):
        cut.memory, short.memory, judge.memory, grader.memory = (Memory[float](100) for _ in range(4))
        for one, other in zip(right, at_once(said, range(THREADS))):
            for a, b in zip(one, other):
                assert a == pytest.approx(b, abs=1e-4)
    assert model.training


@fk.program
async def walk(steps):
    x, path = 0.0, []
    for t in range(steps):
        x = await fk.sample("x", fk.dist.Normal(x, 1.0))
        k = await fk.sample("k", torch.distributions.Gamma(torch.tensor(2.0 + t), torch.tensor(1.0)))
        path.append(await fk.call("double", lambda value: 2 * value, x))
        with fk.handlers.scope(prefix="seen"):
            await fk.observe("y", fk.dist.Normal(x, 1.0), 0.3 * t)
        a, b = await fk.gather(side(x), side(-x))
        await fk.factor("f", -0.1 * abs(a - b) - 0.01 * float(k))
    fk.deterministic("path", path)
    return x


@fk.program
async def side(x):
    return await fk.sample("z", fk.dist.Normal(x, 0.5))


@pytest.mark.slow
def test_threads_run_programs_of_their_own():
    engines = [fk.SMC(12), fk.BestOfN(12), fk.SMC(8, ess_threshold=1.0), fk.ImportanceSampling(16)]

    def run(i):
        return fk.infer(walk(6), engines[i % 4], seed=i)

    right = [run(i) for i in range(8)]
    enabled = gc.isenabled()
    for _ in range(3):
        for one, other in zip(right, at_once(run, range(8))):
            assert list(one.values) == list(other.values)
            assert one.log_evidence == other.log_evidence or np.isnan(one.log_evidence)
            assert one.cost.reward_calls == other.cost.reward_calls
    assert gc.isenabled() == enabled


def test_an_epoch_belongs_to_its_thread():
    memory, inside, out = Memory[float](10), threading.Event(), threading.Event()
    memory.put("a", 1.0)

    def apart(_):
        with afresh():
            inside.set()
            out.wait(10)
            return memory.get("a")

    def meanwhile(_):
        inside.wait(10)
        found = memory.get("a")
        out.set()
        return found

    assert at_once(lambda fn: fn(None), [apart, meanwhile]) == [None, 1.0]


def test_a_memory_may_be_shared():
    memory = Memory[float](8)

    def use(i):
        for k in range(3000):
            memory.put((i + k) % 20, float((i + k) % 20))
            found = memory.get(k % 20)
            assert found is None or found == k % 20
        return True

    assert all(at_once(use, range(THREADS)))


def test_the_collector_is_on_again_when_waves_of_threads_have_overlapped():
    assert gc.isenabled()

    def waves(_):
        for _ in range(300):
            collector.rest()
            collector.rest()
            collector.wake()
            collector.wake()

    at_once(waves, range(THREADS))
    assert gc.isenabled()
    gc.disable()
    try:
        at_once(waves, range(THREADS))
        assert not gc.isenabled()
    finally:
        gc.enable()


def usual_thresholds():
    with collector.patience():  # another test may have cut a run short
        pass
    return gc.get_threshold()


def test_the_collectors_thresholds_are_put_back_by_the_next_run_where_the_end_of_one_was_cut_short(monkeypatch):
    before = usual_thresholds()

    def cut(*thresholds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), collector.patience():
        monkeypatch.setattr(gc, "set_threshold", cut)
    monkeypatch.undo()
    assert gc.get_threshold() == (*before[:2], 8 * before[2])
    assert usual_thresholds() == before


def test_what_ctrl_c_left_locked_is_let_go_of_by_the_threads_next_run():
    collector._Runs.lock.__enter__()  # as if the end of a section had been cut off
    before = usual_thresholds()
    found = []
    other = threading.Thread(target=lambda: found.append(usual_thresholds()), daemon=True)
    other.start()
    other.join(timeout=30)
    assert found == [before]


def test_the_collector_looks_at_what_is_young_more_rarely_where_there_are_many_particles():
    young = usual_thresholds()[0]
    for particles, most in ((1, young), (1_000, 200_000), (10**9, 200_000)):
        with collector.patience(particles):
            assert gc.get_threshold()[0] == most
    assert usual_thresholds()[0] == young


def test_the_collectors_thresholds_are_what_they_were_when_runs_of_threads_have_overlapped():
    before = usual_thresholds()

    @fk.program
    async def coin():
        seen.add(gc.get_threshold())
        await fk.factor("G", float(await fk.sample("heads", fk.dist.Bernoulli(0.5))))
        assert fk.infer(die(), fk.SMC(2), seed=0).complete.all()

    @fk.program
    async def die():
        await fk.sample("face", fk.dist.DiscreteUniform(1, 6))

    @fk.program
    async def broken():
        await fk.factor("G", 0.0)
        raise KeyError

    def runs(seed):
        fk.infer(coin(), fk.SMC(2), seed=seed)
        with pytest.raises(KeyError):
            fk.infer(broken(), fk.SMC(2), seed=seed)

    seen = set()
    at_once(runs, range(THREADS))
    assert seen == {(*before[:2], 8 * before[2])}
    assert gc.get_threshold() == before

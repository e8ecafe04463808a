"""A chat behind an API of strings: whole answers without log-probabilities, and clear refusals of everything else."""

import math
import pickle

import numpy as np
import pytest

import feynkac as fk
from feynkac.models.rewards.judges.judge import Grader, Judge
from feynkac.models.testing import Bigram, FakeServer, Faults
from feynkac.ppl.errors import (
    CannotScore,
    ContextWarning,
    ServerError,
    TokenizerMismatch,
    Unsupported,
    UnusableAnswer,
)
from feynkac.ppl.score import evaluate


@pytest.fixture(scope="module")
def running():
    with FakeServer(context=200) as server:
        words = [server.tokenizer.encode(word)[0] for word in ("a", "b", "Y", "N", "1", "2")]
        server._model.law = Bigram(len(server.tokenizer), (*words, server.tokenizer.eos_token_id), seed=3)
        yield server


@pytest.fixture
def server(running):
    running.faults = Faults()
    for kept in (running.requests, running.seeds, running.paths):
        kept.clear()
    return running


@pytest.fixture
def lm(server):
    return fk.models.ChatLM(fk.models.Client(server.url, backoff=0.001), "fake")


few_as = fk.reward(kind="real")(lambda text: -float(str(text).count("a")))


@fk.program
async def two_answers(lm):
    first = await fk.sample("draft", lm.complete(lm.prompt("Who?"), max_tokens=6))
    await fk.factor("draft is good", few_as(first) / 0.5)
    said = [("user", "Who?"), ("assistant", first), ("user", "Again?")]
    messages = [{"role": role, "content": content} for role, content in said]
    second = await fk.sample("answer", lm.complete(lm.prompt(messages), max_tokens=6))
    await fk.factor("answer is good", few_as(second) / 0.5)
    return second


@pytest.mark.parametrize(
    "engine",
    [
        fk.BestOfN(6),
        fk.SMC(6),
        fk.SelfConsistency(6),
        fk.ImportanceSampling(6),
        fk.ParticleFilter(6),
        fk.BeamSearch(4, width=2),
        fk.TreeSearch(6),
        fk.SuffixMH(4),
    ],
    ids=lambda engine: type(engine).__name__,
)
def test_engines_that_need_no_log_probabilities(server, lm, engine):
    posterior = fk.infer(two_answers(lm), engine, seed=0)
    again = fk.infer(two_answers(lm), engine, seed=0)
    assert posterior.values == again.values
    assert posterior.best().lm is lm or posterior.best().identity == "fake"
    assert "assistant: " in posterior.best().prompt
    assert posterior.cost.requests == len(server.requests) // 2
    assert 0 < posterior.cost.tokens_out < posterior.cost.tokens_in


def test_answers_follow_the_law_of_the_chat(server, lm):
    """The mean weight of SMC is unbiased for the exact evidence, which the law of the first token counts up."""

    @fk.program
    async def one_token(lm):
        text = await fk.sample("answer", lm.complete(lm.prompt("Who?"), max_tokens=1, temperature=0.3))
        await fk.factor("weight", 0.9 * str(text).count("a") - 0.4 * str(text).count("N"))
        return text

    tokenizer = server.tokenizer
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who?"}], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    logits = server._model.law(tuple(ids)) / 0.3
    law = np.exp(logits - np.logaddexp.reduce(logits))
    spelled = [tokenizer.decode([i]) for i in range(300)]
    exact = sum(law * [math.exp(0.9 * (string == "a") - 0.4 * (string == "N")) for string in spelled])
    posterior = fk.infer(one_token(lm), fk.ImportanceSampling(400), seed=0)
    ratios = np.exp(posterior.log_weights) / exact
    # One comparison at |z| < 4.265: a correct model fails with probability 2e-5.
    error = np.std(ratios, ddof=1) / math.sqrt(len(ratios))
    assert abs(np.mean(ratios) - 1) < 4.265 * error
    assert error < 0.03


def test_texts_are_values_that_are_saved(server, lm, tmp_path):
    posterior = fk.infer(two_answers(lm), fk.SMC(4), seed=1)
    posterior.save(tmp_path / "p")
    loaded = fk.Posterior.load(tmp_path / "p")
    assert loaded.values == posterior.values
    text = lm.attach(loaded.values[0])
    assert lm.attach(text) is text
    assert bytes(text.tokens).decode() == str(text) == text.steps[0]
    assert text.full == text.prompt + str(text)
    assert pickle.loads(pickle.dumps(lm)).identity == "fake"
    one, two = lm.prompt("Who?"), lm.prompt([{"role": "user", "content": "Who?"}])
    assert one != two or one.prompt_tokens == two.prompt_tokens
    with pytest.raises(TypeError, match=r"contents that are strings or texts, not .*image"):
        lm.prompt([{"role": "user", "content": [{"type": "image_url", "image_url": "http://host/a.png"}]}])
    with pytest.raises(TypeError, match="and not its name"):
        lm.prompt([{"role": "user", "content": "Who?", "name": "Ann"}])
    with pytest.raises(TokenizerMismatch, match=r"no chat: use lm\.prompt"):
        lm.attach(fk.models.Text("tiny", "Who?", (1, 2), fingerprint="of a tokenizer"))


def test_a_finished_answer_is_itself_and_one_that_was_cut_off_cannot_go_on(server, lm):
    drawn = [fk.simulate(two_answers(lm), seed=seed).value for seed in range(12)]
    done = next(text for text in drawn if text.finished)
    cut = next(text for text in drawn if not text.finished)
    assert (done.finish_reason, cut.finish_reason) == ("eos", None)
    server.requests.clear()
    again = lm.complete(done).sample_batch([lm.complete(done)], np.array([12345], np.uint64))
    assert again.values == [done]
    assert not server.requests
    with pytest.raises(Unsupported, match=r"cut off at its most tokens.*raise max_tokens="):
        lm.complete(cut)


def test_all_that_needs_tokens_refuses_by_name(lm):
    text = lm.prompt("Who?")
    for name in ("tokens", "until", "line", "sentence", "next_token", "score", "log_mass", "read", "next_log_probs"):
        with pytest.raises(Unsupported, match=rf"<ChatLM fake at .*> has no lm\.{name}: .*fk\.models\.ServerLM"):
            getattr(lm, name)(text)
    with pytest.raises(Unsupported, match=r"no lm\.append"):
        text.append("so")
    with pytest.raises(Unsupported, match=r"no lm\.cut"):
        text.cut(to=0)
    with pytest.raises(Unsupported, match=r"ServerLM"):
        fk.constraints.regex(lm, "a+")
    with pytest.raises(Unsupported, match=r"no lm\.until"):
        fk.simulate(fk.models.think(lm, text), seed=0)


def test_all_that_needs_log_probabilities_refuses_by_name(server, lm):
    @fk.program
    async def observed():
        await fk.sample("answer", lm.complete(lm.prompt("Who?")), obs=lm.prompt("So"))

    server.requests.clear()
    with pytest.raises(CannotScore, match=r"cannot score an answer that is given.*fk\.models\.ServerLM"):
        fk.infer(observed(), fk.SMC(3), seed=0)
    assert not server.requests
    for engine in (
        fk.ParticleGibbs(3, sweeps=2, ancestor_sampling=True),
        fk.SuffixMH(4, power=2.0),
        fk.PowerSampling(3),
    ):
        with pytest.raises((CannotScore, Unsupported)):
            fk.infer(two_answers(lm), engine, seed=0)


def test_what_is_sent(server):
    lm = fk.models.ChatLM(server.url, "fake", extra={"seed": None, "max_tokens": None, "max_completion_tokens": 3})
    answer = lm.complete(lm.prompt("Who?"), temperature=0.5, top_k=7)
    answer.sample_batch([answer], np.array([12345], np.uint64))
    assert server.requests == [
        (
            "/v1/chat/completions",
            {
                "model": "fake",
                "messages": [{"role": "user", "content": "Who?"}],
                "temperature": 0.5,
                "top_p": 1.0,
                "top_k": 7,
                "max_completion_tokens": 3,
            },
        )
    ]
    plain = fk.models.ChatLM(server.url, "fake")
    fk.infer(two_answers(plain), fk.BestOfN(5), seed=0)
    assert len({*server.seeds}) == 10  # one for each draw
    assert all(0 <= seed < 2**62 for seed in server.seeds)


def test_a_limited_rate_is_waited_for_and_a_late_answer_is_an_error(server, lm):
    expected = fk.infer(two_answers(lm), fk.SMC(6), seed=0)
    server.faults = Faults(limited=9, retry_after="0.01", unavailable=0.2)
    lm.client.retries = 12
    posterior = fk.infer(two_answers(lm), fk.SMC(6), seed=0)
    assert posterior.values == expected.values
    assert posterior.log_evidence == expected.log_evidence
    assert posterior.cost.requests > expected.cost.requests + 9
    lm.client.timeout, server.faults = 0.02, Faults(seconds=0.05)
    with pytest.raises(ServerError, match=r"not answered in 0\.02 s; the server promises no seeds"):
        fk.infer(two_answers(lm), fk.SMC(2), seed=0)
    lm.seeded = True
    assert fk.infer(two_answers(lm), fk.SMC(6), seed=0).values == expected.values


def test_a_wrong_model_and_other_forms(server, lm, monkeypatch):
    with pytest.raises(ServerError, match="model `other` does not exist"):
        fk.simulate(two_answers(fk.models.ChatLM(server.url, "other")), seed=0)
    for answer, what in [
        ({}, "not one choice"),
        ({"choices": [{}, {}]}, "not one choice"),
        ({"choices": [{"finish_reason": "stop"}]}, "no content"),
        ({"choices": [{"message": {"content": 3}}]}, "no content"),
        ({"choices": [{"message": {"content": "I"}, "finish_reason": "content_filter"}]}, "ended by 'content_filter'"),
        ({"choices": [{"message": {"content": None}, "finish_reason": "tool_calls"}]}, "ended by 'tool_calls'"),
    ]:
        monkeypatch.setattr(lm.client, "post", lambda *_, answer=answer, **__: [answer])
        with pytest.raises(UnusableAnswer, match=what):
            fk.simulate(two_answers(lm), seed=0)
    for prompt, error in [(3, TypeError), ([], ValueError), (["Who?"], TypeError), ([{"role": "user"}], TypeError)]:
        with pytest.raises(error):
            lm.prompt(prompt)


def test_a_prompt_that_is_too_long_ends_its_particle_alone(server, lm):
    @fk.program
    async def model():
        n = await fk.sample("n", fk.dist.Categorical(probs=np.array([0.5, 0.5])))
        await fk.sample("answer", lm.complete(lm.prompt("a " * (1 + 300 * int(n))), max_tokens=3))
        await fk.factor("weight", 0.0)
        return int(n)

    with pytest.warns(ContextWarning, match="too long for <ChatLM"):
        posterior = fk.infer(model(), fk.ImportanceSampling(8), seed=0)
    alive = posterior.log_weights > -np.inf
    assert 0 < alive.sum() < 8
    assert {value for value, lives in zip(posterior.values, alive) if lives} == {0}


def test_judges_read_the_first_token(server, lm):
    judge = Judge(lm, "Is it so? {text}", yes=("Y", " Y"), no=("N",))
    grader = Grader(lm, "How good, from 1 to 2? {text}", grades={"1": 1.0, "2": 2.0})
    tokenizer, law = server.tokenizer, server._model.law

    def odds(question, ways):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        mass = np.array([np.exp(law(tuple(ids))[tokenizer.encode(way)[0]]) for way in ways])
        return mass / mass.sum()

    found = evaluate([judge("a"), judge("b"), grader("a")])
    yes = [odds(f"Is it so? {text}", ["Y", "N"])[0] for text in "ab"]
    grade = odds("How good, from 1 to 2? a", ["1", "2"]) @ [1.0, 2.0]
    assert found == pytest.approx([*yes, grade], rel=1e-9)
    assert server.requests[0][1]["top_logprobs"] == 20
    assert len(server.requests) == 3


def test_judges_say_what_they_cannot_tell(server, lm):
    with pytest.raises(UnusableAnswer, match=r"would answer .* and none of .*'Yes', 'No'.*say in the question"):
        evaluate([Judge(lm, "Is it so? {text}")("a")])
    server.faults.lacks = {"logprobs"}
    with pytest.raises(UnusableAnswer, match="no top_logprobs"):
        evaluate([Judge(lm, "So? {text}", yes=("Y",), no=("N",))("a")])
    with pytest.raises(ValueError, match="the answer '10' begins with the answer '1'"):
        Grader(lm, "How good? {text}", grades={"1": 1.0, "10": 10.0})

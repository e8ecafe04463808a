"""What a server does not do is found out when it is met, and refused by name with the flag to set."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

pytest.importorskip("httpx2")
from served import Direct, few_tokens, served

import feynkac as fk
from feynkac.models.served.completions import Completions
from feynkac.models.served.served_lm import ServedLM
from feynkac.models.served.transport import used
from feynkac.models.testing import FakeServer, Faults, tiny_tokenizer
from feynkac.ppl.errors import Unsupported, UnusableAnswer
from walks import keys_of

ALL = {"seed", "log_prob", "log_prob_warped", "score", "few", "mask"}


def drawn(step, n=1):
    return step.sample_batch([step] * n, keys_of(n, 1))


@pytest.mark.parametrize(
    ("lacks", "missing"),
    [
        ((), set()),
        (("usage", "/tokenize", "stop_reason", "prompt_logprobs"), set()),
        (("logprobs",), ALL - {"seed"}),
        (("seed",), {"seed"}),
        (("echo",), {"score"}),
        (("logprob_token_ids",), {"few"}),
        (("allowed_token_ids",), {"mask"}),
        (("top_k",), {"log_prob_warped", "mask"}),
        (("temperature",), {"log_prob_warped", "mask"}),
        (("return_tokens_as_token_ids",), {"log_prob_warped", "few", "mask"}),
    ],
    ids=str,
)
def test_what_a_server_does_not_do_is_found_out(lacks, missing):
    lm, _ = served(lacks=lacks)
    assert lm.can == ALL - missing
    assert set(lm.lacks) == missing


def test_there_are_no_variants_of_weights_elsewhere():
    lm, _ = served()
    with pytest.raises(fk.errors.Unsupported, match="no weights here that could be run otherwise"):
        lm.variant(layers=1)


@pytest.mark.parametrize(
    ("usage", "found"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}, (5, 2)),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}, (0, 0)),
        ({"prompt_tokens": "3", "completion_tokens": None, "prompt_tokens_details": [4]}, (0, 0)),
        ("much", (0, 0)),
    ],
    ids=str,
)
def test_usage_is_what_a_server_says_in_whole_numbers(usage, found):
    assert used({"usage": usage}) == found


def test_log_probs_of_another_law_are_not_taken_for_those_of_the_draws(tmp_path):
    lm, client = served(mode="raw_logprobs")
    assert set(lm.lacks) == {"log_prob_warped", "mask"}
    assert all("--logprobs-mode processed_logprobs" in why for why in lm.lacks.values())
    text = lm.prompt("Once")
    warm = lm.tokens(text, 3, temperature=0.7)
    draws = drawn(warm, 2)
    assert draws.log_prob is None
    assert math.isnan(draws.values[0].log_prob)
    assert drawn(lm.tokens(text, 3, temperature=1, top_p=1.0, top_k=300, min_p=0)).log_prob is not None
    assert drawn(lm.tokens(text, 3, temperature=0)).log_prob.tolist() == [0.0]
    client.asked.clear()
    with pytest.raises(Unsupported, match=r"given tokens.*0\.7.*processed_logprobs"):
        warm.log_prob_batch([warm], draws.values[:1])
    with pytest.raises(Unsupported, match=r"under a mask.*ServedLM fake at http://nowhere.*processed_logprobs"):
        lm.next_token(text, mask=np.ones(300, bool))
    with pytest.raises(Unsupported, match=r"lm.log_mass.*0\.7.*processed_logprobs"):
        lm.log_mass(text, np.arange(300) < 3, temperature=0.7)
    assert client.asked == []

    @fk.program
    async def writes(lm):
        text = lm.prompt("Once")
        for _ in range(2):
            text = await fk.sample("two", lm.tokens(text, 2, temperature=0.7))
            await fk.factor("likes", 0.1 * len(str(text)))
        return text

    posterior = fk.infer(writes(lm), fk.SMC(4), seed=0)
    posterior.save(tmp_path / "run.fk")
    again = fk.Posterior.load(tmp_path / "run.fk").values
    assert [text.tokens for text in again] == [text.tokens for text in posterior.values]
    assert math.isnan(again[0].log_prob)
    assert fk.infer(writes(lm), fk.BestOfN(4), seed=0).best() is not None
    with pytest.raises(fk.errors.FeynkacError, match="log-prob"):
        fk.infer(writes(lm), fk.SuffixMH(4, power=2.0), seed=0)


def test_steps_of_one_wave_are_told_apart_by_whether_their_log_probs_are_known():
    lm, _ = served(mode="raw_logprobs")

    @fk.program
    async def both(lm):
        one, two = await fk.gather(
            fk.sample("own", lm.tokens(lm.prompt("Once"), 2)),
            fk.sample("warm", lm.tokens(lm.prompt("Once"), 2, temperature=0.5)),
        )
        await fk.factor("no", -0.1)
        return one.log_prob, two.log_prob

    known, unknown = fk.simulate(both(lm), seed=0).value
    assert known < 0
    assert math.isnan(unknown)


def test_what_needs_laws_or_hidden_states_is_refused_before_anything_is_asked():
    lm, client = served()
    text = lm.prompt("Once")
    constraints = fk.constraints
    refused = {
        "lm.read": lambda: lm.next_log_probs(text),
        "hidden states": lambda: lm.read(text, "hidden"),
        "a step times": lambda: constraints.constrained(lm.tokens(text, 2), constraints.Where(lm, str.isalpha)),
        "a Language": lambda: constraints.Language(lm, text),
        "side by side": lambda: lm.together([text, text], 2),
    }
    for what, call in refused.items():
        with pytest.raises(Unsupported, match=f"(?s){what}.*TransformersLM"):
            call()
    few, _ = served(lacks=("logprob_token_ids",))
    with pytest.raises(Unsupported, match=r"reward 'judge' needs.*a newer vLLM"):
        fk.rewards.Judge(few, "Good? {text}")
    with pytest.raises(Unsupported, match=r"log_mass of 129 tokens.*128"):
        lm.log_mass(text, np.arange(300) < 129)
    for law, what in [({"min_p": 0.1, "top_p": 0.9}, "min_p and top_p"), ({"temperature": 1e-3}, "temperature=0.001")]:
        with pytest.raises(Unsupported, match=what):
            lm.tokens(text, 2, **law)
    with pytest.raises(Unsupported, match="engines mask first"):
        lm.next_token(text, mask=np.ones(300, bool), top_k=3)
    assert client.asked == []


@pytest.mark.parametrize("spoilt", [math.nan, None, -9999.0, 0.5, "no"], ids=str)
def test_log_probs_that_cannot_be_are_named(spoilt):
    lm, client = served()
    client.server.faults.log_prob = spoilt
    with pytest.raises(UnusableAnswer, match=r"nowhere.*(log-probability is|no probability)"):
        drawn(lm.tokens(lm.prompt("Once"), 2))


def test_answers_that_leave_out_what_they_told_before_are_named():
    parts = {"token_ids": "return_token_ids", "logprobs": "without their log-prob", "choices": "not one choice"}
    for field, what in parts.items():
        lm, client = served()
        client.server.faults.lacks = (field,)
        with pytest.raises(UnusableAnswer, match=what):
            drawn(lm.tokens(lm.prompt("Once"), 2))
    with pytest.raises(UnusableAnswer, match=r"return_token_ids.*ChatLM"):
        served(lacks=("token_ids",))


def test_what_a_server_never_says_has_probability_zero():
    table, _ = few_tokens()
    lm, _ = served(table)
    outside = np.zeros(300, bool)
    outside[[250, 251]] = True
    scores = [lm.log_mass(lm.prompt("The"), outside), lm.score(lm.prompt("The"), "zz")]
    assert fk.ppl.score.evaluate(scores) == [-math.inf, -math.inf]


class OneSeed(Direct):
    """A server that draws all from one seed."""

    def _answer(self, path, payload, refusals):
        return super()._answer(path, {**payload, "seed": 0}, refusals)


def test_twins_are_found_out():
    client = OneSeed(FakeServer())
    with pytest.raises(UnusableAnswer, match=r"nowhere draws the same under all seeds"):
        ServedLM(Completions(client, None), tiny_tokenizer())


def test_an_end_that_only_the_server_knows_is_named():
    table, support = few_tokens()
    lm, _ = served(table, eos=[7])
    with pytest.raises(UnusableAnswer, match=rf"ends texts at the token {support[-1]}.*<eos>.*eos=, now \[7\]"):
        drawn(lm.tokens(lm.prompt("The"), 40), 4)


def test_another_model_or_tokenizer_is_named():
    client = Direct(FakeServer(model="mine"))
    with pytest.raises(fk.errors.ServerError, match=r"no model 'yours'.*serves 'mine'"):
        Completions(client, "yours")
    transport = Completions(client, None)
    with pytest.raises(fk.errors.TokenizerMismatch, match=r"nowhere reads.*tokenizer="):
        ServedLM(transport, tiny_tokenizer(290))
    lm = ServedLM(transport, tiny_tokenizer())
    client.server.model = "other"
    with pytest.raises(fk.errors.ServerError, match="mine"):
        drawn(lm.tokens(lm.prompt("Once"), 2))


def test_a_context_that_the_server_does_not_tell_overflows_by_name():
    lm, _ = served(lacks=("max_model_len",), context=40)
    text = lm.prompt(list(range(3, 43)))
    with pytest.raises(fk.errors.ContextOverflow, match="too long for the server"):
        drawn(lm.tokens(text, 2))
    assert served(lacks=("max_model_len",), context=32)[0].context is None


# -- over HTTP -------------------------------------------------------------------------------------------------------


@fk.program
async def writes(lm):
    text = lm.prompt("Once")
    for _ in range(2):
        text = await fk.sample("line", lm.until(text, "e", max_tokens=6))
        await fk.factor("short", -0.1 * len(str(text)))
    return text


def test_over_http_all_is_the_same_also_where_requests_get_lost():
    table, _ = few_tokens(n=6)
    plain, _ = served(table)
    truth = fk.infer(writes(plain), fk.SMC(6), seed=0)
    with FakeServer(table, api_key="sk-secret") as server:
        client = fk.models.Client(server.url, api_key="sk-secret", limit=8, backoff=0.001, retries=40)
        lm = fk.models.ServerLM(client, tokenizer=tiny_tokenizer())
        assert "sk-secret" not in repr(vars(lm)) + repr(lm) + str(pickle.dumps(lm))
        server.faults = Faults(unavailable=0.2, reset=0.1, half=0.1)
        found = fk.infer(writes(lm), fk.SMC(6), seed=0)
        assert found.cost.requests > truth.cost.requests
        server.faults = Faults()
    assert [text.tokens for text in found.values] == [text.tokens for text in truth.values]
    assert found.log_evidence == truth.log_evidence
    assert found.cost.tokens_out == truth.cost.tokens_out


def test_a_server_that_dies_leaves_the_posterior_of_the_steps_before(monkeypatch):
    lm, client = served()
    answer = client.server.answer

    def dies(path, body):
        return (503, "gone") if len(client.asked) > 1 else answer(path, body)

    monkeypatch.setattr(client.server, "answer", dies)
    with pytest.raises(fk.errors.ServerError, match="gone") as caught:
        fk.infer(writes(lm), fk.SMC(4), seed=0)
    posterior = caught.value.posterior
    assert (len(posterior.steps), posterior.complete.tolist()) == (1, [False] * 4)


def test_a_copy_in_another_process_meets_the_server_itself():
    with FakeServer() as server:
        lm = fk.models.ServerLM(server.url, tokenizer=tiny_tokenizer(), sampling=fk.models.Sampling(0.7))
        again = pickle.loads(pickle.dumps(lm))
        assert again.sampling == lm.sampling
        step, other = lm.tokens(lm.prompt("Once"), 4), again.tokens(again.prompt("Once"), 4)
        assert drawn(step).values[0].tokens == drawn(other).values[0].tokens


def test_without_a_tokenizer_one_is_asked_for(tmp_path):
    with FakeServer() as server:
        with pytest.raises(fk.errors.FeynkacError, match=r"no tokenizer is found.*tokenizer="):
            fk.models.ServerLM(server.url, tokenizer=str(tmp_path))
        tiny_tokenizer().save_pretrained(tmp_path)
        (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')
        lm = fk.models.ServerLM(server.url, tokenizer=tmp_path)
        assert lm.eos == {1, 5}

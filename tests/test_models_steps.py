"""Steps as kernels: where they end, what they show, what they cost, and their log-probabilities."""

import math

import numpy as np
import pytest

from feynkac.models import Sampling
from feynkac.models.testing import EOS, tiny_lm
from feynkac.ppl import keys
from feynkac.ppl.errors import ContextOverflow, Unsupported
from feynkac.ppl.model import Kernel


def keyring(n, *path):
    return keys.fold(keys.root(7), *path, np.arange(n))


def one(step, seed=0):
    draws = step.sample_batch([step], keys.fold(keys.root(seed)))
    return draws.values[0], float(draws.log_prob[0])


def force(lm, monkeypatch, *tokens):
    """Make the model say the given tokens, one a step."""
    import torch

    from feynkac.models.local.passes import drawing

    script = iter(tokens)

    def scripted(logits, uniforms, *_):
        return torch.tensor([[next(script), -1.0]]).expand(len(uniforms), 2)

    monkeypatch.setattr(drawing, "drawn", scripted)


def ids(lm, *strings):
    return [token for string in strings for token in lm.encode(string)]


def every_kind(lm, text):
    mask = np.arange(lm.vocab_size) % 2 == 0
    return [
        lm.next_token(text),
        lm.next_token(text, mask=mask, temperature=1.3),
        lm.next_token(text, temperature=0),
        lm.tokens(text, 4, temperature=0.7),
        lm.tokens(text, 3, top_k=5),
        lm.until(text, ["e", " t"], max_tokens=6),
        lm.line(text, max_tokens=5, top_p=0.9),
        lm.sentence(text, max_tokens=6, min_p=0.02),
        lm.complete(text, max_tokens=7),
    ]


def test_steps_are_kernels_that_share_a_call():
    lm = tiny_lm()
    requests = every_kind(lm, lm.prompt("Once"))
    assert all(isinstance(request, Kernel) for request in requests)
    assert len({request.batch_key for request in requests}) == 1
    assert len({request.fingerprint for request in requests}) == len(requests)
    assert lm.tokens(lm.prompt("Once"), 2).batch_key != tiny_lm().tokens(lm.prompt("Once"), 2).batch_key


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_log_prob_batch_agrees_with_the_draws(scale):
    lm = tiny_lm(scale=scale)
    texts = [lm.prompt("Once upon"), lm.prompt("The sea said: who are").append(" you")]
    for t in range(6):
        requests = [request for text in texts for request in every_kind(lm, text)]
        draws = requests[0].sample_batch(requests, keyring(len(requests), t))
        again = requests[0].log_prob_batch(requests, draws.values)
        np.testing.assert_allclose(again, draws.log_prob, atol=1e-4)
        detached = [value.detach() for value in draws.values]
        np.testing.assert_allclose(requests[0].log_prob_batch(requests, detached), draws.log_prob, atol=1e-4)
        texts = [draws.values[3], draws.values[14]]


def test_text_log_prob_adds_up():
    lm = tiny_lm()
    text, first = one(lm.tokens(lm.prompt("Once"), 3))
    text, second = one(lm.line(text.append(" the"), max_tokens=4))
    assert text.log_prob == pytest.approx(first + second)
    assert len(text.steps) == 3


def test_values_that_do_not_fit_have_no_probability():
    lm = tiny_lm()
    lm.eos = frozenset()
    prompt = lm.prompt("Once")
    three = prompt.append("xyz")
    assert len(three.tokens) == 3

    def log_prob(step, value):
        return float(step.log_prob_batch([step], [value])[0])

    assert log_prob(lm.tokens(prompt, 3), three) > -math.inf
    assert log_prob(lm.tokens(prompt, 2), three) == -math.inf  # too long
    assert log_prob(lm.tokens(prompt, 4), three) == -math.inf  # too short
    assert log_prob(lm.until(prompt, "z", max_tokens=9), three) > -math.inf
    assert log_prob(lm.until(prompt, "y", max_tokens=9), three) == -math.inf  # would have ended before
    assert log_prob(lm.until(prompt, "q", max_tokens=9), three) == -math.inf  # would have gone on
    assert log_prob(lm.tokens(prompt.append("a"), 3), three) == -math.inf  # another history
    assert log_prob(lm.tokens(lm.prompt("The"), 3), three) == -math.inf  # another prompt
    mask = np.ones(lm.vocab_size, bool)
    mask[ids(lm, "x")] = False
    assert log_prob(lm.next_token(prompt, mask=mask), prompt.append("x")) == -math.inf
    assert log_prob(lm.next_token(prompt, mask=mask), prompt.append("y")) > -math.inf


def test_draws_do_not_depend_on_the_batch():
    lm = tiny_lm()
    requests = every_kind(lm, lm.prompt("Once upon")) + every_kind(lm, lm.prompt("Yes"))
    k = keyring(len(requests))
    together = requests[0].sample_batch(requests, k)
    other = tiny_lm()
    for i, request in enumerate(every_kind(other, other.prompt("Once upon")) + every_kind(other, other.prompt("Yes"))):
        alone = request.sample_batch([request], k[i : i + 1])
        assert alone.values[0] == together.values[i]
        assert alone.log_prob[0] == pytest.approx(together.log_prob[i], abs=1e-4)
    backwards = requests[0].sample_batch(requests[::-1], k[::-1])
    assert list(backwards.values)[::-1] == list(together.values)


def test_draws_follow_the_law_of_the_model():
    lm = tiny_lm()
    step = lm.next_token(lm.prompt("Once"), temperature=0.8)
    n = 20_000
    draws = step.sample_batch([step] * n, keyring(n))
    exact = np.exp(lm.next_log_probs(lm.prompt("Once"), temperature=0.8))
    counts = np.bincount([text.tokens[0] for text in draws.values], minlength=lm.vocab_size)
    z = (counts - n * exact) / np.sqrt(n * exact * (1 - exact))
    assert np.abs(z[n * exact > 50]).max() < 5.2  # 300 tokens: false alarm below 6e-5
    np.testing.assert_allclose(draws.log_prob, np.log(exact[[x.tokens[0] for x in draws.values]]), atol=1e-5)


def test_a_stop_string_inside_a_token_trims_the_display_only(monkeypatch):
    lm = tiny_lm()
    river = ids(lm, " river")
    assert len(river) == 1
    force(lm, monkeypatch, *river, *river)
    text, log_prob = one(lm.until(lm.prompt("The"), "iv", max_tokens=9))
    assert (str(text), text.tokens, log_prob) == (" r", tuple(river), -1.0)
    assert text.steps == (" r",)
    more, _ = one(lm.until(text, "v", include_stop=True))
    assert str(more) == " river riv"
    assert more.steps == (" r", " riv")


def test_the_stop_string_completed_first_counts(monkeypatch):
    lm = tiny_lm()
    force(lm, monkeypatch, *ids(lm, "x", "y", "z"))
    text, _ = one(lm.until(lm.prompt("The"), ["yz", "xyz", "y"], include_stop=True))
    assert str(text) == "xy"


@pytest.mark.parametrize(
    ("said", "shown", "rest"),
    [
        (["I", "t", " is", "."], None, ""),
        (["s", "o", "!", " The"], "so!", " The"),
        (["p", "i", " 3", ".", "1", "?", "\n"], "pi 3.1?", "\n"),
        (["N", "o", ".", '"'], 'No."', ""),
        (["s", "o", "?", "!", " I"], "so?!", " I"),
    ],
)
def test_sentences(monkeypatch, said, shown, rest):
    lm = tiny_lm()
    force(lm, monkeypatch, *ids(lm, *said, "x"))
    step = lm.sentence(lm.prompt("The"), max_tokens=len(ids(lm, *said)))
    text, _ = one(step)
    assert str(text) == ("".join(said) if shown is None else shown)
    assert len(text.tokens) == len(ids(lm, *said))
    more, _ = one(lm.sentence(text, max_tokens=1))
    assert more.steps[-1] == rest + "x"


def test_end_of_text_finishes_and_finished_texts_stay(monkeypatch):
    lm = tiny_lm()
    end = lm.tokenizer.convert_tokens_to_ids(EOS)
    with monkeypatch.context() as patch:
        force(lm, patch, *ids(lm, "x"), end)
        text, log_prob = one(lm.complete(lm.prompt("The")))
    assert (str(text), text.finish_reason, log_prob) == ("x", "eos", -2.0)
    assert text.tokens[-1] == end
    before = lm.forwarded
    for step in every_kind(lm, text):
        again, log_prob = one(step)
        assert again is text
        assert log_prob == 0.0
        assert step.log_prob_batch([step], [text])[0] == 0.0
    assert lm.forwarded == before
    reopened = text.append(" and")
    assert not reopened.finished
    assert str(reopened) == "x and"
    assert end not in reopened.tokens


def test_a_mask_conditions_and_an_impossible_one_kills():
    lm = tiny_lm()
    text = lm.prompt("Once")
    mask = np.zeros(lm.vocab_size, bool)
    mask[[70, 80]] = True
    none = np.zeros(lm.vocab_size, bool)
    requests = [lm.next_token(text, mask=mask), lm.next_token(text, mask=none), lm.next_token(text)]
    draws = requests[0].sample_batch(requests, keyring(3))
    assert draws.values[0].tokens[0] in (70, 80)
    assert draws.values[1] == text
    assert np.isneginf(draws.log_prob).tolist() == [False, True, False]
    log_p = lm.next_log_probs(text)
    token = draws.values[0].tokens[0]
    assert draws.log_prob[0] == pytest.approx(log_p[token] - np.logaddexp(log_p[70], log_p[80]), abs=1e-5)
    with pytest.raises(ValueError, match="booleans of shape"):
        lm.next_token(text, mask=np.ones(3))


def test_support_is_the_whole_law():
    lm = tiny_lm()
    text = lm.prompt("Once")
    everything = lm.next_token(text).support()
    assert len(everything) == lm.vocab_size
    assert sum(math.exp(value.log_prob) for value in everything) == pytest.approx(1, abs=1e-5)
    few = lm.next_token(text, top_k=3).support()
    assert len(few) == 3
    assert sum(math.exp(value.log_prob) for value in few) == pytest.approx(1, abs=1e-5)
    step = lm.next_token(text, top_k=3)
    np.testing.assert_allclose(step.log_prob_batch([step] * 3, few), [value.log_prob for value in few], atol=1e-5)
    assert lm.tokens(text, 2).support() is None


def test_which_proposals_cover():
    lm = tiny_lm()
    text = lm.prompt("Once")
    assert lm.tokens(text, 3, temperature=2.0).covers(lm.tokens(text, 3, top_k=4))
    assert not lm.tokens(text, 3, top_k=4).covers(lm.tokens(text, 3))
    assert lm.tokens(text, 3, top_k=4).covers(lm.tokens(text, 3, top_k=4))
    assert not lm.tokens(text, 3).covers(lm.tokens(text, 4))
    assert not lm.tokens(text, 3).covers(lm.tokens(text.append("x"), 3))
    mask = np.arange(lm.vocab_size) < 50
    assert lm.next_token(text).covers(lm.next_token(text, mask=mask))
    assert not lm.next_token(text, mask=mask).covers(lm.next_token(text))


def test_tokens_can_be_proposed_for_a_completion_of_as_many():
    lm = tiny_lm()
    text = lm.prompt("Once")
    assert lm.tokens(text, 3).covers(lm.complete(text, max_tokens=3))
    assert lm.complete(text, max_tokens=3).covers(lm.tokens(text, 3))
    assert not lm.tokens(text, 2).covers(lm.complete(text, max_tokens=3))


def test_the_model_s_own_settings_are_the_default():
    lm = tiny_lm(sampling=Sampling(temperature=0.5, top_k=9))
    text = lm.prompt("Once")
    assert lm.tokens(text, 2).sampling == lm.sampling
    assert lm.tokens(text, 2, top_k=None).sampling == Sampling(temperature=0.5)


def test_a_full_context_finishes_and_a_longer_prompt_is_refused():
    lm = tiny_lm(context=12)
    lm.eos = frozenset()
    prompt = lm.prompt("xyz")
    text, _ = one(lm.complete(prompt, max_tokens=50))
    assert (len(text.tokens), text.finish_reason) == (9, "context")
    with pytest.raises(ContextOverflow, match=r"13 tokens.* is 12"):
        lm.prompt("x" * 13)
    with pytest.raises(ContextOverflow, match="append less"):
        prompt.append("x" * 10)


def test_prompts():
    lm = tiny_lm()
    assert lm.prompt("").prompt_tokens == (lm.tokenizer.bos_token_id,)
    chat = lm.prompt([{"role": "user", "content": "Hi"}])
    assert chat.prompt == "<user>user: Hi\nassistant: "
    assert chat.prompt_tokens[0] == lm.tokenizer.convert_tokens_to_ids("<user>")
    begun = lm.prompt([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}])
    assert begun.prompt.endswith("assistant: Well")


def test_prompts_that_cannot_be():
    import copy

    lm = tiny_lm()
    lm.tokenizer = copy.deepcopy(lm.tokenizer)
    lm.tokenizer.bos_token = None
    lm.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no begin token"):
        lm.prompt("")
    with pytest.raises(Unsupported, match="chat template"):
        lm.prompt([{"role": "user", "content": "Hi"}])
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        lm.tokens(lm.prompt("x"), 0)
    with pytest.raises(ValueError, match="empty"):
        lm.until(lm.prompt("x"), "")


def test_steps_wait_for_lighter_work():
    lm = tiny_lm()
    assert lm.next_token(lm.prompt("a")).expensive

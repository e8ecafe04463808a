"""Scores of texts: teacher-forced log-probabilities and masses of masks."""

import gc
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from feynkac.models import Sampling
from feynkac.models.testing import tiny_lm
from feynkac.ppl import keys
from feynkac.ppl.cost import Ledger, recording
from feynkac.ppl.score import evaluate


def exact(lm, tokens, start):
    with torch.no_grad():
        log_p = lm.model(torch.tensor([tokens]), use_cache=False).logits[0].double().log_softmax(-1)
    return sum(log_p[i - 1, tokens[i]].item() for i in range(start, len(tokens)))


def some_texts(lm, n=6):
    texts = [lm.prompt("Once upon" if i % 2 else "The sea said") for i in range(n)]
    requests = [lm.tokens(text, 1 + i, temperature=0.5) for i, text in enumerate(texts)]
    return list(requests[0].sample_batch(requests, keys.fold(keys.root(0), np.arange(n))).values)


@pytest.mark.parametrize("fresh", [False, True])
def test_scores_are_the_model_s_own_log_probabilities(fresh):
    lm = tiny_lm()
    texts = some_texts(lm)
    lm = tiny_lm() if fresh else lm
    texts = [text.detach() for text in texts] if fresh else texts
    with recording(Ledger()) as ledger:
        values = evaluate([lm.score(text) for text in texts])
    assert ledger.total().model_calls >= 1
    truth = [exact(lm, text.prompt_tokens + text.tokens, len(text.prompt_tokens)) for text in texts]
    np.testing.assert_allclose(values, truth, atol=1e-4)


def test_scores_of_continuations():
    lm = tiny_lm()
    texts = some_texts(lm)
    values = evaluate([lm.score(text, " and the river ran") for text in texts])
    more = lm.encode(" and the river ran")
    for text, value in zip(texts, values):
        tokens = text.prompt_tokens + text.tokens
        assert value == pytest.approx(exact(lm, tokens + more, len(tokens)), abs=1e-4)


def test_a_continuation_after_an_end_token_is_scored_whole_where_it_was_taken_off():
    lm = tiny_lm()
    text = lm.prompt("Once").append(" the")
    ended = replace(text, node=lm.tree.child(text.node, min(lm.eos)), finish_reason="eos")
    more = lm.encode(" river ran")
    before = text.prompt_tokens + text.tokens
    (value,) = evaluate([lm.score(ended, " river ran")])
    assert value == pytest.approx(exact(lm, before + more, len(before)), abs=1e-4)


def test_long_responses_are_scored_in_chunks(monkeypatch):
    from feynkac.models.local.passes import forcing, forward

    monkeypatch.setattr(forcing, "_CHUNK", 3)
    monkeypatch.setattr(forward, "_LOGITS", 2000)
    lm = tiny_lm()
    texts = [
        lm.prompt("Once").append(" the river ran to the sea"),
        lm.prompt("Once").append(" the river"),
        lm.prompt("x"),
    ]
    values = evaluate([lm.score(text) for text in texts])
    for text, value in zip(texts, values):
        assert value == pytest.approx(exact(lm, text.prompt_tokens + text.tokens, len(text.prompt_tokens)), abs=1e-4)


def test_remembered_scores_hold_no_cache():
    lm = tiny_lm()
    texts = some_texts(lm)
    first = evaluate([lm.score(text) for text in texts])
    before = lm.forwarded
    assert evaluate([lm.score(text) for text in texts]) == first
    assert lm.forwarded == before
    del texts
    gc.collect()
    assert lm.cache_info().bytes == 0


def test_scoring_then_sampling_shares_the_cache():
    lm = tiny_lm()
    text = lm.prompt("Once").append(" the river ran")
    evaluate([lm.score(text)])
    before = lm.forwarded
    step = lm.next_token(text)
    step.sample_batch([step], keys.root(0))
    assert lm.forwarded == before + 1


def test_masked_draw_and_its_weight_give_the_model_s_law():
    for sampling in (Sampling(), Sampling(temperature=0.7, top_k=40), Sampling(temperature=0)):
        lm = tiny_lm(sampling=sampling)
        text = lm.prompt("Once")
        best = int(lm.next_log_probs(text).argmax())
        mask = np.arange(lm.vocab_size) % 3 == best % 3
        (weight,) = evaluate([lm.log_mass(text, mask)])
        step = lm.next_token(text, mask=mask)
        draws = step.sample_batch([step] * 20, keys.fold(keys.root(1), np.arange(20)))
        law = lm.next_log_probs(text, **vars(sampling))
        for value, log_prob in zip(draws.values, draws.log_prob):
            assert log_prob + weight == pytest.approx(law[value.tokens[0]], abs=1e-5)
    assert evaluate([lm.log_mass(text, np.zeros(lm.vocab_size, bool))]) == [-math.inf]


@pytest.mark.parametrize("law", [{"temperature": 0.5}, {"top_k": 20}, {"temperature": 0}])
def test_mass_and_draw_may_have_a_law_of_their_own(law):
    lm = tiny_lm()
    text, mask = lm.prompt("Once upon a"), np.arange(lm.vocab_size) % 3 == 0
    log_probs = lm.next_log_probs(text, **law)
    plain, own = evaluate([lm.log_mass(text, mask), lm.log_mass(text, mask, **law)])
    assert plain == pytest.approx(np.logaddexp.reduce(lm.next_log_probs(text)[mask]), abs=1e-5)
    if law != {"temperature": 0}:  # in that limit a masked draw is certain
        assert own == pytest.approx(np.logaddexp.reduce(log_probs[mask]), abs=1e-5)
    assert own != plain


def test_mass_and_draw_share_their_logits():
    lm = tiny_lm()
    text = lm.prompt("Once upon a time")
    mask = np.arange(lm.vocab_size) < 100
    evaluate([lm.log_mass(text, mask)])
    before = lm.forwarded
    step = lm.next_token(text, mask=mask)
    step.sample_batch([step], keys.root(0))
    assert lm.forwarded == before


def test_random_states_of_torch_are_left_alone():
    state = torch.random.get_rng_state()
    lm = tiny_lm(5)
    step = lm.tokens(lm.prompt("x"), 3)
    step.sample_batch([step], keys.root(0))
    assert torch.equal(state, torch.random.get_rng_state())


def test_laws_of_a_wave_are_computed_in_one_pass():
    import feynkac as fk

    lm = tiny_lm()
    seen = []

    @fk.program
    async def model():
        text = lm.prompt("Once")
        for t in range(3):
            text = await fk.sample("token", lm.next_token(text))
            warm = 0.5 + (text.tokens[-1] % 2)
            law = await fk.call("law", lm.next_log_probs(text, temperature=warm))
            seen.append((text, warm, law))
            await fk.factor("G", float(law.max()) * (t + 1))
        return text

    run = fk.steps(model(), fk.SMC(16, ess_threshold=1.0), seed=0)
    forwards = []
    before = lm.forwarder._calls
    for _ in run:
        forwards.append(lm.forwarder._calls - before)
        before = lm.forwarder._calls
    # The first pass reads the prompt; then one for all the laws, whose texts the next tokens are drawn from, too.
    assert forwards == [2, 1, 1]
    assert run.posterior.cost.model_calls == 4
    assert len({text for text, _, _ in seen}) > 8
    for text, warm, law in seen:
        assert isinstance(law, np.ndarray)
        np.testing.assert_allclose(law, lm.next_log_probs(text, temperature=warm), atol=1e-4)


def test_a_law_inside_a_program_is_to_be_awaited():
    import feynkac as fk

    lm = tiny_lm()

    @fk.program
    async def model(use):
        return use(lm.next_log_probs(lm.prompt("Once")))

    for use in (np.exp, np.asarray, lambda law: law[3], lambda law: law + 1.0, lambda law: law.argmax()):
        with pytest.raises((TypeError, AttributeError), match=r"await fk.call\(name, …\)"):
            fk.simulate(model(use), seed=0)
    assert isinstance(lm.next_log_probs(lm.prompt("Once")), np.ndarray)

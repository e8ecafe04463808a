"""Encoder–decoder models: the prompt encoded once, the response decoded as a fresh pass would, contexts, refusals."""

import gc
import json

import numpy as np
import pytest
import torch
import transformers as hf
from random_models import T5, draw, random_weights, two_tokens

import feynkac as fk
from feynkac.models import Text
from feynkac.models.testing import tiny_lm
from feynkac.ppl import keys
from feynkac.ppl.cost import Ledger, assign, recording
from feynkac.ppl.errors import ContextOverflow, Unsupported
from feynkac.ppl.score import evaluate
from laws import Z_LIMIT, z_score

BART = {
    "vocab_size": 300, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
}  # fmt: skip
MODELS = {
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, decoder_start_token_id=0)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)),
    "marian": lambda: hf.MarianMTModel(hf.MarianConfig(**BART, pad_token_id=299, decoder_start_token_id=299)),
}


def lm_of(name, **options):
    model = random_weights(MODELS[name], seed=1)
    if name == "bart":
        model.generation_config.forced_bos_token_id = 0
    lm = tiny_lm(model=model, **options)
    lm.eos = frozenset()
    return lm


def fresh_log_prob(lm, text, start=0):
    """Log p of the response's tokens from ``start`` on, given the prompt, by one pass with no cache."""
    begin = lm._writer.start
    decoded = begin + text.tokens
    with torch.no_grad():
        out = lm.model(
            input_ids=torch.tensor([text.prompt_tokens]), decoder_input_ids=torch.tensor([decoded]), use_cache=False
        )
    log_p = out.logits[0].double().log_softmax(-1)
    return sum(log_p[i - 1, decoded[i]].item() for i in range(len(begin) + start, len(decoded)))


def seen_positions(lm):
    seen = {"calls": 0, "encoded": 0, "decoded": 0}

    def count(module, args, kwargs):
        seen["calls"] += 1
        seen["encoded"] += 0 if kwargs.get("input_ids") is None else kwargs["input_ids"].numel()
        mask = kwargs.get("decoder_attention_mask")
        seen["decoded"] += kwargs["decoder_input_ids"].numel() if mask is None else 0

    lm.model.register_forward_pre_hook(count, with_kwargs=True)
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_are_those_of_a_fresh_pass(name):
    lm = lm_of(name)
    prompts = ["Once upon a time there was", "xyz", "vwx"]  # two of one length, encoded together
    assert len({len(lm.prompt(prompt).prompt_tokens) for prompt in prompts}) == 2
    texts = [lm.prompt(prompts[i % 3]) for i in range(6)]
    rng = np.random.default_rng(0)
    for t in range(8):
        kinds = [lambda x: lm.next_token(x), lambda x: lm.tokens(x, 3), lambda x: lm.line(x, max_tokens=2)]
        requests = [kinds[(t + i * (t % 3 == 2)) % 3](x) for i, x in enumerate(texts)]
        before = np.array([x.log_prob for x in texts])
        begin = [len(x.tokens) for x in texts]
        texts = draw(requests, t)
        truth = [fresh_log_prob(lm, x, b) for x, b in zip(texts, begin)]
        np.testing.assert_allclose([x.log_prob for x in texts] - before, truth, atol=1e-4)
        np.testing.assert_allclose(requests[0].log_prob_batch(requests, texts), truth, atol=1e-4)
        texts = [texts[(i + 3 * rng.integers(2)) % 6] for i in range(6)]
        if t == 3:
            texts = [x.append(" the sea") if i % 2 else x for i, x in enumerate(texts)]
    assert len({x.prompt for x in texts}) == 3


def test_texts_are_the_response_alone():
    lm = lm_of("bart")
    text = lm.prompt("Once upon").append("The sea")
    assert (str(text), text.tokens) == ("The sea", tuple(lm.encode("The sea")))
    assert text.prompt_tokens == tuple(lm.tokenizer("Once upon").input_ids)
    assert text != lm.prompt("Once").append("The sea")
    more = draw([lm.tokens(text, 3)])[0]
    copy = Text.from_json(json.loads(json.dumps(more.to_json())))
    assert copy == more
    assert hash(copy) == hash(more)
    assert copy.tokens == more.tokens
    assert draw([lm.tokens(copy, 2)], 1) == draw([lm.tokens(more, 2)], 1)
    loaded = lm.attach(Text.from_json(text.to_json())).append(" ran")
    assert (str(loaded), loaded.steps) == ("The sea ran", ("The sea", " ran"))


def test_scores_are_conditional_on_the_prompt():
    lm = lm_of("t5")
    texts = [lm.prompt(p).append(r) for p in ("Once", "The river ran") for r in (" yes", " no, said the sea", "")]
    np.testing.assert_allclose(
        evaluate([lm.score(text) for text in texts]), [fresh_log_prob(lm, text) for text in texts], atol=1e-4
    )
    value = evaluate([lm.score(texts[1], " of it")])[0]
    longer = texts[1].append(" of it")
    assert value == pytest.approx(fresh_log_prob(lm, longer, len(texts[1].tokens)), abs=1e-4)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_prompts_are_encoded_once_and_twins_decoded_once(name):
    lm = lm_of(name)
    seen = seen_positions(lm)
    with recording(Ledger(owners=2)) as ledger:
        assign([0] * 4 + [1] * 4)
        # Two programs with one prompt, as in infer([model, model]).
        texts = draw([lm.tokens(lm.prompt("Once upon a time"), 4)] * 8, 0)
        begun = len(lm._writer.start)
        histories = {text.tokens[:k] for text in texts for k in range(1, 4)}
        assert seen["encoded"] == len(texts[0].prompt_tokens)
        assert seen["decoded"] == 2 * begun + len(histories)  # the start also goes with the encoder's pass
        before = lm.forwarded
        draw([lm.next_token(texts[0])] * 8, 1)
        assert lm.forwarded - before == 1
    total = ledger.total()
    assert total.model_calls == seen["calls"]
    assert total.tokens_in == lm.forwarded == seen["encoded"] + seen["decoded"]
    assert ledger.of(0).tokens_in + ledger.of(1).tokens_in == lm.forwarded


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("cache_bytes", [1, 30_000, 120_000])
def test_a_small_cache_changes_nothing(name, cache_bytes):
    texts = {}
    for limit in (2 << 30, cache_bytes):
        lm = lm_of(name, cache_bytes=limit)
        now = [lm.prompt(p) for p in ("Once", "Once upon a time", "The sea said")] * 2
        for t in range(4):
            now = draw([lm.tokens(x, 1 + (t + i) % 3) for i, x in enumerate(now)], t)
            now = [now[i] for i in (0, 1, 2, 3, 3, 2)]
            info = lm.cache_info()
            assert info.bytes <= info.peak_bytes <= info.limit == limit
        texts[limit] = now
        assert (info.recomputed > 0) == (limit < 100_000)
    one, other = texts.values()
    assert one == other
    np.testing.assert_allclose([x.log_prob for x in one], [x.log_prob for x in other], atol=1e-4)


def test_memory_is_given_back():
    lm = lm_of("t5")
    texts = draw([lm.tokens(lm.prompt("Once"), 5)] * 6, 0)
    assert lm.cache_info().bytes > 0
    del texts
    gc.collect()
    assert lm.cache_info().bytes == 0


def test_encoder_and_decoder_have_contexts_of_their_own():
    lm = lm_of("bart")
    with pytest.raises(ContextOverflow, match=r"prompt has 65 tokens, but the encoder .* is 64"):
        lm.prompt("x" * 65)
    text = lm.prompt("x" * 64)  # a full encoder leaves the decoder all its room
    more = draw([lm.complete(text, max_tokens=100)])[0]
    assert (len(more.tokens), more.finish_reason) == (62, "context")  # BART begins with two tokens
    with pytest.raises(ContextOverflow, match="append less"):
        text.append("x" * 63)
    assert lm_of("t5").context is None


def test_masks_and_masses_work():
    lm = lm_of("t5")
    text = lm.prompt("Once")
    mask = np.arange(lm.vocab_size) % 3 == 1
    (weight,) = evaluate([lm.log_mass(text, mask)])
    step = lm.next_token(text, mask=mask)
    law = lm.next_log_probs(text)
    draws = step.sample_batch([step] * 9, keys.fold(keys.root(1), np.arange(9)))
    for value, log_prob in zip(draws.values, draws.log_prob):
        assert mask[value.tokens[0]]
        assert log_prob + weight == pytest.approx(law[value.tokens[0]], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_smc_is_unbiased_on_an_enumerable_program(name):
    # 2 comparisons at |z| < Z_LIMIT, each false about once in 50,000 (see laws.py).
    lm = lm_of(name)
    allowed = [60, 61, 62, 66], [70, 73, 75]
    masks = [np.isin(np.arange(lm.vocab_size), tokens) for tokens in allowed]
    text, truth = lm.prompt("Once"), 0.0
    for a in allowed[0]:
        for b in allowed[1]:
            decoded = (*lm._writer.start, a, b)
            with torch.no_grad():
                out = lm.model(input_ids=torch.tensor([text.prompt_tokens]), decoder_input_ids=torch.tensor([decoded]))
            log_p = out.logits[0].double().log_softmax(-1)
            at = len(lm._writer.start) - 1
            truth += np.exp(log_p[at, a].item() + log_p[at + 1, b].item() + 0.8 * (a % 3 + b % 3))
    posteriors = fk.infer([two_tokens(lm, "Once", masks)] * 400, fk.SMC(3), seed=0)
    ratios = np.array([np.exp(posterior.log_evidence) / truth for posterior in posteriors])
    assert ratios.std() > 0.05  # there is something to average
    assert abs(z_score(ratios, 1.0)) < Z_LIMIT
    again = fk.infer([two_tokens(lm, "Once", masks)] * 400, fk.SMC(3), seed=0)
    assert [p.log_evidence for p in again] == [p.log_evidence for p in posteriors]


def test_models_that_do_not_fit_are_refused_by_name(monkeypatch):
    with pytest.raises(Unsupported, match="no decoder_start_token_id"):
        tiny_lm(model=hf.T5ForConditionalGeneration(hf.T5Config(**T5)))
    config = hf.ProphetNetConfig(
        vocab_size=300, hidden_size=32, encoder_ffn_dim=48, decoder_ffn_dim=48, num_encoder_layers=1,
        num_decoder_layers=1, num_encoder_attention_heads=4, num_decoder_attention_heads=4, decoder_start_token_id=0,
    )  # fmt: skip
    model = random_weights(lambda: hf.ProphetNetForConditionalGeneration(config))
    with pytest.raises(Unsupported, match="ProphetNetForConditionalGeneration gives other logits in pieces"):
        tiny_lm(model=model)

"""The KV store: the same numbers as a fresh full pass, each position once, memory given back."""

import gc

import numpy as np
import pytest
import transformers as hf
from random_models import draw, fresh_log_prob, random_weights

from feynkac.models.testing import tiny_lm
from feynkac.ppl.cost import Ledger, assign, recording

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
GPT2 = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
ARCHITECTURES = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SMALL)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SMALL, head_dim=8)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=7, layer_types=["sliding_attention", "full_attention"])
    ),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SMALL, sliding_window=6)),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4)),
}


def wander(lm, texts, rounds, seed=0, check=None):
    """Steps of all kinds with ragged ends, appended strings and random resampling."""
    rng = np.random.default_rng(seed)
    for t in range(rounds):
        kinds = [
            lambda x: lm.next_token(x),
            lambda x: lm.tokens(x, 1 + int(rng.integers(4))),
            lambda x: lm.line(x, max_tokens=3),
            lambda x: lm.sentence(x, max_tokens=4),
        ]
        mixed = t % 3 == 2
        requests = [(kinds[int(rng.integers(4))] if mixed else kinds[t % 4])(x) for x in texts]
        texts = draw(requests, t)
        if check is not None:
            check(requests, texts)
        texts = [texts[i] for i in rng.integers(0, len(texts), len(texts))]
        if t % 5 == 4:
            texts = [x if rng.random() < 0.5 or x.finished else x.append(" the sea") for x in texts]
    return texts


def sampled_log_prob(lm, texts):
    """Largest error of the log-probabilities of texts that were only sampled."""
    return max(abs(text.log_prob - fresh_log_prob(lm, text)) for text in texts)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_probs_are_those_of_a_fresh_pass(name):
    lm = tiny_lm(model=random_weights(ARCHITECTURES[name], seed=1))
    lm.eos = frozenset()
    prompts = ["Once upon a time there was", "The sea", "Who said: the sea"]  # the last two share a suffix
    texts = [lm.prompt(prompts[i % 3]) for i in range(6)]

    def check(requests, texts):
        before = np.array([request.text.log_prob for request in requests])
        start = [len(r.text.prompt_tokens) + len(r.text.tokens) for r in requests]
        truth = [fresh_log_prob(lm, text, s) for text, s in zip(texts, start)]
        np.testing.assert_allclose([x.log_prob for x in texts] - before, truth, atol=1e-4)
        np.testing.assert_allclose(requests[0].log_prob_batch(requests, texts), truth, atol=1e-4)

    texts = wander(lm, texts, 12, check=check)
    assert max(len(text.tokens) for text in texts) > 14  # longer than the sliding windows, twice over


@pytest.mark.parametrize(("cache_bytes", "max_batch"), [(1, 128), (1, 2), (60_000, 3), (2 << 30, 3)])
def test_eviction_and_small_batches_change_nothing(cache_bytes, max_batch):
    texts = {}
    for limit, batch in ((2 << 30, 128), (cache_bytes, max_batch)):
        lm = tiny_lm(cache_bytes=limit, max_batch=batch)
        lm.eos = frozenset()
        texts[limit, batch] = wander(lm, [lm.prompt("Once"), lm.prompt("Once upon a time")] * 3, 14)
    one, other = texts.values()
    assert one == other
    np.testing.assert_allclose([x.log_prob for x in one], [x.log_prob for x in other], atol=1e-4)
    if cache_bytes < 2 << 30 and max_batch < 6:
        assert lm.cache_info().evictions > 0


def test_interleaved_groups_and_old_nodes():
    lm = tiny_lm()
    lm.eos = frozenset()
    start = draw([lm.tokens(lm.prompt("The river"), 3)] * 6, 0)
    seen = [start]
    for t in range(10):  # two groups of rows take turns, and an old generation is forked again and again
        left, right = seen[-1][:3], seen[-1][3:]
        left = draw([lm.next_token(x) for x in left], 1, t)
        if t % 2:
            right = draw([lm.tokens(x, 2) for x in right], 2, t)
        old = draw([lm.next_token(x) for x in seen[len(seen) // 2]], 3, t)
        seen.append(left + right)
        assert sampled_log_prob(lm, left + right + old) < 1e-4


def test_prompt_once_twins_once_then_every_token_once():
    lm = tiny_lm(scale=0.0)  # a uniform law: hardly any two particles share a token
    lm.eos = frozenset()
    prompt = lm.prompt("Once upon a time")
    n, steps = 8, 5
    texts = draw([lm.tokens(prompt, 1)] * n, 0)
    assert lm.forwarded == prompt.node.length
    distinct = len(set(texts))
    for t in range(1, steps):
        before = lm.forwarded
        texts = draw([lm.next_token(text) for text in texts], t)
        assert lm.forwarded - before == distinct
        distinct = len(set(texts))
    before = lm.forwarded
    draw([lm.next_token(texts[0])] * n, 9)
    draw([lm.next_token(texts[0])] * n, 10)
    assert lm.forwarded - before == 1


def test_many_tokens_in_one_step_forward_each_once():
    lm = tiny_lm(scale=0.0)
    lm.eos = frozenset()
    prompt = lm.prompt("Once")
    texts = draw([lm.tokens(prompt, 6)] * 5, 0)
    histories = {text.tokens[:k] for text in texts for k in range(1, 6)}
    assert lm.forwarded == prompt.node.length + len(histories)


def test_steady_state_copies_nothing(monkeypatch):
    from feynkac.models.local.memory import placing

    copied, copy_rows = [], placing.copy_rows
    monkeypatch.setattr(placing, "copy_rows", lambda *args: copied.append(args[1]) or copy_rows(*args))
    lm = tiny_lm()
    lm.eos = frozenset()
    texts = draw([lm.tokens(lm.prompt("Once"), 2)] * 4, 0)
    texts = draw([lm.next_token(text) for text in texts], 1)
    copied.clear()
    for t in range(10):
        texts = draw([lm.next_token(text) for text in texts], 2, t)
    assert not copied
    forked = draw([lm.next_token(texts[0])] * 4, 3)
    draw([lm.next_token(text) for text in forked], 4)
    assert copied


def test_rows_that_end_early_leave_in_place():
    lm = tiny_lm(scale=3.0)
    texts = draw([lm.tokens(lm.prompt("Once"), 1)] * 12, 0)
    requests = [lm.tokens(text, 2 + i) for i, text in enumerate(texts)]
    texts = draw(requests, 1)
    assert lm.cache_info().slabs == 1
    assert sampled_log_prob(lm, texts) < 1e-4
    assert sampled_log_prob(lm, draw([lm.next_token(text) for text in texts], 2)) < 1e-4


def test_memory_is_given_back_and_bounded():
    lm = tiny_lm(context=2048)
    lm.eos = frozenset()
    n = 16
    texts = [lm.prompt("Once upon a time")] * n
    rng = np.random.default_rng(0)
    per_position = 2 * 2 * 2 * 8 * 4
    for t in range(50):
        texts = draw([lm.tokens(text, 2) if t % 2 else lm.line(text, max_tokens=3) for text in texts], t)
        texts = [texts[i] for i in rng.integers(0, n, n)]
        longest = max(text.node.length for text in texts)
        held = lm.forwarder.store.bytes
        assert held <= n * (2 * longest + 64) * per_position
        assert lm.cache_info().slabs == 1
    text = texts[0]
    del texts
    gc.collect()
    assert lm.cache_info().slabs == 1
    kept = text.detach()
    del text
    gc.collect()
    assert lm.cache_info().bytes == 0
    assert not any(place() for place in lm.tree._children.values())
    lm.tree.child(lm.prompt("Once").node, 5)  # the places of those that are gone go as the next one comes
    assert len(lm.tree._children) == 1
    assert str(kept)


def test_an_interrupted_pass_leaves_no_wrong_cache():
    lm = tiny_lm()
    lm.eos = frozenset()
    texts = draw([lm.tokens(lm.prompt("Once"), 3)] * 4, 0)
    texts = [texts[i] for i in (0, 0, 1, 3)]
    layer = lm.model.model.layers[1]

    def stop(*_):
        raise KeyboardInterrupt

    handle = layer.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        draw([lm.tokens(text, 2) for text in texts], 1)
    handle.remove()
    assert sampled_log_prob(lm, draw([lm.tokens(text, 2) for text in texts], 1)) < 1e-4


def test_cost_is_what_the_model_saw():
    lm = tiny_lm(max_batch=4)
    lm.eos = frozenset()
    calls, rows = [], []

    def count(module, args, kwargs):
        calls.append(1)
        mask = kwargs.get("attention_mask")
        rows.append(kwargs["input_ids"].shape if mask is None else None)

    handle = lm.model.register_forward_pre_hook(count, with_kwargs=True)
    with recording(Ledger(owners=2)) as ledger:
        assign([0] * 3 + [1] * 3)
        texts = [lm.prompt("Once")] * 3 + [lm.prompt("The sea said: who")] * 3
        for t in range(4):
            requests = [lm.tokens(text, 2) for text in texts]
            texts = draw(requests, t)
        requests[0].log_prob_batch(requests, texts)
    handle.remove()
    total = ledger.total()
    assert total.model_calls == len(calls)
    assert total.tokens_in == lm.forwarded
    assert total.tokens_out == 6 * 8
    assert ledger.of(0).tokens_out == ledger.of(1).tokens_out == 24
    assert ledger.of(0).tokens_in + ledger.of(1).tokens_in == lm.forwarded

"""Memory, devices and number types: the limit is kept and reported, what is shared is forwarded once."""

import numpy as np
import pytest
import torch
from random_models import KINDS, draw, lm_of

import feynkac as fk
from feynkac.models import TransformersLM
from feynkac.models.local.memory.cache import Slab
from feynkac.models.local.memory.kept import Kept, Wave
from feynkac.models.testing import tiny_tokenizer
from feynkac.ppl import keys
from feynkac.ppl.score import evaluate


def rounded(kind, dtype):
    lm = lm_of(kind)
    lm = TransformersLM(lm.model.to(dtype), lm.tokenizer, name=f"{kind}-{dtype}", packed=False)
    lm.eos = frozenset()
    return lm


def wander(lm, rounds=6, n=6):
    """Ragged steps and resampling; returns the texts and all histories that were gone on from."""
    texts = [lm.prompt(("Once upon a time there was", "The sea")[i % 2]) for i in range(n)]
    rng = np.random.default_rng(0)
    histories = set()
    for t in range(rounds):
        begun = [text.node for text in texts]
        texts = draw([lm.tokens(x, 1 + (t * i) % 3) for i, x in enumerate(texts)], t)
        for first, text in zip(begun, texts):
            node = text.node.parent
            while node is not first.parent and node is not None:
                histories.add(node)
                node = node.parent
        texts = [texts[(i + 2 * int(rng.integers(3))) % n] for i in range(n)]
    return texts, histories


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cache_bytes", [1, 20_000, 60_000, 150_000, 400_000])
def test_the_limit_is_never_passed_and_changes_nothing(kind, cache_bytes):
    """Bytes are looked at inside every pass, after each module has run."""
    plenty, _ = wander(lm_of(kind))
    lm = lm_of(kind, cache_bytes=cache_bytes)
    held = []

    def look(*_):
        held.append(lm.cache_info().bytes)

    handles = [module.register_forward_hook(look) for module in lm.model.modules()]
    texts, histories = wander(lm)
    for handle in handles:
        handle.remove()
    info = lm.cache_info()
    assert max(held) <= info.peak_bytes <= cache_bytes == info.limit
    assert texts == plenty
    np.testing.assert_allclose([x.log_prob for x in texts], [x.log_prob for x in plenty], atol=1e-4)
    positions = sum(node.length if node.parent is None else 1 for node in histories)
    if kind == "t5":  # the encoder reads each prompt once, and the decoder's first token goes with it
        positions += sum(len(node.source) + 1 for node in histories if node.parent is None)
        assert lm.forwarded >= positions
        assert (lm.forwarded == positions) == (info.recomputed == 0)
    else:
        assert lm.forwarded == positions + info.recomputed
    assert (info.recomputed > 0) == (cache_bytes < 60_000 or (kind == "mamba" and cache_bytes < 100_000))


def test_a_slab_grows_where_it_stands_if_there_is_no_room_beside_it(monkeypatch):
    grown = []
    extend = Slab.extend
    monkeypatch.setattr(Slab, "extend", lambda slab, cap: grown.append(cap) or extend(slab, cap))
    lm = lm_of("llama", cache_bytes=16 * 160 * 256)  # a position takes 256 bytes
    texts = [lm.prompt("Once")] * 16
    for t in range(48):
        texts = draw([lm.tokens(x, 2) for x in texts], t)
    info = lm.cache_info()
    assert grown
    assert info.recomputed == 0
    assert info.peak_bytes <= info.limit
    law = lm.next_log_probs(texts[3])
    fresh = lm.model(input_ids=torch.tensor([texts[3].node.tokens()]), use_cache=False).logits[0, -1]
    np.testing.assert_allclose(law, fresh.log_softmax(-1).detach().numpy(), atol=1e-4)


def test_a_slab_that_fails_to_grow_is_not_read_again(monkeypatch):
    """An interrupt, or memory that is not there, between two layers leaves layers of different lengths."""
    blanks, extend, blank = [], Slab.extend, Slab._blank

    def counted(slab, like):
        blanks.append(1)
        if len(blanks) == 3:  # the second layer's keys
            raise KeyboardInterrupt
        return blank(slab, like)

    def failing(slab, cap):
        with monkeypatch.context() as patch:
            patch.setattr(Slab, "_blank", counted)
            extend(slab, cap)

    lm = lm_of("llama", cache_bytes=16 * 160 * 256)
    texts, interrupts = [lm.prompt("Once")] * 16, 0
    monkeypatch.setattr(Slab, "extend", failing)
    for t in range(48):
        try:
            new = draw([lm.tokens(x, 2) for x in texts], t)
        except KeyboardInterrupt:
            interrupts += 1
            new = draw([lm.tokens(x, 2) for x in texts], t)
        texts = new
    assert interrupts == 1
    for text in texts:
        tokens = text.node.tokens()
        law = lm.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].log_softmax(-1).detach().numpy()
        first = text.offset
        expected = sum(law[i - 1, tokens[i]] for i in range(first, len(tokens)))
        np.testing.assert_allclose(text.log_prob, expected, atol=1e-3)


@fk.program
async def said(lm, prompt, tokens):
    text = lm.prompt(prompt)
    for _ in range(tokens):
        text = await fk.sample("token", lm.next_token(text))
        await fk.factor("likes", float(text.tokens[-1] % 3))
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_of_several_programs_is_forwarded_once(kind):
    alone, shared = lm_of(kind), lm_of(kind)
    fk.infer(said(alone, "Once upon a time", 1), fk.SMC(4), seed=0)
    fk.infer([said(shared, "Once upon a time", 1)] * 5, fk.SMC(4), seed=0)
    assert shared.forwarded == alone.forwarded


@pytest.mark.parametrize("kind", KINDS)
def test_twins_are_forwarded_once_after_resampling(kind):
    lm = lm_of(kind)
    seen = []
    posterior = fk.infer(said(lm, "Once", 3), fk.SMC(8, ess_threshold=1.0), seed=0)
    assert posterior.cost.tokens_in == lm.forwarded
    lm.model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given.get("input_ids", given.get("decoder_input_ids")).shape),
        with_kwargs=True,
    )
    text = draw([lm.tokens(lm.prompt("Once"), 3)])[0]
    seen.clear()
    before = lm.forwarded
    draw([lm.next_token(text)] * 8)
    assert lm.forwarded - before == 1
    assert [tuple(shape) for shape in seen] == [(1, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_engine_of_a_comparison_is_spared_what_another_had_forwarded(kind):
    lm = lm_of(kind)
    prompt = lm.prompt("Once upon a time there was a river, and the river ran to the sea.")

    @fk.program
    async def go(text):
        for _ in range(3):
            text = await fk.sample("token", lm.next_token(text))
            await fk.factor("likes", float(text.tokens[-1] % 3))

    engines = {"one": fk.SMC(4), "the same": fk.SMC(4)}
    found = fk.compare(go(prompt), engines, metric=lambda posterior: 1.0, seeds=(0, 1))
    spent = {(t.engine, t.seed): (t.cost.tokens_in, t.cost.model_calls) for t in found.trials}
    for seed in (0, 1):
        assert spent["one", seed] == spent["the same", seed]
        assert spent["one", seed][0] > len(prompt.prompt_tokens)
    fresh = lm_of(kind)
    expected = fresh.next_log_probs(fresh.prompt(prompt.prompt))
    np.testing.assert_allclose(lm.next_log_probs(prompt), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_prompts_that_begin_alike_share_it_in_a_wave_and_after(kind):
    lm = lm_of(kind)
    chats = [[{"role": "user", "content": f"Once upon a time there was a river, and {q}?"}] for q in ("x", "yes", "z")]
    prompts = [lm.prompt(chat) for chat in chats]
    common = next(k for k in range(99) if len({x.prompt_tokens[k] for x in prompts}) > 1)
    assert common >= 16
    logs = [lm.forwarded]
    texts = draw([lm.tokens(x, 1) for x in prompts])
    logs.append(lm.forwarded)
    late = lm.prompt([{"role": "user", "content": "Once upon a time there was a river, and k?"}])
    texts += draw([lm.tokens(late, 1)])
    logs.append(lm.forwarded)
    first, second = np.diff(logs)
    assert first == sum(len(x.prompt_tokens) for x in prompts) - 2 * common
    assert second == len(late.prompt_tokens) - common
    for text in texts:
        with torch.no_grad():
            fresh = lm.model(input_ids=torch.tensor([text.prompt_tokens]), use_cache=False).logits[0, -1]
        assert text.log_prob == pytest.approx(fresh.log_softmax(-1)[text.tokens[0]].item(), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_only_its_continuations_need_is_forwarded_once(kind):
    lm = lm_of(kind)
    texts = [lm.prompt("Once upon a time").append(f" the {word}") for word in ("river", "sea", "hill", "rain")]
    draw([lm.next_token(text) for text in texts])
    root = texts[0].node.top
    begun = root.length + (len(root.source) + 1 if root.source else 0)
    trunk = next(k for k in range(99) if len({x.tokens[k] for x in texts}) > 1)
    assert lm.forwarded == begun + trunk + sum(len(x.tokens) - trunk for x in texts)
    other = lm_of(kind)
    scores = evaluate([other.score(other.prompt("Once upon a time").append(f" the {w}")) for w in ("river", "sea")])
    assert np.isfinite(scores).all()
    assert other.forwarded == begun + 1  # " the"; nobody needs what follows the last tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_law_recorded_is_the_law_sampled(kind, dtype):
    lm = rounded(kind, dtype)
    assert lm.model.dtype == dtype
    text = lm.prompt("Once")
    n = 4000
    step = lm.next_token(text, temperature=0.8)
    draws = step.sample_batch([step] * n, keys.fold(keys.root(1), np.arange(n)))
    law = lm.next_log_probs(text, temperature=0.8)
    assert law.dtype == draws.log_prob.dtype == np.float64
    assert np.logaddexp.reduce(law) == pytest.approx(0, abs=1e-5)
    tokens = np.array([value.tokens[0] for value in draws.values])
    np.testing.assert_allclose(draws.log_prob, law[tokens], atol=1e-5)
    counts, p = np.bincount(tokens, minlength=lm.vocab_size), np.exp(law)
    z = (counts - n * p) / np.sqrt(n * p * (1 - p))
    assert np.abs(z[n * p > 20]).max() < 5.2  # at most 200 tokens: false alarm below 4e-5
    longer = draw([lm.tokens(text, 6)] * 4)
    requests = [lm.tokens(text, 6)] * 4
    again = requests[0].log_prob_batch(requests, longer)
    # Another batch rounds otherwise, by about 2^-8 of the logits: the steps agree to that, not to 1e-4.
    np.testing.assert_allclose(again, [x.log_prob for x in longer], atol=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_loading_by_kind_type_and_device(kind, tmp_path):
    lm = lm_of(kind)
    lm.model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = TransformersLM.from_pretrained(str(tmp_path), device="cpu")
    assert loaded.model.dtype == torch.float32
    assert type(loaded.model) is type(lm.model)
    np.testing.assert_allclose(
        loaded.next_log_probs(loaded.prompt("Once")), lm.next_log_probs(lm.prompt("Once")), atol=1e-5
    )
    half = TransformersLM.from_pretrained(str(tmp_path), device="cpu", dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert TransformersLM.from_pretrained(str(tmp_path), device_map="cpu").model.device.type == "cpu"


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there_is_named(device, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    lm = lm_of("llama")
    lm.model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"device '{device}' is not on this machine"):
        TransformersLM.from_pretrained(str(tmp_path), device=device)


def test_a_wave_that_ends_with_another_does_not_upset_clearing():
    kept, inner = Kept(1000), Wave(torch.zeros(1, 2))
    outer = Wave(torch.zeros(1, 2), state=[inner])
    kept.keep(outer)
    kept.keep(inner)
    del inner
    kept.clear()
    assert len(kept) == kept.bytes == 0

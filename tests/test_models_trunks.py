"""Trunks: what several histories begin with is held once, and all that stand on it get what a whole pass gives."""

import gc
import threading

import numpy as np
import pytest
import torch
import transformers as hf
from random_models import draw, fresh_log_prob, random_weights
from test_models_cache import ARCHITECTURES, SMALL, wander
from test_models_encdec import fresh_log_prob as fresh_log_prob_of_response
from test_models_wrapped import TURN, law_of_generate, phi3
from zoo import build

import feynkac as fk
from feynkac.models.local.memory import store
from feynkac.models.local.memory.cache import Slab, chain
from feynkac.models.local.passes import trunked
from feynkac.models.local.passes.trunked import Unshared
from feynkac.models.testing import tiny_lm
from feynkac.ppl.score import evaluate
from laws import Z_LIMIT, z_score

OTHERS = {
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**SMALL, head_dim=8, sliding_window=6, attn_logit_softcapping=2.0)
    ),
    "opt": lambda: build("opt"),
    "gpt_oss": lambda: build("gpt_oss"),  # sinks, windows, experts
    "gemma3n": lambda: build("gemma3n_text"),  # layers that share the keys of others
    "llama4": lambda: build("llama4_text"),  # chunks
}
EXACT = {name: make for name, make in (ARCHITECTURES | OTHERS).items() if name != "bloom"}


@pytest.fixture
def eager(monkeypatch):
    """Make a trunk of whatever two histories share, be it one position."""
    monkeypatch.setattr(store, "_LEAST", 1)
    monkeypatch.setattr(store, "_SAVED", 1)


def prompt_of(lm, length, seed=0):
    return lm.prompt(tuple(np.random.default_rng(seed).integers(5, 290, length).tolist()))


def deepest(lm):
    """Return the most trunks that stand on each other, of those in memory."""
    return max((len(list(chain(trunk, trunk.end))) for trunk in lm.forwarder.store.trunks), default=0)


def distinct(texts):
    """Return how many positions some texts of one prompt have, shared ones counted once."""
    written = [x.tokens for x in texts]
    return len(texts[0].prompt_tokens) + len({hash(some[:k]) for some in written for k in range(1, len(some) + 1)})


@pytest.mark.parametrize("n", [8, 32, 128])
def test_a_long_prompt_is_held_once(n):
    lm = tiny_lm(context=2048)
    lm.eos = frozenset()
    texts, most = [prompt_of(lm, 1500)] * n, 0
    for t in range(10):
        texts = draw([lm.next_token(x) for x in texts], t)
        most = max(most, lm.forwarder.store.positions)
    info = lm.cache_info()
    assert info.shares
    assert info.trunks == 1
    assert most <= 2.2 * distinct(texts)
    assert info.peak_bytes <= 2.2 * distinct(texts) * lm.forwarder.store.position_bytes + lm.forwarder.kept.peak
    assert lm.forwarded == distinct(texts) - len(set(texts))  # nobody needs what follows the last tokens
    assert max(abs(x.log_prob - fresh_log_prob(lm, x)) for x in texts[:4]) < 1e-4


@pytest.mark.slow
def test_what_particles_share_after_resampling_is_held_once():
    """A particle is copied to all now and then, so that all share what was written before."""
    lm = tiny_lm(context=2048)
    lm.eos = frozenset()
    rng, n = np.random.default_rng(0), 32
    texts, ratios, depth = [lm.prompt("Once")] * n, [], 0
    for t in range(45):
        texts = draw([lm.tokens(x, 8) for x in texts], t)
        ratios.append(lm.forwarder.store.positions / distinct(texts))
        depth = max(depth, deepest(lm))
        texts = [texts[i] for i in rng.choice(rng.integers(0, n, 3), n)]
    assert texts[0].node.length > 360
    assert depth <= 4
    # Room for as many rows as there are particles, and for what each will write.
    assert lm.forwarder.store.positions < 360 + n * (64 + 96)
    assert max(ratios[25:]) < 8  # 22 where each has a whole row
    assert max(abs(x.log_prob - fresh_log_prob(lm, x)) for x in texts[:4]) < 1e-3


@pytest.mark.parametrize("name", EXACT)
def test_log_probs_on_trunks_are_those_of_a_fresh_pass(name, eager):
    lm = tiny_lm(model=random_weights(EXACT[name], seed=1) if name in ARCHITECTURES else EXACT[name]())
    lm.eos = frozenset()
    assert lm.cache_info().shares
    texts = [lm.prompt(prompt) for prompt in ("Once upon a time", "The sea", "Who said: the sea")] * 2
    most = deep = 0

    def check(requests, texts):
        nonlocal most, deep
        before = np.array([request.text.log_prob for request in requests])
        start = [len(r.text.prompt_tokens) + len(r.text.tokens) for r in requests]
        truth = [fresh_log_prob(lm, text, s) for text, s in zip(texts, start)]
        np.testing.assert_allclose([x.log_prob for x in texts] - before, truth, atol=1e-4)
        np.testing.assert_allclose(requests[0].log_prob_batch(requests, texts), truth, atol=1e-4)
        most, deep = max(most, lm.cache_info().trunks), max(deep, deepest(lm))

    texts = wander(lm, texts, 8, check=check)
    assert most > 3
    assert deep > 1
    assert max(len(text.tokens) for text in texts) > 7  # longer than windows and chunks
    np.testing.assert_allclose(
        evaluate([lm.score(x) for x in texts]), [fresh_log_prob(lm, x) for x in texts], atol=1e-3
    )


def test_log_probs_of_an_encoder_decoder_on_trunks(eager):
    lm = tiny_lm(model=build("bart", "encoder–decoder"))
    lm.eos = frozenset()
    assert lm.cache_info().shares
    texts, most = [lm.prompt(prompt) for prompt in ("Once upon a time", "The sea", "Who said: the sea")] * 2, 0
    for t in range(6):
        texts = draw([lm.tokens(x, 2) for x in texts], t)
        most = max(most, lm.cache_info().trunks)
        for text in texts:
            assert text.log_prob == pytest.approx(fresh_log_prob_of_response(lm, text), abs=1e-4)
        texts = [texts[i] for i in (0, 0, 1, 2, 5, 5)]
    assert most > 2


@pytest.mark.parametrize("name", ["bloom", "deepseek_v3", "t5"])
def test_a_model_that_attends_its_own_way_keeps_whole_rows(name, eager):
    role = "encoder–decoder" if name == "t5" else "causal"
    lm = tiny_lm(model=build(name, role))
    lm.eos = frozenset()
    texts = [lm.prompt("Once upon a time")] * 4
    for t in range(4):
        texts = draw([lm.tokens(x, 2) for x in texts], t)
        texts = [texts[i] for i in (0, 0, 2, 3)]
    info = lm.cache_info()
    assert (info.shares, info.trunks) == (False, 0)
    fresh = fresh_log_prob_of_response if name == "t5" else fresh_log_prob
    assert max(abs(x.log_prob - fresh(lm, x)) for x in texts) < 1e-4


def test_a_window_shorter_than_a_trunk_is_kept():
    """Unlike the trial's few tokens, a prompt of 200 is longer than the window of 80."""
    config = hf.MistralConfig(**SMALL, sliding_window=80)
    lm = tiny_lm(model=random_weights(lambda: hf.MistralForCausalLM(config), seed=1))
    lm.eos = frozenset()
    texts = [prompt_of(lm, 200)] * 8
    for t in range(3):
        texts = draw([lm.tokens(x, 2) for x in texts], t)
    assert lm.cache_info().trunks == 1
    assert max(abs(x.log_prob - fresh_log_prob(lm, x)) for x in texts) < 1e-4


@pytest.mark.parametrize("most", [1, 3000, 40_000])
def test_scores_are_made_in_pieces(monkeypatch, eager, most):
    monkeypatch.setitem(trunked._SCORES, "cpu", most)
    sizes, block = [], trunked.Seen._block

    def measured(seen, layer, query, *rest):
        sizes.append(4 * query[..., 0].numel() * (seen.width + 1))
        one = 4 * query.shape[1] * (seen.width + 1)
        assert sizes[-1] <= max(most, one)
        return block(seen, layer, query, *rest)

    monkeypatch.setattr(trunked.Seen, "_block", measured)
    lm = tiny_lm()
    lm.eos = frozenset()
    texts = [lm.prompt("Once upon a time"), lm.prompt("The sea")] * 3
    texts = wander(lm, texts, 4)
    assert sizes
    assert max(abs(x.log_prob - fresh_log_prob(lm, x)) for x in texts) < 1e-4
    scores = evaluate([lm.score(x) for x in texts])  # many positions in one pass
    np.testing.assert_allclose(scores, [fresh_log_prob(lm, x) for x in texts], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("cache_bytes", [1, 10_000, 30_000, 60_000, 100_000, 200_000])
def test_evictions_of_trunks_change_nothing(cache_bytes, eager):
    texts = {}
    for limit in (2 << 30, cache_bytes):
        lm = tiny_lm(cache_bytes=limit)
        lm.eos = frozenset()
        held = []
        handles = [
            module.register_forward_hook(lambda *_, lm=lm, held=held: held.append(lm.cache_info().bytes))
            for module in lm.model.modules()
        ]
        texts[limit] = wander(lm, [lm.prompt("Once"), lm.prompt("Once upon a time")] * 3, 14)
        for handle in handles:
            handle.remove()
        assert max(held) <= lm.cache_info().peak_bytes <= limit
    one, other = texts.values()
    assert one == other
    np.testing.assert_allclose([x.log_prob for x in one], [x.log_prob for x in other], atol=1e-4)
    assert lm.cache_info().evictions > 0


def test_nothing_that_stands_on_a_dropped_trunk_is_read(eager):
    lm = tiny_lm()
    lm.eos = frozenset()
    texts = draw([lm.tokens(lm.prompt("Once upon a time"), 3)] * 6, 0)
    texts = draw([lm.tokens(x, 2) for x in texts], 1)
    held = lm.forwarder.store
    assert held.trunks
    for trunk in held.trunks:
        trunk.drop()
    before = lm.forwarded
    texts = draw([lm.tokens(x, 2) for x in texts], 2)
    assert lm.forwarded - before > len(texts[0].prompt_tokens)
    assert max(abs(x.log_prob - fresh_log_prob(lm, x)) for x in texts) < 1e-4


def test_a_trunk_is_not_read_whose_beginning_was_dropped(monkeypatch, eager):
    """A pass may run out of memory just when a trunk was made on another, which then goes, as it is older."""
    lm = tiny_lm()
    lm.eos = frozenset()
    texts = draw([lm.tokens(lm.prompt("Once upon a time there was a river"), 3)] * 4, 0)
    held, sealed = lm.forwarder.store, lm.forwarder.store.sealed
    blank, lower = Slab._blank, lm.forwarder.allowance.lower

    def short(slab, like):
        if held.sealed > sealed and not lm.forwarder.shortages:
            raise MemoryError
        return blank(slab, like)

    def less():
        assert deepest(lm) == 2
        lm.forwarder.allowance.limit = held.trunks[0].bytes + held.trunks[1].bytes
        return lower()

    monkeypatch.setattr(Slab, "_blank", short)
    monkeypatch.setattr(lm.forwarder.allowance, "lower", less)
    texts = draw([lm.tokens(texts[0], 1 + k % 2) for k in range(4)], 1)
    assert lm.cache_info().shortages == 1
    assert max(abs(x.log_prob - fresh_log_prob(lm, x)) for x in texts) < 1e-4
    lm = tiny_lm()
    lm.eos = frozenset()
    texts = draw([lm.tokens(lm.prompt("Once upon a time there was a river"), 3)] * 4, 0)
    texts = draw([lm.tokens(texts[0], 1 + k % 2) for k in range(4)], 1)
    (lowest,) = [trunk for trunk in lm.forwarder.store.trunks if not trunk.base]
    lowest.drop()
    texts = draw([lm.tokens(x, 2) for x in texts], 2)
    assert max(abs(x.log_prob - fresh_log_prob(lm, x)) for x in texts) < 1e-4


def test_trunks_end_with_the_last_text():
    lm = tiny_lm(context=2048)
    lm.eos = frozenset()
    prompt = prompt_of(lm, 300)
    texts = draw([lm.tokens(prompt, 4)] * 8, 0)
    assert lm.cache_info().trunks == 1
    del texts
    gc.collect()
    assert lm.cache_info().trunks == 1
    before = lm.forwarded
    draw([lm.tokens(prompt, 2)] * 8, 1)
    assert lm.forwarded - before <= 8  # the prompt is known still
    del prompt
    gc.collect()
    assert lm.cache_info().bytes == 0


def test_a_row_much_longer_than_the_rest_does_not_widen_all():
    """31 particles share all but their last tokens, and one of them has its own."""
    lm = tiny_lm(context=2048)
    lm.eos = frozenset()
    texts = draw([lm.tokens(lm.prompt("Once"), 400)] * 2, 0)
    texts = [texts[0]] * 31 + [texts[1]]
    texts = draw([lm.tokens(x, 5) for x in texts], 1)
    texts = draw([lm.tokens(x, 5) for x in texts], 2)
    length = texts[0].node.length
    assert lm.forwarder.store.positions < 3 * 2 * length  # 32 rows of half as much again are 48
    assert max(abs(x.log_prob - fresh_log_prob(lm, x)) for x in texts[-4:]) < 1e-3


def test_a_row_that_becomes_a_trunk_is_read_still_by_those_who_go_on_from_its_middle():
    lm = tiny_lm(context=2048)
    prompt, got = prompt_of(lm, 300), {}
    texts = list(dict.fromkeys(draw([lm.next_token(prompt)] * 12, 0)))

    def sink(jobs, logits):
        got.update((job.node, row[-1]) for job, row in zip(jobs, logits))

    nodes = [prompt.node, *(x.node for x in texts)]
    with torch.inference_mode():
        lm.forwarder.all_logits(nodes, [295] + [300] * len(texts), sink)
    for node in nodes:
        with torch.no_grad():
            fresh = lm.model(input_ids=torch.tensor([node.tokens()]), use_cache=False).logits[0, -1]
        assert torch.allclose(got[node], fresh, atol=1e-4)


@pytest.mark.parametrize("forced", [False, True])
def test_what_was_never_written_is_never_read(monkeypatch, request, forced):
    if forced:
        request.getfixturevalue("eager")
    blank = Slab._blank

    def spoilt(slab, like):
        tensor = blank(slab, like)
        tensor[:, :, slab.pad :] = torch.nan
        return tensor

    monkeypatch.setattr(Slab, "_blank", spoilt)
    lm = tiny_lm()
    lm.eos = frozenset()
    prompt = prompt_of(lm, 100)
    texts = draw([lm.tokens(x, 3) for x in [prompt] * 16], 0)
    for t in range(6):  # some begin anew on the trunk, in rows that others have left
        texts = draw([lm.tokens(x, 2) for x in [*texts[: 16 - t], *[prompt] * t]], t + 1)
        texts = [texts[i] for i in np.random.default_rng(t).integers(0, 16, 16)]
        assert max(abs(x.log_prob - fresh_log_prob(lm, x)) for x in texts) < 1e-4


def test_longrope_on_trunks(eager):
    lm, model = tiny_lm(model=phi3()), phi3()
    lm.eos = frozenset()
    texts = [lm.prompt(list(range(20, 20 + n))) for n in (TURN - 5, TURN + 2, TURN - 5)]
    most = 0
    for t in range(8):
        texts = draw([lm.tokens(x, 1 + t % 2) for x in texts], t)
        texts = [texts[i] for i in (0, 1, t % 3)]
        most = max(most, lm.cache_info().trunks)
    assert most > 0
    np.testing.assert_allclose([x.log_prob for x in texts], [law_of_generate(model, x) for x in texts], atol=1e-4)


def test_prompts_that_begin_alike_stand_on_one_trunk():
    lm = tiny_lm(context=2048)
    lm.eos = frozenset()
    stem = np.random.default_rng(0).integers(5, 290, 400).tolist()
    prompts = [lm.prompt((*stem, 5 + i, 6 + i, 7)) for i in range(6)]
    texts = draw([lm.tokens(prompts[i % 6], 3) for i in range(12)], 0)
    assert lm.forwarder.store.positions < 400 + 400 + 12 * 40
    assert max(abs(x.log_prob - fresh_log_prob(lm, x)) for x in texts) < 1e-4


def test_the_model_attends_as_its_user_set_it():
    lm = tiny_lm(context=2048)
    lm.eos = frozenset()
    model = lm.model
    model.set_attn_implementation("eager")
    seen, stop = [], threading.Event()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        truth = model(input_ids=ids, use_cache=False).logits

    def read():  # another thread's own passes in the meantime
        while not stop.is_set():
            with torch.no_grad():
                seen.append((model(input_ids=ids, use_cache=False).logits - truth).abs().max().item())

    thread = threading.Thread(target=read)
    thread.start()
    texts = draw([lm.tokens(prompt_of(lm, 300), 30)] * 16, 0)
    stop.set()
    thread.join()
    assert lm.cache_info().trunks == 1
    assert model.config._attn_implementation == "eager"
    assert max(seen) < 1e-4
    assert max(abs(x.log_prob - fresh_log_prob(lm, x)) for x in texts[:4]) < 1e-3

    def stopped(*_):
        raise KeyboardInterrupt

    handle = model.model.layers[1].register_forward_pre_hook(stopped)
    with pytest.raises(KeyboardInterrupt):
        draw([lm.next_token(x) for x in texts], 1)
    handle.remove()
    assert model.config._attn_implementation == "eager"
    texts = draw([lm.next_token(x) for x in texts], 1)
    assert max(abs(x.log_prob - fresh_log_prob(lm, x)) for x in texts[:4]) < 1e-3


def test_a_model_that_comes_to_attend_otherwise_goes_on_without_trunks(monkeypatch):
    lm = tiny_lm(context=2048)
    lm.eos = frozenset()
    prompt = prompt_of(lm, 300)
    texts = draw([lm.tokens(prompt, 3)] * 8, 0)
    attend, calls = trunked.Seen.hidden, []

    def refusing(seen, mask):
        calls.append(1)
        raise Unshared("it makes a mask of its own")

    monkeypatch.setattr(trunked.Seen, "hidden", refusing)
    texts = draw([lm.tokens(x, 3) for x in texts], 1)
    monkeypatch.setattr(trunked.Seen, "hidden", attend)
    assert len(calls) == 1
    assert not lm.cache_info().shares
    assert max(abs(x.log_prob - fresh_log_prob(lm, x)) for x in texts) < 1e-4


@fk.program
async def weighed(lm, prompt, tokens):
    text = prompt
    for _ in range(tokens):
        text = await fk.sample("token", lm.next_token(text, temperature=0.7))
        await fk.factor("likes", 0.8 * (text.tokens[-1] % 3))
    return text


@pytest.mark.slow
def test_evidence_on_trunks_is_unbiased_when_memory_is_short(eager):
    """Ẑ on trunks, some of them dropped as memory is short, against Ẑ by whole passes of a model of four tokens."""
    config = hf.LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    lm = tiny_lm(model=random_weights(lambda: hf.LlamaForCausalLM(config), std=0.5), cache_bytes=16_000)
    lm.eos = frozenset()
    prompt, total = lm.prompt((7, 20, 31)), 0.0
    with torch.no_grad():
        first = (lm.model(input_ids=torch.tensor([prompt.prompt_tokens])).logits[0, -1].double() / 0.7).softmax(-1)
        ids = torch.cat([torch.tensor([prompt.prompt_tokens]).expand(300, -1), torch.arange(300)[:, None]], 1)
        second = (lm.model(input_ids=ids).logits[:, -1].double() / 0.7).softmax(-1)
        likes = (0.8 * (torch.arange(300) % 3)).exp().double()
        total = float((first * likes * (second @ likes)).sum())
    ratios = [
        np.exp(fk.infer(weighed(lm, prompt, 2), fk.SMC(6, ess_threshold=1.0), seed=seed).log_evidence) / total
        for seed in range(150)
    ]
    info = lm.cache_info()
    assert info.evictions > 0
    assert lm.forwarder.store.sealed > 100
    assert abs(z_score(np.array(ratios), 1.0)) < Z_LIMIT  # one comparison

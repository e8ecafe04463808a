"""Recurrent states: the numbers of a fresh pass after forks, evictions and appends; each position once; refusals."""

import gc

import numpy as np
import pytest
import torch
import transformers as hf
from random_models import draw, fresh_log_prob, random_weights, two_tokens

import feynkac as fk
from feynkac.models.local.memory.states import States, select
from feynkac.models.local.passes.recurrent import RecurrentForwarder
from feynkac.models.testing import tiny_lm
from feynkac.ppl.cost import Ledger, assign, recording
from feynkac.ppl.errors import Unsupported
from feynkac.ppl.score import evaluate
from laws import Z_LIMIT, z_score

BASE = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}
HYBRID = {**BASE, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
SSM = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 4}
LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip
MODELS = {
    "mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(**BASE, state_size=4)),
    "mamba2": lambda: hf.Mamba2ForCausalLM(
        hf.Mamba2Config(**BASE, state_size=8, num_heads=8, head_dim=8, n_groups=2, chunk_size=4)
    ),
    "falcon_mamba": lambda: hf.FalconMambaForCausalLM(hf.FalconMambaConfig(**BASE, state_size=4)),
    "rwkv": lambda: hf.RwkvForCausalLM(
        hf.RwkvConfig(**BASE, context_length=128, attention_hidden_size=32, intermediate_size=48)
    ),
    "xlstm": lambda: hf.xLSTMForCausalLM(
        hf.xLSTMConfig(vocab_size=300, hidden_size=64, num_hidden_layers=2, num_heads=4, qk_dim_factor=1.0)
    ),
    "jamba": lambda: hf.JambaForCausalLM(
        hf.JambaConfig(**HYBRID, mamba_d_state=4, attn_layer_period=2, attn_layer_offset=1, num_experts=2)
    ),
    "qwen3_next": lambda: hf.Qwen3NextForCausalLM(
        hf.Qwen3NextConfig(**HYBRID, **LINEAR, head_dim=8, layer_types=["linear_attention", "full_attention"])
    ),
    "falcon_h1": lambda: hf.FalconH1ForCausalLM(hf.FalconH1Config(**HYBRID, **SSM, mamba_d_ssm=64)),
    "lfm2": lambda: hf.Lfm2ForCausalLM(hf.Lfm2Config(**HYBRID, layer_types=["conv", "full_attention"])),
}
PURE = ["mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"]


def lm_of(name, **options):
    lm = tiny_lm(model=random_weights(MODELS[name], seed=1), **options)
    lm.eos = frozenset()
    return lm


def seen_positions(lm):
    """Count what really goes into the model."""
    seen = {"calls": 0, "positions": 0}

    def count(module, args, kwargs):
        seen["calls"] += 1
        seen["positions"] += kwargs["input_ids"].numel()

    lm.model.register_forward_pre_hook(count, with_kwargs=True)
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_are_those_of_a_fresh_pass(name):
    lm = lm_of(name)
    assert isinstance(lm.forwarder, RecurrentForwarder)
    # What the models can do, as of transformers 5.23: mixing lengths, and several tokens after a state.
    assert lm.forwarder.ragged == (name in PURE)
    assert lm.forwarder._chunks == (name not in ("mamba", "falcon_mamba", "jamba"))
    prompts = ["Once upon a time there was", "The sea", "Who said: the sea"]
    texts = [lm.prompt(prompts[i % 3]) for i in range(5)]
    rng = np.random.default_rng(0)
    oldest = list(texts)
    for t in range(7):
        kinds = [lambda x: lm.next_token(x), lambda x: lm.tokens(x, 3), lambda x: lm.line(x, max_tokens=2)]
        requests = [kinds[(t + i * (t % 3 == 2)) % 3](x) for i, x in enumerate(texts)]
        before = np.array([x.log_prob for x in texts])
        begin = [len(x.prompt_tokens) + len(x.tokens) for x in texts]
        texts = draw(requests, t)
        truth = [fresh_log_prob(lm, x, b) for x, b in zip(texts, begin)]
        np.testing.assert_allclose([x.log_prob for x in texts] - before, truth, atol=1e-4)
        np.testing.assert_allclose(requests[0].log_prob_batch(requests, texts), truth, atol=1e-4)
        oldest.append(texts[0])
        texts = [texts[i] for i in rng.integers(0, 5, 5)]  # particle IDs are kept below: each its own history
        if t == 3:
            texts = [x.append(" the sea") if i % 2 else x for i, x in enumerate(texts)]
    for k, old in enumerate(oldest[5:]):  # forks of every old generation, at once with the young
        more = draw([lm.tokens(old, 2), lm.tokens(old, 2), lm.next_token(texts[0])], 99, k)
        for x, parent in zip(more, (old, old, texts[0])):
            assert x.tokens[: len(parent.tokens)] == parent.tokens
            begin = len(parent.prompt_tokens) + len(parent.tokens)
            assert x.log_prob - parent.log_prob == pytest.approx(fresh_log_prob(lm, x, begin), abs=1e-4)


def test_selected_states_come_in_the_order_asked_for():
    counts = torch.zeros(1)
    one, two = (States([t, counts], [t, counts], [True, False]) for t in (torch.arange(3.0), torch.arange(3.0) + 10))
    rows, shared = select([(one, 2), (two, 0), (one, 0), (two, 0)])
    assert rows.tolist() == [2, 10, 0, 10]
    shared += 1
    assert counts.tolist() == [0]  # a copy: what is kept does not change
    longer = States([torch.zeros(3, 2), counts], [torch.zeros(3, 2), counts], [True, False])
    with pytest.raises(ValueError, match="different shapes"):
        select([(one, 0), (longer, 0)])


@pytest.mark.parametrize("name", ["mamba", "rwkv", "qwen3_next"])
def test_forks_by_index_keep_each_particle_its_own_state(name):
    """Every particle begins with its own token, its ID; after a shuffle, its law must still be of its history."""
    lm = lm_of(name)
    root = lm.prompt("Once").node
    tree = lm.tree
    nodes = [tree.child(root, 50 + i) for i in range(6)]
    index = [4, 4, 0, 5, 1, 4]
    from feynkac.models.language.host import Tally

    with torch.inference_mode():
        lm.laws(nodes, np.arange(6), Tally(6), lambda places, logits: None)
        forks = [tree.child(nodes[i], 100 + k) for k, i in enumerate(index)]
        given = {}
        lm.laws(forks, np.arange(6), Tally(6), lambda places, logits: given.update(zip(places.tolist(), logits)))
        for k, node in enumerate(forks):
            truth = lm.model(input_ids=torch.tensor([node.tokens()]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(given[k], truth, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["mamba", "rwkv", "falcon_h1"])
@pytest.mark.parametrize(("histories", "max_batch"), [(0, 128), (4, 3), (8, 128)])
def test_eviction_and_small_batches_change_nothing(name, histories, max_batch):
    texts = {}
    cache_bytes = 1 + histories * lm_of(name).forwarder._row_bytes(20)
    for limit, batch in ((2 << 30, 128), (cache_bytes, max_batch)):
        lm = lm_of(name, cache_bytes=limit, max_batch=batch)
        now = [lm.prompt("Once"), lm.prompt("Once upon a time")] * 2
        for t in range(4):
            now = draw([lm.tokens(x, 1 + (t + i) % 3) for i, x in enumerate(now)], t)
            now = [now[i] for i in (0, 1, 3, 3)]
            info = lm.cache_info()
            assert info.bytes <= info.peak_bytes <= limit
        texts[limit] = now
        assert (lm.cache_info().recomputed > 0) == (limit < 2 << 30)
    one, other = texts.values()
    assert one == other
    np.testing.assert_allclose([x.log_prob for x in one], [x.log_prob for x in other], atol=1e-4)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "rwkv"])
def test_prompt_once_twins_once_then_every_token_once(name):
    lm = lm_of(name)
    seen = seen_positions(lm)
    prompt = lm.prompt("Once upon a time")
    with recording(Ledger(owners=2)) as ledger:
        assign([0] * 4 + [1] * 4)
        texts = draw([lm.tokens(prompt, 4)] * 8, 0)
        histories = {text.tokens[:k] for text in texts for k in range(1, 4)}
        assert seen["positions"] == lm.forwarded == prompt.node.length + len(histories)
        before = lm.forwarded
        draw([lm.next_token(texts[0])] * 8, 1)
        assert lm.forwarded - before == 1
        requests = [lm.tokens(prompt, 4)] * 8
        np.testing.assert_allclose(
            requests[0].log_prob_batch(requests, texts), [x.log_prob for x in texts], atol=1e-4
        )  # fmt: skip
    total = ledger.total()
    assert total.model_calls == seen["calls"]
    assert total.tokens_in == lm.forwarded == seen["positions"]
    assert total.tokens_out == 8 * 4 + 8
    assert ledger.of(0).tokens_in + ledger.of(1).tokens_in == lm.forwarded


@pytest.mark.parametrize("name", PURE)
def test_scores_share_the_prompt_and_agree_with_a_fresh_pass(name):
    lm = lm_of(name)
    seen = seen_positions(lm)
    texts = [lm.prompt("Once upon a time").append(more) for more in (" the river ran", " yes", " no, said", "")]
    values = evaluate([lm.score(text) for text in texts])
    fed = seen["positions"]
    np.testing.assert_allclose(values, [fresh_log_prob(lm, text) for text in texts], atol=1e-4)
    assert fed == lm.forwarded == len(texts[0].prompt_tokens) + sum(max(len(x.tokens) - 1, 0) for x in texts)


def test_prompts_that_begin_alike_are_forwarded_in_two_parts():
    lm = lm_of("mamba2")
    seen = seen_positions(lm)
    prompts = [lm.prompt([{"role": "user", "content": f"Once upon a time there was a river. {q}"}]) for q in "abc"]
    draw([lm.tokens(x, 2) for x in prompts], 0)
    whole = sum(len(x.prompt_tokens) for x in prompts) + 3
    common = next(k for k in range(99) if len({x.prompt_tokens[k] for x in prompts}) > 1)
    assert common > 16
    assert seen["positions"] == lm.forwarded == whole - 2 * common
    assert max(abs(x.log_prob - fresh_log_prob(lm, x)) for x in draw([lm.tokens(x, 2) for x in prompts], 1)) < 1e-4


def test_memory_is_given_back():
    lm = lm_of("mamba")
    texts = draw([lm.tokens(lm.prompt("Once"), 5)] * 6, 0)
    assert lm.cache_info().bytes > 0
    kept = texts[0].detach()
    del texts
    gc.collect()
    assert lm.cache_info().bytes == 0
    assert str(kept) is not None


def test_an_interrupted_pass_leaves_no_wrong_state():
    lm = lm_of("rwkv")
    texts = draw([lm.tokens(lm.prompt("Once"), 3)] * 4, 0)
    texts = [texts[i] for i in (0, 0, 1, 3)]

    def stop(*_):
        raise KeyboardInterrupt

    handle = lm.model.rwkv.blocks[1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        draw([lm.tokens(text, 2) for text in texts], 1)
    handle.remove()
    for text in draw([lm.tokens(text, 2) for text in texts], 1):
        assert text.log_prob == pytest.approx(fresh_log_prob(lm, text), abs=1e-4)


def exact_evidence(lm, prompt, masks, total=0.0):
    """Z by enumeration with fresh passes: the sum over allowed tokens of p times the weights."""

    def below(tokens, depth):
        if depth == len(masks):
            return 1.0
        with torch.no_grad():
            p = lm.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].double().softmax(-1).numpy()
        allowed = np.flatnonzero(masks[depth]).tolist()
        return sum(p[v] * np.exp(0.8 * (v % 3)) * below((*tokens, v), depth + 1) for v in allowed)

    return below(lm.prompt(prompt).prompt_tokens, 0)


@pytest.mark.parametrize("name", ["mamba", "rwkv"])
def test_smc_is_unbiased_on_an_enumerable_program(name):
    # 2 comparisons at |z| < Z_LIMIT (see laws.py): a correct engine fails either with probability below 1e-5.
    lm = lm_of(name)
    masks = [np.isin(np.arange(lm.vocab_size), [60, 61, 62, 66]), np.isin(np.arange(lm.vocab_size), [70, 73, 75])]
    truth = exact_evidence(lm, "Once", masks)
    model = two_tokens(lm, "Once", masks)
    ratios = [np.exp(p.log_evidence) / truth for p in fk.infer([model] * 400, fk.SMC(3), seed=0)]
    assert np.std(ratios) > 0.05  # there is something to average
    assert abs(z_score(np.array(ratios), 1.0)) < Z_LIMIT
    one, two = (fk.infer(model, fk.SMC(3), seed=5) for _ in range(2))
    assert one.log_evidence == two.log_evidence
    assert [str(x) for x in one.values] == [str(x) for x in two.values]


def test_models_that_cannot_be_forked_are_refused_by_name():
    gemma = hf.RecurrentGemmaForCausalLM(
        hf.RecurrentGemmaConfig(
            vocab_size=300, hidden_size=32, num_hidden_layers=3, intermediate_size=48, num_attention_heads=4,
            num_key_value_heads=1, lru_width=32, attention_window_size=6, head_dim=8,
        )
    )  # fmt: skip
    with pytest.raises(Unsupported, match="RecurrentGemmaForCausalLM does not return the state"):
        tiny_lm(model=gemma)


def test_a_model_whose_steps_are_wrong_is_refused(monkeypatch):
    model = random_weights(MODELS["mamba"], seed=1)
    forward = model.forward

    def forgetful(input_ids, cache_params=None, **more):
        return forward(input_ids=input_ids, cache_params=None, **more)  # begins anew at every call

    monkeypatch.setattr(model, "forward", forgetful)
    with pytest.raises(Unsupported, match="steps of MambaForCausalLM give other logits"):
        tiny_lm(model=model)

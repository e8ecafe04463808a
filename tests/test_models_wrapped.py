"""Models behind wrappers, models that number positions their own way, LongRoPE: the law is that of the model alone."""

import functools
import inspect

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from random_models import draw, fresh_log_prob, random_weights, two_tokens
from test_models_encdec import fresh_log_prob as fresh_log_prob_of_response
from zoo import build

import feynkac as fk
from feynkac.models.local.passes import trial
from feynkac.models.local.passes.attention import AttentionForwarder
from feynkac.models.local.weights.live import Live
from feynkac.models.local.weights.wrappers import accepted
from feynkac.models.testing import tiny_lm
from feynkac.ppl.errors import Unsupported
from feynkac.ppl.score import evaluate
from laws import Z_LIMIT, z_score

SMALL = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
ROBERTA = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 42, "pad_token_id": 299, "is_decoder": True,
}  # fmt: skip


def llama():
    return random_weights(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)), seed=1).eval()


def gpt2():
    sizes = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    config = hf.GPT2Config(**sizes, bos_token_id=0, eos_token_id=1)
    return random_weights(lambda: hf.GPT2LMHeadModel(config), seed=1).eval()


def lora(std):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = peft.get_peft_model(llama(), peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=std)
    return model.eval()


class Around(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Passing(hf.GPT2LMHeadModel):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def patched(model, wrap=lambda forward: lambda *args, **kwargs: forward(*args, **kwargs)):
    model.forward = wrap(model.forward)
    return model


def dropping(forward):
    def without_positions(input_ids, attention_mask=None, past_key_values=None, use_cache=None, **ignored):
        cached = {"past_key_values": past_key_values, "use_cache": use_cache}
        return forward(input_ids=input_ids, attention_mask=attention_mask, **cached)

    return without_positions


WRAPPED = {
    "lora": (lambda: lora(0.0), llama),
    "lora that says something else": (lambda: lora(0.3), lambda: lora(0.3).merge_and_unload()),
    "compiled": (lambda: torch.compile(gpt2(), backend="eager"), gpt2),
    "around": (lambda: Around(gpt2()), gpt2),
    "passing on": (lambda: random_weights(lambda: Passing(gpt2().config), seed=1), gpt2),
    "patched": (lambda: patched(gpt2()), gpt2),
    "patched with wraps": (
        lambda: patched(gpt2(), lambda f: functools.wraps(f)(lambda *args, **kwargs: f(*args, **kwargs))),
        gpt2,
    ),
}


class Alone:
    """A bare model, where `fresh_log_prob` wants a language model."""

    def __init__(self, model):
        self.model = model


def wander(lm, rounds=6, prompts=("Once", "The sea said", "Who said: the sea")):
    """Texts of unequal lengths that join, fork and leave batches, with all that was drawn on the way."""
    lm.eos = frozenset()
    texts = [lm.prompt(prompts[i % len(prompts)]) for i in range(6)]
    rng = np.random.default_rng(0)
    seen = []
    for t in range(rounds):
        texts = draw([lm.tokens(x, 1 + (t + i * (t % 2)) % 3) for i, x in enumerate(texts)], t)
        seen += texts
        texts = [texts[i] for i in rng.integers(0, 6, 6)]
    return seen


def worst(lm, model, texts):
    sampled = max(abs(text.log_prob - fresh_log_prob(Alone(model), text)) for text in texts)
    scored = np.subtract(evaluate([lm.score(text) for text in texts]), [text.log_prob for text in texts])
    return max(sampled, np.abs(scored).max())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft
@pytest.mark.parametrize("name", [pytest.param(k, marks=[pytest.mark.slow] * (k == "compiled")) for k in WRAPPED])
def test_wrappers_are_looked_through(name):
    make, bare = WRAPPED[name]
    lm = tiny_lm(model=make())
    assert isinstance(lm.forwarder, AttentionForwarder)
    assert lm.forwarder.ragged  # the law is exact where texts of unequal lengths share passes
    assert worst(lm, bare(), wander(lm)) < 1e-4
    assert lm.context == 64


def test_a_model_that_drops_positions_is_run_without_padding():
    lm = tiny_lm(model=patched(gpt2(), dropping))
    assert "position_ids" not in inspect.signature(lm.model.forward).parameters
    assert isinstance(lm.forwarder, AttentionForwarder)
    assert not lm.forwarder.ragged
    assert worst(lm, gpt2(), wander(lm)) < 1e-4


def test_a_compiled_model_is_looked_through():
    model = torch.compile(gpt2(), backend="eager")
    assert "position_ids" in accepted(model)
    with Live(model).hold():  # without a pass, which would take seconds to compile
        assert not model.training


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:Position ids:UserWarning")
@pytest.mark.parametrize("tuning", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_virtual_tokens_are_refused_by_name(tuning):
    model = peft.get_peft_model(llama(), tuning(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(Unsupported, match=r"LlamaForCausalLM|PeftModel"):
        tiny_lm(model=model)


@pytest.mark.parametrize("kind", ["Roberta", "XLMRoberta", "Camembert", "Data2VecText"])
def test_positions_that_begin_after_paddings(kind):
    make = getattr(hf, f"{kind}ForCausalLM")
    config = getattr(hf, f"{kind}Config")(**{**ROBERTA, "max_position_embeddings": 342})
    lm = tiny_lm(model=random_weights(lambda: make(config), seed=1))
    assert lm.forwarder.ragged
    assert lm.context == 42  # of 342 numbered places the first 300 are not used
    texts = [text for text in wander(lm) if 299 not in text.tokens]
    assert len(texts) > 10
    assert worst(lm, lm.model, texts) < 1e-4
    (full,) = draw([lm.complete(lm.prompt("Once"), max_tokens=100)])
    assert full.finish_reason == "context"
    assert len(full.prompt_tokens) + len(full.tokens) == 42


@pytest.mark.parametrize("kind", ["roberta", "m2m_100"])
def test_padding_tokens_within_a_text(kind):
    """Some models number positions past them: such texts go through the model whole."""
    lm = tiny_lm(model=build(kind, "causal" if kind == "roberta" else "encoder–decoder"))
    lm.eos = frozenset()
    padding = lm.model.config.pad_token_id
    truth = fresh_log_prob if kind == "roberta" else fresh_log_prob_of_response
    texts = [lm.prompt("Once"), lm.prompt("The sea said")]
    mask = np.arange(lm.vocab_size) == padding
    for t in range(4):  # one of them draws a padding token, and both go on side by side
        first = lm.next_token(texts[0], mask=mask) if t == 1 else lm.tokens(texts[0], 2)
        texts = draw([first, lm.tokens(texts[1], 1 + t % 2)], t)
    assert padding in texts[0].tokens
    np.testing.assert_allclose(evaluate([lm.score(text) for text in texts]), [truth(lm, x) for x in texts], atol=1e-4)
    longer = draw([lm.tokens(text, 3) for text in texts], 9)
    for text, more in zip(texts, longer):
        assert more.log_prob - text.log_prob == pytest.approx(truth(lm, more) - truth(lm, text), abs=1e-4)


@pytest.mark.parametrize("name", [pytest.param("compiled", marks=pytest.mark.slow), "around", "roberta"])
def test_smc_is_unbiased(name):
    # 3 comparisons at |z| < Z_LIMIT, each false about once in 50,000 (see laws.py).
    config = hf.RobertaConfig(**{**ROBERTA, "max_position_embeddings": 342})
    bare = random_weights(lambda: hf.RobertaForCausalLM(config), seed=1).eval() if name == "roberta" else gpt2()
    lm = tiny_lm(model=bare if name == "roberta" else WRAPPED[name][0]())
    prompts, allowed = ["Once", "Once upon a time"], ([60, 61, 62, 66], [70, 73, 75])
    masks = [np.isin(np.arange(lm.vocab_size), tokens) for tokens in allowed]
    truth = []
    for prompt in prompts:
        begun, total = lm.prompt(prompt).prompt_tokens, 0.0
        for a in allowed[0]:
            for b in allowed[1]:
                with torch.no_grad():
                    log_p = bare(input_ids=torch.tensor([[*begun, a, b]])).logits[0].double().log_softmax(-1)
                at = len(begun) - 1
                total += np.exp(log_p[at, a].item() + log_p[at + 1, b].item() + 0.8 * (a % 3 + b % 3))
        truth.append(total)
    models = [two_tokens(lm, prompt, masks) for prompt in prompts] * 200  # of unequal lengths, side by side
    ratios = np.array([np.exp(p.log_evidence) for p in fk.infer(models, fk.SMC(3), seed=0)]) / (truth * 200)
    assert ratios.std() > 0.05  # there is something to average
    assert abs(z_score(ratios, 1.0)) < Z_LIMIT


# LongRoPE

TURN = 16


def phi3():
    rng = np.random.default_rng(0)
    factors = {"long_factor": (2 + rng.random(4)).tolist(), "short_factor": (1 + rng.random(4)).tolist()}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors, "original_max_position_embeddings": TURN}
    config = hf.Phi3Config(**SMALL, rope_parameters=rope, original_max_position_embeddings=TURN)
    return random_weights(lambda: hf.Phi3ForCausalLM(config), seed=1).eval()


def law_of_generate(model, text, start=0):
    """Log p of a text's tokens, each by a pass over what comes before it alone, as ``generate`` draws them."""
    tokens, total = text.prompt_tokens + text.tokens, 0.0
    with torch.no_grad():
        for i in range(len(text.prompt_tokens) + start, len(tokens)):
            logits = model(input_ids=torch.tensor([tokens[:i]]), use_cache=False).logits[0, -1]
            total += logits.double().log_softmax(-1)[tokens[i]].item()
    return total


@pytest.mark.parametrize("options", [{}, {"cache_bytes": 60_000, "max_batch": 3}])
def test_longrope_turns_by_the_length_of_each_text(options):
    lm, model = tiny_lm(model=phi3(), **options), phi3()
    assert lm.context == 64
    texts = wander(lm, 10, ("Once", "The sea said", "Who said: the sea, and the river"))[::4]
    lengths = np.array([len(text.prompt_tokens) + len(text.tokens) for text in texts])
    assert lengths.min() < TURN < lengths.max() - 4
    truth = [law_of_generate(model, text) for text in texts]
    np.testing.assert_allclose([text.log_prob for text in texts], truth, atol=1e-4)
    np.testing.assert_allclose(evaluate([lm.score(text) for text in texts]), truth, atol=1e-4)
    fresh = tiny_lm(model=phi3(), **options)  # scored with nothing kept, short and long together
    again = [fresh.attach(type(text).from_json({**text.to_json(), "identity": fresh.identity})) for text in texts]
    np.testing.assert_allclose(evaluate([fresh.score(text) for text in again]), truth, atol=1e-4)
    whole = [fresh_log_prob(Alone(model), text) for text in texts]
    assert np.abs(np.subtract(whole, truth)).max() > 0.1  # one pass over a long text is not the law of generate


def test_longrope_texts_on_both_sides_in_one_wave():
    lm, model = tiny_lm(model=phi3()), phi3()
    texts = [lm.prompt(list(range(20, 20 + n))) for n in (TURN - 2, TURN + 2, TURN)]
    for t in range(4):
        texts = draw([lm.next_token(text) for text in texts], t)
    truth = [law_of_generate(model, text) for text in texts]
    np.testing.assert_allclose([text.log_prob for text in texts], truth, atol=1e-4)


def test_longrope_agrees_with_generate():
    lm, model = tiny_lm(model=phi3()), phi3()
    lm.eos = frozenset()
    prompt = lm.prompt("The sea said")
    (text,) = draw([lm.tokens(prompt, 30, temperature=0)])
    made = model.generate(torch.tensor([prompt.prompt_tokens]), max_new_tokens=30, do_sample=False, eos_token_id=None)
    assert tuple(made[0].tolist()) == prompt.prompt_tokens + text.tokens


# Trials


def test_a_trial_leaves_all_as_it_was():
    def drawing(forward):
        def drawn(*args, **kwargs):
            torch.rand(1)
            return forward(*args, **kwargs)

        return drawn

    model = patched(llama(), drawing)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = torch.random.get_rng_state()
    lm = tiny_lm(model=model, cache_bytes=100_000, max_batch=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    info = lm.cache_info()
    assert (info.bytes, info.peak_bytes, info.limit, info.evictions, info.forwarded, info.recomputed) == (
        0, 0, 100_000, 0, 0, 0,
    )  # fmt: skip
    assert lm.forwarder.max_batch == 2
    assert not lm.tree._roots
    assert not any(place() for place in lm.tree._children.values())


def test_a_trial_takes_few_short_passes():
    model, seen = llama(), []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    tiny_lm(model=model)
    handle.remove()
    assert len(seen) <= 20
    assert max(rows * columns for rows, columns in seen) <= 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [gpt2, llama, phi3])
def test_trials_know_rounding_from_wrong_positions(make, dtype, monkeypatch):
    assert tiny_lm(model=make().to(dtype)).forwarder.ragged
    wrong = tiny_lm(model=patched(make().to(dtype), dropping))
    assert not wrong.forwarder.ragged
    monkeypatch.setattr(AttentionForwarder, "_ways", lambda self: [(False, True, False)])
    with pytest.raises(Unsupported, match=r"off by 0\.\d+ of their spread, rounding by|off by \d"):
        trial_of(patched(make().to(dtype), dropping))


def trial_of(model):
    from feynkac.models.local.memory.histories import Histories

    return AttentionForwarder(model, Histories(), 1 << 30, 128, 300)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning", "ignore:torch.quantize:UserWarning")
def test_quantised_models_that_scale_a_batch_as_one_are_refused():
    model = torch.ao.quantization.quantize_dynamic(llama(), {torch.nn.Linear}, dtype=torch.qint8)
    assert trial.rounding(model) == 2**-7
    # It scales what it rounds by the largest number of the whole batch, so no text has a law of its own.
    with pytest.raises(Unsupported, match="LlamaForCausalLM gives other logits in pieces"):
        tiny_lm(model=model)


def test_a_model_that_reads_on_is_refused():
    config = hf.BertConfig(**{**ROBERTA, "is_decoder": False})
    model = random_weights(lambda: hf.BertLMHeadModel(config))
    with pytest.raises(Unsupported, match=r"BertLMHeadModel gives other logits in pieces .* is_decoder=True"):
        tiny_lm(model=model)


def test_a_model_that_looks_at_its_neighbours_is_refused():
    def mixing(forward):
        def mixed(*args, **kwargs):
            out = forward(*args, **kwargs)
            out.logits = out.logits + out.logits.mean(0, keepdim=True)
            return out

        return mixed

    with pytest.raises(Unsupported, match="LlamaForCausalLM"):
        tiny_lm(model=patched(llama(), mixing))

"""Variants: the same weights run otherwise are as a model made so, and neither is in the other's way."""

import gc
import math
import threading
import weakref

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from random_models import draw, fresh_log_prob, random_weights
from test_models_encdec import fresh_log_prob as fresh_log_prob_of_response
from test_models_live import LAYERS, SMALL, with_adapters
from test_threads import at_once

import feynkac as fk
from feynkac.models.local.weights.packed import PackedLinear
from feynkac.models.local.weights.wrappers import core
from feynkac.models.testing import tiny_lm
from feynkac.ppl.score import evaluate
from laws import check_unbiased

# Of peft, which asks transformers by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

MOE = {**SMALL, "moe_intermediate_size": 32, "num_experts_per_tok": 3}
MIXTURES = {
    "Mixtral": lambda k: hf.MixtralForCausalLM(hf.MixtralConfig(**MOE | {"num_experts_per_tok": k})),
    "Qwen2-MoE": lambda k: hf.Qwen2MoeForCausalLM(
        hf.Qwen2MoeConfig(**MOE | {"num_experts_per_tok": k}, num_experts=4, shared_expert_intermediate_size=16)
    ),
    "OLMoE": lambda k: hf.OlmoeForCausalLM(hf.OlmoeConfig(**MOE | {"num_experts_per_tok": k}, num_experts=8)),
    "a list, one for each layer": lambda k: hf.HunYuanMoEV1ForCausalLM(
        hf.HunYuanMoEV1Config(**SMALL, num_experts=4, moe_topk=[k, k], head_dim=16)
    ),
    "read as it goes": lambda k: hf.Gemma4ForCausalLM(
        hf.Gemma4TextConfig(
            **SMALL | {"vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 8, "head_dim": 16},
            enable_moe_block=True, num_experts=4, top_k_experts=k, moe_intermediate_size=32,
        )
    ),
}  # fmt: skip
STACKS = {
    "Llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL | {"num_hidden_layers": 3})),
    "GPT-2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=300, n_embd=32, n_layer=3, n_head=4, n_positions=256)),
    "T5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4,
                    decoder_start_token_id=5)
    ),
    "Mamba": lambda: hf.MambaForCausalLM(
        hf.MambaConfig(vocab_size=300, hidden_size=32, state_size=4, num_hidden_layers=3)
    ),
}  # fmt: skip


def whole(model, ids):
    """Log-probabilities of a pass over the whole."""
    inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False, **inputs).logits.log_softmax(-1)


def of_variant(lm, ids):
    """The same of a variant of a model."""
    inputs = {"decoder_input_ids": ids} if core(lm.model).config.is_encoder_decoder else {}
    with torch.inference_mode():
        return lm.forwarder.invoke(input_ids=ids, use_cache=False, **inputs).logits.log_softmax(-1)


IDS = torch.arange(20, 32)[None]


def grown(lm, prompts=("Once", "The sea said")):
    """Texts that grow and part in company."""
    texts = [lm.prompt(prompt) for prompt in prompts] * 2
    for t in range(3):
        texts = draw([lm.tokens(text, 1 + i % 2) for i, text in enumerate(texts)], t)
        texts = [texts[i] for i in (0, 0, 3, 1)]
    return texts


@pytest.mark.parametrize("name", MIXTURES)
def test_another_number_of_experts_is_a_model_made_so(name):
    lm = tiny_lm(model=random_weights(lambda: MIXTURES[name](3)), packed=False)
    twin = MIXTURES[name](1).eval()
    twin.load_state_dict(lm.model.state_dict())
    few = lm.variant(experts=1)
    before = whole(lm.model, IDS)
    truth = whole(twin, IDS)
    assert (before - truth).abs().max() > 0.1
    assert (of_variant(few, IDS) - truth).abs().max() < 1e-6
    twin = tiny_lm(model=twin, packed=False, name=lm.identity)
    for text in grown(few):
        assert text.log_prob == pytest.approx(fresh_log_prob(twin, text), abs=1e-4)
    assert torch.equal(whole(lm.model, IDS), before)
    assert (of_variant(few.variant(experts=3), IDS) - before).abs().max() < 1e-6


def leave_after(model, layers):
    """Let the layers of a stack beyond some give what they get."""

    def skip(module, args, kwargs, out):
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    decoder = model.get_decoder()
    stack = next(part for part in decoder.modules() if isinstance(part, torch.nn.ModuleList))
    assert len(stack) == 3
    return [layer.register_forward_hook(skip, with_kwargs=True) for layer in stack[layers:]]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("name", STACKS)
def test_an_early_exit_is_the_head_on_that_layer(name, layers):
    lm = tiny_lm(model=random_weights(STACKS[name]))
    before = whole(lm.model, IDS)
    early = lm.variant(layers=layers)
    texts, got = grown(early), of_variant(early, IDS)
    hooks = leave_after(lm.model, layers)
    assert (got - whole(lm.model, IDS)).abs().max() < 1e-6
    for text in texts:
        fresh = fresh_log_prob_of_response if core(lm.model).config.is_encoder_decoder else fresh_log_prob
        assert text.log_prob == pytest.approx(fresh(lm, text), abs=1e-4)
    for hook in hooks:
        hook.remove()
    assert torch.equal(whole(lm.model, IDS), before)
    assert ((got - before).abs().max() > 0.1) == (layers < 3)


@pytest.mark.parametrize("wrapped", [True, False])
def test_adapters_are_switched_pass_by_pass(wrapped):
    model = with_adapters()
    lm = tiny_lm(model=model if wrapped else model.get_base_model())
    variants = {name: lm.variant(adapter=name) for name in ("one", "two", None)}
    texts = {name: grown(variant) for name, variant in variants.items()}
    laws = {name: of_variant(variant, IDS) for name, variant in variants.items()}
    assert torch.equal(whole(model, IDS), laws["one"])
    assert model.active_adapter == "one"
    assert not any(weight.requires_grad for name, weight in model.named_parameters() if ".two." in name)
    for name in variants:
        with torch.no_grad():
            if name is None:
                model.base_model.disable_adapter_layers()
            else:
                model.set_adapter(name)
            assert (laws[name] - whole(model, IDS)).abs().max() < 1e-6
            for text in texts[name]:
                assert text.log_prob == pytest.approx(fresh_log_prob(lm, text), abs=1e-4)
    with model.disable_adapter():  # which is none of the variant's business
        assert torch.equal(of_variant(variants["two"], IDS), laws["two"])
    gaps = [float((laws[a] - laws[b]).abs().max()) for a, b in (("one", "two"), ("one", None), ("two", None))]
    assert min(gaps) > 0.1


def test_a_part_that_an_adapter_replaces_whole():
    def made():
        settings = peft.LoraConfig(r=4, target_modules=LAYERS, modules_to_save=["lm_head"])
        return peft.get_peft_model(hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)), settings, adapter_name="one")

    model = random_weights(made)
    lm = tiny_lm(model=model, packed=False)
    bare = of_variant(lm.variant(adapter=None), IDS)
    with model.disable_adapter():
        assert (bare - whole(model, IDS)).abs().max() < 1e-6
    assert (bare - whole(model, IDS)).abs().max() > 0.1


def test_routers_that_an_adapter_copies_are_varied_too():
    settings = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["gate"])

    def made(k):
        return peft.get_peft_model(MIXTURES["Mixtral"](k), settings, adapter_name="one")

    lm = tiny_lm(model=random_weights(lambda: made(3)), packed=False)
    twin = made(1).eval()
    twin.load_state_dict(lm.model.state_dict())
    few = lm.variant(experts=1)
    assert (of_variant(few, IDS) - whole(twin, IDS)).abs().max() < 1e-6
    with twin.disable_adapter():
        assert (of_variant(few.variant(adapter=None), IDS) - whole(twin, IDS)).abs().max() < 1e-6


def test_routers_that_were_replaced_are_refused():
    lm = tiny_lm(model=MIXTURES["Mixtral"](2))
    few = lm.variant(experts=1)

    class Other(torch.nn.Module):
        def __init__(self, router):
            super().__init__()
            self.weight, self.most = router.weight, router.top_k

        def forward(self, hidden):
            logits = torch.nn.functional.linear(hidden, self.weight).softmax(-1)
            best, index = logits.topk(self.most)
            return logits, best / best.sum(-1, keepdim=True), index

    block = lm.model.model.layers[1].mlp
    block.gate = Other(block.gate)
    with pytest.raises(fk.errors.Unsupported, match="1 modules of MixtralTopKRouter where its settings make 2"):
        few.next_log_probs(few.prompt("Once"))


def test_variants_of_variants():
    lm = tiny_lm(model=with_adapters(), name="it")
    both = lm.variant(layers=1).variant(adapter="two")
    assert repr(both) == "<TransformersLM it, layers=1, adapter='two'>"
    assert torch.equal(of_variant(both, IDS), of_variant(lm.variant(layers=1, adapter="two"), IDS))
    assert not torch.equal(of_variant(both, IDS), of_variant(lm.variant(layers=1), IDS))
    assert both.model.model is lm.model
    assert torch.equal(of_variant(both.variant(layers=2), IDS), of_variant(lm.variant(adapter="two"), IDS))


def test_what_a_model_cannot_vary_is_refused_by_name():
    lm, mixture, adapted = tiny_lm(), tiny_lm(model=MIXTURES["Mixtral"](2)), tiny_lm(model=with_adapters())
    unsupported, wrong = fk.errors.Unsupported, ValueError
    for host, settings, error, words in [
        (lm, {"experts": 1}, unsupported, "LlamaForCausalLM has no experts"),
        (mixture, {"experts": 9}, wrong, "has 8 experts, so that 9 of them cannot be active"),
        (mixture, {"experts": 0}, wrong, "experts must be at least 1"),
        (lm, {"layers": 3}, wrong, "has 2 layers, so that it cannot be left after 3"),
        (lm, {"layers": 0}, wrong, "layers must be at least 1"),
        (lm, {"layers": 1.5}, TypeError, "layers must be a whole number"),
        (lm, {"adapter": "one"}, unsupported, "has no adapters of peft"),
        (lm, {"adapter": None}, unsupported, "has no adapters of peft"),
        (adapted, {"adapter": "three"}, wrong, "has no adapter 'three', but 'one', 'two'"),
    ]:
        with pytest.raises(error, match=words):
            host.variant(**settings)
    lm = tiny_lm(model=hf.DogeForCausalLM(hf.DogeConfig(**SMALL, num_experts=4, num_experts_per_tok=2)))
    with pytest.raises(unsupported, match="makes no difference to DogeForCausalLM: it is dense"):
        lm.variant(experts=1)
    bert = hf.ModernBertDecoderConfig(**SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1)
    lm = tiny_lm(model=hf.ModernBertDecoderForCausalLM(bert))
    with pytest.raises(unsupported, match="are not in one list"):
        lm.variant(layers=1)


def test_weights_and_their_packed_copies_are_shared():
    lm = tiny_lm(model=hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL | {"hidden_size": 128})), packed=True)

    def packed():
        return {
            (id(module), id(module._packed))
            for module in lm.model.modules()
            if type(module) is PackedLinear and "_packed" in vars(module)
        }

    text = lm.prompt("Once upon a time there was a river, and the river ran to the sea. " * 4)
    lm.next_log_probs(text)
    copies = packed()
    early = lm.variant(layers=1)
    other = early.attach(text)
    early.next_log_probs(other)
    lm.next_log_probs(text.append("The"))
    assert copies
    assert packed() == copies
    own = {name.removeprefix("model."): weight for name, weight in early.model.named_parameters()}
    assert {n: w.data_ptr() for n, w in own.items()} == {n: w.data_ptr() for n, w in lm.model.named_parameters()}
    assert all(own[name] is weight for name, weight in lm.model.named_parameters())
    assert 0 < early.cache_info().bytes < lm.cache_info().bytes
    assert other.node is not text.node


def test_variants_forget_nothing_of_each_other():
    lm = tiny_lm(model=with_adapters())
    lms = [lm, lm.variant(layers=1), lm.variant(adapter="two"), lm.variant(adapter=None)]
    texts = [each.prompt("Once upon a time") for each in lms]
    for _ in range(3):
        texts = [draw([each.tokens(text, 1)])[0] for each, text in zip(lms, texts)]
    for each, text in zip(lms, texts):
        assert each.forwarded == text.node.length - 1, "a token alone after the first pass"
        assert each.version() == 0
    assert len({text.tokens for text in texts}) > 1


def test_a_look_at_the_model_during_a_pass_of_a_variant_sees_no_change():
    lm = tiny_lm(model=with_adapters())
    early = lm.variant(layers=1, adapter="two")
    seen, threads = [], []

    def look(module, args):
        for each in (lm, early):
            threads.append(threading.Thread(target=lambda each=each: seen.append(each.version())))
            threads[-1].start()
        threads[-1].join(0.05)  # it waits for the pass, or has looked

    hook = lm.model.get_base_model().lm_head.register_forward_pre_hook(look)
    versions = lm.version(), early.version()
    early.next_log_probs(early.prompt("Once"))
    for thread in threads:
        thread.join()
    assert len(seen) == 2
    assert set(seen) == {lm.version(), early.version()} == set(versions)
    hook.remove()


def test_threads_that_run_variants_do_not_mix_them():
    lm = tiny_lm(model=with_adapters())
    lms = [lm, lm.variant(layers=1), lm.variant(adapter="two"), lm.variant(adapter=None)]

    @fk.program
    async def story(lm):
        text = lm.prompt("Once")
        for _ in range(4):
            text = await fk.sample("words", lm.tokens(text, 2))
            await fk.factor("odd", lm.score(text) / 7)
        return text

    alone = [fk.infer(story(each), fk.SMC(3), seed=1) for each in lms]
    for each in lms:
        each.refresh()
    together = at_once(lambda each: fk.infer(story(each), fk.SMC(3), seed=1), lms)
    for one, other in zip(alone, together):
        assert [text.tokens for text in one.values] == [text.tokens for text in other.values]
        assert np.allclose(one.log_weights, other.log_weights, atol=1e-4)
    assert len({one.values[0].tokens for one in alone}) > 2


def test_a_change_of_the_model_is_one_of_its_variants():
    model = with_adapters()
    lm = tiny_lm(model=model)
    two, early = lm.variant(adapter="two"), lm.variant(layers=1)
    text = draw([lm.tokens(lm.prompt("Once upon"), 3)])[0]

    def said():
        return np.array([evaluate([each.score(each.attach(text))])[0] for each in (lm, two, early)])

    before = said()
    with torch.no_grad():
        model.get_base_model().model.layers[0].mlp.down_proj.base_layer.weight.mul_(-1.0)
    after = said()
    assert (np.abs(after - before) > 1e-2).all()
    fresh = tiny_lm(model=model, name=lm.identity)
    text = fresh.attach(text.detach())
    right = [evaluate([each.score(each.attach(text))])[0] for each in (fresh, fresh.variant(adapter="two"))]
    assert after[:2] == pytest.approx(right, abs=1e-4)
    model.get_base_model().model.layers[1].mlp = torch.nn.Identity()  # in a layer that an early exit does not reach
    gaps = np.abs(said() - after)
    assert gaps[:2].min() > 1e-2 > 1e-4 > gaps[2]


def test_an_adapter_that_goes_is_missed_by_name():
    model = with_adapters()
    lm = tiny_lm(model=model)
    two, early = lm.variant(adapter="two"), lm.variant(layers=1)
    model.merge_adapter()
    with pytest.raises(fk.errors.Unsupported, match="merged into its weights, which no variant is: unmerge it"):
        two.next_log_probs(two.prompt("Once"))
    early.next_log_probs(early.prompt("Once"))
    model.unmerge_adapter()
    two.next_log_probs(two.prompt("Once"))
    model.delete_adapter("two")
    with pytest.raises(ValueError, match="has no adapter 'two', but 'one'"):
        two.next_log_probs(two.prompt("Once"))
    assert not any("_disable_adapters" in vars(part) and part._disable_adapters for part in model.modules())


def test_a_pass_that_fails_leaves_the_model_as_it_was():
    lm = tiny_lm(model=with_adapters())
    before = whole(lm.model, IDS)
    lms = lm.variant(layers=1), lm.variant(adapter=None), lm.variant(adapter="two")
    hook = lm.model.get_base_model().lm_head.register_forward_pre_hook(lambda *args: 1 / 0)
    for each in lms:
        with pytest.raises(ZeroDivisionError):
            each.next_log_probs(each.prompt("Once"))
    hook.remove()
    assert torch.equal(whole(lm.model, IDS), before)


def test_a_model_in_training_stays_so():
    lm = tiny_lm(model=hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, attention_dropout=0.9)))
    lm.model.train()
    early = lm.variant(layers=1)
    text = early.prompt("Once")
    first = early.next_log_probs(text)
    early.refresh()
    assert np.allclose(first, early.next_log_probs(text))
    assert lm.model.training
    assert lm.model.lm_head.training


@pytest.mark.slow
def test_a_compiled_model_has_variants():
    lm = tiny_lm()
    compiled = tiny_lm(model=torch.compile(tiny_lm().model, backend="eager"), name=lm.identity)
    for plain, other in ((lm.variant(layers=1), compiled.variant(layers=1)), (lm, compiled)):
        got, right = (each.next_log_probs(each.prompt("Once")) for each in (other, plain))
        assert np.allclose(got, right, atol=1e-5)


def test_variants_are_freed():
    lm = tiny_lm()
    early = lm.variant(layers=1)
    gone = [weakref.ref(early), weakref.ref(early.model)]
    del early
    gc.collect()
    assert [each() for each in gone] == [None, None]


# -- In programs -----------------------------------------------------------------------------------------------------


def two_laws(after_one, after_two):
    """A Llama that after one layer gives token 1 a probability, after two another; token 2 has the rest."""
    config = hf.LlamaConfig(**SMALL | {"hidden_size": 16, "num_attention_heads": 2}, attention_bias=True)
    model = hf.LlamaForCausalLM(config)
    size = math.sqrt(config.hidden_size)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.model.layers[1].self_attn.o_proj.bias[:2] = torch.tensor([-1.0, 1.0])
        model.lm_head.weight[:, :2] = -1e9
        for column, p in enumerate((after_one, after_two)):
            model.lm_head.weight[1:3, column] = torch.tensor([math.log(p), math.log(1 - p)]) / size
    lm = tiny_lm(model=model)
    lm.eos = frozenset()  # which token 1 would be
    return lm


@fk.program
async def which(lms, prompt="Once", tokens=1):
    """How deep a model is to be is latent, and weighed by what it says."""
    k = await fk.sample("k", fk.dist.Bernoulli(0.5))
    text = await fk.sample("token", lms[int(k)].tokens(lms[int(k)].prompt(prompt), tokens))
    await fk.factor("likes", float(text.tokens[-1] == 1))
    return int(k)


Z, P = 2.030969, 0.626906


def test_the_variant_is_inferred():
    lm = two_laws(0.3, 0.9)
    lms = (lm.variant(layers=1), lm)
    assert 0.5 * (0.7 + 0.3 * math.e) + 0.5 * (0.1 + 0.9 * math.e) == pytest.approx(Z, abs=1e-6)
    # 3 comparisons at |z| < 4.26: a correct engine fails this test with probability 3 × 2.0e-5 = 6e-5.
    check_unbiased(which(lms), fk.SMC(4), {0: 1 - P, 1: P}, math.log(Z), runs=600)


@fk.program
async def drafted(lm, draft, **sampling):
    """A fast variant proposes what the model says."""
    text = lm.prompt("Once")
    for _ in range(2):
        text = await fk.sample("token", lm.tokens(text, 1), proposal=draft.tokens(text, 1, **sampling))
        await fk.factor("likes", float(text.tokens[-1] == 1))
    return text.tokens.count(1)


def test_a_variant_proposes_for_its_model():
    lm = two_laws(0.3, 0.9)
    draft = lm.variant(layers=1)
    law = {n: math.comb(2, n) * 0.9**n * 0.1 ** (2 - n) * math.exp(n) for n in range(3)}
    z = sum(law.values())
    # 4 comparisons at |z| < 4.26: a correct engine fails this test with probability 4 × 2.0e-5 = 8e-5.
    check_unbiased(drafted(lm, draft), fk.SMC(4), {n: mass / z for n, mass in law.items()}, math.log(z), runs=500)


def test_what_another_model_cannot_propose():
    lm, other = tiny_lm(), tiny_lm(1)
    text = lm.prompt("Once")
    assert other.tokens(text, 2).covers(lm.tokens(text, 2))
    assert other.tokens(text, 2).covers(lm.tokens(text, 2, top_k=5))
    assert not other.tokens(text, 2, top_k=5).covers(lm.tokens(text, 2, top_k=5))
    assert not other.tokens(text, 2).covers(lm.tokens(text, 3))
    assert not other.tokens(text.append(" a"), 2).covers(lm.tokens(text, 2))
    assert not tiny_lm(context=8).tokens(text, 2).covers(lm.tokens(text, 2))
    other.eos = frozenset()
    assert not other.tokens(text, 2).covers(lm.tokens(text, 2))
    with pytest.raises(fk.errors.UnsupportedProposal, match="cannot reach all"):
        fk.infer(drafted(lm, lm.variant(layers=1), top_k=5), fk.SMC(2), seed=0)


def test_a_wave_makes_one_call_for_each_variant():
    lm = tiny_lm()
    lms = (lm.variant(layers=1), lm)
    calls = dict.fromkeys(lms, 0)
    for each in lms:
        model = each.forwarder.model
        model.register_forward_pre_hook(lambda *args, each=each: calls.update({each: calls[each] + 1}))

    posterior = fk.infer(which(lms, "Once upon a time", 3), fk.ImportanceSampling(16), seed=0)
    assert 0 < sum(posterior.values) < 16
    # A pass of the variant goes through the model's own hooks as well.
    assert calls[lms[0]] == 3
    assert calls[lms[1]] == 6
    assert posterior.cost.model_calls == 6
    assert posterior.cost.tokens_in == sum(each.forwarded for each in lms)


def test_texts_move_between_variants():
    lm = tiny_lm()
    early = lm.variant(layers=1)
    text = draw([early.tokens(lm.prompt("Once upon a time"), 4)])[0]
    assert text.lm is early
    assert early.forwarded == len(text.prompt_tokens) + 3
    moved = lm.attach(text)
    assert moved == text
    assert moved.log_prob == text.log_prob
    assert (str(moved), moved.steps) == (str(text), text.steps)
    further = draw([lm.tokens(text, 2)])[0]
    assert further.lm is lm
    drawn = further.log_prob - text.log_prob
    assert drawn == pytest.approx(fresh_log_prob(lm, further, further.node.length - 2), abs=1e-4)
    assert lm.forwarded == further.node.length - 1
    back = draw([early.tokens(further, 1)])[0]
    assert early.forwarded == back.node.length - 1, "its own tokens are kept"


@fk.program
async def taking_turns(lms):
    text = lms[0].prompt("Once upon a time there was a river")
    for t in range(6):
        text = await fk.sample("words", lms[t % 2].tokens(text, 3))
        await fk.factor("likes", 0.3 * (text.tokens[-1] % 3))
    return text


def test_variants_that_take_turns_forward_each_token_once():
    lm = tiny_lm()
    lms = (lm, lm.variant(layers=1))
    fk.infer(taking_turns(lms), fk.SMC(6), seed=0)
    most = len(lm.prompt("Once upon a time there was a river").prompt_tokens) + 6 * 18
    for each in lms:
        assert each.forwarded <= most

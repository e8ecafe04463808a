"""Random operations on one language model: whatever came before, all that it says is what a fresh whole pass says."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import torch
import transformers as hf
from random_models import random_weights
from zoo import build

import feynkac as fk
from feynkac.models.local.memory import placing, store
from feynkac.models.local.memory.cache import Slab, Trunk
from feynkac.models.testing import tiny_lm
from feynkac.ppl.score import evaluate

SMALL = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
BASE = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}
BART = {
    "vocab_size": 300, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 512,
    "pad_token_id": 299,
}  # fmt: skip
T5 = {"vocab_size": 300, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
WINDOWS = ["sliding_attention", "full_attention"]
TURN = 80
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "long_factor": [2.0, 3.0, 4.0, 5.0],
    "short_factor": [1.0, 1.1, 1.2, 1.3], "original_max_position_embeddings": TURN,
}  # fmt: skip
MODELS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(
            **SMALL, head_dim=8, sliding_window=20, attn_logit_softcapping=2.0, final_logit_softcapping=5.0,
            layer_types=WINDOWS, query_pre_attn_scalar=8,
        )
    ),
    "gemma3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=17, layer_types=WINDOWS, query_pre_attn_scalar=8)
    ),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SMALL, sliding_window=30)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(
        hf.GPTNeoXConfig(
            **BASE, num_attention_heads=4, intermediate_size=48, rotary_pct=0.5, max_position_embeddings=512,
            hidden_dropout=0.0, attention_dropout=0.0,
        )
    ),
    "gpt_oss": lambda: hf.GptOssForCausalLM(
        hf.GptOssConfig(
            **SMALL, head_dim=8, sliding_window=16, num_local_experts=4, num_experts_per_tok=2, layer_types=WINDOWS,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, initial_context_length=512,
        )
    ),
    "phi3": lambda: hf.Phi3ForCausalLM(
        hf.Phi3Config(
            **SMALL, original_max_position_embeddings=TURN, rope_parameters=LONGROPE, pad_token_id=0, eos_token_id=1
        )
    ),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4)),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            **BASE, ffn_dim=48, num_attention_heads=4, max_position_embeddings=512, word_embed_proj_dim=32, dropout=0.0
        )
    ),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=512, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, decoder_start_token_id=0)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART, dropout=0.0)),
    "mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(**BASE, state_size=4)),
    "lfm2": lambda: hf.Lfm2ForCausalLM(hf.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"])),
    "jamba": lambda: build("jamba"),
}  # fmt: skip
LONGEST = 480


class Stopped(BaseException):
    """What ends a pass in its middle, as an interrupt of the keyboard does."""


class Bomb:
    """Goes off at a later time that something is done, once."""

    def __init__(self):
        self.left, self.error = -1, None

    def set(self, left, error):
        self.left, self.error = left, error

    def tick(self, *_):
        if self.left >= 0:
            self.left -= 1
            if self.left < 0:
                raise self.error


class Fuzz:
    """A language model under random operations, each followed by what must hold."""

    def __init__(self, name, seed, monkeypatch, **options):
        model = random_weights(MODELS[name], seed=seed, std=0.15)
        self.encodes = model.config.is_encoder_decoder
        self.bomb, self.allocating = Bomb(), Bomb()
        for module in model.modules():
            if not list(module.children()):
                module.register_forward_pre_hook(self.bomb.tick)
        blank, copy_rows = Slab._blank, placing.copy_rows
        monkeypatch.setattr(Slab, "_blank", lambda slab, like: self.allocating.tick() or blank(slab, like))
        monkeypatch.setattr(placing, "copy_rows", lambda *args: self.allocating.tick() or copy_rows(*args))
        seal = store.Store._seal
        monkeypatch.setattr(store.Store, "_seal", lambda held, one: self.allocating.tick() or seal(held, one))
        if seed % 2:
            monkeypatch.setattr(store, "_LEAST", 3)
            monkeypatch.setattr(store, "_SAVED", 6)
        self.lm = self.ready(tiny_lm(model=model, **options))
        self.name = name
        self.configs = [(c, type(c)) for m in model.modules() if (c := getattr(m, "config", None)) is not None]
        self.attention = [getattr(c, "_attn_implementation", None) for c, _ in self.configs]
        self.variants = []
        self.worst = 0.0
        self.log = []
        self.hooks = self.hooked()

    def hooked(self):
        """The hooks that are set, but those by which transformers gives hidden states, where they are asked for."""
        hooks = [(*m._forward_pre_hooks.values(), *m._forward_hooks.values()) for m in self.lm.model.modules()]
        return [[x for x in held if "output_capturing" not in getattr(x, "__module__", "")] for held in hooks]

    @staticmethod
    def ready(lm):
        lm.eos = frozenset()
        return lm

    def logits(self, lm, text):
        """The logits at all positions of the model's history, by one pass over it alone."""
        left, self.bomb.left = self.bomb.left, -1
        with torch.no_grad(), lm.forwarder.live.hold():
            if self.encodes:
                node = lm.attach(text).node
                given = {"input_ids": torch.tensor([node.top.source])}
                out = lm.model(**given, decoder_input_ids=torch.tensor([node.tokens()]), use_cache=False,
                               output_hidden_states=True)  # fmt: skip
                states = out.decoder_hidden_states
            else:
                ids = torch.tensor([text.prompt_tokens + text.tokens])
                out = lm.model(input_ids=ids, use_cache=False, output_hidden_states=True)
                states = out.hidden_states
                if self.name == "phi3" and ids.shape[1] > TURN:  # as `generate`, it reads texts by their own lengths
                    out.logits[:, :TURN] = lm.model(input_ids=ids[:, :TURN], use_cache=False).logits
        self.bomb.left = left
        return out.logits[0].double(), states

    def close(self, found, truth, what):
        gap = float(np.max(np.abs(np.asarray(found) - np.asarray(truth)))) if np.size(truth) else 0.0
        self.worst = max(self.worst, gap)
        assert gap < 5e-5, (self.name, what, gap, self.log[-12:])


class Hand:
    """One thread's texts and what it does with them."""

    def __init__(self, fuzz, seed):
        self.fuzz, self.lm = fuzz, fuzz.lm
        self.rng = np.random.default_rng(seed)
        self.count = 0
        self.seed = seed
        self.prompts = [self.prompt() for _ in range(3)]
        self.texts = list(self.prompts)

    def prompt(self):
        rng, most = self.rng, 20 if self.fuzz.name == "jamba" else 300
        shared = int(rng.integers(0, most)) if rng.random() < 0.7 else 0
        stem = np.random.default_rng(int(rng.integers(2))).integers(5, 290, 300)[:shared].tolist()
        own = rng.integers(5, 290, int(rng.integers(1, 6))).tolist()
        return self.lm.prompt((*stem, *own) if rng.random() < 0.8 or not stem else tuple(stem))

    def pick(self, most=6):
        """Some texts, repeats included."""
        some = [self.texts[i] for i in self.rng.integers(0, len(self.texts), int(self.rng.integers(1, most + 1)))]
        longest = (self.lm.context or LONGEST) - 24
        return [x for x in some if not x.finished and x.node.length < longest] or [self.prompts[0]]

    def keep(self, texts):
        self.texts += texts
        if len(self.texts) > 24:
            self.texts = [self.texts[i] for i in self.rng.permutation(len(self.texts))[:10]]

    def step(self):
        self.count += 1
        names = [
            "draw", "draw", "draw", "token", "fork", "cut", "append", "score", "law", "mass", "hidden", "drop",
            "shrink", "evict", "clear", "short", "stop", "change", "variant", "fresh_prompt", "line", "relaw",
            "train", "short_store", "stop_store", "refresh", "again",
        ]  # fmt: skip
        name = names[int(self.rng.integers(len(names)))]
        self.fuzz.log.append((self.seed, self.count, name))
        getattr(self, name)()

    def sample(self, lm, requests):
        keys = fk.keys.fold(fk.keys.root(self.seed), self.count, np.arange(len(requests)))
        return list(requests[0].sample_batch(requests, keys).values)

    def check(self, lm, requests, texts):
        for request, text in zip(requests, texts):
            logits = self.fuzz.logits(lm, text)[0]
            law = request.sampling
            start = request.text.node.length if lm is self.lm else lm.attach(request.text).node.length
            tokens = lm.attach(text).node.tokens()
            total = 0.0
            for i in range(start, len(tokens)):
                row = logits[i - 1] / law.temperature
                if law.top_k:
                    row = row.masked_fill(row < row.topk(law.top_k).values[-1] - 1e-6, -math.inf)
                if request.mask is not None:
                    row = row.masked_fill(~torch.from_numpy(request.mask.allowed), -math.inf)
                total += row.log_softmax(-1)[tokens[i]].item()
            self.fuzz.close(text.log_prob - request.text.log_prob, total, "draw")

    def draw(self, lm=None):
        lm = lm or self.lm
        law = [{}, {"temperature": 0.7}, {"top_k": 40}][int(self.rng.integers(3))]
        requests = [lm.tokens(text, int(self.rng.integers(1, 9)), **law) for text in self.pick(8)]
        texts = self.sample(lm, requests)
        self.check(lm, requests, texts)
        if lm is self.lm:
            self.keep(texts)

    def token(self):
        mask = self.rng.random(self.lm.vocab_size) < 0.3
        requests = [self.lm.next_token(text, mask=mask if i % 2 else None) for i, text in enumerate(self.pick(12))]
        texts = self.sample(self.lm, requests)
        self.check(self.lm, requests, texts)
        self.keep(texts)

    def line(self):
        requests = [self.lm.until(text, ["a", "e "], max_tokens=5) for text in self.pick()]
        texts = self.sample(self.lm, requests)
        self.check(self.lm, requests, texts)
        self.keep(texts)

    def fork(self):
        self.keep(self.pick(3) * 4)

    def cut(self):
        some = self.pick()
        self.keep([text.cut(int(self.rng.integers(0, len(text.tokens) + 1))) for text in some])

    def append(self):
        self.keep([text.append([" the sea", "\nOnce"][i % 2]) for i, text in enumerate(self.pick(4))])

    def score(self):
        texts = self.pick()
        found = evaluate([self.lm.score(text, " the hill") for text in texts] + [self.lm.score(x) for x in texts])
        for text, start, value in zip(
            [x.append(" the hill") for x in texts] + texts, [x.node.length for x in texts] + [None] * 9, found
        ):
            logits, tokens = self.fuzz.logits(self.lm, text)[0].log_softmax(-1), text.node.tokens()
            start = text.offset if start is None else start
            self.fuzz.close(value, sum(logits[i - 1, tokens[i]].item() for i in range(start, len(tokens))), "score")

    def law(self):
        for text in self.pick(3):
            truth = self.fuzz.logits(self.lm, text)[0][-1].log_softmax(-1)
            self.fuzz.close(self.lm.next_log_probs(text), truth, "law")

    def relaw(self):
        """The law after histories whose logits are forgotten, but not their keys and values, or some of these."""
        with self.lm.forwarder.hold():
            if hasattr(self.lm.forwarder, "store"):
                self.lm.forwarder.kept.clear()
        texts = self.pick(8)
        found = evaluate([self.lm.log_mass(text, np.arange(300) < 100) for text in texts])
        for text, value in zip(texts, found):
            law = self.fuzz.logits(self.lm, text)[0][-1].log_softmax(-1)
            self.fuzz.close(value, law[:100].logsumexp(-1).item(), "relaw")

    def mass(self):
        texts, masks = self.pick(), [self.rng.random(300) < 0.5 for _ in range(2)]
        found = evaluate([self.lm.log_mass(text, masks[i % 2]) for i, text in enumerate(texts)])
        for i, (text, value) in enumerate(zip(texts, found)):
            law = self.fuzz.logits(self.lm, text)[0][-1].log_softmax(-1)
            self.fuzz.close(value, law[torch.from_numpy(masks[i % 2])].logsumexp(-1).item(), "mass")

    def hidden(self):
        layer = int(self.rng.integers(self.lm.depth))
        for text in self.pick(4):
            truth = self.fuzz.logits(self.lm, text)[1][layer][0, -1]
            self.fuzz.close(self.lm.read(text, "hidden", layer=layer), truth, f"hidden {layer}")

    def drop(self):
        self.texts = self.texts[: 1 + len(self.texts) // 3]
        if self.rng.random() < 0.5:
            gc.collect()

    def fresh_prompt(self):
        self.prompts[int(self.rng.integers(3))] = new = self.prompt()
        self.texts.append(new)

    def shrink(self):
        lm = self.lm if not self.fuzz.variants or self.rng.random() < 0.7 else self.fuzz.variants[0]
        limit = int([0, 5000, 60_000, 200_000, 1_000_000, 1 << 30][int(self.rng.integers(6))] * self.rng.uniform(1, 2))
        with lm.forwarder.hold():
            lm.forwarder.allowance.limit = limit
            lm.forwarder.allot(limit)
            lm.forwarder.max_batch, lm.forwarder.most_positions = int(self.rng.integers(1, 20)), 8192

    def evict(self):
        forwarder = self.lm.forwarder
        with forwarder.hold():
            held = getattr(forwarder, "store", None)
            for one in [] if held is None else held.held:
                if self.rng.random() < 0.4:
                    one.drop()
            for kept, _ in list(forwarder.kept._waves.values()):
                if self.rng.random() < 0.4 and (wave := kept()) is not None:
                    forwarder.kept.drop(wave)

    def clear(self):
        with self.lm.forwarder.hold():
            self.lm.forwarder.clear()

    def refresh(self):
        self.lm.refresh()

    def short(self, bomb=None):
        """A pass runs out of the device's memory."""
        bomb = bomb or self.fuzz.bomb
        errors = torch.cuda.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory")
        bomb.set(int(self.rng.integers(0, 40)), errors[int(self.rng.integers(2))])
        try:
            self.draw()
        finally:
            bomb.set(-1, None)
        if self.rng.random() < 0.5:
            self.shrink()

    def short_store(self):
        self.short(self.fuzz.allocating)

    def stop(self, bomb=None):
        bomb = bomb or self.fuzz.bomb
        bomb.set(int(self.rng.integers(0, 40)), Stopped())
        try:
            self.draw()
        except Stopped:
            pass
        finally:
            bomb.set(-1, None)

    def stop_store(self):
        self.stop(self.fuzz.allocating)

    def change(self):
        with torch.no_grad():
            weights = list(self.lm.model.parameters())
            weights[int(self.rng.integers(len(weights)))].mul_(1.01)

    def train(self):
        self.lm.model.train()
        try:
            self.draw()
            assert self.lm.model.training
        finally:
            self.lm.model.eval()

    def variant(self):
        if self.fuzz.name not in ("llama", "gemma3", "mistral", "gpt2", "lfm2"):
            return
        if not self.fuzz.variants:
            self.fuzz.variants.append(self.fuzz.ready(self.lm.variant(layers=1)))
        self.draw(self.fuzz.variants[0])

    def again(self):
        """A batch of many copies of one text and its beginnings."""
        text = self.pick(1)[0]
        some = [text.cut(min(len(text.tokens), k)) for k in (0, 0, 1, 2, 3)] * 2
        requests = [self.lm.tokens(x, 1 + i % 3) for i, x in enumerate(some)]
        texts = self.sample(self.lm, requests)
        self.check(self.lm, requests, texts)
        self.keep(texts)

    def invariants(self):
        fuzz, lm = self.fuzz, self.lm
        for one in (lm, *fuzz.variants):
            with one.forwarder.hold():
                info = one.forwarder.info()
                kept = one.forwarder.kept
                waves = [wave for held, _ in kept._waves.values() if (wave := held()) is not None]
                assert kept.bytes == sum(wave.bytes for wave in waves), fuzz.log[-12:]
            assert info.bytes <= info.limit, (info, fuzz.log[-12:])
            assert info.limit == one.forwarder.allowance.limit, fuzz.log[-12:]
        assert [type(c) for c, _ in fuzz.configs] == [kind for _, kind in fuzz.configs], fuzz.log[-12:]
        assert [getattr(c, "_attn_implementation", None) for c, _ in fuzz.configs] == fuzz.attention, fuzz.log[-12:]
        assert not any(module.training for module in lm.model.modules()), fuzz.log[-12:]
        assert fuzz.hooked() == fuzz.hooks, fuzz.log[-12:]
        assert not any("forward" in vars(m) for m in lm.model.modules()), fuzz.log[-12:]

    def account(self):
        """What is held is what the store says, and nothing once no text is left."""
        forwarder = self.lm.forwarder
        gc.collect()
        held = getattr(forwarder, "store", None)
        if held is not None:
            real, layers = 0, set()
            for one in gc.get_objects():
                if type(one) in (Slab, Trunk) and one in {*held._slabs, *held._trunks}:
                    for pair in one.layers.values():
                        for tensor in pair:
                            storage = tensor.untyped_storage()
                            if storage.data_ptr() not in layers:
                                layers.add(storage.data_ptr())
                                real += storage.nbytes()
            assert real == held.bytes, (real, held.bytes, self.fuzz.log[-12:])


def run(name, seed, steps, monkeypatch, hands=1):
    fuzz = Fuzz(name, seed, monkeypatch)
    hands = [Hand(fuzz, 1000 * seed + k) for k in range(hands)]
    for step in range(steps):
        for hand in hands:
            hand.step()
            hand.invariants()
        if step % 20 == 19:
            hands[0].account()
    for hand in hands:
        hand.shrink()
        hand.relaw()
        hand.texts.clear()
        hand.prompts.clear()
    gc.collect()
    assert fuzz.lm.cache_info().bytes == 0
    return fuzz


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "bart"])
def test_random_operations(name, monkeypatch):
    run(name, 3, 10, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [4, 5])
@pytest.mark.parametrize("name", MODELS)
def test_many_random_operations(name, seed, monkeypatch):
    run(name, seed, 60, monkeypatch)

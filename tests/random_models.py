"""What the tests of language models share: random weights, draws with fixed keys, and the log-probs of a fresh pass."""

from __future__ import annotations

import numpy as np
import torch
import transformers as hf

import feynkac as fk
from feynkac.models.testing import tiny_lm

MAMBA = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
T5 = {"vocab_size": 300, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
OTHERS = {
    "mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(**MAMBA)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, decoder_start_token_id=0)),
}
KINDS = ["llama", "mamba", "t5"]


def random_weights(make, seed=0, std=0.2):
    """Return the model that ``make()`` makes, with weights large enough for a test to notice a wrong one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=std)
    return model


def lm_of(kind, **options):
    """Return a tiny model of a kind, one of `KINDS`, whose texts do not end."""
    lm = tiny_lm(**options) if kind == "llama" else tiny_lm(model=random_weights(OTHERS[kind], seed=1), **options)
    lm.eos = frozenset()
    return lm


def draw(requests, *path):
    """Draw one batch, with keys that belong to a path of numbers."""
    keys = fk.keys.fold(fk.keys.root(0), *path, np.arange(len(requests)))
    return list(requests[0].sample_batch(requests, keys).values)


def fresh_log_prob(lm, text, start=None):
    """Log p of a text from ``start`` on (of its response) by one full pass over it alone, with no cache."""
    tokens = text.prompt_tokens + text.tokens
    start = len(text.prompt_tokens) if start is None else start
    with torch.no_grad():
        log_p = lm.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].double().log_softmax(-1)
    return sum(log_p[i - 1, tokens[i]].item() for i in range(start, len(tokens)))


@fk.program
async def two_tokens(lm, prompt, masks):
    """A token for each mask, weighed by the mass that the mask leaves and by which token it is."""
    text = lm.prompt(prompt)
    for mask in masks:
        await fk.factor("mass", lm.log_mass(text, mask))
        text = await fk.sample("token", lm.next_token(text, mask=mask))
        await fk.factor("likes", 0.8 * (text.tokens[-1] % 3))
    return text

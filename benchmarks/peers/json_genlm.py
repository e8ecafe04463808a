"""JSON under a schema with genlm-control over its transformers backend: `JsonSchema` and `AWRS`.

The prompt's keys and values are cached, a batch holds all particles, and what an earlier run left in the cache is
dropped.
Its schema allows less white space than JSON does, so that its log Z is of another event.
"""

from __future__ import annotations

import asyncio

import numpy as np
import torch
from genlm.control import AWRS, EOS, JsonSchema, PromptedLLM
from schema import PROMPT, SCHEMA, summary
from worker import serve


def written(tokens) -> bytes:
    return b"".join(token.byte_string for token in tokens)


def prepare(*, model, n, tokens):
    lm = PromptedLLM.from_name(model, backend="hf", eos_byte_strings=[b"<|im_end|>"], batch_size=n)
    prompt = lm.model.tokenizer.encode(PROMPT)
    lm = lm.__class__(lm.model, prompt_ids=prompt, eos_byte_strings=[b"<|im_end|>"])

    def run(seed: int, tokens: int = tokens) -> dict:
        np.random.seed(seed)  # noqa: NPY002 (it draws from the global generator)
        torch.manual_seed(seed)
        lm.model.clear_cache()
        lm.model.cache_kv(lm.prompt_ids)
        sampler = AWRS(lm, JsonSchema(SCHEMA).coerce(lm, f=written), seed=seed)
        found = asyncio.run(sampler.smc(n_particles=n, ess_threshold=0.5, max_tokens=tokens + 1))
        whole = [[token for token in context if token is not EOS] for context in found.contexts]
        ended = [EOS in context for context in found.contexts]
        strings = [written(context).decode("utf-8", "replace") for context in whole]
        weights = [float(np.exp(w)) if end else 0.0 for w, end in zip(found.log_weights, ended)]
        return summary(strings, weights, float(found.log_ml), sum(map(len, found.contexts)))

    return run


if __name__ == "__main__":
    serve(prepare)

"""Token-level SMC with genlm-control over its transformers backend: a `PromptedLLM`, and a critic.

The prompt's keys and values are cached, a batch holds all particles (the default is 20), and what an earlier run left
in the cache is dropped.
"""

from __future__ import annotations

import asyncio

import numpy as np
import torch
from genlm.control import Potential, PromptedLLM, direct_token_sampler
from letters import PROMPT, penalties
from worker import serve

NEVER = b"<gh_stars>"  # stands for the end of a sequence: its end tokens are ordinary ones here


class FewEs(Potential):
    """Half a nat off for each letter "e"."""

    def __init__(self, lm, factors):
        super().__init__(lm.vocab, tables=lm.tables)
        self.factors = factors

    async def prefix(self, context):
        return sum(self.factors[token.token_id] for token in context)

    async def complete(self, context):
        return await self.prefix(context)


def prepare(*, model, n, tokens):
    lm = PromptedLLM.from_name(model, backend="hf", eos_byte_strings=[NEVER], batch_size=n)
    tokenizer = lm.model.tokenizer
    lm = lm.__class__(lm.model, prompt_ids=tokenizer.encode(PROMPT), eos_byte_strings=[NEVER])
    critic, sampler = FewEs(lm, penalties(tokenizer)), direct_token_sampler(lm)

    def run(seed: int, tokens: int = tokens) -> dict:
        np.random.seed(seed)  # noqa: NPY002 (it draws from the global generator)
        torch.manual_seed(seed)
        lm.model.clear_cache()
        lm.model.cache_kv(lm.prompt_ids)
        sequences = asyncio.run(
            sampler.smc(
                n_particles=n,
                ess_threshold=0.5,
                max_tokens=tokens + 1,
                critic=critic,
                terminate_when=lambda context: len(context) == tokens,
            )
        )
        return {"log_z": float(sequences.log_ml)}

    return run


if __name__ == "__main__":
    serve(prepare)

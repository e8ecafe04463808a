"""Token-level SMC with llamppl over its transformers backend: a `Model`, and `smc_standard`.

The prompt's keys and values are cached, a batch holds all particles (the default is 20), and what an earlier run left
in the cache is dropped. It returns no evidence: log Ẑ is worked out from the weights that it leaves.
"""

from __future__ import annotations

import asyncio

import numpy as np
from letters import PROMPT, penalties
from llamppl import CachedCausalLM, LMContext, Model, smc_standard
from worker import serve


class FewEs(Model):
    def __init__(self, lm, factors, tokens):
        super().__init__()
        self.context = LMContext(lm, PROMPT)
        self.factors, self.left = factors, tokens

    async def step(self):
        token = await self.sample(self.context.next_token())
        self.score(self.factors[token.token_id])
        self.left -= 1
        if not self.left:
            self.finish()

    def immutable_properties(self):
        return {"factors"}


def prepare(*, model, n, tokens):
    lm = CachedCausalLM.from_pretrained(model, backend="hf", batch_size=n)
    factors, prompt = penalties(lm.tokenizer), lm.tokenizer.encode(PROMPT)

    def run(seed: int, tokens: int = tokens) -> dict:
        np.random.seed(seed)  # noqa: NPY002 (it draws from the global generator)
        lm.clear_cache()
        lm.cache_kv(prompt)
        particles = asyncio.run(smc_standard(FewEs(lm, factors, tokens), n, ess_threshold=0.5))
        weights = [particle.weight for particle in particles]
        return {"log_z": float(np.logaddexp.reduce(weights) - np.log(n))}

    return run


if __name__ == "__main__":
    serve(prepare)

"""Token-level SMC after a long prompt with genlm-control over its transformers backend (see ``text_genlm.py``)."""

from __future__ import annotations

import asyncio

import numpy as np
import torch
from genlm.control import EOS, PromptedLLM, direct_token_sampler
from letters import Positions, distinct, held, penalties, prompt_of
from text_genlm import NEVER, FewEs
from worker import cpu_seconds, serve


def prepare(*, model, n, tokens, prompt):
    lm = PromptedLLM.from_name(model, backend="hf", eos_byte_strings=[NEVER], batch_size=n)
    tokenizer = lm.model.tokenizer
    lm = lm.__class__(lm.model, prompt_ids=prompt_of(tokenizer, prompt), eos_byte_strings=[NEVER])
    critic, sampler = FewEs(lm, penalties(tokenizer)), direct_token_sampler(lm)
    positions = Positions(lm.model.model)

    def run(seed: int, tokens: int = tokens) -> dict:
        np.random.seed(seed)  # noqa: NPY002 (it draws from the global generator)
        torch.manual_seed(seed)
        positions.forwarded, cpu = 0, cpu_seconds()
        lm.model.clear_cache()
        lm.model.cache_kv(lm.prompt_ids)
        before = cpu_seconds() - cpu
        sequences = asyncio.run(
            sampler.smc(
                n_particles=n,
                ess_threshold=0.5,
                max_tokens=tokens + 1,
                critic=critic,
                terminate_when=lambda context: len(context) == tokens,
            )
        )
        _, _, past, _ = lm.model.walk_cache([*lm.prompt_ids, 0])
        return {
            "log_z": float(sequences.log_ml),
            "before": before,
            "forwarded": positions.forwarded,
            "held": held(past),
            "distinct": distinct(
                prompt, [[token.token_id for token in context if token is not EOS] for context in sequences.contexts]
            ),
        }

    return run


if __name__ == "__main__":
    serve(prepare)

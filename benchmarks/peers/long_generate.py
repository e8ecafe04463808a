"""``generate`` after a long prompt: n texts sampled with no weights, from one pass over the prompt that all repeat."""

from __future__ import annotations

import math

import torch
from letters import Positions, distinct, held, penalties, prompt_of
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from worker import cpu_seconds, serve


def prepare(*, model, n, tokens, prompt):
    tokenizer = AutoTokenizer.from_pretrained(model)
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    lm.generation_config.eos_token_id = None
    factors = torch.tensor(penalties(tokenizer), dtype=torch.float64)
    start, positions = torch.tensor([prompt_of(tokenizer, prompt)]), Positions(lm)

    @torch.inference_mode()
    def run(seed: int, tokens: int = tokens) -> dict:
        torch.manual_seed(seed)
        positions.forwarded, cpu = 0, cpu_seconds()
        cache = DynamicCache()
        lm(start[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)  # it forwards the last token itself
        cache.batch_repeat_interleave(n)
        before = cpu_seconds() - cpu
        ids = start.repeat(n, 1)
        made = lm.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            max_new_tokens=tokens,
        )[:, prompt:]
        if made.shape != (n, tokens):
            raise RuntimeError(f"generate made texts of shape {tuple(made.shape)}, not {(n, tokens)}")
        return {
            "log_z": float(torch.logsumexp(factors[made].sum(1), 0)) - math.log(n),
            "before": before,
            "forwarded": positions.forwarded,
            "held": held(cache),
            "distinct": distinct(prompt, made.tolist()),
        }

    return run


if __name__ == "__main__":
    serve(prepare)

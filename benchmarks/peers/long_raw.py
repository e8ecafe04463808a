"""Token-level SMC after a long prompt, by hand: the prompt goes through the model once, and its cache is repeated."""

from __future__ import annotations

import math

import torch
from letters import Positions, distinct, held, penalties, prompt_of
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from worker import cpu_seconds, serve


def prepare(*, model, n, tokens, prompt):
    tokenizer = AutoTokenizer.from_pretrained(model)
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    factors = torch.tensor(penalties(tokenizer), dtype=torch.float64)
    start, positions = torch.tensor([prompt_of(tokenizer, prompt)]), Positions(lm)

    @torch.inference_mode()
    def run(seed: int, tokens: int = tokens) -> dict:
        torch.manual_seed(seed)
        positions.forwarded, cpu = 0, cpu_seconds()
        cache = DynamicCache()
        logits = lm(start, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].expand(n, -1)
        cache.batch_repeat_interleave(n)
        before = cpu_seconds() - cpu
        log_w, log_z = torch.zeros(n, dtype=torch.float64), 0.0
        texts = torch.zeros((n, 0), dtype=torch.long)
        for t in range(tokens):
            if t:
                logits = lm(texts[:, -1:], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            ids = torch.multinomial(torch.softmax(logits, dim=-1), 1)
            texts, log_w = torch.cat([texts, ids], 1), log_w + factors[ids[:, 0]]
            w = torch.softmax(log_w, 0)
            if 1.0 / (w * w).sum() < n / 2:
                log_z += float(torch.logsumexp(log_w, 0)) - math.log(n)
                index = torch.multinomial(w, n, replacement=True)
                cache.batch_select_indices(index)
                texts, log_w = texts[index], torch.zeros(n, dtype=torch.float64)
        return {
            "log_z": log_z + float(torch.logsumexp(log_w, 0)) - math.log(n),
            "before": before,
            "forwarded": positions.forwarded,
            "held": held(cache),
            "distinct": distinct(prompt, texts.tolist()),
        }

    return run


if __name__ == "__main__":
    serve(prepare)

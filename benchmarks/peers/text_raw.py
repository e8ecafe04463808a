"""Token-level SMC as one would write it by hand with transformers.

Forward, ``DynamicCache``, softmax, ``torch.multinomial``, and ``batch_select_indices`` at a resampling.
"""

from __future__ import annotations

import math

import torch
from letters import PROMPT, penalties
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from worker import serve


def prepare(*, model, n, tokens):
    tokenizer = AutoTokenizer.from_pretrained(model)
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    factors = torch.tensor(penalties(tokenizer), dtype=torch.float64)
    prompt = torch.tensor([tokenizer(PROMPT).input_ids])

    @torch.inference_mode()
    def run(seed: int, tokens: int = tokens) -> dict:
        torch.manual_seed(seed)
        ids, cache = prompt.repeat(n, 1), DynamicCache()
        log_w, log_z = torch.zeros(n, dtype=torch.float64), 0.0
        for _ in range(tokens):
            out = lm(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids = torch.multinomial(torch.softmax(out.logits[:, -1], dim=-1), 1)
            log_w = log_w + factors[ids[:, 0]]
            w = torch.softmax(log_w, 0)
            if 1.0 / (w * w).sum() < n / 2:
                log_z += float(torch.logsumexp(log_w, 0)) - math.log(n)
                index = torch.multinomial(w, n, replacement=True)
                cache.batch_select_indices(index)
                ids, log_w = ids[index], torch.zeros(n, dtype=torch.float64)
        return {"log_z": log_z + float(torch.logsumexp(log_w, 0)) - math.log(n)}

    return run


if __name__ == "__main__":
    serve(prepare)

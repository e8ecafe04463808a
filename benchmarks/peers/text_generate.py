"""``generate`` of transformers: n texts sampled, with no weights at all. log Ẑ is that of importance sampling."""

from __future__ import annotations

import math

import torch
from letters import PROMPT, penalties
from transformers import AutoModelForCausalLM, AutoTokenizer
from worker import serve


def prepare(*, model, n, tokens):
    tokenizer = AutoTokenizer.from_pretrained(model)
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    lm.generation_config.eos_token_id = None
    factors = torch.tensor(penalties(tokenizer), dtype=torch.float64)
    prompt = tokenizer(PROMPT, return_tensors="pt").to(lm.device)
    length = prompt.input_ids.shape[1]

    def run(seed: int, tokens: int = tokens) -> dict:
        torch.manual_seed(seed)
        ids = lm.generate(**prompt, do_sample=True, top_k=0, top_p=1.0, num_return_sequences=n, max_new_tokens=tokens)[
            :, length:
        ]
        if ids.shape != (n, tokens):
            raise RuntimeError(f"generate made texts of shape {tuple(ids.shape)}, not {(n, tokens)}")
        return {"log_z": float(torch.logsumexp(factors[ids].sum(1), 0)) - math.log(n)}

    return run


if __name__ == "__main__":
    serve(prepare)

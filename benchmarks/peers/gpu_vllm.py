"""N texts after a prompt by vLLM, in this process, so that its memory can be told."""

from __future__ import annotations

import os

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch
from card import measured
from letters import prompt_of
from vllm import LLM, SamplingParams
from worker import serve

JUDGED = 4


def prepare(*, model, n, tokens, prompt, dtype, share):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lm = LLM(
        model, dtype=dtype, gpu_memory_utilization=share, max_num_seqs=n, max_model_len=prompt + tokens, max_logprobs=1
    )
    ids = prompt_of(lm.get_tokenizer(), prompt)

    def run(seed: int, tokens: int = tokens) -> dict:
        lm.reset_prefix_cache()
        settings = SamplingParams(n=n, max_tokens=tokens, ignore_eos=True, logprobs=0, seed=seed)
        (made,), cost = measured(device, lambda: lm.generate({"prompt_token_ids": ids}, settings, use_tqdm=False))
        texts = made.outputs[:JUDGED]
        return cost | {
            "prompt": ids,
            "texts": [list(text.token_ids) for text in texts],
            "log_probs": [text.cumulative_logprob for text in texts],
        }

    return run


if __name__ == "__main__":
    serve(prepare)

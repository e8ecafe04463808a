"""What `test_real_vllm` runs in vLLM's own environment, which has no pytest: the model in process, as JSON."""

from __future__ import annotations

import json
import sys

import numpy as np

import feynkac as fk


@fk.program
async def few_es(lm, parts=3):
    text = lm.prompt("The weather report says that")
    for _ in range(parts):
        text = await fk.sample("part", lm.until(text, [",", ".", " and", " but", " or"], max_tokens=8))
        await fk.factor("few e", -0.3 * str(text).count("e"))
    return text


def draws(lm):
    """Four draws of 12 tokens under a law that is cut."""
    step = lm.tokens(lm.prompt("Once upon a"), 12, temperature=0.7, top_p=0.9)
    return step.sample_batch([step] * 4, fk.keys.fold(fk.keys.root(2024), np.arange(4)))


def main():
    lm = fk.models.VLLM("smollm2", max_model_len=512, enforce_eager=True, block_size=32)
    runs = [fk.infer(few_es(lm), fk.SMC(8), seed=0) for _ in range(2)]
    drawn = draws(lm)
    found = {
        "can": sorted(lm.can),
        "log_evidence": [run.log_evidence for run in runs],
        "texts": [text.tokens for text in runs[0].values],
        "drawn": [text.tokens for text in drawn.values],
        "log_probs": drawn.log_prob.tolist(),
    }
    print(json.dumps(found), file=sys.__stdout__)


if __name__ == "__main__":
    main()

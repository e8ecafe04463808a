"""N texts after a prompt with feynkac: in one step each, or weighed and resampled token by token."""

from __future__ import annotations

from inspect import signature

import numpy as np
import torch
from card import measured
from letters import prompt_of
from text_feynkac import few_es
from worker import serve

import feynkac as fk
from feynkac.models import TransformersLM

JUDGED = 4
DRAWS = 2048


@fk.program
async def whole(lm, text, tokens):
    return await fk.sample("text", lm.tokens(text, tokens))


def one_more(lm, text, n: int, seed: int) -> list[int]:
    """Draws of the token after a text, by n at a time."""
    step, keys = lm.next_token(text), fk.keys.fold(fk.keys.root(seed), np.arange(DRAWS))
    waves = [keys[i : i + n] for i in range(0, DRAWS, n)]
    return [value.tokens[-1] for wave in waves for value in step.sample_batch([step] * len(wave), wave).values]


def prepare(*, model, n, tokens, prompt, dtype, device, weighs, compiled):
    options = {"compile": True} if compiled and "compile" in signature(TransformersLM).parameters else {}
    dtype = getattr(torch, dtype)
    lm = TransformersLM.from_pretrained(model, dtype=dtype, device=device, max_batch=max(n, 128), **options)
    lm.eos = frozenset()
    start = lm.prompt(prompt_of(lm.tokenizer, prompt))
    program, engine = few_es if weighs else whole, fk.SMC(n, resampling="multinomial")

    def run(seed: int, tokens: int = tokens) -> dict:
        with fk.afresh():
            posterior, cost = measured(device, lambda: fk.infer(program(lm, start, tokens), engine, seed=seed))
            texts = posterior.values[:JUDGED]
            return cost | {
                "prompt": list(start.prompt_tokens),
                "texts": [list(text.tokens) for text in texts],
                "log_probs": [text.log_prob for text in texts],
                "compiled": bool(options),
                "draws": one_more(lm, texts[0], n, seed),
            }

    return run


if __name__ == "__main__":
    serve(prepare)

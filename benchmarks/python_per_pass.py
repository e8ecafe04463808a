"""What a token costs beside the model's own work: CPU ms per forward pass of N texts, with a model of two tiny layers.

    python benchmarks/python_per_pass.py

N texts grow by T tokens, on one thread: by a loop written by hand (`DynamicCache`, softmax, `torch.multinomial`), by
``generate`` of transformers, by one step of T tokens, by a program that samples one token after another, and by one
that weighs each, so that the particles meet, and are resampled where the weights degenerate. They take turns; end
tokens are taken for ordinary ones. The model's own work is nearly nothing, so that what is left is Python's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import DynamicCache

import feynkac as fk
from feynkac.models.testing import tiny_lm

PROMPT = "Once upon a time there was a river, and the river"
PENALTY = 0.5


@fk.program
async def in_one_step(lm, tokens):
    return await fk.sample("text", lm.tokens(lm.prompt(PROMPT), tokens))


@fk.program
async def one_by_one(lm, tokens):
    text = lm.prompt(PROMPT)
    for _ in range(tokens):
        text = await fk.sample("token", lm.next_token(text))
    return text


@fk.program
async def weighed(lm, tokens):
    text = lm.prompt(PROMPT)
    for _ in range(tokens):
        seen = str(text)
        text = await fk.sample("token", lm.next_token(text))
        await fk.factor("no e", -PENALTY * str(text)[len(seen) :].count("e"))
    return text


def loops(lm, n: int, tokens: int) -> dict[str, Callable[[int], object]]:
    """Return what is measured, by name: functions of a seed."""
    model = lm.model
    model.generation_config.eos_token_id = None
    prompt = torch.tensor([lm.encode(PROMPT)])
    engine = fk.SMC(n, resampling="multinomial")

    @torch.inference_mode()
    def by_hand(seed):
        torch.manual_seed(seed)
        ids, cache = prompt.repeat(n, 1), DynamicCache()
        for _ in range(tokens):
            out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids = torch.multinomial(torch.softmax(out.logits[:, -1], dim=-1), 1)

    def generate(seed):
        torch.manual_seed(seed)
        mask = torch.ones_like(prompt)
        many = {"num_return_sequences": n, "max_new_tokens": tokens, "pad_token_id": 0}
        model.generate(prompt, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0, **many)

    programs = {"lm.tokens(text, T)": in_one_step, "SMC, a token": one_by_one, "SMC, a token and a factor": weighed}
    return {"a loop by hand": by_hand, "generate": generate} | {
        name: lambda seed, program=program: fk.infer(program(lm, tokens), engine, seed=seed)
        for name, program in programs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, nargs="+", default=[64])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lm = tiny_lm()
    lm.eos = frozenset()
    print(f"{args.tokens} tokens, CPU ms per forward pass: median (min) of {args.repeats} turns")
    for n in args.particles:
        runs = loops(lm, n, args.tokens)
        spent: dict[str, list[float]] = {name: [] for name in runs}
        for seed in range(-1, args.repeats):
            for name, run in runs.items():
                start = time.process_time()
                run(seed % 10**6)
                if seed >= 0:  # the first turn is the warm-up
                    spent[name].append((time.process_time() - start) / args.tokens * 1e3)
        for name, turns in spent.items():
            print(f"  N={n:<4d} {name:28s} {np.median(turns):6.2f} ({min(turns):.2f})", flush=True)


if __name__ == "__main__":
    main()

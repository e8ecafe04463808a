"""Token-level SMC on SmolLM2 against a raw loop over the same model, in CPU time, in one run.

    python -m feynkac.models.fetch smollm2
    python benchmarks/token_smc.py

The raw loop is what one would write by hand with transformers: forward, ``DynamicCache``, softmax,
``torch.multinomial``, ``batch_select_indices`` at a resampling. Task: 64 tokens after a short prompt, log-weight −0.5
for each letter "e", multinomial resampling at ESS < N/2. They take turns, for a fair ratio.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from transformers import DynamicCache

import feynkac as fk
from feynkac.models import TransformersLM

PROMPT = "The weather report for the coming week says that we should expect"
PENALTY = 0.5


@torch.inference_mode()
def raw_loop(lm: TransformersLM, n: int, tokens: int, seed: int) -> float:
    """Token-level SMC by hand; returns log Ẑ."""
    model, tokenizer = lm.model, lm.tokenizer
    torch.manual_seed(seed)
    e_count = torch.tensor([tokenizer.decode([i]).count("e") for i in range(lm.vocab_size)], dtype=torch.float64)
    ids = torch.tensor([tokenizer(PROMPT).input_ids]).repeat(n, 1)
    cache, log_w, log_z = DynamicCache(), torch.zeros(n, dtype=torch.float64), 0.0
    for _ in range(tokens):
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids = torch.multinomial(torch.softmax(out.logits[:, -1], dim=-1), 1)
        log_w = log_w - PENALTY * e_count[ids[:, 0]]
        w = torch.softmax(log_w, 0)
        if 1.0 / (w * w).sum() < n / 2:
            log_z += float(torch.logsumexp(log_w, 0)) - np.log(n)
            index = torch.multinomial(w, n, replacement=True)
            cache.batch_select_indices(index)
            ids, log_w = ids[index], torch.zeros(n, dtype=torch.float64)
    return log_z + float(torch.logsumexp(log_w, 0)) - float(np.log(n))


@fk.program
async def few_es(lm: TransformersLM, tokens: int):
    text = lm.prompt(PROMPT)
    for _ in range(tokens):
        seen = str(text)
        text = await fk.sample("token", lm.next_token(text))
        await fk.factor("no e", -PENALTY * str(text)[len(seen) :].count("e"))
    return str(text)


def ours(lm: TransformersLM, n: int, tokens: int, seed: int) -> float:
    engine = fk.SMC(n, resampling="multinomial")
    return fk.infer(few_es(lm, tokens), engine, seed=seed).log_evidence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--particles", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    lm = TransformersLM.from_pretrained(args.model)
    lm.eos = frozenset()  # no text ends early, in either loop: both do the same work
    print(f"{args.tokens} tokens, CPU seconds: median of {args.repeats} turns")
    for n in args.particles:
        spent: dict[str, list[float]] = {"raw loop": [], "feynkac": []}
        log_z: dict[str, list[float]] = {"raw loop": [], "feynkac": []}
        for seed in range(args.repeats):
            for name, run in (("raw loop", raw_loop), ("feynkac", ours)):
                start = time.process_time()
                log_z[name].append(run(lm, n, args.tokens, seed))
                spent[name].append(time.process_time() - start)
        ratio = np.median(np.array(spent["feynkac"]) / np.array(spent["raw loop"]))
        for name in spent:
            cpu = float(np.median(spent[name]))
            error = np.std(log_z[name]) / np.sqrt(args.repeats)
            print(
                f"  N={n:3d} {name:9s} {cpu:6.1f} s, {n * args.tokens / cpu:5.1f} tokens per CPU-second, "
                f"log Z {np.mean(log_z[name]):.1f} ± {error:.1f}"
            )
        print(f"  N={n:3d} feynkac / raw loop: {ratio:.2f} of its CPU time")


if __name__ == "__main__":
    main()

"""Long prompts and short memory: what a token of SMC costs, and what is held and forwarded for it.

    make fetch peers
    python benchmarks/long_prompts.py                                # SmolLM2, four contestants: half an hour, 13 GiB
    python benchmarks/long_prompts.py --particles 32 --only "raw loop" feynkac
    python benchmarks/long_prompts.py --tiny                         # a tiny random model, without genlm-control
    python benchmarks/long_prompts.py --pressure                     # too little memory, on a tiny random model

Task: as in ``token_smc.py``, after prompts of 20 and of 1,500 tokens. Each contestant runs in a process of its own, and
they take turns; each sends the prompt through the model once, which is left out of the time of a token. ``generate``
and the raw loop repeat the prompt's keys and values for each particle. A position is counted as often as it is
forwarded, padding included; those held are the most keys and values that were kept between passes, in all rows;
distinct ones are those of the texts that are left, what they begin with counted once.

``--pressure``: 16 particles with room for 548 tokens each, of which more are needed. Positions forwarded, over those
that are forwarded where memory is ample: by length of the text, and, for the longest, by the room.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator

import numpy as np
from peers.race import Worker, mean_error, race, table

import feynkac as fk
from feynkac.models import Text, TransformersLM
from feynkac.models.fetch import resolve
from feynkac.models.testing import tiny_lm

LOOPS = {  # name: worker, environment
    "raw loop": ("long_raw.py", None),
    "feynkac": ("long_feynkac.py", None),
    "generate": ("long_generate.py", None),
    "genlm-control": ("long_genlm.py", "genlm"),
}
STEPS = {"one long step": 10**6, "steps of 30 tokens": 30, "single tokens": 1}
PROMPT = 20


def compare(model: str, args: argparse.Namespace) -> None:
    """Let the contestants take turns, for each prompt and number of particles, and print a table of each."""
    for prompt in args.prompts:
        for n in args.particles:
            settings = {"model": model, "n": n, "tokens": args.tokens, "prompt": prompt, "warm_up": {"tokens": 2}}
            workers = {name: Worker(*LOOPS[name], settings, args.threads) for name in args.only}
            results, rows = race(workers, args.repeats), []
            first = None
            for name, made in results.items():
                each = (np.array(made["cpu"]) - made["before"]) / args.tokens
                first = each if first is None else first
                counts = [f"{np.median(made[key]):,.0f}" for key in ("forwarded", "held", "distinct")]
                times = [f"{1e3 * np.median(each):.0f}", f"{np.median(each / first):.2f}"]
                rest = [f"{np.median(made['before']):.1f}", f"{max(made['rss']):.2f}", mean_error(made["log_z"])]
                rows.append([f"prompt {prompt:,}, N={n} {name}", *times, *counts, *rest])
            over = f"/ {args.only[0]}"
            table(["", "CPU ms / token", over, "forwarded", "held", "distinct", "prompt s", "peak GiB", "log Z"], rows)


@fk.program
async def writes(lm: TransformersLM, start: Text, tokens: int, most: int):
    """Some tokens, in steps of at most so many, with a weight between them that makes particles fork."""
    text = start
    while len(text.tokens) < tokens:
        text = await fk.sample("step", lm.tokens(text, min(most, tokens - len(text.tokens))))
        if len(text.tokens) < tokens:
            await fk.factor("weight", 0.5 * math.sin(len(str(text))))
    return text


def forwarded(n: int, length: int, room: int | None, most: int) -> int:
    """Positions that n particles forward to reach texts of some length, with room for so many tokens each."""
    lm = tiny_lm(context=2048, cache_bytes=1 << 30)
    if room is not None:
        # A sixteenth of the memory is for logits.
        lm = tiny_lm(context=2048, cache_bytes=n * room * lm.forwarder.store.position_bytes * 16 // 15)
    lm.eos = frozenset()
    start = lm.prompt([3 + 7 * i % 290 for i in range(PROMPT)])
    # In a wave of the same draws the same particles fork, whatever the memory.
    fk.infer(writes(lm, start, length - PROMPT, most), fk.SMC(n), seed=0)
    return lm.cache_info().forwarded


def pressure(n: int, room: int, lengths: list[int], rooms: list[int]) -> Iterator[list[str]]:
    """Rows of a table: how many times too many positions are forwarded, by length and by room."""
    for name, most in STEPS.items():
        ample = {length: forwarded(n, length, None, most) for length in lengths}
        by_length = [forwarded(n, length, room, most) / ample[length] for length in lengths]
        by_room = [forwarded(n, lengths[-1], some, most) / ample[lengths[-1]] for some in rooms]
        yield [name, *(f"{ratio:.2f}" for ratio in (*by_length, *by_room))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model")
    parser.add_argument("--prompts", type=int, nargs="+", default=[20, 1500])
    parser.add_argument("--particles", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(LOOPS), default=list(LOOPS))
    parser.add_argument("--pressure", action="store_true", help="too little memory instead, feynkac alone")
    args = parser.parse_args()
    if args.tiny:
        args.only = [name for name in args.only if name != "genlm-control"]  # which wants tokens of SmolLM2
    if args.pressure:
        lengths, rooms = [520, 620, 720], [274, 411, 685, 822]
        header = ["", *(f"{length} of 548" for length in lengths), *(f"720 of {room}" for room in rooms)]
        table(header, list(pressure(16, 548, lengths, rooms)))
        return
    print(f"{args.tokens} tokens, threads: {args.threads}, medians of turns: {args.repeats}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if args.tiny:
            lm = tiny_lm(context=max(args.prompts) + args.tokens + 1)
            lm.model.save_pretrained(folder)
            lm.tokenizer.save_pretrained(folder)
        compare(folder if args.tiny else resolve(args.model), args)


if __name__ == "__main__":
    main()

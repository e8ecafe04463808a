"""Token-level SMC on SmolLM2: feynkac, a raw loop, ``generate``, genlm-control and llamppl, in CPU time, in one run.

    make fetch peers
    python benchmarks/token_smc.py               # minutes for each turn of the two libraries
    python benchmarks/token_smc.py --short       # 8 tokens, 8 particles, one turn
    python benchmarks/token_smc.py --particles 32 128 --repeats 1     # memory

Task: 64 tokens after a prompt of 14, log-weight −0.5 for each letter "e", multinomial resampling at ESS < N/2, float32,
2 threads, end tokens taken for ordinary ones. Each runs in a process of its own (the code is in ``peers/text_*.py``),
and they take turns. Loading and a short warm-up are left out. CPU seconds and ratios are medians over the turns; peak
memory is that of the process. The estimates of log Z must agree within their errors. ``generate`` only samples: it is
what N texts cost without SMC, and its log Ẑ, by importance sampling alone, is poor.
"""

from __future__ import annotations

import argparse

import numpy as np
from peers.race import Worker, mean_error, race, table

from feynkac.models.fetch import resolve

LOOPS = {  # name: worker, environment
    "raw loop": ("text_raw.py", None),
    "feynkac": ("text_feynkac.py", None),
    "generate": ("text_generate.py", None),
    "genlm-control": ("text_genlm.py", "genlm"),
    "llamppl": ("text_llamppl.py", "llamppl"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--particles", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(LOOPS), default=list(LOOPS))
    parser.add_argument("--short", action="store_true", help="8 tokens, 8 particles, one turn")
    args = parser.parse_args()
    if args.short:
        args.particles, args.tokens, args.repeats = [8], 8, 1
    print(f"{args.tokens} tokens, {args.threads} threads, median of {args.repeats} turns", flush=True)
    for n in args.particles:
        settings = {"model": resolve(args.model), "n": n, "tokens": args.tokens, "warm_up": {"tokens": 4}}
        workers = {name: Worker(*LOOPS[name], settings, args.threads) for name in args.only}
        results, rows = race(workers, args.repeats), []
        for name, made in results.items():
            spent = np.array(made["cpu"])
            ratio = np.median(spent / results[args.only[0]]["cpu"])
            cells = [f"{np.median(spent):.1f}", f"{n * args.tokens / np.median(spent):.1f}", f"{ratio:.2f}"]
            rows.append([f"N={n} {name}", *cells, f"{max(made['rss']):.2f}", mean_error(made["log_z"])])
        table(["", "CPU s", "tokens / CPU s", f"/ {args.only[0]}", "peak GiB", "log Z"], rows)


if __name__ == "__main__":
    main()

"""JSON under a schema on SmolLM2: feynkac by masks and by rejection, and genlm-control by rejection, in CPU time.

    make fetch peers
    python benchmarks/constrained.py             # 8 particles, at most 40 tokens, 5 turns
    python benchmarks/constrained.py --short     # 2 turns

Token-level SMC, multinomial resampling at ESS < N/2, float32, 2 threads. Each runs in a process of its own (the code is
in ``peers/json_*.py``), and they take turns. Loading and a short warm-up are left out; grammars are made anew in every
run. CPU seconds and ratios are medians over the turns. "valid" counts, among the texts with weight, those that a parser
of JSON and the schema's own rules accept; a text that is not finished in time has no weight. The mean of Ẑ over the
turns estimates the same number in the first two rows, the chance of all JSON texts under the schema; in the third it is
of fewer texts, as genlm-control's schemas allow less white space.
"""

from __future__ import annotations

import argparse

import numpy as np
from peers.race import Worker, log_mean_error, race, table

from feynkac.models.fetch import resolve

LOOPS = {  # name: worker, environment, settings
    "feynkac, masks": ("json_feynkac.py", None, {"sampler": "mask"}),
    "feynkac, rejection": ("json_feynkac.py", None, {"sampler": "awrs"}),
    "genlm-control, rejection": ("json_genlm.py", "genlm", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(LOOPS), default=list(LOOPS))
    parser.add_argument("--short", action="store_true", help="2 turns")
    args = parser.parse_args()
    repeats = 2 if args.short else args.repeats
    settings = {"model": resolve(args.model), "n": args.particles, "tokens": args.tokens, "warm_up": {"tokens": 4}}
    print(f"N={args.particles}, {args.threads} threads, median of {repeats} turns", flush=True)
    workers = {}
    for name in args.only:
        script, environment, more = LOOPS[name]
        workers[name] = Worker(script, environment, settings | more, args.threads)
    results, rows = race(workers, repeats), []
    for name, made in results.items():
        spent, sampled = np.array(made["cpu"]), np.array(made["sampled"])
        ratio = np.median(spent / results[args.only[0]]["cpu"])
        each = np.median(1000 * spent / sampled)
        cells = [f"{np.median(spent):.1f}", f"{ratio:.2f}", f"{np.median(sampled):.0f}", f"{each:.0f}"]
        rows.append([name, *cells, f"{sum(made['valid'])}/{sum(made['alive'])}", log_mean_error(made["log_z"])])
    head = ["", "CPU s", f"/ {args.only[0]}", "tokens", "CPU ms / token", "valid", "log mean Ẑ"]
    table(head, rows)


if __name__ == "__main__":
    main()

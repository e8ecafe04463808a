"""Step-level SMC on SmolLM2: feynkac against its_hub's particle filter over vLLM, in CPU time, in one run.

    make fetch peers
    python benchmarks/line_smc.py
    python benchmarks/line_smc.py --short        # 2 lines, 8 particles, one turn

    python benchmarks/line_smc.py --served       # over a server alone

Task: a poem of 6 lines of at most 24 tokens, log-weight −0.2 for each letter "e" of a line, float32, temperature 1,
multinomial resampling at every step, which is what its_hub does. Each runs in a process of its own (the code is in
``peers/line_*.py``), and they take turns. its_hub and "feynkac, served" talk to one vLLM server of the same model on
the same machine; their CPU time and memory are those of client and server together, and the client's share is told.
Loading and a short warm-up are left out. Lines differ in length, so tokens per CPU second are what to compare; they
and their ratio are medians over the turns. The mean number of letters "e" in a text must agree, but for what its_hub
does with lines: it encodes the text anew at each of them.
"""

from __future__ import annotations

import argparse

import numpy as np
from peers.race import Worker, interpreter, mean_error, race, table
from peers.vllm_server import Server

from feynkac.models.fetch import resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--particles", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--lines", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--short", action="store_true", help="2 lines, 8 particles, one turn")
    parser.add_argument("--served", action="store_true", help="leave out the model in this process")
    args = parser.parse_args()
    if args.short:
        args.particles, args.lines, args.repeats = [8], 2, 1
    print(f"{args.lines} lines, {args.threads} threads, median of {args.repeats} turns", flush=True)
    model = resolve(args.model)
    server = Server(str(interpreter("vllm")), model)
    for n in args.particles:
        settings = {"model": model, "n": n, "lines": args.lines, "warm_up": {"lines": 2}}
        over = settings | {"port": server.port, "session": server.session}
        workers = {} if args.served else {"feynkac": Worker("line_feynkac.py", None, settings, args.threads)}
        workers["feynkac, served"] = Worker("line_served.py", None, over, args.threads)
        workers["its_hub"] = Worker("line_its_hub.py", "its_hub", over, args.threads)
        results, rows = race(workers, args.repeats), []
        rates = {name: np.array(made["tokens"]) / made["cpu"] for name, made in results.items()}
        for name, made in results.items():
            cells = [f"{np.median(made[what]):.1f}" for what in ("wall", "cpu")] + [f"{np.median(made['tokens']):.0f}"]
            cells += [f"{np.median(rates[name]):.1f}", f"{np.median(rates[name] / rates['its_hub']):.2f}"]
            cells += [f"{np.sum(made['client']) / np.sum(made['cpu']):.1%}" if "client" in made else ""]
            rows.append([f"N={n} {name}", *cells, f"{max(made['rss']):.2f}", mean_error(made["letters"])])
        header = ["", "wall s", "CPU s", "tokens", "tokens / CPU s", "/ its_hub", "client", "peak GiB", "letters e"]
        table(header, rows)


if __name__ == "__main__":
    main()

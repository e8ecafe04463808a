"""Our engines against its_hub's algorithms on Countdown: the same reasoner, verifier and problems, in one run.

    make peers
    python benchmarks/reasoning_its_hub.py --short    # 40 problems of 4 numbers, 8 and 32 particles: minutes
    python benchmarks/reasoning_its_hub.py            # 400 problems

Each library runs in a process of its own (the code is in ``peers/countdown_*.py``), and they take turns, a block of
problems each. its_hub reaches the models by an adapter over plain transformers with a KV cache, in the batches that it
asks for; nothing of ours is in its loop. Both solve one problem after the other, with N particles as a batch; our
particle filter solves the problems of a block side by side too. Answers are judged by the exact checker. Accuracy has
its standard error over problems, and the difference to its_hub's, which is paired by problem, as well.

Against each other stand: its particle filter and ours with ``compat="its_hub"``, which does what its does; its entropic
particle filter and ours with ``exact=False``; beam search that keeps N/4 beams with 4 children each (its begins with 4
candidates instead of N); and best-of-N. The other rows are ours alone.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from peers.race import Worker, race, table

import feynkac as fk
from feynkac.models.fetch.shelf import Shelf
from feynkac.models.tasks.shipped import TEMPERATURE, tokenizer

MAX_TOKENS = 40


def export(folder: Path) -> dict[str, str]:
    """Write both models as plain transformers loads them; return where."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

    shelf, places = Shelf(files("feynkac.models.tasks") / "weights"), {}
    for name, kind in (("reasoner", LlamaForCausalLM), ("verifier", LlamaForTokenClassification)):
        model = kind(LlamaConfig(**shelf.record(f"countdown_{name}")["config"]))
        model.load_state_dict(shelf.weights(f"countdown_{name}"))
        places[name] = str(folder / name)
        model.save_pretrained(places[name])
        tokenizer().save_pretrained(places[name])
    return places


def compete(places: dict[str, str], problems: list[Any], n: int, block: int, threads: int) -> dict[str, dict[str, Any]]:
    """Let both libraries solve the problems with n particles. Return what each contestant came to."""
    task = {"n": n, "lines": problems[0].steps, "block": block, "max_tokens": MAX_TOKENS, "warm_up": {"block": 1}}
    theirs = {"prompts": [problem.prompt for problem in problems], "temperature": TEMPERATURE}
    ours = {"problems": [[problem.numbers, problem.target] for problem in problems]}
    workers = {
        "its_hub": Worker("countdown_its_hub.py", "its_hub", places | task | theirs, threads),
        "feynkac": Worker("countdown_feynkac.py", None, task | ours, threads),
    }
    results = race(workers, len(problems) // block)
    out = {}
    for library, result in results.items():
        for name in result["made"][0]:
            made = [turn[name] for turn in result["made"]]
            answers = [answer for turn in made for answer in turn["answers"]]
            solved = [float(problem.solved(answer)) for problem, answer in zip(problems, answers, strict=True)]
            costs = {key: sum(turn[key] for turn in made) / len(problems) for key in ("cpu", "tokens", "calls")}
            out[f"{name} ({library})"] = {"solved": np.array(solved), **costs}
    return out


def row(name: str, made: dict[str, Any], against: dict[str, Any] | None) -> list[str]:
    """Return a line of the table: accuracy, costs of a problem, and how they compare with its_hub's."""
    costs = [f"{made['tokens']:.0f}", f"{made['calls']:.1f}", f"{made['cpu']:.2f}"]
    compared = ["", ""]
    if against is not None:
        compared = [share(made["solved"] - against["solved"]), f"{against['cpu'] / made['cpu']:.1f}"]
    return [name, share(made["solved"]), *costs, *compared]


def share(values: Any) -> str:
    """Show a mean and its standard error."""
    return f"{values.mean():.3f} ± {values.std(ddof=1) / np.sqrt(len(values)):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="40 problems")
    parser.add_argument("--problems", type=int)
    parser.add_argument("--numbers", type=int, choices=(4, 5), default=4, help="numbers of a problem")
    parser.add_argument("--particles", type=int, nargs="+", default=[8, 32], help="multiples of 4, from 8 on")
    parser.add_argument("--block", type=int, default=10, help="problems of a turn")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    count = args.problems or (40 if args.short else 400)
    if count % args.block:
        parser.error(f"the problems must be a multiple of the {args.block} of a turn, not {count}")
    problems = fk.tasks.problems(count, numbers=args.numbers)
    header = ["", "solved", "tokens", "PRM calls", "CPU s", "solved − its_hub's", "its_hub's CPU / ours"]
    with tempfile.TemporaryDirectory() as folder:
        places = export(Path(folder))
        for n in args.particles:
            made = compete(places, problems, n, args.block, args.threads)
            rows = []
            for name, found in made.items():
                ours = name.endswith("(feynkac)")
                engine = name.removesuffix(" (feynkac)").partition(",")[0]
                rows.append(row(name, found, made[f"{engine} (its_hub)"] if ours else None))
            print(f"N={n}, {count} problems of {args.numbers} numbers; tokens, calls and CPU seconds are of a problem")
            table(header, rows)
            print(flush=True)


if __name__ == "__main__":
    main()

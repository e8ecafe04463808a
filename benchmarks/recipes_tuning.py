"""How many tokens a second the shipped Countdown reasoner draws, by its ``max_batch``, which `fk.tuning.bayes` chooses.

    python benchmarks/recipes_tuning.py

On an idle machine alone: repeats differ by a third where cores are shared. Other settings are chosen in `recipes_tape`.
"""

from __future__ import annotations

import time

import feynkac as fk
from feynkac import tuning


def throughput(count=24, trials=6):
    """max_batch of the reasoner by `bayes`: tokens a second."""
    problems = fk.tasks.problems(count, numbers=4)

    def score(at):
        lm = fk.tasks.reasoner(max_batch=at["max_batch"])
        models = [fk.tasks.solve(lm, None, problem) for problem in problems]
        started = time.perf_counter()
        found = fk.infer(models, fk.SMC(4), seed=0)
        return sum(p.cost.tokens_out for p in found) / (time.perf_counter() - started)

    found = tuning.bayes({"max_batch": [1, 4, 16, 64]}, score, trials, seed=0, noisy=True, progress=False)
    for at, rate in found:
        print(at, f"{rate:.0f} tokens/s")
    print("best", found.best)


def main() -> None:
    throughput()


if __name__ == "__main__":
    main()

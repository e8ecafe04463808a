"""Runs of different lengths in one `infer` against one after the other: what shared batches save on Countdown.

    python benchmarks/recipes_batches.py                          # 16 problems, 5 times
    python benchmarks/recipes_batches.py --problems 64 --times 3

Problems have 3, 4, 5 and 6 numbers in turn, and an answer has a line less: what has ended leaves the batch, and nobody
waits for it (as requests of unequal age share passes in Flover, arXiv:2305.13484). The two ways are timed in turns,
each beginning without memory of texts. Errors are one standard error over the times.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import feynkac as fk
from feynkac.ppl.cost import Cost, Ledger, recording
from feynkac.ppl.memory import afresh


class Timed(NamedTuple):
    """What some work took, in seconds of the clock and of the processor, and what it cost in all."""

    wall: float
    cpu: float
    cost: Cost


def timed(work: Callable[[], list[fk.Posterior]]) -> Timed:
    """Do some work, and return what it took."""
    with afresh(), recording(Ledger()) as ledger:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return Timed(time.perf_counter() - wall, time.process_time() - cpu, ledger.total())


def told(values: list[float]) -> str:
    """Return the mean and its standard error."""
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.2f}"


def compare(models: list[fk.Program], engine: fk.Engine, times: int) -> None:
    """Run an engine on some models in both ways, and print what each took."""

    def alone() -> list[fk.Posterior]:
        return [fk.infer(model, engine, seed=0) for model in models]

    def shared() -> list[fk.Posterior]:
        return fk.infer(models, engine, seed=0)

    shared()  # warms up
    longest = max(posterior.cost.model_calls for posterior in alone())
    first, second = zip(*[(timed(alone), timed(shared)) for _ in range(times)])
    one, other = first[0].cost, second[0].cost
    print(f"{len(models)} problems, {engine.particles} runs each, {other.tokens_out} tokens drawn:")
    print(f"  model calls {one.model_calls} one after the other (the longest {longest}), {other.model_calls} shared")
    for name in ("wall", "cpu"):
        before, after = [getattr(row, name) for row in first], [getattr(row, name) for row in second]
        print(f"  {name} {told(before)} s, {told(after)} s, ratio {told([a / b for a, b in zip(before, after)])}")


def main() -> None:
    """Compare them for one run of each problem, and for eight."""
    parser = argparse.ArgumentParser(description="Time runs in one infer and one after the other.")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    lm = fk.tasks.reasoner()
    problems = [fk.tasks.problems(options.problems, numbers=3 + i % 4)[i] for i in range(options.problems)]
    for runs in (1, 8):
        compare([fk.tasks.solve(lm, None, one) for one in problems], fk.ImportanceSampling(runs), options.times)


if __name__ == "__main__":
    main()

"""What methods that refine, retry and exit early do on Countdown: the reasoner and the verifier that ship.

    python benchmarks/recipes_refine.py                          # every row
    python benchmarks/recipes_refine.py specreason backtrack     # some
    python benchmarks/recipes_refine.py --problems 400 --seeds 3

Each row says the share of held-out problems solved, the tokens drawn for a problem (what was thrown away included), and
by how much it differs from the row before which a ``|`` stands in its name, problem by problem. All errors are one
standard error over problems, each the mean of its seeds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import feynkac as fk
from feynkac.ppl.memory import afresh

Row = tuple[np.ndarray, float]
"""How often each problem was solved, (problems,), and the tokens for one."""


class Bench:
    """The models, the problems, and the rows so far of one table."""

    def __init__(self, problems: int, seeds: int) -> None:
        self.lm, self.prm = fk.tasks.reasoner(), fk.tasks.verifier()
        self.problems = fk.tasks.problems(problems, numbers=4)
        self.seeds = seeds
        self.rows: dict[str, Row] = {}

    def grade(self, question: str, text: Any) -> Any:
        """The verifier; an empty answer is worth nothing."""
        return self.prm(question, text) if str(text).strip() else 0.0

    def run(
        self,
        name: str,
        make: Callable[[Any], Any],
        engine: Any,
        *,
        every: bool = False,
        than: str | None = None,
        by: str = "weight",
        answer: Callable[[Any, Any], Any] = lambda problem, text: text,
    ) -> None:
        """Run an engine on each problem's program; ``every``: count all its draws, not the best alone."""
        hits, tokens = [], []
        began = time.process_time()
        for seed in range(self.seeds):
            with afresh():
                found = fk.infer([make(problem) for problem in self.problems], engine, seed=seed)
            for problem, posterior in zip(self.problems, found):
                texts = posterior.values if every else [posterior.best(by)]
                hits.append(np.mean([problem.solved(answer(problem, text)) for text in texts]))
                tokens.append(posterior.cost.tokens_out / (len(posterior.values) if every else 1))
        solved = np.reshape(hits, (self.seeds, -1)).mean(0)
        self.rows[name] = solved, float(np.mean(tokens))
        line = f"  {name:34s} {mean(solved)}  {np.mean(tokens):6.1f} tokens"
        if than is not None:
            line += f"   {mean(solved - self.rows[than][0], sign=True)} against {than}"
        print(f"{line}   ({time.process_time() - began:.0f} CPU s)", flush=True)


class Hot:
    """A model whose lines are drawn at another temperature: a poorer draft of the same reasoner."""

    def __init__(self, lm: Any, temperature: float) -> None:
        self.lm, self.temperature = lm, temperature

    def line(self, text: Any, **sampling: Any) -> Any:
        """The line of the model at this temperature."""
        return self.lm.line(text, temperature=self.temperature, **sampling)


def mean(values: Sequence[float] | np.ndarray, sign: bool = False) -> str:
    """Return a mean and its standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):{'+' if sign else ''}.3f} ± {error:.3f}"


def specreason(bench: Bench) -> None:
    """Drafts at temperature 1.3 that the verifier grades, against the base alone, and the best of two."""
    four = fk.ImportanceSampling(4)
    hot = Hot(bench.lm, 1.3)
    bench.run("base alone", lambda p: fk.tasks.solve(bench.lm, None, p), four, every=True)
    bench.run("draft alone", lambda p: fk.tasks.solve(bench.lm, None, p, temperature=1.3), four, every=True)
    for threshold in (0.3, 0.5, 0.7):
        bench.run(
            f"threshold {threshold}",
            lambda p, t=threshold: fk.programs.specreason(hot, bench.lm, bench.grade, p, threshold=t),
            four, every=True, than="base alone",
        )  # fmt: skip
    bench.run("best of 2", lambda p: fk.tasks.solve(bench.lm, bench.prm, p, "final"), zero(2), than="base alone")


def backtrack(bench: Bench) -> None:
    """A budget of 24 lines, spent depth first or on 8 answers side by side; both end where one is accepted."""

    def written(p: Any) -> Any:
        return fk.programs.stay_or_restart(
            bench.lm, bench.lm.prompt(p.prompt), max_tokens=120, judge=lambda text: bench.prm(p.prompt, text)
        )

    bench.run("best of 8, until one has 0.9", written, fk.AdaptiveBestOfN(8, threshold=0.9))
    bench.run("best of 4", lambda p: fk.tasks.solve(bench.lm, bench.prm, p, "final"), zero(4))
    for width in (2, 3, None):
        bench.run(
            f"backtracking, width {width}",
            lambda p, w=width: fk.programs.backtrack(bench.lm, bench.grade, p, lines=24, width=w),
            fk.ImportanceSampling(1), than="best of 8, until one has 0.9",
        )  # fmt: skip


def self_correct(bench: Bench) -> None:
    """Lines whose arithmetic is wrong are written anew: one answer, and the best of eight."""
    four = fk.ImportanceSampling(4)

    def corrected(p: Any, reward: Any = None, suffix: int | None = None) -> Any:
        return fk.programs.self_correct(
            bench.lm, lambda text: p.left(text) is not None, p, retries=3, suffix=suffix, reward=reward
        )

    bench.run("plain", lambda p: fk.tasks.solve(bench.lm, None, p), four, every=True)
    bench.run("corrected", corrected, four, every=True, than="plain")
    bench.run("corrected, last 4 tokens", lambda p: corrected(p, None, 4), four, every=True, than="plain")
    bench.run("best of 8", lambda p: fk.tasks.solve(bench.lm, bench.prm, p, "final"), zero(8))
    bench.run("best of 8 corrected", lambda p: corrected(p, bench.prm), zero(8), than="best of 8", by="reward")


def iterative_decoding(bench: Bench) -> None:
    """Two rounds of two, with the first line of the best as feedback, against the best of four."""

    def whole(problem: Any, text: Any) -> str:
        return text.full.removeprefix(problem.prompt)

    def first_line(prompt: str, best: Any, worst: Any) -> str:
        lines = best.full.removeprefix(prompt).splitlines()
        return prompt + (lines[0] + "\n" if len(lines) > 1 else "")

    def iterate(feedback: Any) -> Any:
        return lambda p: fk.programs.iterative_decoding(
            bench.lm, lambda question, text: bench.prm(question, whole(p, text).splitlines()), p,
            rounds=2, width=2, feedback=feedback,
        )  # fmt: skip

    one = fk.ImportanceSampling(1)
    bench.run("without feedback: best of 4", iterate(None), one, answer=whole)
    bench.run("first line as feedback", iterate(first_line), one, answer=whole, than="without feedback: best of 4")


def stay_or_restart(bench: Bench) -> None:
    """Draws until the verifier is sure, against 16 in any case; the verifier judges in the model's place."""

    def written(p: Any) -> Any:
        return fk.programs.stay_or_restart(
            bench.lm, bench.lm.prompt(p.prompt), max_tokens=120, judge=lambda text: bench.prm(p.prompt, text)
        )

    bench.run("best of 16", written, zero(16))
    for threshold in (0.8, 0.95):
        engine = fk.AdaptiveBestOfN(16, threshold=threshold)
        bench.run(f"until {threshold}", written, engine, than="best of 16")


def early_exit(bench: Bench) -> None:
    """Answers that the verifier gives up after a line are ended there, 8 for each problem."""

    def written(p: Any, hopeless: float) -> Any:
        def poor(text: Any) -> Any:
            return bench.prm(p.prompt, text).map(lambda r: 1.0 - r, "probability")

        return fk.programs.early_exit(
            bench.lm, poor, bench.lm.prompt(p.prompt), threshold=hopeless, cues=["\n"], max_tokens=120,
            answer_tokens=0, reward=bench.prm,
        )  # fmt: skip

    bench.run("best of 8", lambda p: written(p, -1.0), zero(8))
    for hopeless in (0.1, 0.3):
        bench.run(f"exits below {hopeless}", lambda p, h=hopeless: written(p, h), zero(8), than="best of 8")


def zero(n: int) -> Any:
    """Best of n, where even n empty answers are an answer."""
    return fk.BestOfN(n, all_dead="zero")


ROWS = {
    row.__name__: row for row in (specreason, backtrack, self_correct, iterative_decoding, stay_or_restart, early_exit)
}


def main() -> None:
    """Print the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], default=[])
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    for row in given.rows or ROWS:
        print(f"{row}: {ROWS[row].__doc__}", flush=True)
        ROWS[row](Bench(given.problems, given.seeds))


if __name__ == "__main__":
    main()

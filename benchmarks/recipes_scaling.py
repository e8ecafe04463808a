"""What the tools of `fk.scaling` say of the small reasoner of Countdown that ships, with intervals over problems.

    python benchmarks/recipes_scaling.py                    # every row: about four CPU minutes
    python benchmarks/recipes_scaling.py saturation judge   # some of them

The problems are held out. All intervals are 95%, over problems, each of which is one cluster.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

import feynkac as fk
from feynkac import scaling
from feynkac.ppl.memory import afresh

SIZES = (1, 2, 4, 8, 16, 32)


class Pool(NamedTuple):
    """Independent answers to each problem: right or wrong (problems, n), their posteriors, and the problems."""

    right: Any
    posteriors: Any
    problems: Any


@cache
def models() -> tuple[Any, Any]:
    return fk.tasks.reasoner(max_batch=256), fk.tasks.verifier()


@cache
def pool(numbers: int = 4, count: int = 60, n: int = 40, temperature: float | None = None, seed: int = 0) -> Pool:
    """Sample n answers to each problem, each scored by the verifier at its end."""
    lm, prm = models()
    problems = fk.tasks.problems(count, seed=0, numbers=numbers)
    programs = [fk.tasks.solve(lm, prm, problem, "final", temperature=temperature) for problem in problems]
    with afresh():
        found = fk.infer(programs, fk.ImportanceSampling(n, all_dead="zero"), seed=seed)
    right = np.array([[problem.solved(value) for value in p.values] for problem, p in zip(problems, found)])
    return Pool(right, found, problems)


def curves(made: Pool, sizes: Any = SIZES) -> tuple[Any, Any]:
    """Return best-of-k by the verifier, and by one that is perfect."""

    def correct(value: Any, problem: int) -> bool:
        return bool(made.problems[problem].solved(value))

    return scaling.best_of_k(made.posteriors, correct, sizes), scaling.pass_at_k(made.posteriors, correct, sizes)


def told(interval: Any, digits: int = 3) -> str:
    mean, low, high = interval
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def saturation() -> None:
    """The fit of best-of-k and pass@k, what it misses within, and what it foretells from k ≤ 8."""
    for name, curve in zip(("verifier", "pass@k"), curves(pool())):
        fit = scaling.Saturation.fit(curve.k, curve.value)
        few = scaling.Saturation.fit(curve.k[:4], curve.value[:4])
        print(f"{name}: " + ", ".join(f"{k}: {value:.3f}" for k, value in zip(curve.k, curve.value)))
        print(
            f"  ceiling {told(curve.estimate(lambda y: scaling.Saturation.fit(SIZES, y).ceiling, seed=0, draws=400))}"
        )
        print(f"  p {told(curve.estimate(lambda y: scaling.Saturation.fit(SIZES, y).p, seed=0, draws=400))}")
        print(f"  N* for .01: {fit.enough(0.01)}; residual {fit.residual:.3f}")
        print(f"  from k ≤ 8: at 32 foretold {few(32):.3f}, seen {told(curve.interval(-1))}")


def engines() -> None:
    """Regret by tokens to 480, and the area over log₂ tokens, of three engines at N = 1, 4, 16, paired by problem."""
    lm, prm = models()
    problems = fk.tasks.problems(30, seed=0, numbers=4)
    sizes, seeds = (1, 4, 16), range(1)
    kinds: dict[str, tuple[str, Callable[[int], Any]]] = {
        "best-of-N": ("final", fk.BestOfN),
        "particle filter": ("odds", fk.ParticleFilter),
        "entropic": ("odds", lambda n: fk.EntropicParticleFilter(n, 3)),
    }
    found: dict[str, Any] = {}
    for name, (weigh, engine) in kinds.items():
        programs = [fk.tasks.solve(lm, prm, problem, weigh) for problem in problems]
        table = np.zeros((len(problems), len(sizes)))
        tokens = []
        for j, n in enumerate(sizes):
            for seed in seeds:
                with afresh():
                    runs = fk.infer(programs, engine(n), seed=seed)
                table[:, j] += [problem.solved(p.best()) / len(seeds) for problem, p in zip(problems, runs)]
            tokens.append(np.mean([p.cost.tokens_out for p in runs]))
        found[name] = scaling.Curve(sizes, table)
        print(f"{name}: " + ", ".join(f"{t:.0f}: {y:.3f}" for t, y in zip(tokens, found[name].value)))
    widths = np.diff([0, *sizes]) * 30.0  # about 30 tokens an answer
    reference = found["best-of-N"]
    for name, curve in found.items():
        lost = curve.estimate(lambda y: scaling.regret(y, tokens=widths), seed=0)
        area = curve.estimate(scaling.anytime, seed=0)
        print(f"{name}: regret {told(lost, 0)}, area {told(area)}", end="")
        print("" if curve is reference else f"; area − best-of-N {told((curve - reference).estimate(np.mean, seed=0))}")


def judge() -> None:
    """The best k of best-of-k by the verifier: does more ever hurt?"""
    sizes = (*SIZES, 40)
    chosen, _ = curves(pool(), sizes)
    print(", ".join(f"{k}: {told(chosen.interval(i))}" for i, k in enumerate(sizes)))
    print("40 − 16:", told(chosen.estimate(lambda y: y[-1] - y[4], seed=0)))
    print("best k", sizes[int(np.argmax(chosen.value))])


def bounds() -> None:
    """Mean and best of 8 by how many numbers a problem has."""
    for numbers in (3, 4, 5):
        _, best = curves(pool(numbers, 60, 16), (1, 8))
        gain = best.estimate(lambda y: y[1] - y[0], seed=0)
        print(
            f"{numbers} numbers: mean {told(best.interval(0))}, best of 8 {told(best.interval(1))}, gain {told(gain)}"
        )


def allocation() -> None:
    """Problems solved by tries shared out after a look of 8 tries; the tries that count are others."""
    right = pool().right
    look, rest = right[:, :8], right[:, 8:]
    guess = (look.sum(1) + 0.5) / 9.0
    truth = rest.mean(1)
    even = np.full(len(right), 8)
    shares = {
        "uniform": even,
        "greedy": scaling.greedy(guess, 8 * len(right)),
        "greedy, p of the pool": scaling.greedy(truth, 8 * len(right)),
        "gvm": scaling.gvm(guess, np.ones(len(right)), 8 * len(right)),
        "uniform, the look spent too": 2 * even,
    }
    solved = {
        name: np.array(
            [scaling.bounds_at_k(row, int(min(k, rest.shape[1]))).best if k else 0.0 for row, k in zip(rest, n)]
        )
        for name, n in shares.items()
    }
    for name, one in solved.items():
        both = scaling.Curve([8], (one - solved["uniform"])[:, None])
        print(f"{name}: {one.mean():.3f}; − uniform {told(both.interval(0))}; most tries {shares[name].max()}")


def runtime() -> None:
    """Seconds of reading a prompt, and of writing, of the reasoner on this machine: medians of 5."""
    import torch

    torch.set_num_threads(1)
    model = models()[0].model
    rows = []
    for prompt in (16, 64, 128, 192):
        for out in (1, 8, 16, 32):
            times = []
            for _ in range(5):
                began = time.perf_counter()
                with torch.no_grad():
                    cache = model(torch.full((1, prompt), 5), use_cache=True).past_key_values
                    for _ in range(out - 1):
                        cache = model(torch.full((1, 1), 5), past_key_values=cache, use_cache=True).past_key_values
                times.append(time.perf_counter() - began)
            rows.append((prompt, out, float(np.median(times))))
    prompts, outs, seconds = map(np.array, zip(*rows))
    fit = scaling.Runtime.fit(prompts, outs, seconds)
    off = np.abs(fit(prompts, outs) / seconds - 1)
    print(f"{fit}; off by {np.median(off):.1%} (median), {off.max():.1%} (most)")


def variability() -> None:
    """Variance of right and wrong by problem, by the order of its numbers, and by sampling; at two temperatures."""
    lm, _ = models()
    rng = np.random.default_rng(0)
    problems = fk.tasks.problems(20, seed=0, numbers=4)
    orders = [[rng.permutation(problem.numbers).tolist() for _ in range(4)] for problem in problems]
    asked = [[fk.tasks.Countdown(tuple(o), problem.target) for o in some] for some, problem in zip(orders, problems)]
    for temperature in (0.3, 1.0):
        programs = [fk.tasks.solve(lm, None, p, temperature=temperature) for some in asked for p in some]
        with afresh():
            runs = fk.infer(programs, fk.ImportanceSampling(8), seed=0)
        flat = [p for some in asked for p in some]
        right = np.array([[p.solved(v) for v in r.values] for p, r in zip(flat, runs)]).reshape(20, 4, 8)
        draws = [scaling.Variability.estimate(right[rng.integers(20, size=20)]) for _ in range(500)]
        ends = np.quantile([v.paraphrase / v.total for v in draws], [0.025, 0.975])
        found = scaling.Variability.estimate(right)
        print(f"T={temperature}: right {right.mean():.3f}, {found}", end="")
        print(f"; share of orders {told((found.paraphrase / found.total, *ends))}")


def texts() -> None:
    """Lengths of right and wrong answers, and the share of different first steps, by temperature."""
    made = pool()
    lengths = np.array([[len(v.tokens) for v in p.values] for p in made.posteriors])
    problem = np.repeat(np.arange(len(lengths)), lengths.shape[1])
    print("length", scaling.length_gap(lengths.ravel(), made.right.ravel(), problem))
    for temperature in (0.4, 1.3):
        some = pool(4, 20, 16, temperature)
        share = [scaling.prefix_diversity([v.tokens for v in p.values], 8) for p in some.posteriors]
        shares = scaling.Curve([16], np.array(share)[:, None])
        print(f"T={temperature}: different first steps {told(shares.interval(0))}, right {some.right.mean():.3f}")


def conformal() -> None:
    """How often a right answer's score 1 − r stays within the threshold of other problems' right answers."""
    made = pool()
    scores = []
    for right, posterior in zip(made.right, made.posteriors):
        some = np.flatnonzero(right)
        if len(some):
            scores.append(1.0 - float(np.exp(posterior.log_weights[some[0]])))
    rng, covered = np.random.default_rng(0), []
    for _ in range(400):
        mixed = rng.permutation(scores)
        half = len(mixed) // 2
        covered.append(float((mixed[half:] <= scaling.conformal(mixed[:half])).mean()))
    print(
        f"{len(scores)} problems with a right answer; covered {np.mean(covered):.3f}, splits' sd {np.std(covered):.3f}"
    )


ROWS = (saturation, engines, judge, bounds, allocation, runtime, variability, texts, conformal)


def main() -> None:
    names = {row.__name__: row for row in ROWS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*names, []], default=[])
    for name in parser.parse_args().rows or names:
        began = time.process_time()
        print(f"--- {name}", flush=True)
        names[name]()
        print(f"({time.process_time() - began:.0f} CPU s)")


if __name__ == "__main__":
    main()

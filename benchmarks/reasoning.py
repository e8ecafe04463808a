"""Which engine spends a budget best on Countdown: accuracy against sampled tokens, and against calls of the verifier.

    python benchmarks/reasoning.py --short     # minutes
    python benchmarks/reasoning.py             # 200 held-out problems, 5 seeds, 2 to 128 particles: hours
    python benchmarks/reasoning.py --numbers 5     # problems of five numbers in place of four, of which few are solved
    python benchmarks/reasoning.py --verifier exact --pool 32 --seeds 1 --engines pool "particle filter, odds"

The reasoner and the process reward model are those that ship (`fk.tasks`). ``--verifier exact`` puts the solver in the
place of the latter (0.99 where the target can still be reached, else 0.01), which tells what the engines make of the
task from what the verifier lets them make of it; ``--verifier overconfident`` multiplies its log-odds by 4: the order
of answers stays, but early steps are judged as if it were sure.

Problems advance together, in blocks that share their batches; nothing that one trial has computed helps another. What
only selects among independent runs (best-of-N, votes) is estimated without bias from one pool of runs for every N up
to its size. Results are kept in a file, line by line: a run that was stopped goes on, and one with more engines, seeds
or sizes adds to it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common.records import Records

import feynkac as fk
from feynkac.inference.base.selection import best_of
from feynkac.inference.comparison.intervals import mean_interval
from feynkac.ppl.memory import afresh

POOL = "pool"
DRAWS = 200
"""Random subsets of a pool in which votes are counted."""


@dataclass(frozen=True)
class Contestant:
    """An engine (of a size and a number of steps), how its program is weighed, and the sizes that it is run at."""

    engine: Callable[[int, int], Any]
    weigh: str
    sizes: tuple[int, ...]


ALL, UPTO_32, FEW = (2, 4, 8, 16, 32, 64, 128), (2, 4, 8, 16, 32), (8, 32)
CONTESTANTS = {
    "particle filter, odds": Contestant(lambda n, steps: fk.ParticleFilter(n), "odds", ALL),
    "systematic filter, odds": Contestant(lambda n, steps: fk.SMC(n, ess_threshold=1.0), "odds", FEW),
    "particle filter, telescoping": Contestant(lambda n, steps: fk.SMC(n, ess_threshold=1.0), "telescope", FEW),
    "entropic, odds": Contestant(lambda n, steps: fk.EntropicParticleFilter(n, steps), "odds", ALL),
    "beam": Contestant(lambda n, steps: fk.BeamSearch(n, width=min(4, n)), "product", ALL),
    "A*, N children": Contestant(lambda n, steps: fk.AStar(64, width=n), "product", UPTO_32),
    "DVTS": Contestant(lambda n, steps: fk.DVTS(n, width=4), "product", FEW),
    "REBASE": Contestant(lambda n, steps: fk.Rebase(n), "product", FEW),
    "MCTS": Contestant(lambda n, steps: fk.MCTS(max(1, n // steps), width=4), "product", FEW),
}


def said(text: Any) -> str:
    """Return what an answer claims to have reached, for votes; whether its steps are right is not looked at."""
    lines = str(text).splitlines()
    return lines[-1].rsplit("(")[-1] if lines else ""


def trial(contestant: Contestant, n: int, problems: list[Any], seed: int, lm: Any, prm: Any) -> dict[str, Any]:
    """Run an engine on a block of problems. Returns a list for each column, with an entry for each problem."""
    models = [fk.tasks.solve(lm, prm, problem, contestant.weigh) for problem in problems]
    began = time.process_time()
    with afresh():
        found = fk.infer(models, contestant.engine(n, problems[0].steps), seed=seed)
    by = "reward" if contestant.weigh == "telescope" else "weight"
    return {
        "solved": [int(problem.solved(p.best(by))) for problem, p in zip(problems, found)],
        "tokens": [p.cost.tokens_out for p in found],
        "reward_calls": [p.cost.reward_calls for p in found],
        "cpu_seconds": round(time.process_time() - began, 2),
    }


def pool(n: int, problems: list[Any], seed: int, lm: Any, prm: Any) -> dict[str, Any]:
    """Sample n answers to each problem, each scored at its end. Returns a list for each column, (problems, n)."""
    models = [fk.tasks.solve(lm, prm, problem, "final") for problem in problems]
    began = time.process_time()
    with afresh():
        found = fk.infer(models, fk.ImportanceSampling(n, all_dead="zero"), seed=seed)
    texts = [[str(text) for text in p.values] for p in found]
    return {
        "solved": [[int(problem.solved(text)) for text in some] for problem, some in zip(problems, texts)],
        "scores": [np.round(p.log_weights, 6).tolist() for p in found],
        "said": [[said(text) for text in some] for some in texts],
        "texts": [np.unique(some, return_inverse=True)[1].tolist() for some in texts],
        "tokens": [p.cost.tokens_out / n for p in found],
        "cpu_seconds": round(time.process_time() - began, 2),
    }


def exact(problems: list[Any]) -> Any:
    """Return a verifier that knows whether the target can still be reached."""
    known = {problem.prompt: problem for problem in problems}

    @fk.reward(kind="probability")
    def value(question: str, text: Any) -> float:
        return 0.99 if known[question].solvable(text) else 0.01

    return value


def overconfident(prm: Any, factor: float = 4.0) -> Any:
    """Return a verifier whose log-odds are those of another times a factor."""

    @fk.reward(kind="probability", batched=True, cache=1_000_000)
    def value(inputs: list[Any]) -> Any:
        r = np.array([prm.number(detail) for detail in prm.details(inputs)])
        return 1 / (1 + ((1 - r) / r) ** factor)

    return value


def verifier(name: str, problems: list[Any]) -> Any:
    """Return a verifier by its name."""
    if name == "exact":
        return exact(problems)
    prm = fk.tasks.verifier(cache=1_000_000)
    return prm if name == "shipped" else overconfident(prm)


def run(arguments: argparse.Namespace) -> Records:
    """Make what is not yet in the file."""
    path = Path(arguments.folder) / f"reasoning_{arguments.numbers}_{arguments.verifier}.jsonl"
    records = Records(path, ("engine", "particles", "seed", "block"))
    problems = fk.tasks.problems(arguments.problems, seed=0, numbers=arguments.numbers)
    lm = fk.tasks.reasoner(max_batch=arguments.rows)
    prm = verifier(arguments.verifier, problems)
    names = arguments.engines or [POOL, *CONTESTANTS]
    for seed in range(arguments.seeds):
        for name in names:
            sizes = (arguments.pool,) if name == POOL else CONTESTANTS[name].sizes
            for n in (n for n in sizes if n <= arguments.pool):
                for begin in range(0, len(problems), arguments.block):
                    row = {"engine": name, "particles": n, "seed": seed, "block": begin}
                    if row in records:
                        continue
                    some = problems[begin : begin + arguments.block]
                    how = (n, some, 1000 * seed + begin, lm, prm)
                    records.add(row | (pool(*how) if name == POOL else trial(CONTESTANTS[name], *how)))
                print(f"seed {seed}: {name}, {n}", flush=True)
    return records


def from_pool(row: dict[str, Any], sizes: tuple[int, ...]) -> dict[tuple[str, int], dict[str, list[float]]]:
    """Return what best-of-k and votes among k of the pool's runs come to, by (engine, k): a list over problems."""
    rng = np.random.default_rng(row["seed"])
    out: dict[tuple[str, int], dict[str, list[float]]] = {}
    n = row["particles"]
    for solved, scores, said_, texts, tokens in zip(*(row[c] for c in ("solved", "scores", "said", "texts", "tokens"))):
        good, ids = np.array(solved), np.unique(said_, return_inverse=True)[1]
        weights, texts = np.exp(np.array(scores)), np.array(texts)
        for k in (k for k in sizes if k <= n):
            subsets = np.argsort(rng.random((DRAWS, n)), 1)[:, :k]
            calls = float(np.mean([len(set(texts[some].tolist())) for some in subsets]))
            accuracy = {
                "best-of-N": best_of(scores, solved, k),
                "majority vote": float(np.mean([_vote(ids[s], np.ones(k), good[s]) for s in subsets])),
                "weighted vote": float(np.mean([_vote(ids[s], weights[s], good[s]) for s in subsets])),
            }
            for name, value in accuracy.items():
                columns = out.setdefault((name, k), {"solved": [], "tokens": [], "reward_calls": []})
                columns["solved"].append(value)
                columns["tokens"].append(tokens * k)
                columns["reward_calls"].append(0.0 if name == "majority vote" else calls)
    return out


def _vote(ids: Any, weights: Any, good: Any) -> float:
    """Return whether the best run of the winning answer is a solution."""
    members = np.flatnonzero(ids == np.bincount(ids, weights).argmax())
    return float(good[members[weights[members].argmax()]])


def summary(rows: list[dict[str, Any]], sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return accuracy with its 95% interval, tokens and calls for each problem, by engine and size."""
    cells: dict[tuple[str, int], dict[str, list[float]]] = {}
    for row in rows:
        made = from_pool(row, sizes) if row["engine"] == POOL else {(row["engine"], row["particles"]): row}
        for key, columns in made.items():
            cell = cells.setdefault(key, {"solved": [], "tokens": [], "reward_calls": [], "problem": []})
            for name in ("solved", "tokens", "reward_calls"):
                cell[name] += columns[name]
            cell["problem"] += [row["block"] + i for i in range(len(columns["solved"]))]
    out = []
    for (engine, n), cell in cells.items():
        binary = set(cell["solved"]) <= {0, 1}
        accuracy, low, high = mean_interval(cell["solved"], cell["problem"], binary)
        costs = {name: float(np.mean(cell[name])) for name in ("tokens", "reward_calls")}
        out.append({"engine": engine, "particles": n, "accuracy": accuracy, "low": low, "high": high, **costs})
    return sorted(out, key=lambda row: (row["engine"], row["particles"]))


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy against tokens and against calls, a line for each engine with its interval."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colors = colormaps["tab20"].colors[::2] + colormaps["tab20"].colors[1::2]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, (cost, label) in zip(
        figure.subplots(1, 2, sharey=True),
        (("tokens", "tokens sampled for a problem"), ("reward_calls", "calls of the verifier for a problem")),
    ):
        for i, engine in enumerate(dict.fromkeys(row["engine"] for row in table)):
            rows = [row for row in table if row["engine"] == engine and row[cost] > 0]
            x = [row[cost] for row in rows]
            axes.plot(x, [row["accuracy"] for row in rows], "o-", ms=3, color=colors[i], label=engine)
            axes.fill_between(
                x, [row["low"] for row in rows], [row["high"] for row in rows], color=colors[i], alpha=0.08, lw=0
            )
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share of problems solved, 95% band")
    figure.axes[1].legend(*figure.axes[0].get_legend_handles_labels(), loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="20 problems, 1 seed, up to 16 particles")
    parser.add_argument("--problems", type=int)
    parser.add_argument("--numbers", type=int, choices=(4, 5), default=4, help="numbers of a problem")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--pool", type=int, help="the most particles")
    parser.add_argument("--block", type=int, default=50, help="problems that share batches")
    parser.add_argument("--rows", type=int, default=512, help="rows of a forward pass")
    parser.add_argument("--engines", nargs="+", choices=[POOL, *CONTESTANTS])
    parser.add_argument("--verifier", choices=["shipped", "exact", "overconfident"], default="shipped")
    parser.add_argument("--folder", default="out/benchmarks")
    arguments = parser.parse_args()
    for name, short, long in (("problems", 20, 200), ("seeds", 1, 5), ("pool", 16, 128)):
        if getattr(arguments, name) is None:
            setattr(arguments, name, short if arguments.short else long)
    records = run(arguments)
    table = summary(records.rows, ALL)
    print(f"{'engine':30} {'N':>4} {'solved':>7} {'95% interval':>15} {'tokens':>8} {'PRM calls':>10}")
    for row in table:
        interval = f"{row['low']:.3f}–{row['high']:.3f}"
        print(
            f"{row['engine']:30} {row['particles']:4} {row['accuracy']:7.3f} {interval:>15} "
            f"{row['tokens']:8.0f} {row['reward_calls']:10.1f}"
        )
    draw(table, records.path.with_suffix(".png"))


if __name__ == "__main__":
    main()

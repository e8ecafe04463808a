"""Compute-optimal allocation: how many tokens a budget shared out over problems saves at equal accuracy.

    python benchmarks/allocation.py --short                       # seconds: 20 problems of Countdown
    python benchmarks/allocation.py                               # Countdown, from its cassette: minutes, no model
    python benchmarks/allocation.py --tasks countdown_4 sudoku_6  # Sudoku, too

Claim (Snell et al. 2024, arXiv:2408.03314): with test-time compute shared out by the difficulty of problems, as a
verifier's scores of a few answers tell it, 4 times less compute is needed than by best-of-N, for equal accuracy.

What is run. Held-out problems of a cassette (a tape of the shipped reasoner, see ``benchmarks/reasoning.py``): 200 of
Countdown with four numbers, judged by the shipped verifier ("old"), 3 seeds; and 100 of Sudoku with six clues, judged
by a verifier that knows ("reach"), 2 seeds. The first look is ``BestOfN(4)``; engines are ``BestOfN(4 … 256)``, and on
Countdown ``SMC(8 … 64)``, guided by the verifier. Budgets are worth 6, 8, 12, 16, 24, 32, 64 and 128 answers to each
problem. A policy shares out the budget of a fifth of the problems, and is learned from the other four fifths, from as
many runs of each engine on each problem as there are seeds; its settings are the library's, and nothing was tuned.

    uniform             best-of-N, the same N for all: exact, from the law of answers
    policy              `fk.allocate` with what was learned of BestOfN
    policy, SMC too     the same with what was learned of BestOfN and SMC; Countdown alone
    verifier            `fk.allocate` by the verifier alone
    stop at .9          the same N for all, but no more answers once one has a score of .9: exact
    oracle              the best N for each problem when its law is known (no look): exact
    oracle, stopping    the same, and it stops at the first right answer: exact, the bound of all that draw answers

Rule of the verdict, for each way of the list: at the accuracy of uniform best-of-8, -32 and -128, the factor is the
tokens of uniform over those of the way (each where its curve first reaches this accuracy, a line in log tokens between
budgets; 0 where the way's largest budget does not), with the 95% interval of a paired bootstrap over problems (2,000
draws, budgets as they were spent). The claim **holds** for a way where the interval is at or above 4 at all three,
**holds from** N where it is at N and beyond, **fails** where it is below 4 at all three, and else is **undecided**. The
verdict on the claim as it was made is that on "policy" on Countdown; Sudoku is told beside it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common.leaves import Leaves, best_of, leaves
from common.records import Records
from common.tasks import TASKS, cassette, with_exact

import feynkac as fk
from feynkac import scaling

SIZES = (4, 8, 16, 32, 64, 128, 256)
FILTERS = (8, 16, 32, 64)
BUDGETS = (6, 8, 12, 16, 24, 32, 64, 128)
LEVELS = (8, 32, 128)
FINE = tuple(sorted({math.ceil(2 ** (i / 4)) for i in range(41)}))
"""N of the exact curves, up to 1024."""
PARTS, ENOUGH, CLIP = 5, 0.9, 1e-6
LOOK = fk.BestOfN(4)
DRAWS = 2000
Floats = np.ndarray


class Setup(NamedTuple):
    """The title of a task, who judges, how many problems and seeds there are, and what is run on it."""

    title: str
    verifier: str
    problems: int
    seeds: int
    ways: tuple[str, ...]


SETUPS = {
    "countdown_4": Setup("Countdown, four numbers", "old", 200, 3, ("policy", "policy, SMC too", "verifier")),
    "sudoku_6": Setup("Sudoku, six clues", "reach", 100, 2, ("policy", "verifier")),
}


def price(law: Leaves) -> float:
    """Tokens of an answer, on average."""
    return float(law.mass @ law.tokens)


def stopping(law: Leaves, n: int) -> tuple[float, float]:
    """Return how often the best-scored of n answers is right, and how many are drawn, if a score `ENOUGH` ends it.

    >>> law = Leaves(np.array([0.5, 0.5]), np.array([0.95, 0.1]), np.array([1.0, 0.0]), np.ones(2), None)
    >>> stopping(law, 2)
    (0.75, 1.5)
    """
    good = law.score >= ENOUGH
    a = float(law.mass[good].sum())
    if not a:
        return best_of(law, n), float(n)
    found = 1.0 - (1.0 - a) ** n
    missed = 0.0
    if a < 1:  # the best of n answers, none of which is good
        rest = Leaves(law.mass[~good] / (1 - a), law.score[~good], law.solved[~good], law.tokens[~good], None)
        missed = (1.0 - a) ** n * best_of(rest, n)
    return missed + found * float(law.mass[good] @ law.solved[good]) / a, found / a


@dataclass(frozen=True)
class Task:
    """Problems, as models; the law of their answers; and which value of which problem is right."""

    models: list[Any]
    laws: list[Leaves]
    right: Callable[[Any, int], bool]

    def part(self, which: list[int]) -> Task:
        """Return some of the problems."""
        some = [self.models[i] for i in which], [self.laws[i] for i in which]
        return Task(*some, lambda value, i: self.right(value, which[i]))


def taped(name: str, count: int) -> Task:
    """Return problems of a cassette."""
    task, verifier = TASKS[name], SETUPS[name].verifier
    problems = task.problems(count, "test")
    tape = with_exact(fk.tasks.Tape.load(cassette(name)), problems)
    prm = tape.verifier(verifier, clip=CLIP)
    models = [fk.tasks.solve(tape, prm, problem) for problem in problems]
    return Task(models, leaves(tape, count, verifier, task.said), lambda text, i: problems[i].solved(text))


def engines(way: str) -> list[Any]:
    """Return the options of a way to share out."""
    filters = [fk.SMC(n, ess_threshold=1.0, all_dead="zero") for n in FILTERS] if "SMC" in way else []
    return [fk.BestOfN(n) for n in SIZES] + filters


def observed(way: str, task: Task, runs: int) -> list[scaling.Record]:
    """Return what each engine came to on each problem, in some runs."""
    return [
        row
        for seed in range(runs)
        for row in scaling.records(task.models, engines(way), task.right, first_look=LOOK, seed=1000 + seed)
    ]


def spent(task: Task, way: str, rows: list[scaling.Record] | None, answers: int, seed: int) -> dict[str, list[Any]]:
    """Share out a budget worth so many answers to each problem. Returns which were solved, and their tokens."""
    made: dict[str, list[Any]] = {name: [None] * len(task.models) for name in ("solved", "tokens", "sizes")}
    for part in range(1 if rows is None else PARTS):
        which = list(range(part, len(task.models), 1 if rows is None else PARTS))
        some = task.part(which)
        others = [row for row in rows or () if row.problem % PARTS != part]
        posteriors, plan = fk.allocate(
            some.models,
            engines(way),
            fk.Budget(tokens=math.floor(answers * sum(map(price, some.laws)))),
            policy=scaling.ComputeOptimal.fit(others) if others else None,
            first_look=LOOK,
            seed=10 * seed + part,
        )
        for i, (problem, posterior, share) in enumerate(zip(which, posteriors, plan.shares)):
            made["solved"][problem] = int(some.right(posterior.best(), i))
            made["tokens"][problem] = share.cost
            made["sizes"][problem] = share.size if share.engine == "BestOfN" else -share.size
    return made


def run(name: str, count: int, seeds: int, folder: Path) -> tuple[Task, Records]:
    """Make what is not yet in the file."""
    folder.mkdir(parents=True, exist_ok=True)
    task = taped(name, count)
    records = Records(folder / f"spent_{name}_{count}.jsonl", ("way", "answers", "seed"))
    for way in SETUPS[name].ways:
        cells = [{"way": way, "answers": n, "seed": seed} for n in BUDGETS for seed in range(seeds)]
        todo = [cell for cell in cells if cell not in records]
        rows = observed(way, task, seeds) if todo and way != "verifier" else None
        for cell in todo:
            records.add(cell | spent(task, way, rows, cell["answers"], cell["seed"]))
        print(f"{name}: {way}", flush=True)
    return task, records


Curve = tuple[Floats, Floats]
"""Tokens and accuracy (budgets, problems)."""


def exact(task: Task) -> dict[str, Curve]:
    """Return the curves that need no run."""
    cost = np.array([price(law) for law in task.laws])
    best = np.array([[best_of(law, n) for law in task.laws] for n in FINE])
    stops = np.array([[stopping(law, n) for law in task.laws] for n in FINE])
    p = np.array([law.mass @ law.solved for law in task.laws])
    tries = np.array(FINE)[:, None]
    found = 1.0 - (1.0 - p) ** tries
    drawn = np.where(p > 0, found / np.where(p > 0, p, 1.0), tries)
    uniform = cost * tries
    return {
        "uniform": (uniform, best),
        "stop at .9": (stops[:, :, 1] * cost, stops[:, :, 0]),
        "oracle": shared(best, uniform, cost.sum()),
        "oracle, stopping": shared(found, drawn * cost, cost.sum()),
    }


def shared(worth: Floats, price: Floats, one: float) -> Curve:
    """Return the best shares of budgets, of curves (sizes, problems) that are known; ``one`` is an answer for each."""
    none = np.zeros((1, worth.shape[1]))
    worth, price = np.concatenate([none, worth]), np.concatenate([none, price])
    rows = np.arange(worth.shape[1])
    chosen = [scaling.spend(worth.T, price.T, one * n) for n in (0.25, 0.5, 1, 1.5, 2, 3, 4, *BUDGETS)]
    return np.array([price[c, rows] for c in chosen]), np.array([worth[c, rows] for c in chosen])


def measured(rows: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """Return the curves of what was run, each problem's mean over seeds."""
    out = {}
    for way in dict.fromkeys(row["way"] for row in rows):
        found = [
            [np.mean([row[key] for row in rows if (row["way"], row["answers"]) == (way, n)], 0) for n in BUDGETS]
            for key in ("tokens", "solved")
        ]
        out[way] = (np.array(found[0]), np.array(found[1]))
    return out


def needed(curve: Curve, accuracy: float, some: Any) -> float:
    """Return the tokens of a problem at which a curve's mean over some problems reaches an accuracy, or infinity."""
    tokens, solved = (part[:, some].mean(1) for part in curve)
    best = np.maximum.accumulate(solved) + 1e-12  # what is reached is reached, however it was added up
    if best[-1] < accuracy:
        return math.inf
    i = int(np.argmax(best >= accuracy))
    if i == 0:
        return float(tokens[0])
    share = (accuracy - best[i - 1]) / (best[i] - best[i - 1])
    return float(np.exp(np.log(tokens[i - 1]) + share * np.log(tokens[i] / tokens[i - 1])))


def factors(curves: dict[str, Curve], draws: int | None = None) -> dict[str, list[tuple[float, float, float]]]:
    """Return by way, at each of `LEVELS`, by what factor it needs fewer tokens than uniform, with its interval."""
    problems = curves["uniform"][0].shape[1]
    rng = np.random.default_rng(0)
    samples = [np.arange(problems), *rng.integers(problems, size=(draws or DRAWS, problems))]
    out: dict[str, list[tuple[float, float, float]]] = {}
    for way in (name for name in curves if name != "uniform"):
        for level in LEVELS:
            at = FINE.index(level)
            aims = [float(curves["uniform"][1][at, some].mean()) for some in samples]
            pairs = zip(aims, samples)
            found = [needed(curves["uniform"], aim, some) / needed(curves[way], aim, some) for aim, some in pairs]
            low, high = np.quantile(found[1:], [0.025, 0.975])
            out.setdefault(way, []).append((float(found[0]), float(low), float(high)))
    return out


def verdict(found: Sequence[tuple[float, float, float]]) -> str:
    """Return what the rule says."""
    holds = [low >= 4 for _, low, _ in found]
    if all(high < 4 for _, _, high in found):
        return "fails"
    since = next((i for i in range(len(holds)) if all(holds[i:])), None)
    return "undecided" if since is None else "holds" if since == 0 else f"holds from {LEVELS[since]}"


def told(curves: dict[str, Curve], name: str) -> None:
    """Print the table of the page."""
    levels = ", ".join(f"best-of-{n}: {curves['uniform'][1][FINE.index(n)].mean():.3f}" for n in LEVELS)
    print(f"{SETUPS[name].title}, {curves['uniform'][0].shape[1]} problems; uniform {levels}")
    for way, found in factors(curves).items():
        cells = "  ".join(f"{mean:5.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in found)
        print(f"{way:18} {cells}  {verdict(found)}")


def draw(by_task: dict[str, dict[str, Curve]], path: Path) -> None:
    """Draw accuracy against tokens, a panel for each task, with the ways named at their lines."""
    from matplotlib.figure import Figure

    styles = {
        "uniform": ("black", "-"), "policy": ("#0072b2", "-"), "policy, SMC too": ("#56b4e9", "-"),
        "verifier": ("#d55e00", "-"), "stop at .9": ("#009e73", "-"), "oracle": ("0.5", "--"),
        "oracle, stopping": ("0.5", ":"),
    }  # fmt: skip
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for axes, (name, curves) in zip(np.ravel(figure.subplots(1, len(by_task))), by_task.items()):
        ends = []
        cost = float(curves["uniform"][0][0].mean())
        for way, (tokens, solved) in curves.items():
            x, y = tokens.mean(1), solved.mean(1)
            keep = (x >= cost * 0.9) & (x <= cost * 140)
            axes.plot(x[keep], y[keep], styles[way][1], color=styles[way][0], lw=1.6)
            ends.append((float(y[keep][-1]), float(x[keep][-1]), way))
        last, gap = -math.inf, 0.035 * (axes.get_ylim()[1] - axes.get_ylim()[0]) * 1.4
        for y, x, way in sorted(ends):
            last = max(y, last + gap)
            axes.annotate(way, (x, y), (cost * 165, last), color=styles[way][0], va="center", fontsize=8,
                          arrowprops={"arrowstyle": "-", "color": styles[way][0], "lw": 0.5})  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(cost * 0.9, cost * 900)
        axes.set_title(SETUPS[name].title, fontsize=10)
        axes.set_xlabel("tokens sampled for a problem")
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("share of problems solved")
    figure.savefig(path, dpi=110)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="20 problems, 1 seed")
    parser.add_argument("--tasks", nargs="+", choices=list(SETUPS), default=["countdown_4"])
    parser.add_argument("--folder", type=Path, default=Path("out/benchmarks/allocation"))
    parser.add_argument("--picture", type=Path, default=None)
    arguments = parser.parse_args(given)
    by_task = {}
    for name in arguments.tasks:
        setup = SETUPS[name]._replace(problems=20, seeds=1) if arguments.short else SETUPS[name]
        task, records = run(name, setup.problems, setup.seeds, arguments.folder)
        by_task[name] = exact(task) | measured(records.rows)
        told(by_task[name], name)
    draw(by_task, arguments.picture or arguments.folder / "allocation.png")


if __name__ == "__main__":
    main()

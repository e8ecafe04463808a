"""Is the advice of `diagnose` good? Its choice of an engine against the best of the grid of `reasoning.py`.

    python benchmarks/reasoning.py --short && python benchmarks/diagnose.py --short    # a minute
    python benchmarks/reasoning.py && python benchmarks/diagnose.py                    # after an hour: a minute
    python benchmarks/diagnose.py --plot docs/claims/diagnose.png

Of the 200 held-out problems of Countdown (four numbers, on their cassette) the first 100 are diagnosed (64 answers
each, steps made twice, seed 0), with each verifier. The engine that `Diagnosis.choose` then names for budgets of 8,
32 and 128 answers is looked up in the grid of the other 100, and so is every engine of the grid that was run at such
a cost: accuracy at as many tokens as the budget's answers take, a line between sizes in the log of the tokens.

The rule of the verdict, for each verifier and budget: the choice is *good* if it solves at most .02 less than the
engine that solves most (best-of-N is exact). That is hard on it, for the best of many engines is a bit lucky; the
difference is told with its 95% interval, paired by problem. The advice "holds" for a verifier where all three choices
are good. Beside it stand the rules "always best-of-N" and "always the particle filter".

The first rule (best-of-N while twice the answers still gain, else a filter) was run so and failed for three verifiers
of four (docs/claims/diagnose.md). The rule that is in `Diagnosis` now was set after that, on what engines do on 40
problems of the split "train", where A* was ahead up to 24 answers; so on these held-out problems it had its second
try. It failed for the verifier "early", which came later, and since then names A* only where scores are next to certain
of finished answers, as the training problems say, too: its third try.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common.cells import at_cost, cells, gathered, paired
from common.contestants import YARDSTICK
from common.leaves import pooled
from common.records import Records
from common.tasks import TASKS, VERIFIERS, cassette, with_exact

import feynkac as fk

NAMES = {
    "AStar": "A*, N children",
    "BestOfN": YARDSTICK,
    "EntropicParticleFilter": "entropic",
    "ParticleFilter": "particle filter",
}


def diagnosed(tape: Any, verifier: str, problems: list[Any], answers: int) -> Any:
    """Diagnose a verifier of a tape on some problems."""
    prm = tape.verifier(verifier)
    models = [fk.tasks.solve(tape, prm, problem) for problem in problems]
    return fk.diagnose(models, [problem.solved for problem in problems], answers=answers)


def judged(found: Any, grid: Any, half: int, budgets: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return for each budget what the choice, and what every engine that was run at its cost, solves of the others."""
    rows = []
    for budget in budgets:
        solved, spent = {}, next(cell.tokens.mean() for cell in grid[YARDSTICK] if cell.particles == budget)
        for name, curve in grid.items():
            ends = [cell.tokens.mean() for cell in (curve[0], curve[-1])]
            # Answers of a model that are as many are not quite as long.
            near = next((end for end in ends if abs(end / spent - 1) < 0.01), spent)
            at = at_cost(curve, "tokens", near)
            if at is not None:
                solved[name] = at[half:]
        choice = NAMES[type(found.choose(budget)).__name__]
        best = max(solved, key=lambda name: solved[name].mean())
        rows.append({"budget": budget, "choice": choice, "best": best, "solved": solved})
    return rows


def shown(verifier: str, found: Any, rows: list[dict[str, Any]]) -> bool:
    """Print what came of it; return whether all choices are good."""
    print(f"\n{verifier}\n{found}")
    good = True
    for row in rows:
        solved, best = row["solved"], row["best"]
        if row["choice"] not in solved:
            print(f"  {row['budget']:4} answers: {row['choice']} was not run at this cost")
            return False
        rules = (row["choice"], *NAMES.values())
        gaps = {name: paired(solved[best] - solved[name]) for name in rules if name in solved}
        mean, low, high = gaps[row["choice"]]
        good &= mean <= 0.02
        others = ", ".join(f"always {name} {gap[0]:.3f}" for name, gap in gaps.items() if name in NAMES.values())
        print(
            f"  {row['budget']:4} answers: {row['choice']} {solved[row['choice']].mean():.3f}, best {best} "
            f"{solved[best].mean():.3f} of {len(solved)}; less {mean:.3f} [{low:.3f}, {high:.3f}] ({others})"
        )
        print(f"       {found.advice(row['budget'])}")
    print("  holds" if good else "  fails")
    return good


def plot(results: dict[str, Any], path: str) -> None:
    """Draw by verifier what the choice, and the fixed rules, lose to the best engine."""
    import matplotlib.pyplot as plt

    size = (2.5 * len(results) + 0.8, 3.0)
    figure, axes = plt.subplots(1, len(results), figsize=size, sharey=True, constrained_layout=True)
    fixed = ((YARDSTICK, "tab:orange", "s"), ("particle filter", "tab:blue", "^"), ("A*, N children", "tab:green", "D"))
    for axis, (verifier, rows) in zip(np.atleast_1d(axes), results.items()):
        for x, row in enumerate(rows):
            best = row["solved"][row["best"]].mean()
            for name, colour, mark in fixed:
                axis.plot(x, best - row["solved"][name].mean(), mark, color=colour, markersize=6)
            if row["choice"] in row["solved"]:
                ring = {"markerfacecolor": "none", "markeredgecolor": "black", "markersize": 13}
                axis.plot(x, best - row["solved"][row["choice"]].mean(), "o", **ring)
        axis.axhline(0.02, color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=f"verifier: {verifier}", xlabel="budget (answers)", xlim=(-0.5, len(rows) - 0.5))
        axis.set_xticks(range(len(rows)), [str(row["budget"]) for row in rows])
        axis.spines[["top", "right"]].set_visible(False)
    named = [plt.Line2D([], [], color=c, marker=m, linestyle="", label=f"always {n}") for n, c, m in fixed]
    ring = plt.Line2D([], [], color="black", marker="o", fillstyle="none", markersize=11, linestyle="", label="advice")
    figure.legend(handles=[ring, *named], loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    np.atleast_1d(axes)[0].set_ylabel("solved less than by the best")
    figure.savefig(path, dpi=100)


def main(given: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="20 problems, up to 16 particles")
    parser.add_argument("--verifier", nargs="+", choices=VERIFIERS)
    parser.add_argument("--task", choices=list(TASKS), default="countdown_4")
    parser.add_argument("--folder", default="out/benchmarks", help="where reasoning.py has left its records")
    parser.add_argument("--plot", help="where the picture goes")
    options = parser.parse_args(given)
    tape = fk.tasks.Tape.load(cassette(options.task))
    count = 20 if options.short else len(tape.prompts)
    problems, half = TASKS[options.task].problems(count, "test"), count // 2
    tape = with_exact(tape, problems)
    sizes, budgets = ((2, 4, 8, 16), (4, 8)) if options.short else ((2, 4, 8, 16, 32, 64, 128), (8, 32, 128))
    results = {}
    for verifier in options.verifier or [name for name in VERIFIERS if name in tape.scores]:
        name = f"reasoning_{options.task}_{verifier}{'_20' if options.short else ''}"
        path = Path(options.folder) / f"{name}.jsonl"
        if not path.exists():
            print(f"{verifier}: there is no {path}; run reasoning.py first")
            continue
        rows = Records(path, ("engine", "particles", "seed", "block")).rows
        made = cells(rows) + pooled(tape, count, verifier, TASKS[options.task].said, sizes, False)
        found = diagnosed(tape, verifier, problems[:half], 16 if options.short else 64)
        results[verifier] = judged(found, gathered(made), half, budgets)
        shown(verifier, found, results[verifier])
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()

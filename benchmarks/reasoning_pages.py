"""The pictures and tables of docs/claims/{particle_filtering,a_star,look_ahead,sudoku}.md, and docs/reasoning.png.

    python benchmarks/reasoning_pages.py                # from what `python benchmarks/reasoning.py` left
    python benchmarks/reasoning_pages.py --task countdown_5     # tables alone
    python benchmarks/reasoning_pages.py --task sudoku_6

Tables are printed as Markdown. ``--model`` rows, where there are any, are compared with those of the tape.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from common.cells import Cell, Grid, cells, gathered, paired, ratio
from common.contestants import ALL, FAMILIES, YARDSTICK
from common.leaves import pooled
from common.multiples import Panel, by_family, multiples
from common.records import Records
from common.tasks import TASKS, VERIFIERS, cassette, with_exact
from common.verdicts import LOOKS, a_star, looking, particle_filtering

import feynkac as fk

DOCS = Path(__file__).resolve().parent.parent / "docs"
KEYS = ("engine", "particles", "seed", "block")
SHOWN = ("early", "old", "value")
"""Verifiers of the pictures; tables have all."""


def grids(task: str, folder: Path) -> dict[str, Grid]:
    """Return the cells of each verifier whose grid was run."""
    tape = fk.tasks.Tape.load(cassette(task))
    tape = with_exact(tape, TASKS[task].problems(len(tape.prompts), "test"))
    found = {}
    for verifier in VERIFIERS:
        path = folder / f"reasoning_{task}_{verifier}.jsonl"
        if path.exists():
            made = cells(Records(path, KEYS).rows)
            found[verifier] = gathered(
                made + pooled(tape, len(tape.prompts), verifier, TASKS[task].said, ALL, votes=True)
            )
    return found


def pictures(task: str, found: dict[str, Grid]) -> None:
    tables = {name: [cell.summary() for engine in grid.values() for cell in engine] for name, grid in found.items()}
    shown = [name for name in SHOWN if name in tables]
    words = f"{TASKS[task].title}. Grey: {YARDSTICK}. Bands: 95%"
    claims = DOCS / "claims"
    claims.mkdir(exist_ok=True)

    def panels(engines: tuple[str, ...], cost: str) -> list[Panel]:
        title = "verifier: {}" if cost == "tokens" else ""
        return [Panel(title.format(name), tables[name], engines, cost) for name in shown]

    filters = [panels(("particle filter", "beam"), "tokens")]
    multiples(filters, YARDSTICK, words, claims / "particle_filtering.png")
    searches = [panels(("A*, N children", "particle filter"), cost) for cost in ("tokens", "reward_calls")]
    multiples(searches, YARDSTICK, words, claims / "a_star.png")
    looks = [
        [Panel("" if i else pair[0], tables[name], pair) for pair in LOOKS.items()] for i, name in enumerate(shown[:2])
    ]
    sides = [f", verifier: {name}" for name in shown[:2]]
    multiples(looks, YARDSTICK, words, claims / "look_ahead.png", sides)
    title = f"{words}. Verifier: {shown[0]}"
    multiples(by_family(tables[shown[0]], FAMILIES), YARDSTICK, title, DOCS / "reasoning.png")


def one_way(task: str) -> Any:
    """Return the probability of the right line after the right ones before it, (problems, steps).

    Where a problem has one solution, and the verifier knows it, this tells all: a filter that keeps the right ones
    alone solves it with Π_t 1 − (1 − p_t)^N, best-of-N with 1 − (1 − Π_t p_t)^N.
    """
    tape = fk.tasks.Tape.load(cassette(task))
    rows = []
    for place, problem in enumerate(TASKS[task].problems(len(tape.prompts), "test")):
        chances = []
        for line in problem.solution():
            after = int(tape.first[place]) + np.arange(tape.count[place])
            place = next((k for k in after.tolist() if tape.lines[tape.line_of[k]] == line), -1)
            chances.append(math.exp(tape.log_prob[place]) if place >= 0 else 0.0)
        rows.append(chances)
    return np.array(rows)


def sudoku(task: str, found: dict[str, Grid]) -> None:
    """Draw the picture, and print what theory says of the filter and of best-of-N, and what a filter can save."""
    table = [cell.summary() for engine in found["reach"].values() for cell in engine]
    engines = ("particle filter", "beam", "A*, N children")
    words = f"{TASKS[task].title}. Grey: {YARDSTICK}. Bands: 95%"
    panels = [Panel("", table, engines, cost) for cost in ("tokens", "reward_calls")]
    multiples([panels], YARDSTICK, words, DOCS / "claims" / "sudoku.png")
    p = one_way(task)
    whole = p.prod(1)
    for n in ALL:
        print(f"N = {n}: filter {(1 - (1 - p) ** n).prod(1).mean():.3f}, best-of-N {(1 - (1 - whole) ** n).mean():.3f}")
    quartiles = np.quantile(p.min(1)[whole > 0] / whole[whole > 0], [0.25, 0.5, 0.75])
    print(f"hardest step ÷ all steps: quartiles {quartiles.round(2)}; chances by step {p.mean(0).round(3)}")


def markdown(head: list[str], rows: list[list[str]]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(row)} |")
    print()


def points(found: tuple[float, float, float]) -> str:
    return f"{found[0]:+.3f} [{found[1]:+.3f}, {found[2]:+.3f}]"


def times(found: tuple[float, float, float]) -> str:
    return " ".join(part.replace("inf", "∞") for part in (f"{found[0]:.2f}", f"[{found[1]:.2f}, {found[2]:.2f}]"))


def tables(found: dict[str, Grid]) -> None:
    """Print what the pages show."""
    for rival in ("best-of-N", "beam"):
        head = ["verifier", "N", "filter at N", f"{rival} at N", "at 4N", "filter − at 4N", "filter − at N"]
        head += [f"tokens of {rival} ÷ of the filter at equal accuracy", "verdict"]
        rows = []
        for name, grid in found.items():
            made = particle_filtering(grid, rival)
            for row in made["rows"]:
                at = [
                    _accuracy(grid, e, n)
                    for e, n in (("particle filter", row["N"]), (rival, row["N"]), (rival, 4 * row["N"]))
                ]
                deciding = [points(row["against 4N"]), points(row["against N"])]
                more = times(ratio(grid[rival], grid["particle filter"], row["N"], "tokens"))
                rows.append([name, str(row["N"]), *at, *deciding, more, "stands" if row["holds"] else ""])
            rows.append([name, *[""] * 7, f"**{made['verdict']}**"])
        markdown(head, rows)
    rows = []
    for name, grid in found.items():
        made = a_star(grid)
        for row in made["rows"]:
            rows.append(
                [
                    name,
                    str(row["N"]),
                    _accuracy(grid, "particle filter", row["N"]),
                    times(row["tokens"]),
                    times(row["calls"]),
                ]
            )
        rows.append([name, "", "", "", f"**{made['verdict']}**"])
    markdown(["verifier", "N", "filter at N", "tokens of A* ÷ of the filter", "calls ÷ calls"], rows)
    rows = []
    for name, grid in found.items():
        for look, plain in LOOKS.items():
            made = looking(grid, look)
            if made["mean"]:
                by_size = ", ".join(f"{row['N']}: {row['difference'][0]:+.3f}" for row in made["rows"])
                rows.append([name, look, plain, points(made["mean"]), by_size, f"**{made['verdict']}**"])
    markdown(["verifier", "looks ahead", "plain", "difference at equal tokens, mean", "by N", "verdict"], rows)


def _accuracy(grid: Grid, engine: str, n: int) -> str:
    return next(f"{cell.solved.mean():.3f}" for cell in grid[engine] if cell.particles == n)


def agreement(task: str, folder: Path, found: dict[str, Grid]) -> None:
    """Print how the tape and the models differ, where both were run: paired by problem."""
    rows: list[list[str]] = []
    for name, grid in found.items():
        path = folder / f"reasoning_{task}_{name}_model.jsonl"
        for cell in cells(Records(path, KEYS).rows) if path.exists() else []:
            taped = next(c for c in grid[cell.engine] if c.particles == cell.particles)
            rows.append([name, cell.engine, str(cell.particles), *_both(cell, taped)])
    if rows:
        markdown(["verifier", "engine", "N", "models", "tape", "tape − models", "tokens", "calls"], rows)


def _both(cell: Cell, taped: Cell) -> list[str]:
    costs = [f"{getattr(cell, k).mean():.0f} / {getattr(taped, k).mean():.0f}" for k in ("tokens", "reward_calls")]
    accuracies = [f"{np.mean(some.solved):.3f}" for some in (cell, taped)]
    return [*accuracies, points(paired(taped.solved - cell.solved)), *costs]


def main(given: Any = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=list(TASKS), default="countdown_4")
    parser.add_argument("--folder", type=Path, default=Path("out/benchmarks"))
    options = parser.parse_args(given)
    found = grids(options.task, options.folder)
    tables(found)
    agreement(options.task, options.folder, found)
    if options.task == "countdown_4":
        pictures(options.task, found)
    if options.task == "sudoku_6" and "reach" in found:
        sudoku(options.task, found)


if __name__ == "__main__":
    main()

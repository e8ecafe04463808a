"""The verdicts of the reasoning benchmark, by the rules that stand in its head."""

from __future__ import annotations

from typing import Any

import numpy as np
from common.cells import Cell, Grid, at_cost, difference, paired, ratio

QUARTERS = (2, 4, 8, 16, 32)
"""N of a filter, beside a rival at 4N."""
MARGIN = 0.02
"""What counts as no worse."""
LEVELS = (4, 8, 16, 32)
"""N of the filter whose accuracy A* has to come to."""
THIRD, SEVENTY = 1 / 3, 0.7
LOOKS = {
    "look-ahead SMC": "systematic filter",
    "entropic, looks ahead": "entropic",
    "beam, looks ahead": "beam",
    "learned twist": "telescoping",
}
"""What looks ahead, and the plain engine that it is compared with."""

Interval = tuple[float, float, float]


def particle_filtering(grid: Grid, rival: str) -> dict[str, Any]:
    """Return the differences to a rival at 4N and at N, for each N, and the verdict."""
    rows = []
    for n in QUARTERS:
        ours, same, more = _cell(grid, "particle filter", n), _cell(grid, rival, n), _cell(grid, rival, 4 * n)
        if ours and same and more:
            at_4, at_1 = difference(ours, more), difference(ours, same)
            rows.append({"N": n, "against 4N": at_4, "against N": at_1, "holds": at_4[1] > -MARGIN and at_1[1] > 0})
    return {"rows": rows, "verdict": _said(rows)}


def a_star(grid: Grid) -> dict[str, Any]:
    """Return what A* needs for the accuracy of the filter at each N, as a share of what that needs, and the verdict."""
    rows = []
    search, filtered = grid.get("A*, N children", []), grid.get("particle filter", [])
    for n in LEVELS:
        if search and _cell(grid, "particle filter", n):
            tokens, calls = (ratio(search, filtered, n, cost) for cost in ("tokens", "reward_calls"))
            cheaper = tokens[2] < 1 and calls[2] < 1
            holds = cheaper and tokens[0] <= THIRD and calls[0] <= SEVENTY
            rows.append({"N": n, "tokens": tokens, "calls": calls, "cheaper": cheaper, "holds": holds})
    verdict = _said(rows)
    cheaper = ", ".join(str(row["N"]) for row in rows if row["cheaper"])
    if verdict == "fails" and cheaper:
        verdict = f"fails (cheaper at N = {cheaper}, but not by so much)"
    return {"rows": rows, "verdict": verdict}


def looking(grid: Grid, name: str) -> dict[str, Any]:
    """Return the differences to the plain engine at equal tokens, for each N and in the mean, and the verdict."""
    plain, rows, all_of = grid.get(LOOKS[name], []), [], []
    for cell in grid.get(name, []):
        known = at_cost(plain, "tokens", float(cell.tokens.mean())) if plain else None
        if known is not None:
            found = paired(cell.solved - known)
            all_of.append(cell.solved - known)
            rows.append({"N": cell.particles, "difference": found, "holds": found[1] > 0})
    if not rows:
        return {"rows": [], "mean": None, "verdict": "not run"}
    mean = paired(np.mean(all_of, 0))
    verdict = "holds" if mean[1] > 0 else _said(rows)
    if verdict == "fails" and mean[2] < 0:
        verdict = "fails: it costs accuracy"
    return {"rows": rows, "mean": mean, "verdict": verdict}


def _cell(grid: Grid, engine: str, n: int) -> Cell | None:
    return next((cell for cell in grid.get(engine, []) if cell.particles == n), None)


def _said(rows: list[dict[str, Any]]) -> str:
    """Return "holds", "holds from N = …" where it does so up to the largest N, or "fails"."""
    if not rows:
        return "not run"
    tail = 0
    for row in reversed(rows):
        if not row["holds"]:
            break
        tail += 1
    if tail == len(rows):
        return "holds"
    return f"holds from N = {rows[-tail]['N']}" if tail else "fails"


def report(grid: Grid) -> str:
    """Return all verdicts with the intervals that decide them, as lines."""
    lines = []
    for rival in ("best-of-N", "beam"):
        found = particle_filtering(grid, rival)
        lines.append(f"particle filter at N against {rival} at 4N: {found['verdict']}")
        for row in found["rows"]:
            lines.append(f"  N = {row['N']:3}: at 4N {_points(row['against 4N'])}, at N {_points(row['against N'])}")
    found = a_star(grid)
    lines.append(f"A* for what the particle filter solves at N: {found['verdict']}")
    for row in found["rows"]:
        lines.append(f"  N = {row['N']:3}: tokens × {_times(row['tokens'])}, calls × {_times(row['calls'])}")
    for name, plain in LOOKS.items():
        found = looking(grid, name)
        lines.append(f"{name} against {plain} at equal tokens: {found['verdict']}")
        if found["mean"]:
            lines.append(f"  mean: {_points(found['mean'])}")
        for row in found["rows"]:
            lines.append(f"  N = {row['N']:3}: {_points(row['difference'])}")
    return "\n".join(lines)


def _points(found: Interval) -> str:
    return f"{found[0]:+.3f} [{found[1]:+.3f}, {found[2]:+.3f}]"


def _times(found: Interval) -> str:
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"

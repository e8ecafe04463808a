"""What a grid of engines and sizes came to: a cell for each, with every problem's accuracy and cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feynkac.inference.comparison.intervals import difference_interval, mean_interval

Floats = NDArray[np.float64]
COSTS = ("tokens", "reward_calls")
DRAWS = 1000
"""Of a bootstrap over problems."""


@dataclass(frozen=True)
class Cell:
    """An engine at one size: of each problem the share of its runs that solved it, and what they cost, (problems,)."""

    engine: str
    particles: int
    solved: Floats
    tokens: Floats
    reward_calls: Floats

    def summary(self) -> dict[str, Any]:
        """Return accuracy with its 95% interval over problems, and the mean costs of a problem."""
        accuracy, low, high = mean_interval(self.solved.tolist(), range(len(self.solved)), binary=False)
        low, high = max(low, 0.0), min(high, 1.0)
        costs = {name: float(getattr(self, name).mean()) for name in COSTS}
        row = {"engine": self.engine, "particles": self.particles, "accuracy": accuracy, "low": low, "high": high}
        return row | costs


Grid = dict[str, list[Cell]]
"""The cells of each engine, by rising size."""


def gathered(cells: Iterable[Cell]) -> Grid:
    grid: Grid = {}
    for cell in sorted(cells, key=lambda cell: cell.particles):
        grid.setdefault(cell.engine, []).append(cell)
    return grid


def cells(rows: list[dict[str, Any]]) -> list[Cell]:
    """Return the cells of records, which are rows of an engine, a size, a seed and a block of problems.

    Cells of which some problems were not run yet are left out.
    """
    found: dict[tuple[str, int], dict[str, dict[int, list[float]]]] = {}
    for row in rows:
        columns = found.setdefault((row["engine"], row["particles"]), {})
        for name in ("solved", *COSTS):
            by_problem = columns.setdefault(name, {})
            for i, value in enumerate(row[name]):
                by_problem.setdefault(row["block"] + i, []).append(value)
    made = []
    for key, columns in found.items():
        means = (np.array([np.mean(values) for _, values in sorted(column.items())]) for column in columns.values())
        made.append(Cell(*key, *means))
    most = max((len(cell.solved) for cell in made), default=0)
    return [cell for cell in made if len(cell.solved) == most]


def difference(a: Cell, b: Cell) -> tuple[float, float, float]:
    """Return the accuracy of one cell less that of another, with its 95% interval: paired by problem."""
    return paired(a.solved - b.solved)


def paired(differences: Floats) -> tuple[float, float, float]:
    """Return the mean of differences (problems,) with its 95% interval."""
    mean, low, high = difference_interval(differences.tolist(), range(len(differences)), binary=False)
    return mean, low, high


def at_cost(curve: list[Cell], cost: str, budget: float) -> Floats | None:
    """Return each problem's accuracy on a curve at a budget, (problems,): a line between sizes in the log of the cost.

    None where the budget lies outside the curve.
    """
    costs = np.log([getattr(cell, cost).mean() for cell in curve])
    place = np.log(budget)
    if not costs[0] - 1e-9 <= place <= costs[-1] + 1e-9:
        return None
    solved = np.array([cell.solved for cell in curve])
    return np.array([np.interp(place, costs, column) for column in solved.T])


def needed(costs: Floats, accuracies: Floats, level: float) -> float:
    """Return the least cost at which a curve comes to a level: a line between its points in the log of the cost.

    A level below the first point costs what the first point does, and one that is never reached is infinitely dear.

    >>> [round(float(needed(np.array([1.0, 100.0]), np.array([0.2, 0.6]), level)), 6) for level in (0.1, 0.4, 0.7)]
    [1.0, 10.0, inf]
    """
    above = np.flatnonzero(accuracies >= level)
    if not len(above):
        return float("inf")
    k = int(above[0])
    if k == 0:
        return float(costs[0])
    share = (level - accuracies[k - 1]) / (accuracies[k] - accuracies[k - 1])
    return float(np.exp((1 - share) * np.log(costs[k - 1]) + share * np.log(costs[k])))


def ratio(curve: list[Cell], other: list[Cell], size: int, cost: str, seed: int = 0) -> tuple[float, float, float]:
    """Return what a curve needs for the accuracy that another has at a size, over what the other needs for it.

    With the 95% interval of a bootstrap over problems, which draws the level and both curves anew together.
    """
    k = [cell.particles for cell in other].index(size)
    tables = [np.array([[cell.solved, getattr(cell, cost)] for cell in some]) for some in (curve, other)]

    n = tables[0].shape[-1]
    even = np.full(n, 1 / n)
    draws = np.random.default_rng(seed).multinomial(n, even, DRAWS) / n
    a, b = (table @ np.vstack([even, draws]).T for table in tables)  # (sizes, accuracy and cost, draws)
    found = [
        needed(a[:, 1, i], a[:, 0, i], b[k, 0, i]) / needed(b[:, 1, i], b[:, 0, i], b[k, 0, i])
        for i in range(DRAWS + 1)
    ]
    low, high = np.quantile(found[1:], [0.025, 0.975], method="nearest")
    return found[0], float(low), float(high)

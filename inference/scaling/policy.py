"""Which engine and size pays for a problem, learned from other problems whose first look was like its own."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...ppl import keys as _keys
from ..base.checks import positive
from ..base.weights import logmeanexp
from ..results.posterior import Posterior
from .allocation import spend

Floats = NDArray[np.float64]


class Record(NamedTuple):
    """What one engine came to on one problem, after a first look at it.

    Attributes:
        problem: which problem it was; records of one problem are never used to foretell it.
        features: what the look told, see `difficulty`.
        engine: the engine with its settings, as ``repr`` writes it.
        size: its particles.
        cost: what it cost on top of the look.
        success: how good its answer was, such as 1 where it was right.
    """

    problem: Hashable
    features: tuple[float, ...]
    engine: str
    size: int
    cost: float
    success: float


def difficulty(posterior: Posterior) -> tuple[float, float]:
    """Return the log of the best reward of a first look, and that of the mean reward: its difficulty, with no truth."""
    scores = posterior.log_potential
    return (float(scores.max()), logmeanexp(scores)) if len(scores) else (-math.inf, -math.inf)


@dataclass(frozen=True, eq=False)
class ComputeOptimal:
    """The compute-optimal strategy: what each engine is worth for a problem, by how difficult a first look shows it.

    Difficulty is the best and the mean of the verifier's scores in the look, as quantiles among those of the problems
    that were learned from. An option is foretold by its mean over the nearest of these, in number n^⅔.

    Attributes:
        engines: the options, as ``repr`` writes them.
        features: (n, d) of the looks that were learned from.
        success: (n, options).
        cost: (n, options), on top of the look.
        fold: (n,) the part that each look's problem is in.

    Source: Scaling LLM Test-Time Compute Optimally (2024), arXiv:2408.03314, whose five bins are neighbours here.
    Guarantee: consistent for problems like those it learned from.
    Engines: any.
    Not shown here: the figures are in ``docs/claims/allocation.md``.

    >>> looks = [(i % 10) / 10 for i in range(100)]
    >>> rows = [Record(i, (x,), name, n, 5.0 * n, min(1.0, x * n)) for i, x in enumerate(looks)
    ...     for name, n in (("one", 1), ("two", 2))]
    >>> success, cost = ComputeOptimal.fit(rows).predict([[0.0], [0.9]])
    >>> bool(success[0].max() < 0.3 and success[1].min() > 0.7), cost[0].round(9).tolist()
    (True, [5.0, 10.0])
    """

    engines: tuple[str, ...]
    features: Floats = field(repr=False)
    success: Floats = field(repr=False)
    cost: Floats = field(repr=False)
    fold: NDArray[np.int64] = field(repr=False)

    @classmethod
    def fit(cls, records: Iterable[Record], *, folds: int = 5, seed: int = 0) -> ComputeOptimal:
        """Learn it from what every engine came to on every problem; of several records of one look it takes the mean.

        Args:
            records: of `fk.scaling.records`, or of one's own runs.
            folds: in how many parts problems are cut for `cross_fitted`.
            seed: draws them.

        Raises ValueError for looks at which an engine is missing, features of other lengths, NaN, and fewer problems
        than folds.
        """
        positive("folds", folds)
        if folds < 2:
            raise ValueError("folds must be 2 or more, so that each is foretold from others")
        cells: dict[tuple[Hashable, tuple[float, ...]], dict[str, list[Record]]] = {}
        for record in records:
            row = cells.setdefault((record.problem, tuple(record.features)), {})
            row.setdefault(record.engine, []).append(record)
        engines = tuple(dict.fromkeys(name for row in cells.values() for name in row))
        problems = list(dict.fromkeys(problem for problem, _ in cells))
        if len(problems) < folds:
            raise ValueError(f"records are of {len(problems)} problems, and {folds} or more are needed")
        for (problem, _), row in cells.items():
            if missing := [name for name in engines if name not in row]:
                raise ValueError(f"problem {problem!r} has no record of {missing[0]}: every look needs all engines")
        if len({len(features) for _, features in cells}) > 1:
            raise ValueError("looks have features of different numbers")
        order = np.argsort(_keys.uniform(_keys.fold(_keys.root(seed), _keys.tag("folds")), len(problems))[0])
        part = {problems[j]: i % folds for i, j in enumerate(order.tolist())}
        success, cost = (
            np.array([[np.mean([getattr(r, name) for r in row[e]]) for e in engines] for row in cells.values()])
            for name in ("success", "cost")
        )
        looks = np.array([features for _, features in cells], float)
        if np.isnan(looks).any() or np.isnan([success, cost]).any():
            raise ValueError("records hold numbers, and one of them is NaN")
        return cls(engines, looks, success, cost, np.array([part[problem] for problem, _ in cells]))

    def predict(self, features: ArrayLike) -> tuple[Floats, Floats]:
        """Return success and cost (k, options) that are expected for looks of these features (k, d)."""
        return self._near(features, np.ones(len(self.features), bool))

    @cached_property
    def cross_fitted(self) -> tuple[Floats, Floats]:
        """Success and cost (n, options) of its own looks, each foretold from the problems of other folds alone."""
        success, cost = np.empty_like(self.success), np.empty_like(self.cost)
        for part in np.unique(self.fold):
            own = self.fold == part
            success[own], cost[own] = self._near(self.features[own], ~own)
        return success, cost

    def foretell(self, budget: float) -> tuple[float, float]:
        """Return the success and the cost of a look on average, if ``budget`` for each were spent by this policy.

        Each look's engine is chosen by what is foretold of it from other problems (`cross_fitted`), and what it then
        came to is counted: so the success is not that of the luckiest engine.
        """
        success, cost = self.cross_fitted
        rows = np.arange(len(cost))
        chosen = spend(success, cost, budget * len(cost))
        return float(self.success[rows, chosen].mean()), float(self.cost[rows, chosen].mean())

    def _near(self, features: ArrayLike, known: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        asked = np.asarray(features, float)
        if asked.ndim != 2 or asked.shape[1] != self.features.shape[1] or np.isnan(asked).any():
            raise ValueError(f"a look has {self.features.shape[1]} numbers, and features are of shape {asked.shape}")
        seen = self.features[known]
        k = math.ceil(len(seen) ** (2 / 3))
        gaps = sum(
            (_quantiles(seen[:, j], asked[:, j])[:, None] - _quantiles(seen[:, j], seen[:, j])) ** 2
            for j in range(seen.shape[1])
        )
        radius = np.partition(gaps, k - 1, axis=1)[:, k - 1 : k]
        near = (gaps <= radius + 1e-12).astype(float)  # the nearest k, and all that are as near as the last of them
        near /= near.sum(1, keepdims=True)
        return near @ self.success[known], near @ self.cost[known]


def _quantiles(seen: Floats, asked: Floats) -> Any:
    """Return what share of ``seen`` lies below each of ``asked``, equal ones by half."""
    ordered = np.sort(seen)
    below, upto = (np.searchsorted(ordered, asked, side) for side in ("left", "right"))
    return (below + upto) / (2 * len(seen))

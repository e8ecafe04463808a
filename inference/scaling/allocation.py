"""How a budget is shared out: over problems, by what each gains; over settings, by a fit of what they gain."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.checks import positive

Counts = NDArray[np.int64]


def _chances(p: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(p, float)
    if found.ndim != 1 or not len(found) or not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"p needs a probability for each problem, not {found!r}")
    return found


def gvm(p: ArrayLike, gradients: ArrayLike, budget: int, *, alpha: float = 1e-3, beta: float = 2.0) -> Counts:
    """Share tries among problems so that the gradient of a training step varies least: n_i ∝ G_i/√(p_i + α/p_i^{β−1}).

    It minimises Σ G_i²/(p_i·n_i) (exactly so at α = 0), not the number of problems that are missed: for that, see
    `greedy`. Problems of p = 0 or G = 0 get none. What is rounded off goes to the largest remainders.

    Args:
        p: (k,) the chance that a try is accepted.
        gradients: (k,) G, the norm of the gradient of an accepted one.
        budget: Σ n_i.
        alpha: keeps hopeless problems from taking all; 0 for the pure rule.
        beta: see the formula.

    Returns n (k,). Raises ValueError for what is no probability, norms or alpha that are negative or infinite, and a
    budget below 1.

    Source: Optimizing Chain-of-Thought Reasoners via Gradient Variance Minimization (2025), arXiv:2505.02391.
    Guarantee: closed form, up to rounding.
    Engines: any, one for each problem with as many particles.
    Measured: after a look of 8 tries at each of 60 problems of Countdown 480 more, shared by it with G = 1, solve
        .557, and uniform ones .582 (difference −.025 [−.052, .002]): no gain in accuracy, nor is one promised.

    >>> gvm([1, 0.25, 0.01, 0.25], [1, 1, 1, 2], 100).tolist()
    [10, 20, 30, 40]
    """
    chances, norms = _chances(p), np.asarray(gradients, float)
    positive("budget", budget)
    if norms.shape != chances.shape or not ((norms >= 0) & (norms < np.inf)).all():
        raise ValueError(f"gradients needs a norm for each of {len(chances)} problems, not {norms!r}")
    if not 0 <= alpha < np.inf:
        raise ValueError(f"alpha is a number that is not negative, not {alpha!r}")
    able = (chances > 0) & (norms > 0)
    if not able.any():
        raise ValueError("every problem has p = 0 or no gradient: there is nothing to share the budget by")
    safe = np.where(able, chances, 1.0)
    shares = np.where(able, norms / np.sqrt(safe + alpha / safe ** (beta - 1)), 0.0)
    wanted = budget * shares / shares.sum()
    counts: Counts = np.floor(wanted + 1e-9).astype(np.int64)
    rest = np.argsort(counts - wanted, kind="stable")[: budget - int(counts.sum())]
    counts[rest] += 1
    return counts


def greedy(p: ArrayLike, budget: int) -> Counts:
    """Share tries among problems so that as many as possible are solved: the next goes where it gains most.

    The expected number of solved problems Σ 1 − (1 − p_i)^{n_i} is concave in each n_i, so that this is the best there
    is.

    Args:
        p: (k,) the chance of a try.
        budget: Σ n_i.

    Returns n (k,). Raises ValueError for what is no probability, and a budget below 1.

    Source: Scaling LLM Test-Time Compute Optimally (2024), arXiv:2408.03314, for allocation by difficulty.
    Guarantee: optimal, if p is known.
    Engines: any, one for each problem with as many particles.
    Measured: after a look of 8 tries at each of 60 problems of Countdown 480 more solve .571, and uniform ones .582
        (difference −.011 [−.036, .009]); with p read off those very tries .645: such a look tells too little.

    >>> n = greedy([0.9, 0.3, 0.05], 12)
    >>> n.tolist(), round(sum(1 - (1 - q) ** k for q, k in zip([0.9, 0.3, 0.05], n.tolist())), 4)
    ([2, 6, 4], 2.0578)
    """
    chances = _chances(p)
    positive("budget", budget)
    counts = np.zeros(len(chances), np.int64)
    gains = [(-q, i) for i, q in enumerate(chances.tolist())]
    heapq.heapify(gains)
    for _ in range(budget):
        gain, i = heapq.heappop(gains)
        counts[i] += 1
        heapq.heappush(gains, (gain * (1.0 - float(chances[i])), i))
    return counts


def spend(values: ArrayLike, costs: ArrayLike, budget: float) -> Counts:
    """Choose one option for each problem so that the sum of values is large and that of costs within the budget.

    Each problem begins with its cheapest option, and goes up the concave envelope of its own; the step that gains most
    for what it costs is made first, whosesoever it is, and one that no longer fits is passed over. So the choice is the
    best there is at each budget that a step ends at (it is then that of the Lagrangian, max Σ value − λ·cost), and its
    value never falls as the budget grows.

    Args:
        values: (k, m) what each option is worth for each problem; −inf for one that is not on offer.
        costs: (k, m) what it costs.
        budget: of all problems together.

    Returns the options (k,). Raises ValueError for NaN, and where the cheapest options cost more than the budget.

    Source: the greedy rule of Fox (1966), doi:10.1287/mnsc.13.3.210.
    Guarantee: optimal for concave curves of equal steps; else short of the best by less than one step.
    Engines: those that are options; `fk.allocate` spends by it.
    Not shown here: the figures are in ``docs/claims/allocation.md``.

    >>> spend([[0.0, 0.5, 0.6], [0.0, 0.3, 0.9]], [[0, 4, 8], [0, 4, 8]], 12).tolist()
    [1, 2]
    """
    worth, price = np.array(values, float), np.array(costs, float)
    if worth.ndim != 2 or worth.shape != price.shape or not worth.size or np.isnan([worth, price]).any():
        raise ValueError(f"values and costs are tables (problems, options), not {worth.shape} and {price.shape}")
    price[np.isneginf(worth)] = np.inf
    paths = [_envelope(*pair) for pair in zip(worth, price)]
    chosen: Counts = np.array([path[0] for path in paths], np.int64)
    left = budget - float(price[np.arange(len(chosen)), chosen].sum())
    if not left >= 0:
        raise ValueError(f"the cheapest options cost {budget - left}, and the budget is {budget}")
    steps: list[tuple[float, int, int]] = []

    def offer(i: int, at: int) -> None:
        if at < len(paths[i]):
            here, there = paths[i][at - 1 : at + 1]
            rate = (worth[i, there] - worth[i, here]) / (price[i, there] - price[i, here])
            heapq.heappush(steps, (-float(rate), i, at))

    for i in range(len(paths)):
        offer(i, 1)
    while steps:
        _, i, at = heapq.heappop(steps)
        here, there = paths[i][at - 1 : at + 1]
        extra = float(price[i, there] - price[i, here])
        if extra <= left:
            left, chosen[i] = left - extra, there
            offer(i, at + 1)
    return chosen


def _envelope(worth: NDArray[np.float64], price: NDArray[np.float64]) -> list[int]:
    """Return the options on the upper concave envelope of worth against price, from the cheapest up."""
    path: list[int] = []
    for j in np.lexsort((-worth, price)).tolist():
        if np.isinf(price[j]) or (path and not (worth[j] > worth[path[-1]] and price[j] > price[path[-1]])):
            continue
        while len(path) > 1:
            a, b = path[-2:]
            if (worth[j] - worth[b]) * (price[b] - price[a]) < (worth[b] - worth[a]) * (price[j] - price[b]):
                break
            path.pop()
        path.append(j)
    if not path:
        raise ValueError("a problem has no option on offer")
    return path


@dataclass(frozen=True)
class Allocation:
    """How accuracy depends on settings that all cost: σ⁻¹(P) = (a + b∘i)ᵀ log(settings) + c, by least squares.

    As for retrieval: the settings are documents k, examples m and rounds n, and i says how much a document and an
    example tell of the task by themselves; it is 0 for rounds. Settings are 1 or more, so that their logs are not
    negative.

    Attributes:
        a: (d,) slopes.
        b: (d,) slopes with what each tells; 0 where ``told`` was always 0.
        c: the intercept.
        residual: the root mean square of what is left of σ⁻¹(P).

    Source: Inference Scaling for Long-Context Retrieval Augmented Generation (2024), arXiv:2410.04343.
    Guarantee: least squares; the form is the paper's, and may not be your task's.
    Engines: any; `fk.programs.iterative_rag` has these settings.
    Not shown here: no retrieval task comes with the library.

    >>> rng = np.random.default_rng(0)
    >>> settings, told = rng.integers(1, 9, (40, 3)), rng.random((40, 3)) * [1, 1, 0]
    >>> truth = (np.array([0.2, 0.1, 0.3]) + np.array([0.4, -0.1, 0]) * told) * np.log(settings)
    >>> fit = Allocation.fit(settings, told, 1 / (1 + np.exp(0.5 - truth.sum(1))))
    >>> np.round(fit.a, 8).tolist(), np.round(fit.b, 8).tolist(), round(fit.c, 8)
    ([0.2, 0.1, 0.3], [0.4, -0.1, 0.0], -0.5)
    """

    a: NDArray[np.float64]
    b: NDArray[np.float64]
    c: float
    residual: float

    @classmethod
    def fit(cls, settings: ArrayLike, told: ArrayLike, accuracy: ArrayLike) -> Allocation:
        """Fit it to accuracies (r,), strictly between 0 and 1, of settings (r, d) that tell (r, d) or (d,)."""
        logs, shown = _logs(settings), np.broadcast_to(np.asarray(told, float), np.shape(settings))
        found = np.asarray(accuracy, float)
        if not ((found > 0) & (found < 1)).all():
            raise ValueError("accuracies lie strictly between 0 and 1: shrink 0 and 1, as by (s + ½)/(n + 1)")
        columns = np.concatenate([logs, logs * shown, np.ones((len(logs), 1))], 1)
        target = np.log(found) - np.log1p(-found)
        slopes = np.linalg.lstsq(columns, target, rcond=None)[0]
        rest = target - columns @ slopes
        d = logs.shape[1]
        return cls(slopes[:d], slopes[d : 2 * d], float(slopes[-1]), float(np.sqrt(np.mean(rest**2))))

    def __call__(self, settings: ArrayLike, told: ArrayLike) -> NDArray[np.float64]:
        """Return the accuracy that is expected of settings (…, d)."""
        score = ((self.a + self.b * np.asarray(told, float)) * _logs(settings)).sum(-1) + self.c
        return np.asarray(1.0 / (1.0 + np.exp(-score)))

    def best(self, options: Iterable[ArrayLike], told: ArrayLike, cost: Any, budget: float) -> tuple[float, ...]:
        """Return the options' settings of the best expected accuracy, of those with ``cost(settings) ≤ budget``."""
        able = [tuple(np.asarray(option, float).tolist()) for option in options if cost(option) <= budget]
        if not able:
            raise ValueError(f"no setting costs {budget} or less")
        return able[int(np.argmax(self(np.array(able), told)))]


def _logs(settings: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(settings, float)
    if not (found >= 1).all():
        raise ValueError("settings are counts of 1 or more")
    logs: NDArray[np.float64] = np.log(found)
    return logs

"""What more runs of a problem would gain by the verifier's rewards alone: the predictive law of a Pólya urn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_MOST_ALIKE = 1e3
_THRESHOLDS = 1000


def alike(rewards: Floats) -> float:
    """Return κ, how many runs of its own tell as much of a problem as those of all the others do.

    It is the variance of rewards within problems over that between problems, without what few runs add to the latter:
    so that of a Dirichlet process from whose laws the rewards (problems, n) are. It is 1 for one problem, and at least
    1/problems, since a few equal runs do not prove that all will be.

    >>> alike(np.array([[0.0, 1.0], [0.0, 1.0]])) > 100, alike(np.array([[0.0, 0.0], [1.0, 1.0]]))
    (True, 0.5)
    """
    if len(rewards) < 2:
        return 1.0
    within = float(rewards.var(1, ddof=1).mean())
    between = float(rewards.mean(1).var(ddof=1)) - within / rewards.shape[1]
    found = within / max(between, within / _MOST_ALIKE) if within > 0 else 0.0
    return max(found, 1.0 / len(rewards))


def gain(best: Floats, n: int, more: NDArray[np.int64], law: Floats, kappa: float) -> Floats:
    """Return by how much the best of n runs is expected to rise with more of them, (k, m).

    Of runs drawn from a Dirichlet process with base law F₀ and concentration κ, after n of which the best is b:
    E max(b, G₁…G_m) − b = ∫_b^∞ 1 − Π_{j<m} (n + κF₀(x) + j) / (n + κ + j) dx, since all n are at most b.

    Args:
        best: (k,) b of the problems.
        n: runs that each has had.
        more: (m,) numbers of runs to come.
        law: (K,) draws of F₀.
        kappa: κ.

    >>> gain(np.array([0.0, 1.0]), 1, np.array([1]), np.array([0.0, 1.0]), 1.0).round(9).tolist()
    [[0.25], [0.0]]
    """
    x = np.sort(law)
    if len(x) > _THRESHOLDS:
        x = x[np.linspace(0, len(x) - 1, _THRESHOLDS).astype(int)]
    share = np.arange(1, len(x)) / len(x)  # F₀ between one draw and the next
    j = np.arange(int(more.max(initial=0)))[:, None]
    below = np.cumsum(np.log(n + kappa * share + j) - np.log(n + kappa + j), 0)
    rises = -np.expm1(np.concatenate([np.zeros((1, len(share))), below])[more])  # (m, K − 1)
    widths = np.maximum(x[1:] - np.maximum(x[:-1], best[:, None]), 0.0)
    return np.asarray(widths @ rises.T)

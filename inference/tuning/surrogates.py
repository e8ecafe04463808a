"""Surrogates: what scores are like between the points where they were taken, as a mean and a variance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Surrogate(Protocol):
    """Any function from n points and scores to the mean and the variance of the score at m others.

    Points are rows of the unit cube; scores are as they are, or standardised where `Bayes` asks.
    """

    def __call__(self, x: Floats, y: Floats, at: Floats, /) -> tuple[Floats, Floats]:
        """Return means and variances (m,) at ``at`` (m, d), from ``x`` (n, d) and ``y`` (n,)."""


def gp(x: ArrayLike, y: ArrayLike, at: ArrayLike, *, length: float = 0.5, noise: float = 0.01) -> tuple[Floats, Floats]:
    """A Gaussian process with a squared-exponential kernel of variance 1: its posterior mean and variance.

    Args:
        x: (n, d) or (n,) points.
        y: (n,) scores.
        at: (m, d) or (m,) other points.
        length: of the kernel exp(−‖x − x′‖² / 2ℓ²).
        noise: the variance of a score's noise, which the returned variance (of the function) leaves out.

    >>> mean, variance = gp([0.0, 1.0], [0.0, 1.0], [0.5])
    >>> round(float(mean[0]), 6), round(float(variance[0]), 6)
    (0.529566, 0.357604)
    """
    points, others = _rows(x), _rows(at)
    within = _kernel(points, points, length) + noise * np.eye(len(points))
    across = _kernel(others, points, length)
    solved = np.linalg.solve(within, np.column_stack([np.asarray(y, float), across.T]))
    return across @ solved[:, 0], np.maximum(1.0 - np.sum(across * solved[:, 1:].T, axis=1), 0.0)


def network(
    x: ArrayLike,
    y: ArrayLike,
    at: ArrayLike,
    *,
    hidden: int = 64,
    members: int = 8,
    scale: float = 3.0,
    ridge: float = 1e-3,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """An ensemble of networks of one hidden layer, each with random features of its own: their mean and their variance.

    The first layer is random (tanh), the second is fitted to the scores and a constant by ridge regression, in closed
    form. Where there are no scores nearby, members disagree. It is a rule of thumb for a posterior, no posterior.

    Args:
        x: (n, d) or (n,) points.
        y: (n,) scores.
        at: (m, d) or (m,) other points.
        hidden: units.
        members: networks.
        scale: the standard deviation of the weights and biases of the first layer: larger is rougher.
        ridge: the penalty on the second layer.
        seed: of the first layers; same seed, same networks.

    >>> mean, variance = network([0.0, 0.5, 1.0], [0.0, 1.0, 0.0], [0.5, 3.0])
    >>> bool(abs(mean[0] - 1.0) < 0.05), bool(variance[1] > 100 * variance[0])
    (True, True)
    """
    return networks(x, y, hidden=hidden, members=members, scale=scale, ridge=ridge, seed=seed)(at)


@dataclass(frozen=True)
class Networks:
    """Networks of one hidden layer, fitted: a function of points (m, d) to the mean and the variance among them.

    Attributes:
        layers: of each network the weights (d, hidden), the biases (hidden,) and the head (hidden,).
        centre: is added to what each of them says.
    """

    layers: tuple[tuple[Floats, Floats, Floats], ...]
    centre: float

    def each(self, at: Any, xp: Any = np) -> Any:
        """Return what each network says, (members,) at a point (d,), (members, m) at m of them."""
        return xp.stack([self.centre + xp.tanh(at @ w + b) @ head for w, b, head in self.layers])

    def cautious(self, at: Any, xp: Any = np) -> Any:
        """Return their mean less half their variance at a point (d,) or m (m, d), for NumPy or JAX as ``xp``."""
        found = self.each(at, xp)
        return xp.mean(found, axis=0) - 0.5 * xp.var(found, axis=0)

    def __call__(self, at: ArrayLike) -> tuple[Floats, Floats]:
        """Return the mean and the variance among the networks at points (m, d) or (m,), each (m,)."""
        found = self.each(_rows(at))
        return np.mean(found, axis=0), np.var(found, axis=0)


def networks(
    x: ArrayLike,
    y: ArrayLike,
    *,
    hidden: int = 64,
    members: int = 8,
    scale: float = 3.0,
    ridge: float = 1e-3,
    seed: int = 0,
) -> Networks:
    """Fit the ensemble of `network` once, for many other points."""
    points, scores = _rows(x), np.asarray(y, float)
    rng, centre = np.random.default_rng(seed), float(scores.mean())
    layers: list[tuple[Any, Any, Any]] = []
    for _ in range(members):
        weights = scale * rng.standard_normal((points.shape[1], hidden))
        biases = scale * rng.standard_normal(hidden)
        inside = np.tanh(points @ weights + biases)
        head = np.linalg.solve(inside.T @ inside + ridge * np.eye(hidden), inside.T @ (scores - centre))
        layers.append((weights, biases, head))
    return Networks(tuple(layers), centre)


def expected_improvement(mean: ArrayLike, sd: ArrayLike, best: float) -> Floats:
    """Return E max(f − best, 0) for f ~ N(mean, sd²), each (m,).

    >>> float(expected_improvement(0.6, 0.2, 0.5).round(6))
    0.139559
    """
    gain, spread = np.asarray(mean, float) - best, np.asarray(sd, float)
    z = np.divide(gain, spread, out=np.zeros_like(gain + spread), where=spread > 0)
    cdf = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    result: Floats = np.where(
        spread > 0,
        gain * cdf + spread * np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi),
        np.maximum(gain, 0.0),
    )
    return result


def _rows(x: ArrayLike) -> Floats:
    points = np.asarray(x, float)
    return points[:, None] if points.ndim == 1 else points


def _kernel(a: Floats, b: Floats, length: float) -> Floats:
    result: Floats = np.exp(-0.5 * np.sum((a[:, None] - b[None]) ** 2, axis=-1) / length**2)
    return result

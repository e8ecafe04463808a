"""Exact answers to state-space models, to test engines against: finite chains and linear Gaussian models.

Exact enumeration of whole programs is `enumeration`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..model import Floats


@dataclass(frozen=True)
class Chain:
    """The exact posterior of a finite chain with K states over T steps.

    Attributes:
        log_evidence: log Z.
        log_increments: (T,) log Z_t/Z_{t−1}; they add up to ``log_evidence``.
        filtered: (T, K) p(x_t | G_0…G_t).
        smoothed: (T, K) p(x_t | G_0…G_{T−1}).
    """

    log_evidence: float
    log_increments: Floats
    filtered: Floats
    smoothed: Floats


def forward_filter(initial: ArrayLike, transition: ArrayLike, log_potentials: ArrayLike) -> Chain:
    """Filter and smooth a Feynman–Kac model on K states exactly, by the forward–backward recursions.

    The target is π(x) ∝ M_0(x_0) G_0(x_0) Π_t M_t(x_t | x_{t−1}) G_t(x_{t−1}, x_t).

    Args:
        initial: (K,) probabilities of x_0.
        transition: (K, K), or (T−1, K, K) where it varies; rows are x_{t−1} and sum to 1.
        log_potentials: (T, K) log G_t(x_t); or (T, K, K) log G_t(x_{t−1}, x_t), of which the first takes
            row 0. −inf is allowed.

    Raises ``ValueError`` where shapes or probabilities do not fit, and where Z = 0.

    Source: Rabiner (1989), doi:10.1109/5.18626.

    >>> chain = forward_filter([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], np.log([[0.5, 0.5], [0.2, 0.6]]))
    >>> round(math.exp(chain.log_evidence), 12)
    0.19
    """
    start, moves, logs = _finite(initial, transition, log_potentials)
    steps, states = len(logs), len(start)
    filtered, increments = np.empty((steps, states)), np.empty(steps)
    mass = np.empty((steps, states, states))
    for t in range(steps):
        peak = float(logs[t].max())
        if peak == -math.inf:
            raise ValueError(f"forward_filter: every state has potential 0 at step {t}, so Z = 0")
        # One matrix M_t·G_t per step; the start is a step from a state that is anywhere.
        before = np.full(states, 1.0 / states) if t == 0 else filtered[t - 1]
        moved = np.broadcast_to(start, (states, states)) if t == 0 else moves[t - 1]
        mass[t] = moved * np.exp(logs[t] - peak)
        joint = before @ mass[t]
        total = float(joint.sum())
        if total == 0.0:
            raise ValueError(f"forward_filter: no path has positive weight at step {t}, so Z = 0")
        filtered[t], increments[t] = joint / total, math.log(total) + peak
    smoothed = filtered.copy()
    backward = np.ones(states)
    for t in range(steps - 2, -1, -1):
        backward = mass[t + 1] @ backward
        backward /= backward.max()
        smoothed[t] = filtered[t] * backward
        smoothed[t] /= smoothed[t].sum()
    return Chain(float(increments.sum()), increments, filtered, smoothed)


def _finite(initial: ArrayLike, transition: ArrayLike, log_potentials: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Check a chain, and give its transitions shape (T−1, K, K) and its log-potentials (T, K, K)."""
    start = np.asarray(initial, np.float64)
    moves = np.asarray(transition, np.float64)
    logs = np.asarray(log_potentials, np.float64)
    states = start.size
    if start.ndim != 1 or logs.ndim not in (2, 3) or not len(logs) or set(logs.shape[1:]) != {states}:
        raise ValueError(f"forward_filter: initial of shape {start.shape}, log_potentials of {logs.shape}")
    if moves.shape not in ((states, states), (len(logs) - 1, states, states)):
        raise ValueError(f"forward_filter: transition of shape {moves.shape} for {len(logs)} steps of {states}")
    for name, table in (("initial", start), ("transition", moves)):
        if not ((table >= 0).all() and np.allclose(table.sum(-1), 1.0, rtol=0, atol=1e-6)):
            raise ValueError(f"forward_filter: {name} must hold probabilities that sum to 1 over the last axis")
    if not (logs < np.inf).all():
        raise ValueError("forward_filter: log_potentials must be numbers less than +inf")
    moves = np.broadcast_to(moves, (len(logs) - 1, states, states))
    if logs.ndim == 2:
        return start, moves, np.broadcast_to(logs[:, None, :], (len(logs), states, states))
    logs = logs.copy()
    logs[0] = logs[0, 0]
    return start, moves, logs


@dataclass(frozen=True)
class Gaussians:
    """The exact posterior of a linear Gaussian model with states of d dimensions over T steps.

    Attributes:
        log_evidence: log p(y).
        log_increments: (T,) log p(y_t | y_0…y_{t−1}); they add up to ``log_evidence``.
        filtered_means: (T, d) E[x_t | y_0…y_t].
        filtered_covs: (T, d, d).
        smoothed_means: (T, d) E[x_t | y_0…y_{T−1}].
        smoothed_covs: (T, d, d).
        lag_covs: (T−1, d, d) Cov(x_t, x_{t+1} | y_0…y_{T−1}).
    """

    log_evidence: float
    log_increments: Floats
    filtered_means: Floats
    filtered_covs: Floats
    smoothed_means: Floats
    smoothed_covs: Floats
    lag_covs: Floats


def kalman(
    observations: ArrayLike,
    *,
    initial_mean: ArrayLike,
    initial_cov: ArrayLike,
    transition: ArrayLike,
    transition_cov: ArrayLike,
    emission: ArrayLike,
    emission_cov: ArrayLike,
    transition_offset: ArrayLike = 0.0,
    emission_offset: ArrayLike = 0.0,
) -> Gaussians:
    """Filter and smooth a linear Gaussian state-space model exactly.

        x_0 ~ N(m, P)    x_t ~ N(F x_{t−1} + b, Q)    y_t ~ N(H x_t + c, R)

    A scalar stands for a 1×1 matrix, so that models of one dimension need no brackets.

    Args:
        observations: (T, k) y, or (T,) where k = 1.
        initial_mean: (d,) m.
        initial_cov: (d, d) P.
        transition: (d, d) F.
        transition_cov: (d, d) Q.
        emission: (k, d) H.
        emission_cov: (k, k) R.
        transition_offset: (d,) b.
        emission_offset: (k,) c.

    Raises ``ValueError`` where shapes do not fit.

    The smoothed moments, lag-one covariances among them, are those of Rauch, Tung and Striebel, in a form that inverts
    no predicted covariance, which deterministic transitions make singular.

    Source: Kalman (1960), doi:10.1115/1.3662552; Rauch, Tung and Striebel (1965), doi:10.2514/3.3166; Bierman (1973),
    Int. J. Control 18(1), 65–75.

    >>> exact = kalman([1.0], initial_mean=0.0, initial_cov=1.0, transition=1.0, transition_cov=1.0,
    ...                emission=1.0, emission_cov=1.0)
    >>> exact.filtered_means.tolist(), exact.filtered_covs.tolist()
    ([[0.5]], [[[0.5]]])
    """
    mean = np.atleast_1d(np.asarray(initial_mean, np.float64))
    y = np.asarray(observations, np.float64)
    y = y[:, None] if y.ndim == 1 else y
    d, (steps, k) = len(mean), y.shape
    cov = _matrix("initial_cov", initial_cov, d, d)
    f, q = _matrix("transition", transition, d, d), _matrix("transition_cov", transition_cov, d, d)
    h, r = _matrix("emission", emission, k, d), _matrix("emission_cov", emission_cov, k, k)
    b, c = np.asarray(transition_offset, np.float64), np.asarray(emission_offset, np.float64)

    means, covs, increments = np.empty((steps, d)), np.empty((steps, d, d)), np.empty(steps)
    updates: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
    for t in range(steps):
        if t:
            mean, cov = f @ mean + b, f @ cov @ f.T + q
        surprise, spread = y[t] - h @ mean - c, h @ cov @ h.T + r
        increments[t] = _log_normal(surprise, spread)
        precise = np.linalg.solve(spread, h).T
        gain = cov @ precise
        # Joseph's form of the update keeps the covariance symmetric and positive.
        keep = np.eye(d) - gain @ h
        mean, cov = mean + gain @ surprise, keep @ cov @ keep.T + gain @ r @ gain.T
        means[t], covs[t] = mean, cov
        updates.append((keep, precise @ surprise, precise @ h))

    # Bierman's form: with N what y_t… tell of x_t, P⁻ − P⁻NP⁻ is its smoothed covariance, for its predicted P⁻.
    smooth_means, smooth_covs, lags = means.copy(), covs.copy(), np.empty((steps - 1, d, d))
    pull, force = np.zeros(d), np.zeros((d, d))
    for t in range(steps - 1, 0, -1):
        keep, score, information = updates[t]
        told = information + keep.T @ force @ keep
        ahead = covs[t - 1] @ f.T
        lags[t - 1] = ahead - ahead @ told @ (f @ ahead + q)
        pull, force = f.T @ (score + keep.T @ pull), f.T @ told @ f
        smooth_means[t - 1] += covs[t - 1] @ pull
        smooth_covs[t - 1] -= covs[t - 1] @ force @ covs[t - 1]
    return Gaussians(float(increments.sum()), increments, means, covs, smooth_means, smooth_covs, lags)


def _matrix(name: str, given: ArrayLike, rows: int, columns: int) -> Floats:
    array = np.atleast_2d(np.asarray(given, np.float64))
    if array.shape != (rows, columns):
        raise ValueError(f"kalman: {name} must have shape ({rows}, {columns}), not {np.shape(given)}")
    return array


def _log_normal(deviation: NDArray[Any], cov: NDArray[Any]) -> float:
    root = np.linalg.cholesky(cov)
    z = np.linalg.solve(root, deviation)
    return float(-0.5 * z @ z - np.log(np.diag(root)).sum() - 0.5 * len(z) * math.log(2 * math.pi))

"""Effective sample size and R̂ of Markov chains, rank-normalised, in NumPy alone.

Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), arXiv:1903.08008, doi:10.1214/20-BA1221; the numbers are
those of arviz-stats' ``ess`` and ``rhat`` (a test compares them), but that what never changed is one draw and not many.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from ....ppl.model import Floats

FEWEST = 4
"""Draws of a chain that an estimate needs."""


def chain_ess(x: Floats) -> float:
    """Return the effective sample size of the bulk of numbers (chains, draws); 1 where all are equal.

    NaN for fewer than 4 draws of a chain, and where a number is not finite.

    >>> chain_ess(np.repeat(np.arange(50.0) * 7 % 50, 10)[None]) < 100  # each of 50 values stays for 10 draws
    True
    """
    if x.shape[1] < FEWEST or not np.isfinite(x).all():
        return math.nan
    if (x == x.flat[0]).all():
        return 1.0
    z = _normalised(_split(x))
    chains, draws = z.shape
    covariance = _autocovariance(z - z.mean(1, keepdims=True))
    within = covariance[:, 0].mean()
    variance = within + z.mean(1).var(ddof=1)
    rho = 1.0 - (within * draws / (draws - 1.0) - covariance.mean(0)) / variance
    rho[0] = 1.0
    return float(chains * draws / max(_time(rho), 1.0 / math.log10(chains * draws)))


def rhat(x: Floats) -> float:
    """Return R̂ of numbers (chains, draws), the larger of that of their bulk and of their tails; 1 is the best.

    NaN for one chain, fewer than 4 draws, a number that is not finite, or numbers that are all equal.

    >>> from feynkac.ppl import keys
    >>> x = keys.normal(keys.root(0), 400).reshape(2, 200)
    >>> rhat(x) < 1.05 < 1.3 < rhat(x + np.array([[0.0], [2.0]]))
    True
    """
    if x.shape[0] < 2 or x.shape[1] < FEWEST or not np.isfinite(x).all() or (x == x.flat[0]).all():
        return math.nan
    halves = _split(x)
    return max(_potential(_normalised(halves)), _potential(_normalised(np.abs(halves - np.median(halves)))))


def mean_variance(x: Floats) -> tuple[float, float]:
    """Return the variance of the mean of numbers (chains, draws), and their effective number.

    The chains are of one stationary law, and independent. Their autocovariances are taken around the mean of all, and
    up to where a sum of two neighbours is negative (Geyer's initial positive sequence); so one draw of each chain has
    the variance of independent numbers.

    >>> variance, size = mean_variance(np.array([[1.0], [2.0], [3.0], [4.0]]))
    >>> round(variance, 4), size
    (0.4167, 4.0)
    """
    draws = x.shape[1]
    centred = x - x.mean()
    covariance = _autocovariance(centred).mean(0)  # a sum over pairs by all draws, so (1 − k/draws) is in that of lag k
    if not covariance[0] > 0.0:
        return 0.0, float(x.size)
    even = np.append(covariance, 0.0)[: (draws + 1) // 2 * 2].reshape(-1, 2).sum(1)
    ended = np.flatnonzero(even <= 0.0)
    used = covariance[: 2 * int(ended[0])] if len(ended) else covariance
    time = float(2.0 * used.sum() / covariance[0] - 1.0)
    size = x.size / max(time, 1.0)
    return float(covariance[0]) / max(size - 1.0, 1.0), size


def _split(x: Floats) -> Floats:
    """Cut each chain in two; of an odd number of draws the middle one is left out."""
    half = x.shape[1] // 2
    return np.concatenate([x[:, :half], x[:, -half:]])


def _normalised(x: Floats) -> Floats:
    """Return normal scores of the ranks, equal numbers with their mean rank."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - 0.5 * (counts - 1.0)
    quantile = NormalDist().inv_cdf
    scores = np.array([quantile(p) for p in ((ranks - 0.375) / (x.size + 0.25)).tolist()])
    out: Floats = scores[place].reshape(x.shape)
    return out


def _autocovariance(x: Floats) -> Floats:
    """Return the autocovariance of each row, which has been centred, at each lag."""
    n = x.shape[1]
    waves = np.fft.rfft(x, 2 ** (2 * n - 1).bit_length(), axis=1)
    out: Floats = np.fft.irfft(np.abs(waves) ** 2, axis=1)[:, :n] / n
    return out


def _time(rho: Floats) -> float:
    """Return the integrated autocorrelation time, by Geyer's initial monotone sequence."""
    n = len(rho)
    pairs = rho[: n // 2 * 2].reshape(-1, 2).sum(1)[: max(1, (n - 1) // 2)]
    ended = np.flatnonzero(pairs <= 0.0)
    last = int(ended[0]) if len(ended) else len(pairs) - 1
    rest = rho[2 * last] if pairs[last] >= 0.0 else max(rho[2 * last], 0.0)
    return float(-1.0 + 2.0 * np.minimum.accumulate(pairs[:last]).sum() + rest)


def _potential(x: Floats) -> float:
    n, within = x.shape[1], x.var(1, ddof=1).mean()
    between = n * x.mean(1).var(ddof=1)
    if within > 0.0:
        return math.sqrt((between / within + n - 1.0) / n)
    return math.inf if between > 0.0 else 0.0

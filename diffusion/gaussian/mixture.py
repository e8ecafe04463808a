"""Gaussian mixtures: generators whose score is known exactly, at every level of every schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from ...ppl.model import Floats
from ..denoiser import Prediction
from .schedule import Schedule


class Mixture:
    """A mixture of isotropic normals in d dimensions, the data of a closed-form diffusion.

    Noised to level (α, σ) it is again a mixture, with means α·m_k and variances α²·v_k + σ², so the denoiser
    E[x | x_t] and the score are exact.

    Args:
        weights: (k,), normalised here.
        means: (k, d).
        variances: (k,), of each coordinate.

    Raises ValueError for shapes that do not fit, or a variance that is not positive.

    >>> mixture = Mixture([1, 3], [[0.0], [4.0]], [1.0, 1.0])
    >>> mixture.mean.tolist(), mixture.tilt([1.0]).weights.round(3).tolist()
    ([3.0], [0.006, 0.994])
    """

    def __init__(self, weights: ArrayLike, means: ArrayLike, variances: ArrayLike) -> None:
        self.weights = np.asarray(weights, float) / np.sum(weights)
        self.means = np.atleast_2d(np.asarray(means, float))
        self.variances = np.asarray(variances, float)
        k = len(self.weights)
        if self.means.shape[0] != k or self.variances.shape != (k,):
            raise ValueError(
                f"{k} weights need means (k, d) and variances (k,), not {self.means.shape} and {self.variances.shape}"
            )
        if not (self.variances > 0).all() or not (self.weights >= 0).all():
            raise ValueError("variances must be positive, and weights not negative")

    @property
    def mean(self) -> Floats:
        """Mean of the mixture, (d,)."""
        mean: Floats = self.weights @ self.means
        return mean

    @property
    def covariance(self) -> Floats:
        """Covariance of the mixture, (d, d)."""
        off = self.means - self.mean
        inner = np.einsum("k,ki,kj->ij", self.weights, off, off)
        cov: Floats = inner + float(self.weights @ self.variances) * np.eye(self.means.shape[1])
        return cov

    def log_prob(self, x: Any, alpha: Any = 1.0, sigma: Any = 0.0) -> Any:
        """Return the log-density (n,) of the mixture noised to a level, at x (n, d), a tensor."""
        return torch.logsumexp(self._terms(x, alpha, sigma)[0], -1)

    def score(self, x: Any, alpha: Any = 1.0, sigma: Any = 0.0) -> Any:
        """Return ∇ log p (n, d) of the mixture noised to a level."""
        terms, off, variance = self._terms(x, alpha, sigma)
        return -(torch.softmax(terms, -1)[..., None] * off / variance[..., None]).sum(-2)

    def responsibilities(self, x: Any) -> Any:
        """Return the posterior probability of each component (n, k) at data x (n, d)."""
        return torch.softmax(self._terms(torch.as_tensor(x), 1.0, 0.0)[0], -1)

    def _terms(self, x: Any, alpha: Any, sigma: Any) -> tuple[Any, Any, Any]:
        """Return log w_k N(x; αm_k, α²v_k + σ²) as (n, k), x − αm_k as (n, k, d), the variances (n or 1, k)."""
        like = {"dtype": x.dtype, "device": x.device}
        alpha, sigma = (torch.as_tensor(level, **like).reshape(-1, 1) for level in (alpha, sigma))
        variance = alpha**2 * torch.as_tensor(self.variances, **like) + sigma**2
        off = x[:, None, :] - alpha[..., None] * torch.as_tensor(self.means, **like)
        d = x.shape[-1]
        log_weights = torch.as_tensor(np.log(np.maximum(self.weights, 1e-300)), **like)
        squares = off.square() @ off.new_ones(d)  # several times as fast as a sum over few coordinates
        terms = log_weights - 0.5 * squares / variance - 0.5 * d * (2 * math.pi * variance).log()
        return terms, off, variance

    def denoiser(self, schedule: Schedule) -> _Exact:
        """Return the exact denoiser E[x | x_t] at the levels of a schedule."""
        return _Exact(self, schedule)

    def sample(self, n: int, *, seed: int) -> Floats:
        """Draw n points, (n, d)."""
        rng = np.random.default_rng(seed)
        k = rng.choice(len(self.weights), n, p=self.weights)
        noise = rng.standard_normal((n, self.means.shape[1]))
        drawn: Floats = self.means[k] + np.sqrt(self.variances[k])[:, None] * noise
        return drawn

    def tilt(self, slope: Sequence[float]) -> Mixture:
        """Return the mixture ∝ p(x)·exp(slope·x): means move by v_k·slope."""
        a = np.asarray(slope, float)
        log_weights = np.log(self.weights) + self.means @ a + 0.5 * self.variances * (a @ a)
        means = self.means + self.variances[:, None] * a
        return Mixture(np.exp(log_weights - log_weights.max()), means, self.variances)

    @staticmethod
    def product(mixtures: Sequence[Mixture], powers: Sequence[float] | None = None) -> Mixture:
        """Return the mixture ∝ Π p_i(x)^n_i, in closed form.

        The powers n_i (1 by default) are whole and positive, or any real number where p_i is a single normal. There
        are as many components as ways to choose n_i of each p_i's, so keep them few. Raises ValueError for other
        powers, and where the product has no finite mass.

        >>> two = Mixture([0.25, 0.75], [[0.0], [3.0]], [1.0, 1.0])
        >>> Mixture.product([two], [2]).means.ravel().tolist()
        [0.0, 1.5, 3.0]
        """
        log_weights, precisions, pulls = np.zeros(1), np.zeros(1), np.zeros((1, mixtures[0].means.shape[1]))
        for mixture, power in zip(mixtures, [1] * len(mixtures) if powers is None else powers, strict=True):
            chosen = mixture._choices(power)
            log_weight, precision, pull = mixture._exponents()
            ways = _log_ways(chosen) + chosen @ log_weight
            log_weights = (log_weights[:, None] + ways).ravel()
            precisions = (precisions[:, None] + chosen @ precision).ravel()
            pulls = (pulls[:, None, :] + chosen @ pull).reshape(-1, pulls.shape[1])
        if not (precisions > 0).all():
            raise ValueError("the product has no finite mass: the precisions, with their powers, must add up to > 0")
        d = pulls.shape[1]
        log_weights = log_weights + 0.5 * (pulls**2).sum(1) / precisions - 0.5 * d * np.log(precisions)
        return Mixture(np.exp(log_weights - log_weights.max()), pulls / precisions[:, None], 1.0 / precisions)

    def _choices(self, power: float) -> Floats:
        """Return how often each component is a factor of each term of p^power, (terms, k)."""
        k = len(self.weights)
        if k == 1:
            return np.array([[power]], float)
        if power != int(power) or power < 1:
            raise ValueError(f"a mixture of {k} components has powers 1, 2, … in closed form, not {power}")
        terms = [np.bincount(term, minlength=k) for term in combinations_with_replacement(range(k), int(power))]
        return np.array(terms, float)

    def _exponents(self) -> tuple[Floats, Floats, Floats]:
        """Return components as exp(c + pull·x − precision·‖x‖²/2), up to a constant of all."""
        with np.errstate(divide="ignore"):
            constant = np.log(self.weights) - 0.5 * self.means.shape[1] * np.log(self.variances)
        constant = np.maximum(constant - 0.5 * (self.means**2).sum(1) / self.variances, -1e300)
        return constant, 1.0 / self.variances, self.means / self.variances[:, None]


def _log_ways(chosen: Floats) -> Floats:
    """Return the log of the multinomial coefficients of whole rows; 0 for a single component."""
    if chosen.shape[1] == 1:
        return np.zeros(len(chosen))
    factorials = np.array([math.lgamma(n + 1.0) for n in range(int(chosen.sum(1)[0]) + 1)])
    ways: Floats = factorials[-1] - factorials[chosen.astype(int)].sum(1)
    return ways


class _Exact:
    """The denoiser of a mixture: the level is found from the time it is told, to the precision of float32."""

    prediction: Prediction = "sample"
    evaluations = 1

    def __init__(self, mixture: Mixture, schedule: Schedule) -> None:
        self.mixture = mixture
        order = np.argsort(schedule.time[:-1])  # the last level is the data: nothing is asked there
        self._time, self._alpha, self._sigma = (
            level[order] for level in (schedule.time, schedule.alpha, schedule.sigma)
        )

    @property
    def journal_key(self) -> Any:
        """What tells it from other denoisers in a journal."""
        levels = (self._time, self._alpha, self._sigma)
        return (*levels, self.mixture.weights, self.mixture.means, self.mixture.variances)

    def __call__(self, x: Any, time: Any, condition: Any) -> Any:
        """Return E[data | x]: Tweedie's formula."""
        told = time.detach().cpu().double().numpy()
        at = np.searchsorted((self._time[1:] + self._time[:-1]) / 2, told)  # the nearest
        if not np.allclose(self._time[at], told, rtol=1e-4):
            raise ValueError("the exact denoiser of a mixture knows the levels of its own schedule, and no others")
        alpha, sigma = (
            torch.as_tensor(level[at], dtype=x.dtype, device=x.device)[:, None] for level in (self._alpha, self._sigma)
        )
        flat = x.reshape(len(x), -1)
        terms, _, variance = self.mixture._terms(flat, alpha, sigma)
        # Component by component, so that it holds for α = 0 too.
        means = torch.as_tensor(self.mixture.means, dtype=x.dtype, device=x.device)
        pull = alpha * torch.as_tensor(self.mixture.variances, dtype=x.dtype, device=x.device) / variance
        shares = torch.softmax(terms, -1)
        data = (shares * (1.0 - alpha * pull)) @ means + (shares * pull).sum(-1, keepdim=True) * flat
        return data.reshape(x.shape)

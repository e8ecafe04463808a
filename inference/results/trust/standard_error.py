"""Standard errors of the evidence and of means, from several chains or from the genealogy of one.

Both cut the particles into groups that are independent of each other: chains, or the descendants of one founder (a
particle of step 0). With s_g the share of the weight in group g, the relative variance of Ẑ is estimated by

    V = 1 − c·(1 − Σ_g s_g²),

and the variance of a weighted mean m of f by c·Σ_g (Σ_{i in g} W_i (f_i − m))² (delta method of the ratio).

For C chains c = C/(C−1), and V is the usual variance of a mean. For one chain of N particles that was resampled R
times by the multinomial scheme, c = (N/(N−1))^(R+1). Then Ẑ²·V is an unbiased estimate of Var(Ẑ): pairs of
different founders are independent given the past, and each resampling keeps (N−1)/N of their mass in expectation.
The argument asks for neither fixed resampling times nor equal weights after them, only that the past settles both;
so it covers adaptive resampling, twists, and ancestors drawn by other weights that the copies make up for. With R = 0
it is the variance of importance sampling. Other schemes draw ancestors that depend on each other, and have no such
estimate; nor has a run whose particles are moved after resampling: where a move redraws a path from its start, its
genealogy forgets what it was drawn from, while its weight does not.

A tempered chain has the genealogy of its stages, where a move is a step of the model as any other, and leaves what was
said true. Waste-free chains have another estimate: the relative variances of the mean weights of their stages add up,
each from the autocovariances of the chains that its states are of (Dau and Chopin 2022, doi:10.1111/rssb.12475).

Nested sampling says its own: what the shrinkage of the prior mass leaves unknown.

Few groups say little of their own spread, so an interval takes Student's t with one degree of freedom less than there
are chains, or effective founders 1 / Σ s_g² of one chain. On a chain of 6 bits, intervals of 95% from four chains of 32
cover 0.94 to 0.95 (and mean ± 1.96 standard errors 0.84 to 0.88). From one chain of 32 resampled only below half the
ESS they cover 0.92 for log Z and 0.82 for means (128 particles: 0.93, 0.90); resampled at every step, a third of the
runs has no estimate. Where intervals matter, take several chains, and leave the threshold at one half.

Source: Chan and Lai (2013), doi:10.1214/13-AOS1172; Lee and Whiteley (2018), doi:10.1093/biomet/asy028,
arXiv:1509.00394.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ....ppl.model import Floats, Index
from ...base.chain import Chain
from ...base.resampling import SCHEMES
from ...base.student import LEVEL, Interval, interval
from ...base.weights import logmeanexp, normalize
from .autocorrelation import mean_variance

_FEWEST = 1.5
"""Effective groups, 1 / Σ s², below which one of them holds so much that there is nothing to compare it with."""
_ROUNDING = 1e-9


class Error(NamedTuple):
    """A standard error and its degrees of freedom, or NaN and the reason why there is none."""

    value: Any
    reason: str = ""
    df: float = math.nan


@dataclass(frozen=True)
class Estimate:
    """A posterior mean and its standard error (numbers, or arrays of one shape); NaN and a reason where unknown.

    It unpacks as ``mean, se, reason = estimate``.

    Attributes:
        mean: the posterior mean.
        se: its standard error.
        reason: why there is none.
        df: the degrees of freedom of the standard error: few groups say little of their spread.
    """

    mean: Any
    se: Any
    reason: str = ""
    df: float = math.nan

    def __iter__(self) -> Iterator[Any]:
        return iter((self.mean, self.se, self.reason))

    def interval(self, level: float = LEVEL) -> Interval:
        """Return the confidence interval by Student's t: mean, low, high.

        >>> [round(x, 2) for x in Estimate(1.0, 0.1, df=3).interval()]
        [1.0, 0.68, 1.32]
        """
        return interval(self.mean, self.se, self.df, level)


def evidence_error(chains: Sequence[Chain]) -> Error:
    """Return the standard error of log Ẑ."""
    evidence = np.array([chain.evidence for chain in chains])
    if np.isnan(evidence).any():
        return Error(math.nan, "the engine gives no evidence")
    if np.isneginf(evidence).all():
        return Error(math.nan, "every particle has weight zero")
    if len(chains) == 1 and "shrinkage" in chains[0].info:  # of nested sampling
        return Error(chains[0].info["shrinkage"], df=1000.0)
    if len(chains) == 1 and "length" in chains[0].info and chains[0].stages:
        return _states_error(chains[0])
    groups, factor, reason = _groups(chains)
    shares = normalize(evidence)
    if len(chains) == 1:
        weights = chains[0].history[-1].log_weights
        if not abs(evidence[0] - logmeanexp(weights)) < _ROUNDING * max(1.0, abs(evidence[0])):
            return Error(math.nan, "the engine's evidence is not the mean weight of its last step")
        shares = np.bincount(groups, normalize(weights)).astype(np.float64)
        reason = reason or _dominated(shares, "first draw")
    if reason:
        return Error(math.nan, reason)
    variance = 1.0 - factor * (1.0 - float((shares**2).sum()))
    if variance < -_ROUNDING:
        return Error(math.nan, "the estimate of the variance is negative, which happens where it is small beside 1/n")
    return Error(math.sqrt(max(variance, 0.0)), df=_freedom(chains, shares))


def _states_error(chain: Chain) -> Error:
    """Return the standard error of log Ẑ of a waste-free chain."""
    stages, length = chain.stages, int(chain.info["length"])
    variance, fewest = 0.0, float(len(chain.log_weights))
    for t, step in enumerate(stages):
        if t + 1 < len(stages) and not stages[t + 1].resampled:
            continue  # the next has the same states, and the weights of both
        weights = normalize(step.log_weights) * len(step.log_weights)
        share, size = mean_variance(weights.reshape(-1, length) if step.resampled else weights[:, None])
        variance, fewest = variance + share, min(fewest, size)
    return Error(math.sqrt(variance), df=max(fewest - 1.0, 1.0))


def mean_error(chains: Sequence[Chain], weights: Floats, residuals: Floats) -> Error:
    """Return the standard error of a weighted mean.

    Args:
        chains: the independent runs.
        weights: (n,) normalised weights of all particles.
        residuals: (n, …) each particle's Wᵢ (fᵢ − m).
    """
    groups, factor, reason = _groups(chains)
    if len(chains) == 1 and not reason and not _same_shape(chains[0].log_weights, chains[0].history[-1].log_weights):
        reason = "the engine's weights select, and are not those of its last step: use chains=4"
    shares: Floats = np.bincount(groups, weights).astype(np.float64)
    reason = reason or _dominated(shares, "first draw" if len(chains) == 1 else "chain")
    if reason:
        return Error(np.full(residuals.shape[1:], math.nan), reason)
    sums = np.zeros((len(shares), *residuals.shape[1:]))
    np.add.at(sums, groups, residuals)
    return Error(np.sqrt(factor * (sums**2).sum(0)), df=_freedom(chains, shares))


def _freedom(chains: Sequence[Chain], shares: Floats) -> float:
    """Return the degrees of freedom: one less than the chains, or than the effective founders of a single one."""
    return len(chains) - 1.0 if len(chains) > 1 else float(1.0 / (shares**2).sum()) - 1.0


def _groups(chains: Sequence[Chain]) -> tuple[Index, float, str]:
    """Return the independent group of each particle, the factor c, and the reason if there is none."""
    sizes = [len(chain.log_weights) for chain in chains]
    if len(chains) > 1:
        return np.repeat(np.arange(len(chains)), sizes), len(chains) / (len(chains) - 1), ""
    (n,), steps = sizes, chains[0].history
    if n == 1:
        return np.zeros(1, np.intp), math.nan, "one particle has no spread: use more, or chains=4"
    schemes = {step.scheme for step in steps if step.resampled}
    reason = ""
    if chains[0].serial:
        reason = "the draws of one Markov chain depend on each other: use chains=4"
    elif "acceptance" in chains[0].info and not chains[0].stages:
        reason = "moves have redrawn the particles, so that one run says nothing of its error: use chains=4"
    elif "tree" in schemes:
        reason = "one tree says nothing of its error: use chains=4"
    elif schemes - {"multinomial"}:
        names = ", ".join(sorted(str(scheme) for scheme in schemes))
        other = ', or resampling="multinomial"' if schemes <= {*SCHEMES} else ""
        reason = f"one run says nothing of its error under {names} resampling: use chains=4{other}"
    factor = (n / (n - 1)) ** (1 + sum(step.resampled for step in steps))
    return chains[0].founders, factor, reason


def _dominated(shares: Floats, what: str) -> str:
    if 1.0 / (shares**2).sum() >= _FEWEST:
        return ""
    return f"one {what} holds {shares.max():.0%} of the weight, and there is nothing to compare it with"


def _same_shape(a: Floats, b: Floats) -> bool:
    """Whether two sets of log-weights are in proportion."""
    return bool(np.allclose(normalize(a), normalize(b), rtol=1e-9, atol=0.0))

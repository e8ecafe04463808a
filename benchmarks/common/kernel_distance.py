"""The kernel distance between weighted samples: squared MMD, with no bias from their number.

The kernel is that of KID, (1 + x·y/d)³: Binkowski et al. (2018), arXiv:1801.01401. It is a polynomial, so that means of
it are products of the samples' moments up to the third, and samples may be large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

BLOCK = 4096


@dataclass(frozen=True)
class Sample:
    """n points (n, d) in a space of features, with probabilities (n,)."""

    features: np.ndarray
    weights: np.ndarray

    @classmethod
    def even(cls, features: np.ndarray) -> Sample:
        return cls(features, np.full(len(features), 1.0 / len(features)))

    @cached_property
    def moments(self) -> np.ndarray:
        """The mean of a vector φ(x) with φ(x)·φ(y) = (1 + x·y/d)³."""
        d = self.features.shape[1]
        first, second, third = np.zeros(d), np.zeros((d, d)), np.zeros((d * d, d))
        for at in range(0, len(self.features), BLOCK):
            x = self.features[at : at + BLOCK].astype(float) / math.sqrt(d)
            weighed = self.weights[at : at + BLOCK, None] * x
            first += weighed.sum(0)
            second += weighed.T @ x
            third += (weighed[:, :, None] * x[:, None]).reshape(len(x), -1).T @ x
        return np.hstack([self.weights.sum(), math.sqrt(3.0) * first, math.sqrt(3.0) * second.ravel(), third.ravel()])

    @cached_property
    def inside(self) -> float:
        """The mean kernel of two independent points of the law that the sample was drawn from."""
        w, square = self.weights, (self.features.astype(float) ** 2).mean(1)
        own = (w**2 * (1.0 + square) ** 3).sum()
        return float((self.moments @ self.moments - own) / (1.0 - (w**2).sum()))


def distance(drawn: Sample, truth: Sample) -> float:
    """Return the mean, over draws with replacement from ``drawn``, of the unbiased MMD² between them and the truth.

    That mean is the same for draws of any number, so that none need be made: pairs of draws are independent, and two
    of them fall on one point as often as its weight says. So a population of few points, or of a few that have all
    the weight, is far from any truth. The points of the truth stand for a law of their own: pairs of a point with
    itself are left out.
    """
    return float(drawn.moments @ drawn.moments - 2.0 * drawn.moments @ truth.moments) + truth.inside


def between(one: Sample, other: Sample) -> float:
    """Return the unbiased MMD² between the laws that two samples were drawn from."""
    return one.inside - 2.0 * float(one.moments @ other.moments) + other.inside

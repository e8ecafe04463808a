"""The kernel distance between weighted samples: squared MMD, with no bias from their number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sample:
    """n points (n, d) in a space of features, with probabilities (n,)."""

    features: np.ndarray
    weights: np.ndarray

    @classmethod
    def even(cls, features: np.ndarray) -> Sample:
        return cls(features, np.full(len(features), 1.0 / len(features)))


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The kernel of KID, (1 + x·y/d)³: Binkowski et al. (2018), arXiv:1801.01401."""
    return (1.0 + x.astype(float) @ y.astype(float).T / x.shape[1]) ** 3


def distance(drawn: Sample, truth: Sample) -> float:
    """Return the mean, over draws with replacement from ``drawn``, of the unbiased MMD² between them and the truth.

    That mean is the same for draws of any number, so that none need be made: pairs of draws are independent, and two
    of them fall on one point as often as its weight says. So a population of few points, or of a few that have all
    the weight, is far from any truth. The points of the truth stand for a law of their own: pairs of a point with
    itself are left out.
    """
    within = drawn.weights @ kernel(drawn.features, drawn.features) @ drawn.weights
    across = drawn.weights @ kernel(drawn.features, truth.features) @ truth.weights
    return float(within - 2.0 * across + inside(truth))


def inside(sample: Sample) -> float:
    """Return the mean kernel of two independent points of the law that a sample was drawn from."""
    gram, w = kernel(sample.features, sample.features), sample.weights
    return float((w @ gram @ w - (w**2) @ gram.diagonal()) / (1.0 - (w**2).sum()))


def between(one: Sample, other: Sample) -> float:
    """Return the unbiased MMD² between the laws that two samples were drawn from."""
    across = one.weights @ kernel(one.features, other.features) @ other.weights
    return inside(one) - 2.0 * float(across) + inside(other)

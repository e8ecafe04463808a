"""Populations that shrink on the way: which particles go on where there are to be fewer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import Floats, Index
from ..base.checks import function_or_none, one_of, positive
from ..base.resampling import Scheme, chosen, resample
from ..base.selection import best_first
from ..base.weights import logmeanexp

By = Literal["weight", "cluster", "centre"]
_ROUNDS = 50


@dataclass(frozen=True)
class Reduce:
    """How a population of n particles becomes one of m < n, a setting of `SMC` and of `BeamSearch`.

    By "weight" m are drawn ∝ w·ψ, as in resampling. By "cluster" the particles are cut into m clusters that look alike
    (k-means), and one is drawn of each ∝ w·ψ and given the weight of all of it: what differs is kept, and as both leave
    E[Σ w f] as it is, mean(w) stays an unbiased estimate of Z. By "centre" the particle nearest the centre of each
    cluster goes on with its own weight, as published: that is a heuristic, and there is no evidence after it.

    Beams have scores and no weights: there the best go on ("weight"), the best of each cluster
    ("cluster"), or the nearest to each centre ("centre").

    Args:
        to: m.
        by: "weight", "cluster" or "centre".
        features: of the values of all particles (a list), an array (n, d), to tell by which are alike; None: the values
            themselves as numbers. Not by "weight".

    Source: Chen et al. (2025), TTS-VAR, arXiv:2507.18537, for the schedule and "centre"; "cluster" is our own.
    Raises ValueError for settings out of range.
    """

    to: int
    by: By = "weight"
    features: Callable[[list[Any]], Any] | None = None

    def __post_init__(self) -> None:
        positive("to", self.to)
        one_of("by", self.by, ("weight", "cluster", "centre"))
        function_or_none("features", self.features, "the values of all particles")
        if self.by == "weight" and self.features is not None:
            raise ValueError('"weight" does not ask which are alike: leave features out, or take "cluster" or "centre"')

    def draw(
        self, values: Callable[[], list[Any]], log_weights: Floats, log_twist: Floats, key: Keys, scheme: Scheme
    ) -> tuple[Index, Floats]:
        """Return the positions of those that go on, and their log-weights. Fewer than m where fewer are alive."""
        if self.by == "weight":
            return chosen(log_weights, log_twist, self.to, key, scheme)
        guided = log_weights + log_twist
        clusters, nearest = self._clusters(values(), guided, self.to, _keys.fold(key, 0))
        if self.by == "centre":
            return nearest, log_weights[nearest]
        shares = [guided[at] for at in clusters]
        keys = _keys.fold(_keys.fold(key, 1), np.arange(len(clusters)))
        kept = np.array([at[resample(g, 1, keys[k : k + 1])[0]] for k, (at, g) in enumerate(zip(clusters, shares))])
        whole = np.array([logmeanexp(g) + math.log(len(g) * len(clusters) / len(guided)) for g in shares])
        return kept, whole - log_twist[kept]

    def pick(self, values: Callable[[], list[Any]], scores: Floats, count: int, key: Keys) -> Index:
        """Return the positions of up to ``count`` that go on by their scores, the best of them first."""
        if self.by == "weight" or not (scores > -math.inf).any():
            return best_first(scores, count)
        clusters, nearest = self._clusters(values(), scores, count, key)
        best = np.array([at[int(scores[at].argmax())] for at in clusters])
        kept: Index = nearest if self.by == "centre" else best
        return kept[best_first(scores[kept], count)]

    def _clusters(self, values: list[Any], scores: Floats, count: int, key: Keys) -> tuple[list[Index], Index]:
        """Cut those with a score above −inf into clusters, and return these and who is nearest to each centre."""
        alive = np.flatnonzero(scores > -math.inf)
        features = self._features(values)[alive]
        cluster, centres = k_means(features, min(count, len(alive)), key)
        places = [np.flatnonzero(cluster == k) for k in range(len(centres))]
        far = [((features[at] - centre) ** 2).sum(1) for at, centre in zip(places, centres)]
        return [alive[at] for at in places], np.array([alive[at[int(d.argmin())]] for at, d in zip(places, far)])

    def _features(self, values: list[Any]) -> Floats:
        found = values if self.features is None else self.features(values)
        try:
            array = np.asarray(found, np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "clusters need numbers that tell which particles are alike, one row for each: give Reduce(features=…), "
                "a function of all values to an array (n, d)"
            ) from error
        if len(array) != len(values) or not np.isfinite(array).all():
            raise ValueError(f"features of {len(values)} particles must be as many rows of finite numbers")
        return array.reshape(len(values), -1)


def check_reductions(reduce: Any, particles: int) -> None:
    """Raise ValueError or TypeError unless a setting says by depth to what ever smaller populations one is reduced."""
    before = particles
    for depth, one in sorted(reduce.items()):
        positive("a depth of reduce", depth)
        if not isinstance(one, Reduce):
            raise TypeError(f"reduce is a dict from depths to fk.Reduce(…), and at {depth} holds {one!r:.100}")
        if one.to >= before:
            raise ValueError(f"reduce makes {before} particles fewer, not {one.to}, at depth {depth}")
        before = one.to


def k_means(points: Floats, k: int, key: Keys) -> tuple[Index, Floats]:
    """Return the cluster (n,) of each of n ≥ k points (n, d), none empty, and the centres (k, d): Lloyd's algorithm.

    It begins with k-means++ (Arthur and Vassilvitskii 2007), and with points that all are equal cuts anywhere.

    >>> sorted(k_means(np.array([[0.0], [0.1], [5.0], [5.1]]), 2, _keys.root(0))[1].round(2).ravel().tolist())
    [0.05, 5.05]
    """
    uniforms = _keys.uniform(key, k)[0]
    chosen = [int(uniforms[0] * len(points))]
    for u in uniforms[1:]:
        far = _distances(points, points[chosen]).min(1)
        far[chosen] = 0.0
        if not far.any():
            far[np.setdiff1d(np.arange(len(points)), chosen)] = 1.0
        shares = far.cumsum()
        chosen.append(int(np.searchsorted(shares, min(u * shares[-1], np.nextafter(shares[-1], 0.0)), side="right")))
    centres, before = points[chosen], None
    for _ in range(_ROUNDS):
        distance = _distances(points, centres)
        clusters = distance.argmin(1)
        for empty in np.setdiff1d(np.arange(k), clusters).tolist():  # takes the farthest of those that share theirs
            shared = np.bincount(clusters, minlength=k)[clusters] > 1
            clusters[int(np.where(shared, distance[np.arange(len(points)), clusters], -1.0).argmax())] = empty
        if before is not None and (clusters == before).all():
            break
        before = clusters
        centres = np.array([points[clusters == c].mean(0) for c in range(k)])
    return clusters, centres


def _distances(points: Floats, centres: Floats) -> Floats:
    found: Floats = ((points[:, None] - centres[None]) ** 2).sum(-1)
    return found

"""The sampler of `Bayes` for Optuna."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import intersection_search_space
from optuna.study import StudyDirection

from .search import whole
from .surrogates import Surrogate, expected_improvement

Floats = NDArray[np.float64]


class Settings(Protocol):
    """What `Bayes` is told."""

    @property
    def surrogate(self) -> Surrogate:
        """What is believed of settings that were not tried."""

    @property
    def starts(self) -> int:
        """How many are drawn at random first."""

    @property
    def candidates(self) -> int:
        """How many are looked at for the next."""


class ExpectedImprovement(BaseSampler):  # type: ignore[misc]  # Optuna is not typed for those who lack it
    """Random settings at first, and then those of the largest expected improvement; see `Bayes`."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self._settings, self._random = settings, RandomSampler(seed)

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        """Return what all trials have in common; nothing before there are enough."""
        done = whole(study)
        return intersection_search_space(done) if len(done) >= self._settings.starts else {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """Draw a setting at random."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(self, study: Any, trial: Any, search_space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        """Return the best of random settings."""
        if not search_space:
            return {}
        drawn = [
            {name: self.sample_independent(study, trial, name, one) for name, one in search_space.items()}
            for _ in range(self._settings.candidates)
        ]
        points, scores = _evidence(study, search_space)
        mean, variance = self._settings.surrogate(points, scores, np.concatenate([points, encode(search_space, drawn)]))
        gain = expected_improvement(
            mean[len(points) :], np.sqrt(variance[len(points) :]), float(np.max(mean[: len(points)]))
        )
        return drawn[int(np.argmax(gain))]


def beliefs(study: Any, surrogate: Surrogate) -> Floats:
    """Return a surrogate's mean (n,) at the settings that were tried, in units of the score."""
    done = whole(study)
    points, scores = _evidence(study, intersection_search_space(done))
    values = np.array([trial.value for trial in done])
    result: Floats = values.mean() + (values.std() or 1.0) * surrogate(points, scores, points)[0]
    return result


def encode(space: Mapping[str, BaseDistribution], settings: Sequence[Mapping[str, Any]]) -> Floats:
    """Return settings as points of the unit cube (n, d); options of a list have a coordinate each."""
    columns: list[Any] = []
    for name, one in space.items():
        values = [each[name] for each in settings]
        if isinstance(one, CategoricalDistribution):
            chosen = np.array([one.to_internal_repr(value) for value in values])
            columns += [(chosen == k) / math.sqrt(2) for k in range(len(one.choices))]
        else:
            low, high, at = (np.log(v) if one.log else np.asarray(v, float) for v in (one.low, one.high, values))
            columns.append((at - low) / (high - low if high > low else 1.0))
    return np.column_stack(columns).astype(float)


def _evidence(study: Any, space: Mapping[str, BaseDistribution]) -> tuple[Floats, Floats]:
    """Return the points that were tried, and their standardised scores, larger is better."""
    done = whole(study)
    scores = np.array([trial.value for trial in done]) * (-1.0 if study.direction == StudyDirection.MINIMIZE else 1.0)
    return encode(space, [trial.params for trial in done]), (scores - scores.mean()) / (scores.std() or 1.0)

"""The best of a posterior's particles, by weight or by reward."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ppl.model import Floats, Index
from ..base.engine import Ranking
from ..drawing.pixels import identity


def best_particle(posterior: Any, by: Ranking) -> int:
    """Return the index of the best particle: a complete one where there is any, and one alive where there is any.

    Those that tie by weight are told apart by reward, and the other way round; what ties in both goes to the value
    that most of them have, and then to the first.
    """
    weight, reward = _weights(posterior), posterior.log_potential
    if posterior.guarantee != "heuristic":  # of those, no weight is no chance, whatever the reward
        reward = np.where(posterior.log_weights > -np.inf, reward, -np.inf)
    first, second = (weight, reward) if by == "weight" else (reward, weight)
    rows = _largest(_leading(first, posterior.complete), np.arange(len(posterior)))
    if len(rows) > 1:
        rows = _largest(second, rows)
    return int(rows[0]) if len(rows) == 1 else _commonest(posterior.values, rows)


def _weights(posterior: Any) -> Floats:
    """Return the log-weights; of an engine that holds a vote, those of the winning answer, and −inf for the others."""
    logs: Floats = posterior.log_weights
    answers = posterior._answers
    if answers is None or np.isneginf(np.where(posterior.complete, logs, -np.inf)).all():
        return logs
    votes = posterior.vote()
    if not votes:  # all abstain
        return logs
    winner = next(iter(votes))
    return np.where([answer is winner or answer == winner for answer in answers], logs, -np.inf)


def _leading(scores: Floats, complete: Any) -> Floats:
    """Return scores of the complete particles, −inf for the others; of all where no complete one is alive."""
    finished = np.where(complete, scores, -np.inf)
    return scores if np.isneginf(finished).all() else finished


def _largest(scores: Floats, rows: Index) -> Index:
    """Return those of some rows that have the largest score."""
    found = scores[rows]
    out: Index = rows[found == found.max()]
    return out


def _commonest(values: Any, rows: Index) -> int:
    counts: dict[Any, list[int]] = {}
    for i in rows.tolist():
        counts.setdefault(identity(values[i]), []).append(i)
    return max(counts.values(), key=len)[0]

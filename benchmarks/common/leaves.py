"""What selects among independent answers, read off a tape: best-of-N exactly, votes from many draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from common.cells import Cell, Floats
from common.tasks import roots

from feynkac.models.tasks import Tape

DRAWS = 400
"""Pools drawn of each size, in which votes are counted."""


class Leaves(NamedTuple):
    """The whole answers to a problem, (m,): probability, score, whether right, tokens, and what each claims."""

    mass: Floats
    score: Floats
    solved: Floats
    tokens: Floats
    claim: Any


def leaves(tape: Tape, count: int, scores: str, said: Callable[[str], str]) -> list[Leaves]:
    """Return the whole answers to each of the first problems of a tape."""
    root, mass, tokens = roots(tape), np.exp(tape.log_prob), tape.tokens.astype(float)
    for level in range(2, int(tape.level.max()) + 1):
        rows = np.flatnonzero(tape.level == level)
        mass[rows] *= mass[tape.parent[rows]]
        tokens[rows] += tokens[tape.parent[rows]]
    ends = np.flatnonzero((tape.count == 0) & (root < count))
    blank = np.array([not str(tape.text(place)).strip() for place in ends])
    score = np.where(blank, -1.0, tape.scores[scores][ends])
    claims = np.array([said(str(tape.text(place))) for place in ends])
    rows = [np.flatnonzero(root[ends] == i) for i in range(count)]
    solved = tape.solved[ends].astype(float)
    return [Leaves(mass[ends[r]], score[r], solved[r], tokens[ends[r]], _ids(claims[r])) for r in rows]


def _ids(claims: Any) -> Any:
    return np.unique(claims, return_inverse=True)[1]


def best_of(answers: Leaves, n: int) -> float:
    """Return the probability that the best-scored of n answers is right, exactly; ties are broken at random.

    >>> best_of(Leaves(np.array([0.5, 0.5]), np.array([0.9, 0.1]), np.array([1.0, 0.0]), np.ones(2), None), 2)
    0.75
    """
    _, level = np.unique(answers.score, return_inverse=True)
    mass = np.bincount(level, answers.mass)
    right = np.bincount(level, answers.mass * answers.solved)
    below = np.concatenate([[0.0], np.cumsum(mass)])
    return float(np.sum((below[1:] ** n - below[:-1] ** n) * np.divide(right, mass, where=mass > 0, out=right * 0)))


def pooled(
    tape: Tape, count: int, scores: str, said: Callable[[str], str], sizes: tuple[int, ...], votes: bool
) -> list[Cell]:
    """Return the cells of best-of-N, and of votes with and without weights, on the first problems of a tape."""
    answers, found = leaves(tape, count, scores, said), []
    rng = np.random.default_rng(0)
    for n in sizes:
        tokens = np.array([n * (a.mass @ a.tokens) for a in answers])
        calls = np.array([float(np.sum(1 - (1 - a.mass) ** n)) for a in answers])
        found.append(Cell("best-of-N", n, np.array([best_of(a, n) for a in answers]), tokens, calls))
        if votes:
            polls = np.array([_polls(a, n, rng) for a in answers])
            found.append(Cell("majority vote", n, polls[:, 0], tokens, 0 * calls))
            found.append(Cell("weighted vote", n, polls[:, 1], tokens, calls))
    return found


def _polls(answers: Leaves, n: int, rng: np.random.Generator) -> tuple[float, float]:
    """Return how often votes of n answers are right: each answer's claim has a vote, or its score."""
    drawn = rng.choice(len(answers.mass), (DRAWS, n), p=answers.mass / answers.mass.sum())
    claim, score = answers.claim[drawn], np.maximum(answers.score[drawn], 0.0)
    out = []
    for weights in (np.ones_like(score), score):
        votes = np.zeros((DRAWS, int(answers.claim.max()) + 1))
        np.add.at(votes, (np.arange(DRAWS)[:, None], claim), weights)
        members = np.where(claim == votes.argmax(1)[:, None], weights, -1.0)
        out.append(float(answers.solved[drawn[np.arange(DRAWS), members.argmax(1)]].mean()))
    return out[0], out[1]

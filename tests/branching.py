"""Exact laws of what draws at random: a function is run again and again, until all that it may draw has been drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import feynkac as fk


class Chance:
    """Answers each question of a run in turn, so that in the end every answer has been given: see `outcomes`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin with the first answers."""
        self._script: list[list[int]] = []  # of each question: the answer, and how many there are
        self._asked = 0
        self.probability = 1.0

    def choose(self, probabilities) -> int:
        """Draw an index with the given probabilities."""
        possible = [i for i, p in enumerate(probabilities) if p > 0]
        if self._asked == len(self._script):
            self._script.append([0, len(possible)])
        index = possible[self._script[self._asked][0]]
        self._asked += 1
        self.probability *= probabilities[index]
        return index

    def _again(self) -> bool:
        """Go on to the next script; False where there is none."""
        while self._script and self._script[-1][0] + 1 == self._script[-1][1]:
            self._script.pop()
        if self._script:
            self._script[-1][0] += 1
        self._asked, self.probability = 0, 1.0
        return bool(self._script)


CHANCE = Chance()
"""What the coins of a test ask."""


def outcomes(run: Callable[[], Any]) -> list[tuple[float, Any]]:
    """Return every outcome of a run that draws by `CHANCE`, with its probability."""
    found = []
    CHANCE.reset()  # it may have been asked outside
    while True:
        value = run()
        found.append((CHANCE.probability, value))
        if not CHANCE._again():
            return found


@dataclass(frozen=True)
class Coin:
    """A categorical law on 0, 1, …, drawn by `CHANCE`."""

    probs: tuple[float, ...]
    batch_key = "coin"

    @property
    def fingerprint(self):
        return self.probs

    def sample_batch(self, requests, keys):
        values = [CHANCE.choose(request.probs) for request in requests]
        return fk.Draws(values, self.log_prob_batch(requests, values))

    def log_prob_batch(self, requests, values):
        return np.array([math.log(r.probs[v]) if v < len(r.probs) and r.probs[v] else -math.inf
                         for r, v in zip(requests, values)])  # fmt: skip

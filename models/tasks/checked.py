"""What the tasks with exact checkers share: verdict and true value as scores, and problems that are held out."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

from ...ppl.score import Score, reward

HELD_OUT = 20
"""One problem in so many is held out."""
Split = Literal["train", "test"]
P = TypeVar("P", bound="Checked")


class Checked(ABC):
    """A problem whose answers, whole and begun, are judged exactly. Texts are strings, or texts of a language model."""

    @property
    @abstractmethod
    def prompt(self) -> str:
        """What a model reads."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """How many lines a solution has."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the problem and those that are the same but for an order or for names have in common."""

    @property
    def split(self) -> Split:
        """Whether the problem, and all of its ``name``, is for training or held out: a hash says so."""
        return "test" if held_out(self.name) else "train"

    @abstractmethod
    def solved(self, text: Any) -> bool:
        """Return whether a text solves the problem."""

    @abstractmethod
    def solvable(self, text: Any = "") -> bool:
        """Return whether the steps of a text are right and the problem can still be solved: the true value."""

    def reward(self, text: Any) -> Score:
        """Return the exact checker's verdict as a score, a probability: 1 where the text solves the problem, else 0."""
        return solved(self, text)

    def value(self, text: Any) -> Score:
        """Return the true value as a score, a probability: 1 where the problem can still be solved, else 0."""
        return solvable(self, text)


@reward(kind="probability")
def solved(problem: Checked, text: Any) -> float:
    """Whether a text solves a problem."""
    return float(problem.solved(text))


@reward(kind="probability")
def solvable(problem: Checked, text: Any) -> float:
    """Whether a problem can still be solved after a text."""
    return float(problem.solvable(text))


def held_out(name: str) -> bool:
    """Return whether the problems of a name are held out."""
    return zlib.crc32(name.encode()) % HELD_OUT == 0


def distinct(draws: Iterator[P], count: int, split: Split, kind: str) -> list[P]:
    """Return the first problems of endless draws that are of a split and of different names.

    Raises ValueError for a split of another name, or where hardly any more come; ``kind`` is what it calls them.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", not {split!r}')
    found: dict[str, P] = {}
    in_vain = 0
    while len(found) < count:
        problem = next(draws)
        in_vain = in_vain + 1 if problem.split != split or problem.name in found else 0
        if not in_vain:
            found[problem.name] = problem
        if in_vain > 1000 * HELD_OUT:
            raise ValueError(f"there are hardly more than {len(found)} problems of {kind}, not {count}")
    return list(found.values())

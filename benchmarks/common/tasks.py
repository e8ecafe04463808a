"""The tasks of the reasoning benchmark: their problems, models and cassettes (tapes of what these would do)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import feynkac as fk

CASSETTES = Path(__file__).resolve().parent.parent / "cassettes"
CERTAIN, SURE = 1e-9, 1e-3
"""How near to 0 and 1 scores come: those of models, and the exact value, whose odds are thus a thousand at most."""
FACTOR = 4.0
"""By which the log-odds of the overconfident verifier are too large."""
VERIFIERS = ("early", "old", "value", "reach", "overconfident")


@dataclass(frozen=True)
class Task:
    """Held-out problems, others to learn on, a language model, and its verifiers by name.

    Attributes:
        title: of pictures.
        problems: from a number and a split to problems.
        reasoner: makes the language model.
        verifiers: make the process reward models that were trained.
        said: what an answer claims, for votes.
        cutoff: the least probability of a line on its tape.
    """

    title: str
    problems: Callable[[int, str], list[Any]]
    reasoner: Callable[[], Any]
    verifiers: dict[str, Callable[[], Any]]
    said: Callable[[str], str]
    cutoff: float

    def record(self, name: str, problems: list[Any]) -> fk.tasks.Tape:
        """Write down what the models would do with some problems: minutes for a hundred."""
        tape = fk.tasks.Tape.record(self.reasoner(), problems, name=name, cutoff=self.cutoff, progress=print)
        return tape.scored(**{verifier: make() for verifier, make in self.verifiers.items()})


def countdown(numbers: int, cutoff: float) -> Task:
    return Task(
        title=f"Countdown, {numbers} numbers",
        problems=lambda count, split: fk.tasks.problems(count, seed=0, numbers=numbers, split=split),
        reasoner=partial(fk.tasks.reasoner, max_batch=512),
        verifiers={
            "early": partial(fk.tasks.verifier, "early", cache=1_000_000),
            "old": partial(fk.tasks.verifier, "overconfident", cache=1_000_000),
        },
        said=lambda text: text.splitlines()[-1].rsplit("(")[-1] if text else "",
        cutoff=cutoff,
    )


def sudoku(clues: int) -> Task:
    return Task(
        title=f"Sudoku of 4 by 4, {clues} clues",
        problems=lambda count, split: fk.tasks.sudokus(count, seed=0, clues=clues, split=split),
        reasoner=partial(fk.tasks.reasoner, "sudoku", max_batch=512),
        verifiers={},
        said=str,
        cutoff=1e-3,
    )


TASKS = {
    "countdown_4": countdown(4, 3e-3),
    "countdown_5": countdown(5, 2e-2),
    "sudoku_5": sudoku(5),
    "sudoku_6": sudoku(6),
}


def cassette(task: str) -> Path:
    return CASSETTES / f"{task}.npz"


def roots(tape: fk.tasks.Tape) -> Any:
    """Return which problem each place of a tape belongs to."""
    root = np.arange(len(tape.parent))
    for level in range(1, int(tape.level.max()) + 1):  # parents come first
        rows = np.flatnonzero(tape.level == level)
        root[rows] = root[tape.parent[rows]]
    return root


def with_exact(tape: fk.tasks.Tape, problems: list[Any]) -> fk.tasks.Tape:
    """Return a tape with the scores that need no model: "value", "reach", and "overconfident", of "old".

    The problems are the first of the tape; "reach" is NaN for others.
    """
    root, reach = roots(tape), np.full(len(tape.parent), np.nan)
    for place in np.flatnonzero((root < len(problems)) & (tape.level > 0)).tolist():
        problem, text = problems[root[place]], tape.text(place)
        good = problem.solvable(text) if tape.count[place] else problem.solved(text)
        reach[place] = 0.99 if good else 0.01
    models = {name: np.clip(scores, CERTAIN, 1 - CERTAIN) for name, scores in tape.scores.items()}
    exact = {"value": np.clip(tape.success, SURE, 1 - SURE), "reach": reach}
    if "old" in models:
        odds = (models["old"] / (1 - models["old"])) ** FACTOR
        exact["overconfident"] = np.clip(odds / (1 + odds), CERTAIN, 1 - CERTAIN)
    return replace(tape, scores=models | exact)

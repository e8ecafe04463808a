"""Reasoning tasks with exact checkers, and small reasoners with a process reward model. torch is imported late.

Countdown        reach a target from some numbers: verifier, solver, prompts, rewards
problems         Countdown problems, for training or held out
Sudoku           fill a grid of four by four, a row a step: the same
sudokus          problems of it with one solution, for training or held out
reasoner         a small language model of either that ships with the library
verifier         the process reward model of Countdown
ExactVerifier    one that knows whether a problem can still be solved, of either
solve            a program: a step a line, weighed by a process reward model
gym              the problems of a data set of reasoning-gym
Tape             the law of a model's lines on some problems, written down: it replays runs without the model

import feynkac as fk
lm, prm = fk.tasks.reasoner(), fk.tasks.verifier()
models = [fk.tasks.solve(lm, prm, problem) for problem in fk.tasks.problems(20)]
posteriors = fk.infer(models, fk.SMC(16), seed=0)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...ppl.lazy import find

if TYPE_CHECKING:
    from .countdown import Countdown, problems
    from .exact import ExactVerifier
    from .exercises import Exercise, gym
    from .shipped import reasoner, record, verifier
    from .solver import solve
    from .sudoku import Sudoku, sudokus
    from .tape import Tape

_HOME = {
    "Countdown": "countdown",
    "Exercise": "exercises",
    "ExactVerifier": "exact",
    "Sudoku": "sudoku",
    "Tape": "tape",
    "gym": "exercises",
    "problems": "countdown",
    "reasoner": "shipped",
    "record": "shipped",
    "solve": "solver",
    "sudokus": "sudoku",
    "verifier": "shipped",
}

__all__ = [
    "Countdown",
    "ExactVerifier",
    "Exercise",
    "Sudoku",
    "Tape",
    "gym",
    "problems",
    "reasoner",
    "record",
    "solve",
    "sudokus",
    "verifier",
]


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "text")


def __dir__() -> list[str]:
    return list(__all__)

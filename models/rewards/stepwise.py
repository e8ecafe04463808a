"""What process reward models share: questions with steps, and how the scores of steps become one number."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any, Literal, TypeAlias

from ...ppl.sites import short
from .base import DetailedReward

Aggregate = Literal["last", "min", "prod", "mean", "model"]
Steps: TypeAlias = tuple[float, ...]
"""The probability of each step, in order."""
Render: TypeAlias = Callable[[str, tuple[str, ...]], Any]
"""From a question and its steps so far to what the model reads: a string, or chat messages."""

_REDUCE: dict[str, Callable[[Steps], float]] = {
    "last": lambda steps: steps[-1],
    "min": min,
    "prod": math.prod,
    "mean": fmean,
    "model": lambda steps: steps[-1],
}


class ProcessReward(DetailedReward[Steps]):
    """What process reward models share: questions with steps, and how step scores become one number.

    Call it with a `Text` (its prompt is the question, its ``steps`` the steps), or with a question and a text or a
    list of strings. Blank steps are left out, and space around a step. ``details`` gives the score of each step:
    ``await fk.call("steps", prm.details, question, text)``.

    ``aggregate`` is "last", "min", "prod" or "mean" of the step scores (Snell et al. 2024, arXiv:2408.03314, compare
    them), or "model": the answer so far is joined by ``between`` to one step, which gets one score.
    """

    def __init__(self, name: str, aggregate: Aggregate, between: str, cache: int) -> None:
        if aggregate not in _REDUCE:
            raise ValueError(f"aggregate must be one of {', '.join(_REDUCE)}, not {aggregate!r}")
        super().__init__(name, "probability", None, cache)
        self.aggregate = aggregate
        self.between = between

    def prepare(self, *args: Any, **named: Any) -> tuple[str, tuple[str, ...]]:
        """Return the question and its steps. Raises TypeError for other arguments, ValueError for no steps."""
        if named or len(args) not in (1, 2) or (len(args) == 1 and not hasattr(args[0], "prompt")):
            raise _wrong(self.name, args)
        question, given = args if len(args) == 2 else (args[0].prompt, args[0])
        steps = getattr(given, "steps", given)
        if isinstance(steps, str) or not all(isinstance(step, str) for step in steps):
            raise _wrong(self.name, args)
        kept = tuple(step.strip() for step in steps if step.strip())
        if not kept:
            raise ValueError(f"reward {self.name!r}: {short(given, 80)} has no steps yet")
        return str(question), (self.between.join(kept),) if self.aggregate == "model" else kept

    def number(self, detail: Steps) -> float:
        """Return the aggregate of step scores; NaN where one is, which the least of some numbers need not show."""
        return math.nan if any(map(math.isnan, detail)) else _REDUCE[self.aggregate](detail)


def _wrong(name: str, args: tuple[Any, ...]) -> TypeError:
    return TypeError(
        f"reward {name!r} takes a text, or a question and a text or a list of steps, not {short(args, 120)}"
    )

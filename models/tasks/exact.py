"""A process reward model that knows: the exact checker of a task in the place of a trained one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..rewards.stepwise import Aggregate, ProcessReward, Steps
from .checked import Checked


class ExactVerifier(ProcessReward):
    """A process reward model that is right about every step: whether the problem can still be solved after it.

    A step's score is ``sure`` if it can, else 1 − ``sure``; that of the last step of an answer that the model has ended
    tells whether it is solved. It says what could be done, not what a reasoner will do: that is the ``"success"`` of a
    `Tape`.

    Args:
        problems: that it is asked about; each is a `Countdown` or a `Sudoku`.
        sure: score of what can be solved, below 1 so that odds are finite.
        aggregate: see `ProcessReward`.
        cache: results remembered.

    Raises ValueError for a ``sure`` that is not above 1/2 and below 1; LookupError for a question that is none of the
    problems'.

    >>> from feynkac.models.tasks import Countdown
    >>> prm, question = ExactVerifier([Countdown((3, 5, 7), 22)]), "3 5 7 > 22\\n"
    >>> [round(score, 2) for score in prm.details([(question, ["5*3=15 (7 15)", "15-7=8 (8)"])])[0]]
    [0.99, 0.01]
    """

    def __init__(
        self, problems: Sequence[Checked], *, sure: float = 0.99, aggregate: Aggregate = "last", cache: int = 1_000_000
    ) -> None:
        super().__init__("exact", aggregate, "\n", cache)
        if not 0.5 < sure < 1:
            raise ValueError(f"sure must be above 1/2 and below 1, not {sure}")
        self._problems = {problem.prompt: problem for problem in problems}
        self._sure = sure

    def prepare(self, *args: Any, **named: Any) -> Any:
        """Return the question, its steps, and whether the answer was ended with them."""
        question, steps = super().prepare(*args, **named)
        if question not in self._problems:
            raise LookupError(f"the exact verifier knows {len(self._problems)} problems, and {question!r} is none")
        return question, steps, bool(getattr(args[-1], "finished", False))

    def detail_batch(self, inputs: Sequence[Any]) -> list[Steps]:
        """Score the steps of some answers."""
        return [self._detail(*each) for each in inputs]

    def _detail(self, question: str, steps: tuple[str, ...], ended: bool) -> Steps:
        problem = self._problems[question]
        prefixes = ["\n".join(steps[:t]) for t in range(1, len(steps) + 1)]
        good = [problem.solvable(prefix) for prefix in prefixes]
        if ended:
            good[-1] = problem.solved(prefixes[-1])
        return tuple(self._sure if each else 1 - self._sure for each in good)

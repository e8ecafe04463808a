"""How what a program's ``reward`` says becomes a weight: one rule for all methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ...ppl.score import Score
from ...ppl.words import factor

Reward: TypeAlias = Callable[..., Score | float]
"""What an answer is worth: a score of kind probability or log-weight, or a number, which is a log-weight."""


def log_weight(worth: Score | float) -> Score | float:
    """Return the log-weight of a reward: log p of a probability p, and a log-weight or a number as it is.

    A real reward does not say what it weighs, and `factor` refuses it (`AmbiguousScore`): give
    ``lambda *of: reward(*of) / beta``.

    >>> import feynkac as fk
    >>> sure = fk.reward(lambda text: 0.25, kind="probability")
    >>> round(log_weight(sure("x")).evaluate(), 4), log_weight(-2.0)
    (-1.3863, -2.0)
    """
    return worth.log() if isinstance(worth, Score) and worth.kind == "probability" else worth


async def weigh(reward: Reward | None, *of: object) -> None:
    """Weigh a run by the reward of what it came to, the final factor; None weighs all alike."""
    if reward is not None:
        await factor("reward", log_weight(reward(*of)))

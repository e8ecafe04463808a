"""What the programs of this room share: problems that are solved by the line, and a reward of what was written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from ....ppl.effects import factor, twist
from ....ppl.score import Score
from ...language.text import Text

Reward: TypeAlias = Callable[[str, Text], Score]
"""What a question's answer is worth: a probability, or a log-weight."""
Judge: TypeAlias = Callable[..., Any]
"""A reward, or any function that `call` takes (plain, async or batched): its number is a value, never a weight."""


class Problem(Protocol):
    """What is solved by the line, such as a `Countdown`."""

    @property
    def prompt(self) -> str:
        """What the model reads."""

    @property
    def steps(self) -> int:
        """Most lines of an answer."""


async def weigh(reward: Judge | None, question: str, text: Text | str, over: bool) -> None:
    """Guide a text under way by its reward, and weigh it by that where it is over; an empty answer weighs nothing.

    The twists on the way cancel, so that the target is the program's law times the last reward.
    """
    if reward is None:
        return
    if not str(text).strip():
        if over:
            await factor("reward", -math.inf)
        return
    score = reward(question, text)
    log_weight = score.log() if score.kind == "probability" else score
    await (factor if over else twist)("reward", log_weight)

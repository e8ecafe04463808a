"""What the programs of this room share: problems that are solved by the line, and a reward of what was written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from ....ppl.words import factor, twist
from ...language.texts.text import Text
from ..weighing import Reward, log_weight

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


async def steer(reward: Reward | None, question: str, text: Text | str, over: bool) -> None:
    """Guide a text under way by its reward, and weigh it by that where it is over; an empty answer has the weight 0.

    The twists on the way cancel, so that the target is the program's law times the last reward.
    """
    if reward is None:
        return
    if not str(text).strip():
        if over:
            await factor("reward", -math.inf)
        return
    await (factor if over else twist)("reward", log_weight(reward(question, text)))

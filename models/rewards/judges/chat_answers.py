"""Which of some answers a chat would give, by the first tokens that its server shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ....ppl.errors import UnusableAnswer
from ....ppl.sites import short
from ..base import Input, messages

if TYPE_CHECKING:
    from ...served.chat_lm import ChatLM


class ChatAnswers:
    """Answers that a chat may give, told apart by how their first token is spelled.

    As `Answers`, for a model of which strings are all that is known. A server shows the most probable tokens alone:
    an answer that is not among them counts as impossible beside one that is.

    Args:
        lm: the model asked.
        answers: for each answer, ways to spell it; a token that is one of them counts.
        name: of the reward, for messages.

    Raises ValueError where two answers are spelled alike, or a way of one begins one of another, as a token might then
    be of either.
    """

    def __init__(self, lm: ChatLM, answers: Sequence[Sequence[str]], name: str) -> None:
        self.lm, self.name = lm, name
        self._answers = [tuple(ways) for ways in answers]
        for one, two in permutations(self._answers, 2):
            shared = [(a, b) for a in one for b in two if b.startswith(a)]
            if shared:
                a, b = shared[0]
                raise ValueError(
                    f"reward {name!r}: the answer {b!r} begins with the answer {a!r}, and {lm!r} does not tell how it "
                    "cuts them into tokens; choose others, such as letters"
                )

    @property
    def journal_key(self) -> Any:
        """The answers, as they may be spelled."""
        return self._answers

    def law(self, prompts: Sequence[Input]) -> NDArray[np.float64]:
        """Return the probability of each answer, given that it is one of them: shape (n, answers).

        Raises UnusableAnswer where none of them is among the tokens that the server shows.
        """
        said = [messages(prompt) for prompt in prompts if not isinstance(prompt, str)]  # type: ignore[arg-type]
        return np.array([self._weigh(shown) for shown in self.lm.first_tokens(said)])

    def _weigh(self, shown: Mapping[str, float]) -> NDArray[np.float64]:
        mass = np.array(
            [np.logaddexp.reduce([shown.get(way, -np.inf) for way in ways], initial=-np.inf) for ways in self._answers]
        )
        if mass.max() == -np.inf:
            best = sorted(shown, key=lambda token: -shown[token])[:5]
            raise UnusableAnswer(
                f"reward {self.name!r}: {self.lm!r} would answer {short(best, 80)}, and none of "
                f"{short([ways[0] for ways in self._answers], 80)}: say in the question how it is to be answered"
            )
        law: NDArray[np.float64] = np.exp(mass - np.logaddexp.reduce(mass))
        return law

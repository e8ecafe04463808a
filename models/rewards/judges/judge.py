"""A language model as a judge: the probability that it answers yes, and the grade that it would give on average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ....ppl.score import Kind
from ...language.host import Host
from ..base import Template, TextReward, as_input, fill
from .answers import Answers
from .chat_answers import ChatAnswers

if TYPE_CHECKING:
    from ...served.chat_lm import ChatLM


class Judge(TextReward):
    """A yes-or-no question to a language model, as a reward: P(yes) / (P(yes) + P(no)).

    The probabilities are those of the answer's first token. Prompts of a wave share what they begin with: the
    words of the question before the text are forwarded once.

    Args:
        lm: the model asked.
        question: a template for ``str.format``, filled from the arguments of the call (``{text}`` is the
            first), or a function of them; it gives a prompt or chat messages. A string is put to a model that
            has a chat template as a user's message.
        yes: answers that mean yes; those that are one token of the model count.
        no: answers that mean no.
        cache: results remembered.

    Raises ValueError if the answers cannot be told apart by their first token.

    >>> from feynkac.models.testing import tiny_lm
    >>> from feynkac.ppl.score import evaluate
    >>> judge = Judge(tiny_lm(), "Is this polite? {text}")
    >>> judge("Thank you."), 0 < evaluate([judge("Thank you.")])[0] < 1
    (<probability score of judge>, True)
    """

    def __init__(
        self,
        lm: Host | ChatLM,
        question: Template,
        *,
        yes: Sequence[str] = ("Yes", " Yes", "yes", " yes", "YES"),
        no: Sequence[str] = ("No", " No", "no", " no", "NO"),
        name: str = "judge",
        cache: int = 10_000,
    ) -> None:
        super().__init__(name, "probability", question, cache)
        self.lm = lm
        self._answers = _told_apart(lm, [yes, no], name)

    def version(self) -> int:
        """Return a number that is another one whenever the model has been seen to change."""
        return self.lm.version()

    @property
    def journal_key(self) -> Any:
        """What tells it from other rewards in a journal: the model and the answers."""
        return (self.kind, self.lm.journal_key, self._answers.journal_key)

    def prepare(self, *args: Any, **named: Any) -> Any:
        """Return the prompt: a string, or a chat as (role, content) pairs."""
        return as_prompt(self, args, named)

    def score_batch(self, inputs: Sequence[tuple[Any, ...]]) -> list[float]:
        """Return the probability of a yes to each prompt."""
        numbers: list[float] = self._answers.law([key for (key,) in inputs])[:, 0].tolist()
        return numbers


class Grader(TextReward):
    """The grade that a language model gives on average: Σ grade · P(answer) over given answers.

    The probabilities are those of the answer's first token, as in G-Eval (Liu et al. 2023, arXiv:2303.16634). The
    scale 1 to 10 needs a model for which "10" is one token; many split it into "1" and "0", and say so here.

    Args:
        lm: the model asked.
        question: as for `Judge`; it should ask for one of the answers and nothing else.
        grades: the grade of each answer; 1 to 5 by default.
        kind: "real", or "probability" where all grades are in [0, 1].
        cache: results remembered.

    Raises ValueError if two answers begin with the same token.

    >>> from feynkac.models.testing import tiny_lm
    >>> from feynkac.ppl.score import evaluate
    >>> grader = Grader(tiny_lm(), "How polite is this, from 1 to 5? {text}")
    >>> grader("Thank you."), 1 < evaluate([grader("Thank you.")])[0] < 5
    (<real score of grader>, True)
    """

    def __init__(
        self,
        lm: Host | ChatLM,
        question: Template,
        *,
        grades: Mapping[str, float] | None = None,
        kind: Kind = "real",
        name: str = "grader",
        cache: int = 10_000,
    ) -> None:
        super().__init__(name, kind, question, cache)
        self.lm = lm
        self.grades = {str(i): float(i) for i in range(1, 6)} if grades is None else dict(grades)
        values = list(self.grades.values())
        if len(values) < 2 or not np.isfinite(values).all():
            raise ValueError(f"reward {name!r} needs at least two answers with finite grades, not {self.grades}")
        if kind == "probability" and not 0 <= min(values) <= max(values) <= 1:
            raise ValueError(f"reward {name!r}: grades of kind probability must be in [0, 1], not {values}")
        self._answers = _told_apart(lm, [(answer, f" {answer}") for answer in self.grades], name)

    def version(self) -> int:
        """Return a number that is another one whenever the model has been seen to change."""
        return self.lm.version()

    @property
    def journal_key(self) -> Any:
        """What tells it from other rewards in a journal: the model, the answers and their grades."""
        return (self.kind, self.lm.journal_key, self._answers.journal_key, list(self.grades.values()))

    def prepare(self, *args: Any, **named: Any) -> Any:
        """Return the prompt: a string, or a chat as (role, content) pairs."""
        return as_prompt(self, args, named)

    def score_batch(self, inputs: Sequence[tuple[Any, ...]]) -> list[float]:
        """Return the expected grade of each prompt."""
        law = self._answers.law([key for (key,) in inputs])
        numbers: list[float] = (law @ np.array(list(self.grades.values()))).tolist()
        return numbers


def _told_apart(lm: Host | ChatLM, answers: Sequence[Sequence[str]], name: str) -> Answers | ChatAnswers:
    if hasattr(lm, "first_tokens"):  # the class is not asked for, as it needs what other models do not
        return ChatAnswers(cast("ChatLM", lm), answers, name)
    return Answers(lm, answers, name)


def as_prompt(reward: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Fill a reward's template; a string becomes a user's message where its model has a chat template."""
    made = fill(reward.template, args, named)
    if isinstance(made, str) and reward.lm.chats:
        made = [{"role": "user", "content": made}]
    prompt = as_input(reward.name, made)
    if not isinstance(prompt, str) and isinstance(prompt[0], str):
        raise TypeError(f"reward {reward.name!r} asks with a string or chat messages, not with a pair")
    return prompt

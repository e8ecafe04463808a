"""A process reward model behind a server: scores of all steps of an answer, a wave of answers in one request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ....ppl.errors import ServerError
from ....ppl.sites import short
from ...served.client import Client
from ..base import as_input, messages
from ..stepwise import Aggregate, ProcessReward, Render, Steps
from .endpoint import Endpoint

_SUM = 1e-3
"""How far the probabilities of a server's arithmetic may be from a sum of 1."""


class ServedPRM(ProcessReward):
    """A process reward model behind ``/pooling``: a probability for each step, which a token ends.

    As `StepTokenPRM`, with a model elsewhere. The server must know the token that ends a step; vLLM is started with
    ``--runner pooling --pooler-config '{"tok_pooling_type": "STEP", "step_tag_id": ID}'``. It is asked for logits,
    (bad, good) at each step, of which a step's score is the softmax.

    Args:
        url: of the server, or a `Client`.
        tag: ends each step, as a token of the model.
        logits: whether the server gives logits, if asked; else it gives probabilities, which saturate.
        aggregate: see `ProcessReward`.
        between: stands between steps.
        render: from the question and the steps so far to what the model reads, a string or chat messages, where
            "{question} {step}{tag}{between}{step}{tag}…" is not it. Messages go through the server's chat template.
        model: what the server calls the model; None where it has only one.
        api_key: what lets us in; by default that of the environment, see `Client`.
        max_batch: most answers in a request.
        cache: results remembered.

    A score raises ServerError where the server cannot be reached, UnusableAnswer, which names the token, where it has
    not one score for each step, and ContextOverflow for an answer that is too long.

    >>> from feynkac.models.testing import FakeServer
    >>> with FakeServer(step_token=33) as server:
    ...     prm = ServedPRM(server.url, tag="?", aggregate="min")
    ...     prm("Who", ["The sea.", "The hill."]), len(prm.details([("Who", ["The sea.", "The hill."])])[0])
    (<probability score of prm>, 2)
    """

    def __init__(
        self,
        url: str | Client,
        *,
        tag: str = "<extra_0>",
        logits: bool = True,
        aggregate: Aggregate = "last",
        between: str = "",
        render: Render | None = None,
        model: str | None = None,
        api_key: str | None = None,
        max_batch: int = 1024,
        name: str = "prm",
        cache: int = 10_000,
    ) -> None:
        super().__init__(name, aggregate, between, cache)
        self.tag, self.logits = tag, logits
        fixed = {"task": "token_classify", "use_activation": not logits}
        self._endpoint = Endpoint(url, "/pooling", name, model=model, api_key=api_key, max_batch=max_batch, fixed=fixed)
        self._render = render or (lambda question, steps: f"{question} " + between.join(f"{s}{tag}" for s in steps))

    def detail_batch(self, inputs: Sequence[Any]) -> list[Steps]:
        """Score the steps of some answers, all in one request."""
        made = [as_input(self.name, self._render(question, steps)) for question, steps in inputs]
        chats = [i for i, each in enumerate(made) if not isinstance(each, str)]
        read: list[Any] = list(made)
        for i, ids in zip(chats, self._tokens([messages(made[i]) for i in chats])):  # type: ignore[arg-type]
            read[i] = ids
        items = self._endpoint.ask(input=read)
        return [self._steps(item.get("data"), len(steps)) for item, (_, steps) in zip(items, inputs)]

    def _tokens(self, chats: Sequence[Any]) -> list[list[int]]:
        """Return the tokens of chats, as the server's template has them."""
        if not chats:
            return []
        shape = {"add_generation_prompt": False, "add_special_tokens": False}
        model = {name: value for name, value in self._endpoint.fixed.items() if name == "model"}
        answers = self._endpoint.client.post("/tokenize", [{**model, "messages": chat, **shape} for chat in chats])
        return [answer["tokens"] for answer in answers]

    def _steps(self, given: Any, count: int) -> Steps:
        scores = given if isinstance(given, list) else []
        if len(scores) != count:
            self._endpoint.unusable(
                f"{count} steps were given {len(scores) or 'no'} scores: the server must take {self._tag()} for the "
                "end of a step, and it must stand at the end of each step and nowhere else (tag=, render=); vLLM is "
                'told by --pooler-config \'{"tok_pooling_type": "STEP", "step_tag_id": …}\''
            )
        return tuple(self._score(self._endpoint.numbers(score, "a step's score")) for score in scores)

    def _tag(self) -> str:
        """Return the token as an error names it, with its id if the server tells."""
        try:
            answer = self._endpoint.client.post("/tokenize", [{"prompt": self.tag, "add_special_tokens": False}])[0]
            return f"the token {self.tag!r} ({short(answer['tokens'], 40)})"
        except (ServerError, LookupError, TypeError):
            return f"the token {self.tag!r}"

    def _score(self, numbers: list[float]) -> float:
        """Return the probability that a step is good, of its logits or probabilities: (bad, good), or good alone."""
        if len(numbers) > 2:
            self._endpoint.unusable(f"a step has {len(numbers)} numbers, and not those of bad and good")
        bounded = all(0.0 <= number <= 1.0 for number in numbers)
        if self.logits:
            if len(numbers) == 2 and bounded and math.isclose(sum(numbers), 1.0, abs_tol=_SUM):
                self._endpoint.unusable(
                    f"{numbers} are probabilities, though logits were asked for (use_activation=false), which it does "
                    "not know: say logits=False"
                )
            gap = numbers[-1] - (numbers[0] if len(numbers) == 2 else 0.0)
            return 1.0 / (1.0 + math.exp(-gap)) if gap > -700 else 0.0
        if not bounded:
            self._endpoint.unusable(f"{numbers} are no probabilities: say logits=True")
        return numbers[-1]

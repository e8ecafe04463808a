"""A language model as a judge: the probability that it answers yes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..ppl.cost import charge
from ..ppl.score import Kind, Memory, Score
from .forward import Tally
from .sampling import Sampling, log_mass, warp

if TYPE_CHECKING:
    from .transformers_lm import Message, TransformersLM


class Judge:
    """A yes-or-no question to a language model, as a reward: P(yes) / (P(yes) + P(no)).

    The probabilities are those of the answer's first token.

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

    kind: Kind = "probability"

    def __init__(
        self,
        lm: TransformersLM,
        question: str | Callable[..., str | Sequence[Message]],
        *,
        yes: Sequence[str] = ("Yes", " Yes", "yes", " yes", "YES"),
        no: Sequence[str] = ("No", " No", "no", " no", "NO"),
        name: str = "judge",
        cache: int = 10_000,
    ) -> None:
        self.lm = lm
        self.question = question
        self.name = name
        self.memory = Memory(cache)
        self._yes, self._no = _first_tokens(lm, yes), _first_tokens(lm, no)
        if self._yes & self._no:
            raise ValueError(f"the answers {list(yes)} and {list(no)} begin with the same token of {lm!r}")

    def __call__(self, *args: Any, **named: Any) -> Score:
        """Return the probability of a yes, a lazy score. Texts are judged by their responses."""
        if callable(self.question):
            prompt = self.question(*args, **named)
        else:
            prompt = self.question.format(*args, **({"text": args[0], **named} if args else named))
        if isinstance(prompt, str) and self.lm.chats:
            prompt = [{"role": "user", "content": prompt}]
        key = prompt if isinstance(prompt, str) else tuple((part["role"], part["content"]) for part in prompt)
        return Score(((self, (key,)),), self.kind)

    def __repr__(self) -> str:
        return f"<probability reward {self.name}>"

    def score_batch(self, inputs: Sequence[tuple[Any, ...]]) -> Sequence[float]:
        """Return the probability of a yes to each prompt: a string, or a chat as (role, content) pairs."""
        tally = Tally(len(inputs))
        texts = [
            self.lm.prompt(key if isinstance(key, str) else [{"role": r, "content": c} for r, c in key])
            for (key,) in inputs
        ]
        nodes = [text.node for text in texts if text.node is not None]
        with torch.inference_mode():
            logits = warp(self.lm.forwarder.next_logits(nodes, np.arange(len(nodes)), tally), Sampling())
            yes, no = (log_mass(logits, self._among(tokens, logits)) for tokens in (self._yes, self._no))
        charge(model_calls=tally.calls, tokens_in=tally.tokens_in)
        result: list[float] = (1.0 / (1.0 + np.exp(np.clip(no - yes, -700, 700)))).tolist()
        return result

    def _among(self, tokens: set[int], logits: Any) -> Any:
        mask = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        mask[list(tokens)] = True
        return mask


def _first_tokens(lm: TransformersLM, answers: Sequence[str]) -> set[int]:
    """Return the tokens of the answers that are one token, or the first tokens where none is."""
    encoded = [tokens for answer in answers if (tokens := lm.encode(answer))]
    return {tokens[0] for tokens in encoded if len(tokens) == 1} or {tokens[0] for tokens in encoded}

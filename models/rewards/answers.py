"""Prompts to a language model, and which of some answers it would give, by the law of the answer's first token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ...ppl.cost import charge
from ...ppl.errors import ContextOverflow
from ...ppl.sites import short
from ..forward import Tally
from ..tree import Node
from .base import Input, messages

if TYPE_CHECKING:
    from ..text import Text
    from ..transformers_lm import TransformersLM


def ask(lm: TransformersLM, prompt: Input, name: str) -> Text:
    """Return a prompt as a text. Raises ContextOverflow, naming the reward."""
    try:
        return lm.prompt(prompt if isinstance(prompt, str) else messages(prompt))  # type: ignore[arg-type]
    except ContextOverflow as error:
        raise ContextOverflow(f"reward {name!r}, {short(prompt, 80)}: {error}") from error


class Answers:
    """Answers that a model may give, told apart by their first token.

    A prompt is encoded as a whole; then it hangs in the token tree from its first token, so that what it has in
    common with other prompts of the wave, or with those of the wave before, is forwarded once.

    Args:
        lm: the model asked.
        answers: for each answer, ways to write it; those that are one token of the model count, or the first
            token where none is.
        name: of the reward, for messages.

    Raises ValueError where two answers begin with the same token, or one has none.
    """

    def __init__(self, lm: TransformersLM, answers: Sequence[Sequence[str]], name: str) -> None:
        self.lm = lm
        self.name = name
        self._held: list[Node] = []
        self._tokens = [sorted(_first_tokens(lm, ways)) for ways in answers]
        known: dict[int, Sequence[str]] = {}
        for ways, tokens in zip(answers, self._tokens):
            if not tokens:
                raise ValueError(f"reward {name!r}: the answer {list(ways)} has no token of {lm!r}")
            for token in tokens:
                if known.setdefault(token, ways) is not ways:
                    raise ValueError(
                        f"reward {name!r}: the answers {list(known[token])} and {list(ways)} begin with the same token "
                        f"of {lm!r}; choose answers that differ in the first"
                    )

    def law(self, prompts: Sequence[Input], add: bool = False) -> NDArray[np.float64]:
        """Return the probability of each answer, given that it is one of them: shape (n, answers).

        What was forwarded is kept until the next wave; ``add`` says that this one still goes on.
        """
        nodes = [self._hang(ask(self.lm, prompt, self.name)) for prompt in prompts]
        self._held = self._held + nodes if add else nodes
        tally = Tally(len(nodes))
        with torch.inference_mode():
            logits = self.lm.forwarder.next_logits(nodes, np.arange(len(nodes)), tally).double()
        charge(model_calls=tally.calls, tokens_in=tally.tokens_in)
        mass = torch.stack([logits[:, tokens].logsumexp(-1) for tokens in self._tokens], dim=-1)
        law: NDArray[np.float64] = mass.softmax(-1).cpu().numpy()
        return law

    def _hang(self, text: Text) -> Node:
        node = text.node
        assert node is not None
        if node.source:  # an encoder has read it, in both directions
            return node
        return self.lm.tree.extend(self.lm.tree.root(text.prompt_tokens[:1]), text.prompt_tokens[1:])


def _first_tokens(lm: TransformersLM, ways: Sequence[str]) -> set[int]:
    encoded = [tokens for way in ways if (tokens := lm.encode(way))]
    return {tokens[0] for tokens in encoded if len(tokens) == 1} or {tokens[0] for tokens in encoded}

"""Prompts to a language model, and which of some answers it would give, by the law of the answer's first token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ....ppl.cost import charge
from ....ppl.distributions.batching import groups
from ....ppl.errors import CannotWrite, ContextOverflow
from ....ppl.sites import short
from ...language.drawing.sampling import Sampling
from ...language.host import Host, Tally, require
from ...language.texts.text import Text
from ...language.texts.tree import Node, Tree
from ..base import Input, messages

Firsts: TypeAlias = tuple[tuple[int, ...], ...]
"""The tokens that each of some answers may begin with."""


def ask(lm: Host, prompt: Input, name: str) -> Text:
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
        answers: for each answer, ways to write it; those that are one token of the model after the prompt count, or the
            first token where none is. What the tokenizer cannot write is left out.
        name: of the reward, for messages.
        alone: whether the tokens are those of the answers by themselves, whatever the prompt ends with.

    Raises ValueError where two answers begin with the same token, or one has none, and Unsupported for a model that
    gives no law of the next token, nor of a few tokens.
    """

    def __init__(self, lm: Host, answers: Sequence[Sequence[str]], name: str, *, alone: bool = False) -> None:
        require(lm, "few", f"reward {name!r}")
        self.lm = lm
        self.name = name
        self._answers = [tuple(ways) for ways in answers]
        self._alone = alone
        self._held: list[Node] = []
        question: Input = (("user", "?"),) if lm.chats else "?"
        self._tokens(ask(lm, question, name))  # what cannot be told apart is refused before anything is asked

    @property
    def journal_key(self) -> Any:
        """The answers, as they may be written."""
        return (self._answers, self._alone)

    def law(self, prompts: Sequence[Input], add: bool = False) -> NDArray[np.float64]:
        """Return the probability of each answer, given that it is one of them: shape (n, answers).

        What was forwarded is kept until the next wave; ``add`` says that this one still goes on.
        """
        texts = [ask(self.lm, prompt, self.name) for prompt in prompts]
        tokens = [self._tokens(text) for text in texts]
        nodes = [self._hang(text) for text in texts]
        self._held = self._held + nodes if add else nodes
        tally = Tally(len(nodes))
        law = np.empty((len(nodes), len(self._answers)))
        weigh = self._weigh_laws if "law" in self.lm.offers else self._weigh_few
        weigh(nodes, tokens, tally, law)
        charge(**tally.amounts)
        return law

    def _weigh_laws(self, nodes: list[Node], tokens: list[Firsts], tally: Tally, law: NDArray[np.float64]) -> None:
        import torch

        def weigh(found: NDArray[np.intp], logits: Any) -> None:
            for rows in groups(tokens[i] for i in found):  # one, where all prompts end alike
                part, firsts = logits[rows].double(), tokens[found[rows[0]]]
                mass = torch.stack([part[:, list(first)].logsumexp(-1) for first in firsts], dim=-1)
                law[found[rows]] = mass.softmax(-1).cpu().numpy()

        self.lm.laws(nodes, np.arange(len(nodes)), tally, weigh)

    def _weigh_few(self, nodes: list[Node], tokens: list[Firsts], tally: Tally, law: NDArray[np.float64]) -> None:
        asked = [[token for first in firsts for token in first] for firsts in tokens]
        found = self.lm.few(nodes, asked, [Sampling()] * len(nodes), np.arange(len(nodes)), tally)
        for i, (firsts, log_probs) in enumerate(zip(tokens, found)):
            ends = np.cumsum([len(first) for first in firsts])[:-1]
            mass = np.array([np.logaddexp.reduce(part) for part in np.split(log_probs, ends)])
            law[i] = np.exp(mass - np.logaddexp.reduce(mass))

    def _tokens(self, text: Text) -> Firsts:
        """Return the tokens that each answer may begin with after a prompt."""
        after = None if self._alone else text
        found = tuple(tuple(sorted(_first_tokens(self.lm, ways, after))) for ways in self._answers)
        known: dict[int, Sequence[str]] = {}
        for ways, tokens in zip(self._answers, found):
            if not tokens:
                raise ValueError(f"reward {self.name!r}: the answer {list(ways)} has no token of {self.lm!r}")
            for token in tokens:
                if known.setdefault(token, ways) is not ways:
                    raise ValueError(
                        f"reward {self.name!r}: the answers {list(known[token])} and {list(ways)} begin with the same "
                        f"token of {self.lm!r}; choose answers that differ in the first"
                    )
        return found

    def _hang(self, text: Text) -> Node:
        node = text.node
        assert node is not None
        if node.source:  # an encoder has read it, in both directions
            return node
        tree: Tree[Node] = self.lm.tree
        return tree.extend(tree.root(text.prompt_tokens[:1]), text.prompt_tokens[1:])


def _first_tokens(lm: Host, ways: Sequence[str], after: Text | None) -> set[int]:
    encoded = [tokens for way in ways if (tokens := _written(lm, way, after))]
    return {tokens[0] for tokens in encoded if len(tokens) == 1} or {tokens[0] for tokens in encoded}


def _written(lm: Host, way: str, after: Text | None) -> tuple[int, ...]:
    """Return the tokens of an answer; none where the tokenizer cannot write it."""
    try:
        return lm.encode(way, after)
    except CannotWrite:
        return ()

"""What texts, steps, scores and rewards ask of the language model that they belong to: all that they know of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...ppl.model import Kernel
from .sampling import Sampling
from .text import Model, Text
from .tree import Node, Tree


class Tally:
    """What a call used: forward passes, and positions forwarded for each of its ``n`` requests."""

    def __init__(self, n: int) -> None:
        self.calls = 0
        self.tokens_in: NDArray[np.int64] = np.zeros(n, np.int64)
        self.tokens_out: NDArray[np.int64] = np.zeros(n, np.int64)

    @property
    def amounts(self) -> dict[str, Any]:
        """The amounts to be charged."""
        return {"model_calls": self.calls, "tokens_in": self.tokens_in, "tokens_out": self.tokens_out}

    @property
    def sums(self) -> dict[str, int]:
        """The amounts to be charged where they belong to the call as a whole, and nothing was drawn."""
        return {"model_calls": self.calls, "tokens_in": int(self.tokens_in.sum())}


class Forwarded(Protocol):
    """A history that went through the model."""

    @property
    def node(self) -> Node:
        """The history."""

    @property
    def cost(self) -> int:
        """All positions forwarded for it."""


Sink = Callable[[Sequence[Forwarded], Any], None]


class Passes(Protocol):
    """The forward passes of a model over its token tree."""

    def next_logits(self, nodes: Sequence[Node], owners: NDArray[np.intp], tally: Tally) -> Any:
        """Return the next-token logits after each history, a float32 tensor (n, V).

        What is forwarded is charged to ``owners[i]`` of the first that needs it.
        """

    def all_logits(self, nodes: Sequence[Node], first: Sequence[int], sink: Sink) -> int:
        """Forward histories; ``sink`` gets the logits at positions ``first[i]`` on. Returns the passes made."""

    def stretch(self, first: int, end: int) -> int:
        """Return how far, at most to ``end``, one pass over a whole serves its positions from ``first`` on."""


class Host(Model, Protocol):
    """A language model as its own texts, steps and scores see it; `TransformersLM` is one."""

    vocab_size: int
    sampling: Sampling
    tokenizer: Any
    eos: frozenset[int]
    context: int | None
    prompt_context: int | None
    tree: Tree

    @property
    def forwarder(self) -> Passes:
        """What runs the model."""

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template."""

    def version(self) -> int:
        """Return a number that is another one whenever the model has been seen to change."""

    def prompt(self, prompt: Any) -> Text:
        """Return a text with an empty response."""

    def attach(self, text: Text) -> Text:
        """Return an equal text that belongs to this model."""

    def encode(self, string: str, after: Text | None = None) -> tuple[int, ...]:
        """Return the tokens of a string, after a text or alone."""

    def spelled(self, tokens: Iterable[int]) -> list[str]:
        """Return how tokens are spelled."""

    def finish_reason(self, node: Node, last: int) -> Any:
        """Return why a history is finished, or None."""

    def complete(self, text: Text, *, max_tokens: int = 256, **sampling: Any) -> Kernel:
        """Return the kernel of the rest of the response."""

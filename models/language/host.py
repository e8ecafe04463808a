"""What steps and scores need of the language model that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from ..local.forward import Forwarder
from .sampling import Sampling
from .text import Text
from .tree import Node, Tree


class Host(Protocol):
    """A language model as its own steps and scores see it; `TransformersLM` is one."""

    identity: str
    vocab_size: int
    sampling: Sampling
    tokenizer: Any
    eos: frozenset[int]
    context: int | None
    tree: Tree
    forwarder: Forwarder

    def version(self) -> int:
        """Return a number that is another one whenever the model has been seen to change."""

    def attach(self, text: Text) -> Text:
        """Return an equal text that belongs to this model."""

    def append(self, text: Text, string: str) -> Text:
        """Return the text with a given string added."""

    def encode(self, string: str, after: Text | None = None) -> tuple[int, ...]:
        """Return the tokens of a string, after a text or alone."""

    def spelled(self, tokens: Iterable[int]) -> list[str]:
        """Return how tokens are spelled."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the string of some tokens."""

    def finish_reason(self, node: Node, last: int) -> Any:
        """Return why a history is finished, or None."""

"""What a local model remembers of a history: where its keys and values stand, its state, its logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from weakref import WeakSet

from ...language.texts.tree import Node, Tree


class History(Node):
    """A history of tokens, and what is held in memory of it.

    Attributes:
        stem: of a prompt, a shorter one that it shares its beginning with and that was forwarded for all.
        row: the row or trunk of the KV store that holds this history as a prefix, if any does.
        logits: the kept next-token logits as (wave, index), if any are.
        state: the kept recurrent state (or, of a prompt, what its encoder gave) as (wave, index), if any is.
        forwarded: the mark (see `Forwarder.mark`) with which its last token or its prompt went through the model.
    """

    __slots__ = ("forwarded", "logits", "row", "state", "stem")

    def __init__(
        self, parent: History | None, token: int, prompt: tuple[int, ...] = (), source: tuple[int, ...] = ()
    ) -> None:
        super().__init__(parent, token, prompt, source)
        self.stem: History | None = None
        self.row: Any = None
        self.logits: tuple[Any, int] | None = None
        self.state: tuple[Any, int] | None = None
        self.forwarded = 0

    @property
    def above(self) -> History | None:
        """The longest shorter history that the tree knows: the parent, or the stem of a prompt."""
        return self.stem if self.parent is None else self.parent


class Histories(Tree[History]):
    """The token tree of a local model.

    Attributes:
        stems: beginnings that several prompts share.
    """

    def __init__(self) -> None:
        super().__init__(History)
        self.stems: WeakSet[History] = WeakSet()


def histories(nodes: Sequence[Node]) -> Sequence[History]:
    """Return nodes of a local model's tree as what they are."""
    return cast("Sequence[History]", nodes)

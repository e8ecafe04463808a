"""The token tree: every text is a path from its prompt, and equal histories share their nodes.

A node is one token (or, at the root, a whole prompt) and its parent. Nodes are interned, so what is known
about a history (its place in the KV cache, its next-token logits) is known to every text that passes through
it, and goes when the last of them goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock
from typing import Any
from weakref import WeakSet, WeakValueDictionary


class Node:
    """One history of tokens. Made by `Tree`; two nodes of a tree are equal only if they are the same.

    Attributes:
        parent: the history before the last token; None for a prompt.
        token: the last token; −1 for a prompt.
        prompt: the tokens of a prompt; empty for the others.
        source: what an encoder reads, where the prompt is only how the decoder begins; else empty.
        root: the prompt that the history begins with; None for a prompt itself.
        stem: of a prompt, a shorter one that it shares its beginning with and that was forwarded for all.
        length: tokens in the whole history.
        digest: a rolling hash of all tokens.
        row: the row of the KV store that holds this history as a prefix, if any does.
        logits: the kept next-token logits as (wave, index), if any are.
        state: the kept recurrent state (or, of a prompt, what its encoder gave) as (wave, index), if any is.
        forwarded: whether the history's last token (or its prompt) has been through the model.
    """

    __slots__ = (
        "__weakref__", "digest", "forwarded", "length", "logits", "parent", "prompt", "root", "row", "source",
        "state", "stem", "token",
    )  # fmt: skip

    def __init__(
        self, parent: Node | None, token: int, prompt: tuple[int, ...] = (), source: tuple[int, ...] = ()
    ) -> None:
        self.parent = parent
        self.token = token
        self.prompt = prompt
        self.source = source
        self.root: Node | None = None if parent is None else parent.top
        self.stem: Node | None = None
        self.length: int = len(prompt) if parent is None else parent.length + 1
        self.digest: int = hash(source or prompt) if parent is None else hash((parent.digest, token))
        self.row: Any = None
        self.logits: tuple[Any, int] | None = None
        self.state: tuple[Any, int] | None = None
        self.forwarded = False

    def __repr__(self) -> str:
        return f"<Node of {self.length} tokens>"

    @property
    def top(self) -> Node:
        """The prompt that the history begins with, or is."""
        return self if self.root is None else self.root

    @property
    def above(self) -> Node | None:
        """The longest shorter history that the tree knows: the parent, or the stem of a prompt."""
        return self.stem if self.parent is None else self.parent

    def tokens(self, start: int = 0) -> tuple[int, ...]:
        """Return the tokens of the history from position ``start`` on."""
        back: list[int] = []
        node = self
        while node.parent is not None and node.length > start:
            back.append(node.token)
            node = node.parent
        return node.prompt[start:] + tuple(reversed(back))

    def ancestor(self, length: int) -> Node:
        """Return the history's prefix of ``length`` tokens, or the prompt where that is longer."""
        node = self
        while node.length > length and node.parent is not None:
            node = node.parent
        return node


class Tree:
    """Interns nodes weakly: the tree holds no history that no text holds. Threads may share it.

    >>> tree = Tree()
    >>> root = tree.root((1, 2))
    >>> tree.extend(root, (3, 4)) is tree.child(tree.child(root, 3), 4)
    True
    """

    def __init__(self) -> None:
        self._roots: WeakValueDictionary[tuple[tuple[int, ...], tuple[int, ...]], Node] = WeakValueDictionary()
        self.stems: WeakSet[Node] = WeakSet()
        self._lock = Lock()
        # The id of a parent cannot be reused while a child lives, since the child holds its parent.
        self._children: WeakValueDictionary[tuple[int, int], Node] = WeakValueDictionary()

    def root(self, tokens: tuple[int, ...], source: tuple[int, ...] = ()) -> Node:
        """Return the node of a prompt; ``source`` is what an encoder reads before it, if there is one."""
        with self._lock:
            node = self._roots.get((tokens, source))
            if node is None:
                node = self._roots[tokens, source] = Node(None, -1, tokens, source)
        return node

    def child(self, parent: Node, token: int) -> Node:
        """Return the history of ``parent`` and one more token."""
        key = (id(parent), token)
        with self._lock:
            node = self._children.get(key)
            if node is None:
                node = self._children[key] = Node(parent, token)
        return node

    def extend(self, parent: Node, tokens: Iterable[int]) -> Node:
        """Return the history of ``parent`` and more tokens."""
        for token in tokens:
            parent = self.child(parent, token)
        return parent

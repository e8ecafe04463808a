"""The token tree: every text is a path from its prompt, and equal histories share their nodes.

A node is one token (or, at the root, a whole prompt) and its parent. Nodes are interned, so what a model
knows about a history is known to every text that passes through it, and goes when the last of them goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock
from typing import Generic, Self, TypeVar
from weakref import WeakValueDictionary


class Node:
    """One history of tokens. Made by `Tree`; two nodes of a tree are equal only if they are the same.

    Attributes:
        parent: the history before the last token; None for a prompt.
        token: the last token; −1 for a prompt.
        prompt: the tokens of a prompt; empty for the others.
        source: what an encoder reads, where the prompt is only how the decoder begins; else empty.
        root: the prompt that the history begins with; None for a prompt itself.
        length: tokens in the whole history.
        digest: a rolling hash of all tokens.
    """

    __slots__ = ("__weakref__", "digest", "length", "parent", "prompt", "root", "source", "token")

    def __init__(
        self, parent: Self | None, token: int, prompt: tuple[int, ...] = (), source: tuple[int, ...] = ()
    ) -> None:
        self.parent = parent
        self.token = token
        self.prompt = prompt
        self.source = source
        self.root: Self | None = None if parent is None else parent.top
        self.length: int = len(prompt) if parent is None else parent.length + 1
        self.digest: int = hash(source or prompt) if parent is None else hash((parent.digest, token))

    def __repr__(self) -> str:
        return f"<Node of {self.length} tokens>"

    @property
    def top(self) -> Self:
        """The prompt that the history begins with, or is."""
        return self if self.root is None else self.root

    def tokens(self, start: int = 0) -> tuple[int, ...]:
        """Return the tokens of the history from position ``start`` on."""
        back: list[int] = []
        node = self
        while node.parent is not None and node.length > start:
            back.append(node.token)
            node = node.parent
        return node.prompt[start:] + tuple(reversed(back))

    def ancestor(self, length: int) -> Self:
        """Return the history's prefix of ``length`` tokens, or the prompt where that is longer."""
        node = self
        while node.length > length and node.parent is not None:
            node = node.parent
        return node


N = TypeVar("N", bound=Node)


class Tree(Generic[N]):
    """Interns nodes weakly: the tree holds no history that no text holds. Threads may share it.

    Args:
        make: makes a node, as `Node` does; that of a model which remembers more of a history has room for it.

    >>> tree = Tree(Node)
    >>> root = tree.root((1, 2))
    >>> tree.extend(root, (3, 4)) is tree.child(tree.child(root, 3), 4)
    True
    """

    def __init__(self, make: Callable[..., N]) -> None:
        self._make = make
        self._roots: WeakValueDictionary[tuple[tuple[int, ...], tuple[int, ...]], N] = WeakValueDictionary()
        self._lock = Lock()
        # The id of a parent cannot be reused while a child lives, since the child holds its parent.
        self._children: WeakValueDictionary[tuple[int, int], N] = WeakValueDictionary()

    def root(self, tokens: tuple[int, ...], source: tuple[int, ...] = ()) -> N:
        """Return the node of a prompt; ``source`` is what an encoder reads before it, if there is one."""
        with self._lock:
            node = self._roots.get((tokens, source))
            if node is None:
                node = self._roots[tokens, source] = self._make(None, -1, tokens, source)
        return node

    def child(self, parent: N, token: int) -> N:
        """Return the history of ``parent`` and one more token."""
        key = (id(parent), token)
        with self._lock:
            node = self._children.get(key)
            if node is None:
                node = self._children[key] = self._make(parent, token)
        return node

    def extend(self, parent: N, tokens: Iterable[int]) -> N:
        """Return the history of ``parent`` and more tokens."""
        for token in tokens:
            parent = self.child(parent, token)
        return parent

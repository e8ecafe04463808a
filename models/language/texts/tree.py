"""The token tree: every text is a path from its prompt, and equal histories share their nodes.

A node is one token (or, at the root, a whole prompt) and its parent. Nodes are interned, so what a model
knows about a history is known to every text that passes through it, and goes when the last of them goes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Generic, Self, TypeVar
from weakref import WeakValueDictionary, ref


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

    __slots__ = (
        "__weakref__", "_beside", "_response", "digest", "length", "parent", "prompt", "root", "source", "token",
    )  # fmt: skip

    def __init__(
        self, parent: Self | None, token: int, prompt: tuple[int, ...] = (), source: tuple[int, ...] = ()
    ) -> None:
        self.parent = parent
        self.token = token
        self.prompt = prompt
        self.source = source
        self.root: Self | None
        self._response: tuple[int, ...] | None
        if parent is None:
            self.root, self._response = None, ()
            self.length, self.digest = len(prompt), hash(source or prompt)
        else:
            self.root, self._response = parent.root or parent, None
            self.length, self.digest = parent.length + 1, hash((parent.digest, token))

    def __repr__(self) -> str:
        return f"<Node of {self.length} tokens>"

    @property
    def top(self) -> Self:
        """The prompt that the history begins with, or is."""
        return self if self.root is None else self.root

    @property
    def response(self) -> tuple[int, ...]:
        """The tokens after the prompt, remembered: asked for step by step, only the new ones are looked up."""
        back: list[int] = []
        node = self
        while node._response is None:
            back.append(node.token)
            assert node.parent is not None
            node = node.parent
        if back:
            self._response = node._response + tuple(reversed(back))
        assert self._response is not None
        return self._response

    def beside(self, other: Node) -> None:
        """Hold a node of another model's tree, of the same history, for as long as this one is held."""
        if other is self:
            return
        held: tuple[Node, ...] = getattr(self, "_beside", ())
        if other not in held:
            self._beside = (*held, other)

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


class _Place(ref[N]):
    """Where a child is in a tree that does not hold it. (A ``WeakValueDictionary`` would do, at twice the time.)"""

    __slots__ = ("key",)
    key: tuple[int, int]


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
        self._children: dict[tuple[int, int], _Place[N]] = {}
        self._gone: deque[_Place[N]] = deque()
        self._forget = self._gone.append

    def root(self, tokens: tuple[int, ...], source: tuple[int, ...] = ()) -> N:
        """Return the node of a prompt; ``source`` is what an encoder reads before it, if there is one."""
        with self._lock:
            node = self._roots.get((tokens, source))
            if node is None:
                node = self._roots[tokens, source] = self._make(None, -1, tokens, source)
        return node

    def child(self, parent: N, token: int) -> N:
        """Return the history of ``parent`` and one more token."""
        key, children, gone = (id(parent), token), self._children, self._gone
        with self._lock:
            while gone:
                place = gone.popleft()
                if children.get(place.key) is place:  # no other has taken it
                    del children[place.key]
            known = children.get(key)
            node = None if known is None else known()
            if node is None:
                node = self._make(parent, token)
                children[key] = place = _Place(node, self._forget)
                place.key = key
        return node

    def extend(self, parent: N, tokens: Iterable[int]) -> N:
        """Return the history of ``parent`` and more tokens."""
        for token in tokens:
            parent = self.child(parent, token)
        return parent

"""The tokens that a potential speaks of, so that potentials over different ones are refused."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from ..language.host import Host


@dataclass(frozen=True)
class Vocabulary:
    """The tokens 0 … V−1 of a tokenizer, and the end, which is entry V of every row of weights.

    Two are equal where the same ids stand for the same strings; their names and end tokens may differ.

    Attributes:
        size: V.
        digest: a hash of the strings; empty for tokens without any.
        name: in messages.

    >>> Vocabulary(3) == Vocabulary(3, name="toy"), Vocabulary(3) == Vocabulary(4)
    (True, False)
    """

    size: int
    digest: str = ""
    name: str = field(default="tokens", compare=False)

    @classmethod
    def of(cls, lm: Host) -> Vocabulary:
        """Return the tokens of a language model's tokenizer.

        Ids that the model has and the tokenizer does not (padding of the matrix) are left out.
        """
        tokenizer = lm.tokenizer
        known = _known.setdefault(tokenizer, {})
        if lm.vocab_size not in known:
            ids = tokenizer.get_vocab()
            strings = "\0".join(f"{i}\1{string}" for i, string in sorted((i, string) for string, i in ids.items()))
            digest = hashlib.sha256(strings.encode("utf-8", "surrogatepass")).hexdigest()
            known[lm.vocab_size] = min(lm.vocab_size, max(ids.values()) + 1), digest
        size, digest = known[lm.vocab_size]
        return cls(size, digest, f"the tokenizer of {lm.identity}")

    def require(self, other: Vocabulary) -> None:
        """Raise ValueError, naming both, unless the other is the same."""
        if self != other:
            raise ValueError(
                f"{self.name} ({self.size} tokens) and {other.name} ({other.size} tokens) are not the same tokens: "
                "potentials that go together must be made for the same tokenizer"
            )


_known: WeakKeyDictionary[Any, dict[int, tuple[int, str]]] = WeakKeyDictionary()

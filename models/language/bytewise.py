"""Tokenizers that read tokens as bytes, one after another, as most do today: decoded here, in a tenth of the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any


class Bytes(dict[int, bytes]):
    """The bytes of each token of a tokenizer, found as they are asked for; none for the special ones.

    Args:
        tokenizer: of transformers.
        size: how many of its tokens are known.
        read: how it decodes tokens.
    """

    def __init__(self, tokenizer: Any, size: int, read: Callable[[Sequence[int]], str]) -> None:
        super().__init__()
        self._size = size if _bytewise(tokenizer) else 0
        self._spelled = tokenizer.convert_ids_to_tokens
        self._read = read

    def __missing__(self, token: int) -> bytes:
        """Raises KeyError for a token that is not known, or does not read as its bytes alone."""
        if not 0 <= token < self._size:
            raise KeyError(token)
        string = self._read((token,))
        letters, spelled = _letters(), self._spelled(token) if string else ""
        # As the tokenizer does: a token with a letter that stands for no byte is taken as it is.
        found = bytes(map(letters.__getitem__, spelled)) if letters.keys() >= set(spelled) else spelled.encode()
        if found.decode(errors="replace") != string:
            raise KeyError(token)
        self[token] = found
        return found


def _bytewise(tokenizer: Any) -> bool:
    """Return whether a tokenizer decodes tokens as those of transformers do, and as bytes, one after another."""
    kind = type(tokenizer)
    plain = all(
        getattr(getattr(kind, name, None), "__module__", "").startswith("transformers.tokenization_utils")
        for name in ("decode", "_decode")
    )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return plain and type(getattr(backend, "decoder", None)).__name__ == "ByteLevel"


@cache
def _letters() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for: itself, or one that cannot be printed."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}

"""Tokenizers that read tokens as bytes, one after another, as most do today: decoded here, in a tenth of the time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from ....ppl.errors import Unsupported

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_PROBES = ("Once upon a time, there was", "it's naïve\n\n 3+4=7 …", "def f(x):\n    return x", "日本 ")


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
        signs, spelled = letters(), self._spelled(token) if string else ""
        # As the tokenizer does: a token with a letter that stands for no byte is taken as it is.
        found = bytes(map(signs.__getitem__, spelled)) if signs.keys() >= set(spelled) else spelled.encode()
        if found.decode(errors="replace") != string:
            raise KeyError(token)
        self[token] = found
        return found


def spellings(tokenizer: Any, size: int, read: Callable[[Sequence[int]], str]) -> tuple[bytes, ...]:
    """Return the bytes that each token stands for within a text, (V,); none for those that are not displayed.

    They are those of a tokenizer that decodes tokens as bytes, one after another, or of one with SentencePiece's signs:
    ``▁`` for a space and ``<0x0A>`` for a byte. ``read`` decodes tokens as they read after a word.

    Raises Unsupported for other tokenizers, whose strings are not those of their tokens, one after another.
    """
    hidden = set(tokenizer.all_special_ids) | {
        token for token, what in getattr(tokenizer, "added_tokens_decoder", {}).items() if what.special
    }
    signs = letters() if _bytewise(tokenizer) else {}
    last = max(tokenizer.get_vocab().values())  # there may be ids before it that stand for nothing
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(size, last + 1))))
    found = [b"" if token in hidden or not piece else _spelled(piece, signs) for token, piece in enumerate(pieces)]
    for string in _PROBES:
        tokens = tokenizer(string, add_special_tokens=False).input_ids
        if any(token >= len(found) for token in tokens):
            continue
        if b"".join(found[token] for token in tokens).decode(errors="replace") != read(tokens):
            raise Unsupported(
                f"{type(tokenizer).__name__} does not decode tokens as bytes, one after another, so that texts have no "
                "law over bytes: use a model with a byte-level or SentencePiece tokenizer"
            )
    return (*found, *[b""] * (size - len(found)))


def _spelled(piece: str, signs: dict[str, int]) -> bytes:
    if signs:
        return bytes(map(signs.__getitem__, piece)) if signs.keys() >= set(piece) else piece.encode()
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode("utf-8", "surrogatepass")


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
def letters() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for: itself, or one that cannot be printed."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}

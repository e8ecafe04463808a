"""Strings to tokens and back: alone, as a prompt is, or after what a text holds already.

A tokenizer reads a string by what stands before it: that of Llama-2 puts a space before a string that stands alone,
that of BERT gives the rest of a word tokens of its own. So what is added to a text is encoded together with the end of
the text, and the tokens beyond that end are taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

from ....ppl.errors import CannotWrite
from ....ppl.sites import short
from .bytewise import Bytes

Tokens = tuple[int, ...]
_WINDOW = 32
"""Most tokens of a text that a string is encoded together with: tokenizers look back a word or two."""
_REMEMBERED = 4096
_LEADS = ("", "\n", "a", ".")
"""What a string is encoded after where its own place will not do: nothing, a new line, a word, a stop."""
_CHARACTER = 4
"""Most tokens of an unfinished character."""
_PARTS = ("normalizer", "pre_tokenizer", "model", "decoder")
"""Of a tokenizer of the tokenizers library: what decides how strings become tokens, and tokens strings."""
_PROBES = ("Once upon a time, 12345 + 67.", " a  b\n\n\tc", "Übermäßig 日本語 🎉", "x = f(y)")
_ROLES = ("bos", "eos", "pad", "sep", "cls", "mask")


class Codec:
    """A tokenizer, and what it makes of strings for one model.

    Args:
        tokenizer: a tokenizer of transformers.
        size: how many tokens the model knows.
        name: of the model, for messages.
        unknown: whether the token for what the tokenizer does not know will do.

    Attributes:
        hidden: the special tokens, which are not displayed, and how they are spelled.
        special: those of them that are read where they are spelled.

    >>> from feynkac.models.testing import tiny_tokenizer
    >>> codec = Codec(tiny_tokenizer(), 300, "tiny")
    >>> codec.decode(codec.follow(codec.encode("The sea"), " said<eos>")), codec.special["<eos>"]
    (' said', 1)
    """

    def __init__(self, tokenizer: Any, size: int, name: str, *, unknown: bool = False) -> None:
        self.tokenizer = tokenizer
        self.size = size
        self.name = name
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._unknown = {tokenizer.unk_token_id} - {getattr(tokenizer, f"{role}_token_id") for role in _ROLES} - {None}
        marked = {token for token, what in added.items() if what.special} | set(tokenizer.all_special_ids)
        marked = {token for token in marked - self._unknown if not self._raw((token,))}
        self._unknown = set() if unknown else self._unknown
        self.hidden: dict[int, str] = {token: tokenizer.convert_ids_to_tokens(token) for token in sorted(marked)}
        spelled = {} if getattr(tokenizer, "split_special_tokens", False) else self.hidden
        self.special: dict[str, int] = {string: token for token, string in spelled.items()}
        self._split = _splitter([(string, added.get(token)) for token, string in spelled.items()])
        self._word = self._find_word()
        self.anew = self._find_anew()
        self._remembered = lru_cache(_REMEMBERED)(self._write)
        self._bytes = Bytes(tokenizer, 0 if self.anew else size, self._raw)

    # What stands alone

    def encode(self, string: str) -> Tokens:
        """Return the tokens of a string that stands alone, with none added before or after it.

        Raises TypeError for what is no string, ValueError for a lone surrogate and for tokens that the model lacks.
        """
        return self.known(self.tokens(check_string(string)), short(string, 80))

    def known(self, tokens: Sequence[int], what: str) -> Tokens:
        """Return tokens as they are. Raises ValueError for one that the model does not know."""
        for token in tokens:
            if not 0 <= token < self.size:
                raise ValueError(
                    f"{what} has the token {token}, but {self.name} knows the tokens 0 to {self.size - 1}: "
                    "use the tokenizer that belongs to the model, or model.resize_token_embeddings(len(tokenizer))"
                )
        return tuple(tokens)

    def tokens(self, string: str) -> Tokens:
        """Return what the tokenizer itself makes of a string."""
        return tuple(self.tokenizer(string, add_special_tokens=False).input_ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the string of tokens that stand alone, special ones left out."""
        with contextlib.suppress(KeyError):
            return self.joined(tokens)
        if not self.anew or self.hidden.keys().isdisjoint(tokens):
            return self._raw(tokens)
        ends = [i for i, token in enumerate(tokens) if token in self.hidden]
        pairs = zip([-1, *ends], [*ends, len(tokens)])
        return "".join(self._raw(tokens[start + 1 : end]) for start, end in pairs)

    def joined(self, tokens: Sequence[int]) -> str:
        """Return the string of tokens that read as bytes, one after another. Raises KeyError where one does not."""
        known = self._bytes
        return b"".join([known[token] for token in tokens]).decode(errors="replace")

    def decode_inside(self, tokens: Sequence[int]) -> str:
        """Return the string of tokens as they read after a word."""
        return self.decode((*self._word, *tokens))[len(self._raw(self._word)) :]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokenizer: where two are equal, the same tokens read as the same strings.

        It is of the vocabulary with its merges, the special tokens, and how strings are made ready and put together
        again; not of what is put round a prompt. Of a tokenizer in Python the vocabulary and some probes must do.
        """
        try:
            raw = self.tokenizer.backend_tokenizer
            parts = [None if part is None else part.__getstate__() for part in (getattr(raw, name) for name in _PARTS)]
            parts += map(str, sorted(raw.get_added_tokens_decoder().items()))
        except Exception:  # there is none, or a part of it is written in Python
            parts = [type(self.tokenizer).__name__, *sorted(self.tokenizer.get_vocab().items())]
            parts += [(tokens, self._raw(tokens)) for tokens in map(self.tokens, _PROBES)]
        said = repr((parts, sorted(self.hidden.items())))
        return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    # What follows

    def follow(self, history: Sequence[int], string: str, first: bool = True, lost: str = "") -> Tokens:
        """Return the tokens of a string that comes after others, which stay as they are.

        They are those that the tokenizer gives to it in that place, special tokens where they are spelled. Where it
        would make one token of the end of the history and a part of the string, or has no token for a part, tokens are
        taken that read as the string all the same; the longest part at a time that can be written so.

        Args:
            history: the tokens before, or the last of them. A character that they leave unfinished stays so.
            string: what comes after them.
            first: whether the history begins with its first token.
            lost: white space that the history was given at its end and that its tokens do not hold.

        Raises CannotWrite where no tokens read as the string.
        """
        added: list[int] = []
        for piece in self.parts(string):
            token = self.special.get(piece, self.special.get(piece.strip()))
            if token is not None:
                added.append(token)
            elif piece:
                before = (*history, *added)
                begins = first and len(before) <= _WINDOW
                added += self._remembered(before[-_WINDOW:], piece, begins, "" if added else lost)
        return self.known(added, short(string, 80))

    def parts(self, string: str) -> list[str]:
        """Return a string cut up at the special tokens that it spells, with these."""
        return self._split.split(check_string(string))

    def _write(self, before: Tokens, string: str, first: bool, lost: str) -> Tokens:
        made: list[int] = []
        rest = string
        while rest:
            n, tokens = _Place(self, (*before, *made), first, "" if made else lost).longest(rest)
            if not n:
                raise CannotWrite(
                    f"the tokenizer of {self.name} cannot write {rest[0]!r}, in {short(string, 80)}: it would read as "
                    f"{short(self.decode(self.tokens(string)), 80)}; leave it out"
                )
            made += tokens
            rest = rest[n:]
        return tuple(made)

    def lacks(self, tokens: Sequence[int]) -> bool:
        """Return whether some of the tokens are special, or stand for what the tokenizer does not know."""
        return not (self.hidden.keys().isdisjoint(tokens) and self._unknown.isdisjoint(tokens))

    # What the tokenizer does

    def _raw(self, tokens: Sequence[int]) -> str:
        string: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return string

    def _find_word(self) -> Tokens:
        """Return a token that ends a word; none where the tokenizer has no token for a letter."""
        for string in ("a", "e", "0", "."):
            tokens = self.tokens(string)[-1:]
            if tokens and not self.lacks(tokens):
                return tokens
        return ()

    def _find_anew(self) -> bool:
        """Return whether a string begins anew after a special token: with a space put before it that is not its own."""
        word, (spelled, token) = self._raw(self._word), next(iter(self.special.items()), ("", None))
        alone = self.tokens(word)
        begins = self.tokens(spelled + word) == (token, *alone) != self.tokens(f"{spelled} {word}")
        return begins and self._raw((*alone, *alone)) != 2 * word


class _Place:
    """Where a string is to follow: the tokens since the last special one, and how what follows them reads."""

    def __init__(self, codec: Codec, before: Tokens, first: bool, lost: str) -> None:
        self.codec = codec
        at = max((i for i, token in enumerate(before) if token in codec.hidden), default=-1)
        self.run = before[at + 1 :]
        for _ in range(_CHARACTER):
            if codec.decode(self.run).endswith("\ufffd"):
                self.run = self.run[:-1]
        broken = not self.run and at + 1 < len(before)
        begins = first and not broken and (at < 0 or (at == 0 and before[0] == codec.tokenizer.bos_token_id))
        self.read = codec.decode if begins or (codec.anew and at >= 0 and not broken) else codec.decode_inside
        self.string = self.read(self.run)
        self.lead = self.string if begins or at < 0 else codec.hidden[before[at]] + self.string
        # Where the tokenizer does not read the end of the tokens as they are, its reading of what follows is no guide.
        self.kept = codec.tokens(self.lead)
        self.faithful = not broken and codec.decode(self.kept)[-1:] == self.string[-1:]
        if lost and self.run and not self.lead[-1:].isspace():
            self.lead += lost
            self.kept = codec.tokens(self.lead)

    def longest(self, string: str) -> tuple[int, Tokens]:
        """Return how much of a string can be written at once, and its tokens; 0 where its first character cannot."""
        whole = self._write(string)
        if whole is not None:
            return len(string), whole
        found: tuple[int, Tokens] = (0, ())
        low, high = 0, len(string)
        while high - low > 1:
            middle = (low + high) // 2
            tokens = self._write(string[:middle])
            if tokens is None:
                high = middle
            else:
                low, found = middle, (middle, tokens)
        return found if low else self._character(string[0])

    def _write(self, string: str) -> Tokens | None:
        """Return the tokens that the tokenizer gives to a string here, else others that read as it, or None."""
        whole, kept = self.codec.tokens(self.lead + string), len(self.kept)
        if self.faithful and whole[:kept] == self.kept and not self.codec.lacks(whole[kept:]):
            return whole[kept:]
        for lead in (self.lead, *_LEADS):
            for tokens in self._beyond(lead, string):
                if self._reads(tokens, string):
                    return tokens
        return None

    def _beyond(self, lead: str, string: str) -> Iterator[Tokens]:
        """Yield the tokens of a lead and a string together that may lie beyond the lead."""
        kept, whole = self.codec.tokens(lead), self.codec.tokens(lead + string)
        same = next((i for i, (a, b) in enumerate(zip(kept, whole)) if a != b), min(len(kept), len(whole)))
        for start in range(same, min(len(kept) + 2, len(whole)) + 1):
            yield whole[start:]

    def _character(self, character: str) -> tuple[int, Tokens]:
        """Return 1 and tokens that the vocabulary has for a character, of the spellings that are in use; or 0."""
        find = self.codec.tokenizer.convert_tokens_to_ids
        singles = [(find(spelling),) for spelling in (character, "##" + character, "▁" if character == " " else "")]
        for tokens in (*singles, tuple(find(f"<0x{byte:02X}>") for byte in character.encode())):
            if None not in tokens and self._reads(tokens, character):
                return 1, tokens
        return 0, ()

    def _reads(self, tokens: Tokens, string: str) -> bool:
        return not self.codec.lacks(tokens) and self.read((*self.run, *tokens)) == self.string + string


def ending_space(string: str) -> str:
    """Return the white space that a string ends with."""
    return string[len(string.rstrip()) :]


def check_string(string: Any) -> str:
    """Return a string. Raises TypeError for anything else, and ValueError where a lone surrogate is in it."""
    if not isinstance(string, str):
        raise TypeError(f"a string is needed, not {short(string, 80)}")
    try:
        string.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{short(string, 80)} has a lone surrogate, half a character, at {error.start}: repair it, such as by "
            'string.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
        ) from None
    return string


def _splitter(spelled: Sequence[tuple[str, Any]]) -> re.Pattern[str]:
    """Return what splits a string at special tokens, with the white space that they take up, before or after them."""
    parts = []
    for string, added in sorted(spelled, key=lambda pair: -len(pair[0])):
        left, right = (r"\s*" * bool(getattr(added, side, False)) for side in ("lstrip", "rstrip"))
        parts.append(left + re.escape(string) + right)
    return re.compile(f"({'|'.join(parts)})" if parts else "(?!)")

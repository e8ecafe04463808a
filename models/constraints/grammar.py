"""Constraints from regular expressions, JSON schemas and context-free grammars, through llguidance."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from threading import RLock
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ...ppl.values.memo import Memo
from ..language.host import Host
from .constraint import Bools, Constraint
from .laws import END, Context, Floats
from .vocabulary import Vocabulary

Kind = Literal["regex", "JSON schema", "Lark grammar"]
_MATCHERS = 4096
_MASKS = 1024


class Grammar(Constraint):
    """The constraint that a response is in a formal language. Made by `regex`, `json_schema` and `lark`.

    It knows of every prefix whether it can go on, by bytes: every tokenisation of an allowed string is allowed. Special
    tokens are not; where the string is complete the end is. The state of a prefix is a copy of its parent's with
    one more token, made once for all particles that share it; the last 4096 are kept.

    A grammar without any text is refused. A grammar some of whose prefixes cannot be completed (``x: "a" x``) is not
    noticed: particles that go there die where they run out of tokens.

    Raises ValueError for a grammar that cannot be read or matches nothing, and ImportError without llguidance.
    """

    def __init__(self, lm: Host, kind: Kind, source: str, compiled: str) -> None:
        library = _library()
        self.lm, self.kind, self.source, self._compiled = lm, kind, source, compiled
        self.vocabulary = Vocabulary.of(lm)
        self._eos = frozenset(lm.eos)
        self._tokenizer = _tokenizer(lm)
        self._root = library.LLMatcher(self._tokenizer, compiled)
        if self._root.is_error():
            raise ValueError(f"{self!r} cannot be read: {_first_line(self._root)}")
        self._matchers = Memo[Context, Any](_MATCHERS)
        self._masks = Memo[Context, NDArray[np.uint8]](_MASKS)
        self._lock = RLock()  # a matcher serves one thread at a time
        if not self.allowed(()).any():
            raise ValueError(f"{self!r} matches no text at all, in the tokens of {lm.identity}")

    def __repr__(self) -> str:
        shown = self.source if len(self.source) <= 60 else self.source[:59] + "…"
        return f"<{self.kind} {shown!r}>"

    @property
    def fingerprint(self) -> Hashable:
        """The grammar and the tokenizer."""
        return ("grammar", self._compiled, self.vocabulary, self._eos)

    def viable(self, context: Context) -> bool:
        """Whether a sequence may go on, or end."""
        with self._lock:
            return self._matcher(context) is not None

    def accepts(self, context: Context) -> bool:
        """Whether a sequence may end here."""
        with self._lock:
            matcher = self._matcher(context)
            return matcher is not None and bool(matcher.is_accepting())

    def allowed(self, context: Context) -> Bools:
        """Return what may follow, (V+1,): each token, and last the end."""
        with self._lock:
            mask = self._masks.get(context)
            if mask is None:
                mask = self._masks[context] = self._mask(context)
        bits: Bools = np.unpackbits(mask, count=self.vocabulary.size + 1, bitorder="little").view(np.bool_)
        return bits

    def logw_token_batch(self, contexts: Sequence[Context], tokens: Sequence[int]) -> Floats:
        """Return 0 or −inf for one token of each context, (n,), without making masks."""
        with self._lock:
            return np.where([self._may(context, token) for context, token in zip(contexts, tokens)], 0.0, -np.inf)

    def _may(self, context: Context, token: int) -> bool:
        if token == END:
            return self.accepts(context)
        matcher = self._matcher(context)
        if matcher is None or token in self._eos or matcher.is_stopped():
            return False
        return bool(matcher.validate_tokens([token]))

    def _mask(self, context: Context) -> NDArray[np.uint8]:
        """Return the packed mask after a context, bit V for the end."""
        size = self.vocabulary.size
        bits = np.zeros(size + 1, bool)
        matcher = self._matcher(context)
        if matcher is not None:
            bits[size] = matcher.is_accepting()
            if not matcher.is_stopped():
                packed = np.frombuffer(matcher.compute_bitmask(), np.uint8)
                bits[:size] = np.unpackbits(packed, count=size, bitorder="little")
                bits[[end for end in self._eos if end < size]] = False
                self._check(matcher)
        return np.packbits(bits, bitorder="little")

    def _matcher(self, context: Context) -> Any:
        """Return the state after a context, None where it is dead."""
        known = self._matchers.get(context)
        if known is None:
            before = self._matchers.get(context[:-1]) if len(context) > 1 else None
            start, more = (self._root, context) if before is None else (before, context[-1:])
            known = _DEAD
            if start is not _DEAD and self._eos.isdisjoint(more):
                matcher = start.deep_copy()
                if matcher.validate_tokens(list(more)) == len(more):
                    matcher.consume_tokens(list(more))
                    self._check(matcher)
                    known = matcher
            self._matchers[context] = known
        return None if known is _DEAD else known

    def _check(self, matcher: Any) -> None:
        """Raise where the parser gave up, which is no dead end of the grammar."""
        if matcher.is_error() and not _first_line(matcher).startswith("NoExtension"):
            raise RuntimeError(f"{self!r}: llguidance gave up: {_first_line(matcher)}")


def regex(lm: Host, pattern: str) -> Grammar:
    """Return the constraint that the whole response matches a regular expression.

    The syntax is that of Rust's regex, without look-around; the match is anchored at both ends.

    >>> from feynkac.models.testing import tiny_lm
    >>> lm = tiny_lm()
    >>> number = regex(lm, "[1-9][0-9]*")
    >>> number.accepts(lm.encode("17")), number.viable(lm.encode("017"))
    (True, False)
    """
    return Grammar(lm, "regex", pattern, _library().LLMatcher.grammar_from_regex(pattern))


def json_schema(lm: Host, schema: Mapping[str, Any] | str, *, whitespace: bool = True) -> Grammar:
    """Return the constraint that the response is JSON under a schema.

    Args:
        lm: the language model whose tokens are meant.
        schema: the JSON schema, as a dict or a string. Keywords that cannot be kept are refused.
        whitespace: whether white space is allowed where JSON allows it, or nowhere.

    What llguidance (1.9) takes a schema to say is not always what a validator does. It lets a key that the schema does
    not name come twice, numbers be too large for a float (``1e999``), and a ``date`` be 29 February of any year; and
    it keeps out ``1.0`` and ``1e5`` as integers, keys out of the schema's order, and escapes that are not needed.
    ``"additionalProperties": False`` closes the first gap; for the others, check what you read.

    >>> from feynkac.models.testing import tiny_lm
    >>> lm = tiny_lm()
    >>> point = json_schema(lm, {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]})
    >>> point.accepts(lm.encode('{"x": 3}')), point.accepts(lm.encode('{"x"'))
    (True, False)
    """
    source = schema if isinstance(schema, str) else json.dumps(schema)
    matcher = _library().LLMatcher
    return Grammar(lm, "JSON schema", source, matcher.grammar_from_json_schema(
        source, overrides={"whitespace_flexible": whitespace}
    ))  # fmt: skip


def lark(lm: Host, grammar: str) -> Grammar:
    """Return the constraint that the response is in a context-free language, given in Lark's notation.

    Its terminals are matched as by a lexer, longest first; the rule ``start`` is what the response must be.

    >>> from feynkac.models.testing import tiny_lm
    >>> lm = tiny_lm()
    >>> nested = lark(lm, 'start: "(" start ")" | "x"')
    >>> nested.accepts(lm.encode("((x))")), nested.viable(lm.encode("((x)))"))
    (True, False)
    """
    return Grammar(lm, "Lark grammar", grammar, _library().LLMatcher.grammar_from_lark(grammar))


_DEAD = object()
_tokenizers: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise ImportError("constraints from grammars need llguidance: pip install 'feynkac[constraints]'") from error
    return llguidance


def _tokenizer(lm: Host) -> Any:
    """Return llguidance's tokenizer for a model's; making one takes a second."""
    known = _tokenizers.setdefault(lm.tokenizer, {})
    key = lm.vocab_size, lm.eos
    if key not in known:
        _library()
        from llguidance.hf import from_tokenizer

        if not getattr(lm.tokenizer, "is_fast", False):
            raise ValueError(
                f"grammars need a fast tokenizer (of the tokenizers library), which that of {lm.identity} is not"
            )
        if not lm.eos:
            raise ValueError(f"{lm.identity} has no end token, so that no response of it can be complete")
        size = max(lm.vocab_size, max(lm.tokenizer.get_vocab().values()) + 1)
        known[key] = from_tokenizer(lm.tokenizer, n_vocab=size, eos_token=sorted(lm.eos))
    return known[key]


def _first_line(matcher: Any) -> str:
    return " ".join(str(matcher.get_error()).split("<state>")[0].split())[:300]

"""Text: a prompt and the response so far, as an immutable value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from ....ppl.quick import quick, replaced
from ....ppl.values.reals import whole_number
from .tree import Node

FinishReason = Literal["eos", "context"]

_CONTEXT = 4
_CHARACTER = 4
"""Most tokens in a character."""
_UNREAD = 64
"""Most tokens held back: more than any character has, they are broken."""


class Model(Protocol):
    """What a text needs of its language model."""

    @property
    def identity(self) -> str:
        """Name that tells this model from others."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the string of some tokens, special ones left out."""

    def append(self, text: Text, string: str) -> Text:
        """Return the text with a given string after it."""

    def cut(self, text: Text, to: int) -> Text:
        """Return the text with its first ``to`` response tokens alone."""


@quick
@dataclass(frozen=True, slots=True)
class Reading:
    """A response decoded as far as its characters are whole.

    A token may hold a part of a character, and may read otherwise at the start of a string than inside it. So
    new tokens are decoded after a few old ones, and held back while they end inside a character.

    Attributes:
        raw: the string so far.
        held: the tokens held back.
        tail: how they read for now.
        context: a few tokens before them; decoded, they read ``before``.
    """

    raw: str = ""
    held: tuple[int, ...] = ()
    tail: str = ""
    context: tuple[int, ...] = ()
    before: str = ""

    @property
    def string(self) -> str:
        """The whole response, an unfinished character included."""
        return self.raw + self.tail

    def read(self, decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> Reading:
        """Return the reading after more tokens."""
        held = (*self.held, *tokens)
        whole = decode((*self.context, *held))
        for drop in range(min(len(tokens), _CHARACTER)):
            read = held[: len(held) - drop]
            after = decode((*self.context, *read)) if drop else whole
            if not after.endswith("\ufffd"):
                break
        else:
            if len(held) <= _UNREAD:
                return replaced(self, held=held, tail=whole[len(self.before) :])
            read, after = held, whole
        raw = self.raw + after[len(self.before) :]
        context, before = (*self.context, *read), after
        if len(context) > 4 * _CONTEXT:
            context = context[-_CONTEXT:]
            before = decode(context)
        return Reading(raw, held[len(read) :], whole[len(after) :], context, before)


class End(NamedTuple):
    """Where a step of a text ended.

    Attributes:
        tokens: of the response, up to there; −1 where that is not known, as in files that did not tell.
        shown: characters of the response that were displayed then; None is all.
        begin: where in the response the display of the next step begins.
    """

    tokens: int
    shown: int | None
    begin: int


_START = End(0, None, 0)


@quick
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Text:
    """A prompt and the response so far. Immutable: every step makes a new one.

    Made by ``lm.prompt``; equal texts are those of the same model with the same tokens and the same prompt.
    ``str(text)`` is the response, decoded without special tokens, and without the stop string that its last
    step ended at (and what its last token holds beyond).

    Attributes:
        prompt: the prompt as a string, a chat's template filled in.
        prompt_tokens: its token ids.
        steps: what each step added, as displayed: one string per sampled or appended step.
        log_prob: log-probability of all sampled tokens, under the laws they were really drawn from; of constrained
            steps, under the model's own times the potential. NaN where a server does not tell it.
        finish_reason: ``"eos"`` after an end token, ``"context"`` where the model's context is full, else
            None.

    >>> from feynkac.models.testing import tiny_lm
    >>> text = tiny_lm().prompt("Once upon").append(" a time")
    >>> str(text), text.full, text.steps, text.finished
    (' a time', 'Once upon a time', (' a time',), False)
    """

    identity: str
    prompt: str
    prompt_tokens: tuple[int, ...]
    steps: tuple[str, ...] = ()
    log_prob: float = 0.0
    finish_reason: FinishReason | None = None
    reading: Reading = Reading()
    ends: tuple[End, ...] = ()
    """Where each step ended."""
    node: Node | None = None
    lm: Model | None = None
    fingerprint: str = ""
    """Of its tokenizer; empty in a file that was written before texts had any."""
    _tokens: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.reading.string[: self.shown]

    @property
    def end(self) -> End:
        """Where the last step ended."""
        return self.ends[-1] if self.ends else _START

    @property
    def shown(self) -> int | None:
        """Characters of the response displayed; None is all."""
        return self.end.shown

    @property
    def begin(self) -> int:
        """Where in the response the display of the next step begins."""
        return self.end.begin

    def __repr__(self) -> str:
        shown = str(self)
        shown = shown if len(shown) <= 60 else "…" + shown[-59:]
        return f"<Text {shown!r}{'' if self.finish_reason is None else ' ' + self.finish_reason}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Text):
            return NotImplemented
        if self.identity != other.identity or self.prompt_tokens != other.prompt_tokens:
            return False
        if self.node is not None and other.node is not None and self.lm is other.lm:
            return self.node is other.node
        return self.tokens == other.tokens

    def __hash__(self) -> int:
        return hash((self.identity, len(self.prompt_tokens), self.digest))

    @property
    def digest(self) -> int:
        """A hash of all the tokens, the same in every process."""
        if self.node is not None:
            return self.node.digest
        return reduce(lambda digest, token: hash((digest, token)), self._tokens, hash(self.prompt_tokens))

    @property
    def full(self) -> str:
        """The prompt and the response."""
        return self.prompt + str(self)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Token ids of the response, given and sampled alike."""
        return self._tokens if self.node is None else self.node.response

    @property
    def offset(self) -> int:
        """How many tokens of the model's history come before the response.

        The prompt's; where an encoder reads the prompt, those that the decoder begins with.
        """
        source = self.node is not None and self.node.top.source
        return self.node.top.length if self.node is not None and source else len(self.prompt_tokens)

    @property
    def finished(self) -> bool:
        """Whether nothing can follow: an end token, or a full context."""
        return self.finish_reason is not None

    def append(self, string: str) -> Text:
        """Return the text followed by a given string, which is not sampled and has no log-probability.

        The tokens so far stay as they are; the string gets those that the tokenizer gives it in this place. Where it
        would make one token of their end and a part of the string, the string gets tokens that read as it all the same.
        Special tokens that the string spells are read as such, and not displayed. A tokenizer that does not keep a
        string as it is (lower case, composed characters, one space for several) reads it in its own way here as well.

        Nothing is computed until the next step. A text that ended with an end token is reopened: the token is
        taken off (its log-probability stays).

        Raises ContextOverflow where there is no room, which in a program ends the particle unless it is caught there,
        CannotWrite where the tokenizer has no token for a character, and ValueError on a text that was loaded without
        its model.
        """
        if self.lm is None:
            raise ValueError("this text was loaded without its language model: use lm.attach(text).append(…)")
        return self.lm.append(self, string)

    def cut(self, n: int | None = None, *, to: int | None = None) -> Text:
        """Return the text without its last n response tokens, or with its first ``to`` of them alone.

        The tokens that are left are those that there were, and nothing is forwarded again. A step that lies in them
        whole is kept, that which is cut through displays what is left of it, and at the end of a step the text is what
        it was there. It is not finished, unless nothing was cut off.

        ``log_prob`` stays: it is of all tokens that were drawn, as the weights of a program are, those that were cut
        off included (``lm.score(text)`` is of those that are there). What goes on from ``cut(to=k)`` has the model's
        law again, as k does not depend on what was drawn; from ``cut(n)`` it does not, as longer texts are cut later
        (a Metropolis–Hastings step corrects that by the lengths).

        Args:
            n: how many tokens to drop, an end token among them.
            to: how many to keep.

        Raises ValueError for more tokens than there are, both or neither of n and ``to``, and for a text that was
        loaded without its model, or from a file of before that tells of the last step alone where it begins.

        >>> from feynkac.models.testing import tiny_lm
        >>> text = tiny_lm().prompt("Once upon").append(" a time").append(", there")
        >>> text.cut(2), text.cut(to=2).steps
        (<Text ' a time,'>, (' a t',))
        """
        if (n is None) == (to is None):
            raise ValueError("a text is cut by n tokens, or to some: text.cut(n) or text.cut(to=k)")
        there, asked = len(self.tokens), whole_number("n", n, 0) if to is None else whole_number("to", to, 0)
        if asked > there:
            what = "cut off" if to is None else "kept"
            raise ValueError(f"the response of {self!r} has {there} tokens, so that {asked} cannot be {what}")
        if self.lm is None:
            raise ValueError("this text was loaded without its language model: use lm.attach(text).cut(…)")
        return self.lm.cut(self, there - asked if to is None else asked)

    def grow(
        self,
        node: Node,
        reading: Reading,
        step: str,
        end: tuple[int | None, int],
        *,
        log_prob: float = 0.0,
        finish_reason: FinishReason | None = None,
    ) -> Text:
        """Return the text after one more step, which displays ``step``; ``end`` is what it leaves (shown, begin)."""
        ends = (*self.ends, End(node.length - self.offset, *end))
        return Text(
            self.identity, self.prompt, self.prompt_tokens, (*self.steps, step), self.log_prob + log_prob,
            finish_reason, reading, ends, node, self.lm, self.fingerprint,
        )  # fmt: skip

    def detach(self) -> Text:
        """Return an equal text that holds nothing in the model's memory."""
        return self if self.node is None else replaced(self, node=None, _tokens=self.tokens)

    def reads_as(self, other: Text) -> bool:
        """Return whether the same tokens mean the same in another text: whether their tokenizers are equal.

        Of a text from an old file nothing but the name of its model tells.
        """
        if self.fingerprint and other.fingerprint:
            return self.fingerprint == other.fingerprint
        return self.identity == other.identity

    @property
    def journal_key(self) -> Any:
        """What can be read of it, the same in every process, but for the log-probability."""
        tokens = np.array(self.prompt_tokens, np.int64), np.array(self.tokens, np.int64)
        return (self.fingerprint or self.identity, self.prompt, *tokens, self.steps, self.ends, self.finish_reason)

    def to_json(self) -> dict[str, Any]:
        """Return the text as plain data for JSON; `from_json` is its inverse."""
        return {
            "identity": self.identity,
            "fingerprint": self.fingerprint,
            "prompt": self.prompt,
            "prompt_tokens": list(self.prompt_tokens),
            "tokens": list(self.tokens),
            "response": self.reading.string,
            "steps": list(self.steps),
            "log_prob": self.log_prob,
            "finish_reason": self.finish_reason,
            "ends": [list(end) for end in self.ends],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Text:
        """Return the text that `to_json` described, without its model (``lm.attach(text)`` gives it one).

        Raises TypeError where the data are of other types, as those of a hostile file may be.
        """
        fingerprint, steps = data.get("fingerprint", ""), data["steps"]
        if "ends" in data:
            ends = [tuple(end) for end in data["ends"]]
        else:  # a file of before tells the last alone
            last = len(data["tokens"]), data["shown"], data["begin"]
            ends = [*[(-1, None, 0)] * (len(steps) - 1), last][: len(steps)]
        known = (int, int, int), (int, type(None), int)
        texts = [data["identity"], fingerprint, data["prompt"], data["response"], *steps]
        numbers = [*data["prompt_tokens"], *data["tokens"]]
        right = {*map(type, texts)} == {str} and {*map(type, numbers)} == {int} and type(data["log_prob"]) is float
        right = right and len(ends) == len(steps) and all(tuple(map(type, end)) in known for end in ends)
        if not (right and type(data["finish_reason"]) in (str, type(None))):
            raise TypeError("the data are not those of a text")
        return cls(
            identity=data["identity"],
            prompt=data["prompt"],
            prompt_tokens=tuple(data["prompt_tokens"]),
            steps=tuple(steps),
            log_prob=data["log_prob"],
            finish_reason=data["finish_reason"],
            reading=Reading(raw=data["response"]),
            ends=tuple(End(*end) for end in ends),
            fingerprint=fingerprint,
            _tokens=tuple(data["tokens"]),
        )

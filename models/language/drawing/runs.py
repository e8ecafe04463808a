"""Requests for a step on their way, token by token: the history so far, how it reads, and whether the step is over."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ....ppl.errors import JournalError
from ....ppl.sites import short
from ..texts.text import Model, Text
from ..texts.tree import Node, Tree
from .endings import Ending
from .sampling import Mask, Sampling


class Writing(Model, Protocol):
    """What a run needs of its language model."""

    vocab_size: int
    tree: Tree[Any]

    def attach(self, text: Text) -> Text:
        """Return an equal text that belongs to this model."""

    def finish_reason(self, node: Node, last: int) -> Any:
        """Return why a history is finished, or None."""


class Request(Protocol):
    """What is asked for: a step from a text, under a law, to an ending."""

    @property
    def lm(self) -> Writing:
        """The language model."""

    @property
    def text(self) -> Text:
        """What the step goes on from."""

    @property
    def ending(self) -> Ending:
        """When it ends."""

    @property
    def sampling(self) -> Sampling:
        """How its tokens are drawn."""

    @property
    def mask(self) -> Mask | None:
        """The tokens that it is drawn from; None for all."""


class Run:
    """One request on its way.

    Attributes:
        request: the step that is asked for.
        start: the text that it goes on from.
        node: the history so far.
        over: whether the step is over.
        count: tokens taken so far.
        log_prob: their log-probability.
        log_probs: that of each.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.start = request.lm.attach(request.text)
        node = self.start.node
        assert node is not None
        self.node = node
        self.reading = self.start.reading
        self.finish_reason = self.start.finish_reason
        self.over = self.start.finished
        self.count = 0
        self.log_prob = 0.0
        self.log_probs: list[float] = []
        self._unread: list[int] = []
        self._cut: int | None = None

    def advance(self, token: int, log_prob: float) -> None:
        """Take one token; −1 says that there is none to take."""
        self.log_prob += log_prob
        self.log_probs.append(log_prob)
        if token < 0:
            self.over = True
            return
        lm, ending = self.request.lm, self.request.ending
        self.node = lm.tree.child(self.node, token)
        self.count += 1
        self.finish_reason = lm.finish_reason(self.node, token)
        self.over = self.finish_reason is not None or self.count == ending.max_tokens
        self._unread.append(token)
        if token in ending.stop_tokens and self.finish_reason is None:
            self._read()
            self._cut = len(self.reading.raw)
            self.over = True
        elif ending.reads:
            known = len(self.reading.raw)
            self._read()
            begin = self._scan_from
            found = ending.find(self.reading.raw[begin:], known - begin)
            if found is not None:
                self._cut = begin + found
                self.over = True

    @property
    def _scan_from(self) -> int:
        return self.start.begin if self.request.ending.sentence else len(self.start.reading.raw)

    @property
    def stopped(self) -> bool:
        """Whether a stop or a sentence's end was read."""
        return self._cut is not None

    def _read(self) -> None:
        self.reading = self.reading.read(self.request.lm.decode, self._unread)
        self._unread = []

    @property
    def told(self) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """What it took, as it is kept: the tokens, and the log-probabilities, of which there is one where none was."""
        taken = self.node.tokens(self.node.length - self.count)
        return np.array(taken, np.int32), np.array(self.log_probs)

    def text(self) -> Text:
        """Return the text reached."""
        if not self.count:
            return self.start
        if self._unread:
            self._read()
        raw, cut = self.reading.raw, self._cut
        begin = cut if cut is not None and self.request.ending.sentence else len(raw)
        return self.start.grow(
            self.node,
            self.reading,
            raw[self.start.begin : cut],
            (cut, begin),
            log_prob=self.log_prob,
            finish_reason=self.finish_reason,
        )


def played(request: Request, told: Any) -> Run:
    """Return the run of a request that took what one has told.

    Raises JournalError where the step does not end there, as what was told is of another version of this library.
    """
    tokens, log_probs = told
    run = Run(request)
    for token, log_prob in zip(tokens.tolist() or [-1], log_probs.tolist()):
        if run.over or token >= request.lm.vocab_size:
            break
        run.advance(token, log_prob)
    if run.over and run.count == len(tokens) and len(log_probs) == max(1, len(tokens)):
        return run
    raise JournalError(
        f"the journal has {len(tokens)} tokens for {request!r}, which ends otherwise: it was written by another "
        "version of feynkac; use another file"
    )


def tokens_after(start: Text, value: Text) -> tuple[int, ...] | None:
    """Return the tokens of a text after those of another that it goes on from; None where it does not."""
    if not start.reads_as(value) or start.prompt_tokens != value.prompt_tokens:
        return None
    before, after = start.tokens, value.tokens
    return after[len(before) :] if after[: len(before)] == before else None


def is_text(request: Request, value: Any) -> bool:
    """Return whether a value is a text; a string is none: what a finished text has not. Raises TypeError for others."""
    if not isinstance(value, Text | str):
        raise TypeError(f"a value of {request!r} is a Text, not {short(value, 80)}")
    return isinstance(value, Text)


def replay(request: Request, value: Any) -> Run | None:
    """Walk a request along a given text; None unless the step ends exactly where the text does.

    Raises TypeError for what is no text.
    """
    if not is_text(request, value):
        return None
    run = Run(request)
    added = tokens_after(run.start, value)
    if added is None:
        return None
    for token in added:
        if run.over or not 0 <= token < request.lm.vocab_size:
            return None
        run.advance(token, 0.0)
    return run if run.over else None

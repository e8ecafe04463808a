"""Steps of generation as kernels: a token, some tokens, a line, a sentence, the rest.

All requests of one model share their forward passes, whatever their kind. A step is a loop over tokens; each
particle leaves it as its step ends, and those that remain go on together.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ...ppl.cost import charge
from ...ppl.errors import ContextOverflow
from ...ppl.keys import Keys, uniform
from ...ppl.model import Draws
from ...ppl.reals import whole_number
from ...ppl.sites import short
from .host import Host, Tally
from .laws import draw, log_prob_of, warp
from .sampling import Sampling
from .scoring import Mask, forced
from .text import Text

Floats = NDArray[np.float64]
# A full-width stop ends a sentence whatever follows, once it is clear that no quote or bracket closes after it.
_WIDE = "。！？｡"
_CLOSING = "\"'”’»)\\]」』）】》〉"
_SENTENCE = re.compile(
    rf"[.!?…؟۔।]+(?:[{_CLOSING}]+|(?=\s))|[{_WIDE}][{_WIDE}!?…{_CLOSING}]*(?=[^{_WIDE}!?…{_CLOSING}])"
)
MOST_SUPPORT = 512


@dataclass(frozen=True)
class Ending:
    """When a step ends: after ``max_tokens``, at a stop string or token, at the end of a sentence.

    Raises TypeError for a number of tokens that is none, ValueError for no tokens, or an empty stop string.
    """

    max_tokens: int
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    sentence: bool = False
    whole: bool = False
    """Whether the step is to reach the text's end: a constrained one ends it after ``max_tokens``."""
    stop_tokens: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        whole_number("the number of tokens of a step", self.max_tokens)
        if not all(self.stops):
            raise ValueError("a stop string must not be empty")

    @property
    def reads(self) -> bool:
        """Whether the step must be decoded as it goes."""
        return bool(self.stops) or self.sentence

    def lacks(self, ends: Sequence[str]) -> str:
        """Return what a string lacks that such a step does not end with; nothing where it is to have some tokens."""
        if self.whole:
            return f"write an end token after it, {' or '.join(map(repr, ends)) or 'of which the model has none'}"
        if self.sentence:
            return "a sentence ends with its stop and white space, or a closing quote or bracket, after it"
        stops = [*map(repr, self.stops), *(f"the token {token}" for token in self.stop_tokens)]
        return f"write the stop after it, {' or '.join(stops)}" if stops else ""

    def find(self, string: str, known: int) -> int | None:
        """Return where the display ends, if the step does, which it does not in ``known`` characters."""
        if self.sentence:
            match = _SENTENCE.search(string, max(0, known - 8))
            return None if match is None else match.end()
        found = [
            (at + len(stop), at + len(stop) * self.include_stop)
            for stop in self.stops
            if (at := string.find(stop, max(0, known - len(stop) + 1))) >= 0
        ]
        return min(found)[1] if found else None


@dataclass(frozen=True)
class Step:
    """A request for one step from a text: a kernel (see `feynkac.ppl.model.Kernel`) over texts.

    Made by the methods of `TransformersLM`. A finished text gives itself, with log-probability 0 and no call.
    """

    lm: Host
    text: Text
    ending: Ending
    sampling: Sampling
    mask: Mask | None = None
    expensive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.text, Text):
            raise TypeError(f"a step goes on from a text, such as lm.prompt('Once'), not from {short(self.text, 80)}")

    @property
    def batch_key(self) -> Hashable:
        """All steps of one model share a call."""
        return (Step, id(self.lm))

    @property
    def fingerprint(self) -> Hashable:
        """The history and the settings."""
        return (self.text.digest, self.ending, self.sampling, self.mask)

    def __repr__(self) -> str:
        return f"<step of {self.lm.identity} from {self.text!r}>"

    def sample_batch(self, requests: Sequence[Step], keys: Keys) -> Draws:
        """Draw the next text for each request, from its own key alone.

        Returns the texts and their log-probabilities (n,); −inf, and the text unchanged, where a mask allows
        nothing.
        """
        runs = [Run(request) for request in requests]
        tally = Tally(len(runs))
        active = [i for i, run in enumerate(runs) if not run.over]
        offset = 0
        with torch.inference_mode():
            while active:
                owners = np.array(active, np.intp)
                logits = self.lm.forwarder.next_logits([runs[i].node for i in active], owners, tally)
                uniforms = uniform(keys[owners], 1, offset=offset)[:, 0]
                tokens, log_prob = _draw(logits, [requests[i] for i in active], uniforms)
                for i, token, value in zip(active, tokens.tolist(), log_prob.tolist()):
                    runs[i].advance(token, value)
                    tally.tokens_out[i] += token >= 0
                active = [i for i in active if not runs[i].over]
                offset += 1
        charge(**tally.amounts)
        return Draws([run.text() for run in runs], np.array([run.log_prob for run in runs]))

    def log_prob_batch(self, requests: Sequence[Step], values: Sequence[Any]) -> Floats:
        """Return log p of each text under its request, shape (n,).

        It is −inf for a text that does not continue its request's, or that the step would have ended earlier
        or later. The missing positions go through the model in one ragged batch, and are kept.
        """
        result = np.zeros(len(requests))
        jobs: list[tuple[int, Step, Run]] = []
        for i, (request, value) in enumerate(zip(requests, values)):
            run = replay(request, value)
            if run is None:
                result[i] = -math.inf
            elif run.count:
                jobs.append((i, request, run))
        if jobs:
            tally = Tally(len(requests))
            laws = [(request.sampling, request.mask) for _, request, _ in jobs]
            owners = [i for i, _, _ in jobs]
            starts = [run.node.length - run.count for _, _, run in jobs]
            sums = forced(self.lm, [run.node for _, _, run in jobs], starts, laws, owners, tally)
            result[owners] = sums
            charge(**tally.amounts)
        return result

    def observing(self, value: Any) -> tuple[Step, Any]:
        """Return the step and the text that it means to observe a string: appended in context, and ended as it says.

        A string of fewer than k tokens is observed by ``lm.tokens(text, k)`` as how its text begins. Other steps need
        what they end with: the stop, or the end token as it is spelled. A finished text has no string after it: the
        observation has probability zero.

        Raises TypeError for what is neither, ValueError for a string that goes on after the step's end or stops before
        it, and ContextOverflow.
        """
        if isinstance(value, Text):
            return self, value
        if not isinstance(value, str):
            raise TypeError(f"{self!r} is observed to be a string or a Text, not {short(value, 80)}")
        run = Run(self)
        if run.start.finished:
            return self, value or run.start
        tokens = self.lm.encode(value, run.start)
        if run.node.length + len(tokens) > (self.lm.context or math.inf):
            raise ContextOverflow(
                f"with {short(value, 80)} the text has {run.node.length + len(tokens)} tokens, but the context of "
                f"{self.lm!r} is {self.lm.context}"
            )
        for i, token in enumerate(tokens):
            if run.over:
                raise ValueError(
                    f"{self!r} ends after {i} of the {len(tokens)} tokens of {short(value, 80)}, at "
                    f"{short(str(run.text()), 80)}, so that it cannot be observed: allow more tokens, or observe what "
                    "the step can give"
                )
            run.advance(token, 0.0)
        if run.over:
            return self, run.text()
        lacks = self.ending.lacks(self.lm.spelled(self.lm.eos)) if tokens else "it has no tokens"
        if lacks:
            raise ValueError(
                f"{self!r} does not end with {short(value, 80)}: {lacks}; to condition on how a text goes on, observe "
                "lm.tokens(text, k)"
            )
        return replace(self, ending=replace(self.ending, max_tokens=len(tokens))), run.text()

    def fits(self, value: Any) -> bool:
        """Return whether a value is a text."""
        return isinstance(value, Text)

    def covers(self, other: Any) -> bool:
        """Return whether this step can reach every text that ``other``, a step or a constrained one, can."""
        if hasattr(other, "within"):
            reaches: bool = other.within(self)
            return reaches
        if not isinstance(other, Step) or other.lm is not self.lm or other.text != self.text:
            return False
        if replace(other.ending, whole=self.ending.whole) != self.ending:  # it is for constraints alone
            return False
        if self.mask is not None and self.mask != other.mask:
            return False
        return not self.sampling.truncates or self.sampling == other.sampling

    def support(self) -> list[Text] | None:
        """Return all the texts that one token can lead to; None where the vocabulary is above 512."""
        if self.ending.max_tokens > 1 or self.lm.vocab_size > MOST_SUPPORT:
            return None
        start = Run(self)
        if start.over:
            return [start.text()]
        texts = []
        tally = Tally(1)
        with torch.inference_mode():
            logits = self.lm.forwarder.next_logits([start.node], np.zeros(1, np.intp), tally)
            rows = logits.expand(self.lm.vocab_size, -1)
            everything = np.arange(self.lm.vocab_size)
            log_prob = log_prob_of(warp(rows, self.sampling, _stack([self] * len(rows), logits)), everything)
        charge(**tally.sums)
        for token in np.flatnonzero(log_prob > -math.inf).tolist():
            run = Run(self)
            run.advance(token, float(log_prob[token]))
            texts.append(run.text())
        return texts


class Run:
    """One request on its way: the history so far, how it reads, and whether the step is over."""

    def __init__(self, request: Step) -> None:
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
        self._unread: list[int] = []
        self._cut: int | None = None

    def advance(self, token: int, log_prob: float) -> None:
        """Take one token; −1 says that there is none to take."""
        self.log_prob += log_prob
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

    def _read(self) -> None:
        self.reading = self.reading.read(self.request.lm.decode, self._unread)
        self._unread = []

    def text(self) -> Text:
        """Return the text reached."""
        if not self.count:
            return self.start
        if self._unread:
            self._read()
        raw = self.reading.raw
        return replace(
            self.start,
            node=self.node,
            reading=self.reading,
            steps=(*self.start.steps, raw[self.start.begin : self._cut]),
            log_prob=self.start.log_prob + self.log_prob,
            finish_reason=self.finish_reason,
            shown=self._cut,
            begin=self._cut if self._cut is not None and self.request.ending.sentence else len(raw),
        )


def tokens_after(start: Text, value: Text) -> tuple[int, ...] | None:
    """Return the tokens of a text after those of another that it goes on from; None where it does not."""
    if start.identity != value.identity or start.prompt_tokens != value.prompt_tokens:
        return None
    before, after = start.tokens, value.tokens
    return after[len(before) :] if after[: len(before)] == before else None


def is_text(request: Step, value: Any) -> bool:
    """Return whether a value is a text; a string is none: what a finished text has not. Raises TypeError for others."""
    if not isinstance(value, Text | str):
        raise TypeError(f"a value of {request!r} is a Text, not {short(value, 80)}")
    return isinstance(value, Text)


def replay(request: Step, value: Any) -> Run | None:
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


def _draw(logits: Any, requests: Sequence[Step], uniforms: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Draw a token per row, each by its request's law: shapes (n,) and (n,)."""
    groups: dict[tuple[Sampling, bool], list[int]] = defaultdict(list)
    for i, request in enumerate(requests):
        groups[request.sampling, request.mask is not None].append(i)
    tokens, log_prob = np.zeros(len(requests), np.int64), np.zeros(len(requests))
    for (sampling, _), rows in groups.items():
        part = logits if len(groups) == 1 else logits[torch.tensor(rows, device=logits.device)]
        mask = _stack([requests[i] for i in rows], logits)
        tokens[rows], log_prob[rows] = draw(warp(part, sampling, mask), uniforms[rows])
    return tokens, log_prob


def _stack(requests: Sequence[Step], like: Any) -> Any:
    """Return the masks of requests that all have one, (n, V), or None where none has."""
    masks = [request.mask for request in requests if request.mask is not None]
    return torch.stack([mask.on(like.device) for mask in masks]) if masks else None

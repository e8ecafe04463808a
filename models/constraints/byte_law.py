"""The law over bytes of a language model over tokens, so that models with different tokenizers multiply and mix.

A string is written by every sequence of tokens that spells it, and begun by every one whose last token covers its end:
its *covers*. The probability of a beginning is the sum over its covers, of which there are finitely many. They are kept
together as they go: the tokens that a cover may end with share a history and are a range of the vocabulary in the order
of its bytes, so that a byte more is a smaller range, and, where tokens end there, new histories.

Source: Vieira et al. (2024), From language models over tokens to language models over characters, arXiv:2412.03719.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ...ppl.cost import charge
from ...ppl.errors import BeamWarning, ContextOverflow, Unsupported
from ...ppl.memory import Recall
from ...ppl.values.memo import Memo
from ...ppl.values.reals import whole_number
from ..language.drawing.laws import log_normalise, read
from ..language.drawing.sampling import Sampling
from ..language.host import Host, Tally, require
from ..language.texts.text import Text
from ..language.texts.tree import Node
from .byte_texts import END_BYTE, byte_vocabulary
from .language import begun
from .laws import Context, Floats
from .potential import Batched, ratio

_MOST = 4096
"""Most covers of a string that are counted up, where no beam is asked for."""
_LAWS = 2**23
"""Most entries of laws, (n, T), that are held at once or remembered."""


class Spellings:
    """The tokens of a language model in the order of their bytes.

    Attributes:
        ids: the tokens (T,), without those that end a text or read as nothing.
        columns: ``columns[d][i]`` is byte d of token i, −1 past its end: in every range of tokens that begin alike, the
            bytes that come next are sorted.
    """

    def __init__(self, lm: Host) -> None:
        spelled = lm.token_bytes
        known = [token for token, string in enumerate(spelled) if string and token not in lm.eos]
        ids = sorted(known, key=lambda token: (spelled[token], token))
        self.ids = np.array(ids)
        longest = max(len(spelled[token]) for token in ids)
        self.columns = np.full((longest + 1, len(ids)), -1, np.int16)
        for place, token in enumerate(ids):
            self.columns[: len(spelled[token]), place] = np.frombuffer(spelled[token], np.uint8)

    def narrow(self, depth: int, low: int, high: int, byte: int) -> tuple[int, int, int]:
        """Return the range of tokens with a byte next, and up to where they end with it: low, middle and high."""
        column = self.columns[depth][low:high]
        first, last = low + np.searchsorted(column, [byte, byte + 1])
        middle = first + np.searchsorted(self.columns[depth + 1][first:last], 0)
        return int(first), int(middle), int(last)

    def sums(self, depth: int, low: int, high: int, p: Floats) -> Floats:
        """Return the sum of p over the tokens of a range by the byte that comes next, (256,)."""
        sums: Any = np.bincount(self.columns[depth][low:high], p[low:high], minlength=256)
        return np.asarray(sums, np.float64)


@dataclass(frozen=True, slots=True)
class Cover:
    """Sequences of tokens that begin a string: a history, and the tokens that may come next and cover its end.

    Attributes:
        node: the history.
        depth: how many bytes of the string come after it; at 0 it ends where the string does.
        low: the first of the tokens, in the order of their bytes.
        high: past the last.
        log_p: the log-probability of the history.
        log_mass: that of all of the sequences.
    """

    node: Node
    depth: int
    low: int
    high: int
    log_p: float
    log_mass: float


@dataclass(frozen=True, slots=True)
class Covers:
    """Those of one string, the log of their sum, and the log of the share of it that beams have kept so far."""

    covers: tuple[Cover, ...]
    log_prefix: float
    log_kept: float


class ByteLM(Batched):
    """The law of a language model over the bytes of a response, whatever tokens spell them.

    `prefix` is the probability that a response begins with some bytes, `complete` that it consists of them: sums over
    all sequences of tokens that do, without special tokens, which read as nothing (so that the weights of the next byte
    and the end sum to less than one by theirs). Steps over bytes come from `Bytes`. Models with different tokenizers
    meet here: their potentials multiply, mix (`mixture`, `power_mean`), have powers and quotients, and weigh the steps
    of one of them by `coerced`. Every wave makes one batched call to each model, and histories share what it remembers.

    Tokens are read as they are after a word. Where a response loses a first space when it is displayed, as with
    SentencePiece's tokenizers after an empty prompt, its bytes have it all the same.

    Without a beam the sums are exact, and there must be few of them: short strings, or small vocabularies. With one,
    only the ``beam`` likeliest covers of each beginning are followed. What it weighs then is a lower bound of the law,
    and a law of its own: engines are exact for that. `lost` says what share was cut on the way, and a `BeamWarning`
    tells of the first string that has lost more than ``tolerance``.

    Args:
        lm: the language model.
        start: the text that the response comes after; its own prompt, usually.
        beam: how many covers are followed; None is all.
        tolerance: the share that a beam may lose without a warning.
        sampling: keywords of `Sampling`; by default the model's own.

    Raises Unsupported for a model that gives no law of the next token, and for a tokenizer whose strings are not those
    of its tokens, one after another; without a beam, for a string with more than 4,096 covers, when it is asked about.
    Raises ValueError for a finished text.

    >>> from feynkac.models.testing import tiny_lm
    >>> lm = tiny_lm()
    >>> law = ByteLM(lm, lm.prompt("Once"))
    >>> law.prefix(tuple(b"the")) > law.complete(tuple(b"the"))
    True
    >>> law.check([(), tuple(b"the sea")], tokens=[32, 97])
    """

    def __init__(
        self, lm: Host, start: Text, *, beam: int | None = None, tolerance: float = 0.01, **sampling: Any
    ) -> None:
        require(lm, "law", "a ByteLM")
        if beam is not None:
            whole_number("beam", beam)
        if not 0 <= tolerance <= 1:
            raise ValueError(f"tolerance is a share between 0 and 1, not {tolerance}")
        self.lm, self.start = lm, begun(lm, start)
        self.sampling: Sampling = replace(lm.sampling, **sampling)
        self.beam, self.tolerance = beam, tolerance
        self.vocabulary = byte_vocabulary()
        if lm not in _spellings:
            _spellings[lm] = Spellings(lm)
        self.spellings = _spellings[lm]
        self._recall, self._warned = Recall(lm.version()), False
        self._forget()

    def __repr__(self) -> str:
        return f"<bytes of {self.lm.identity} after {self.start!r}>"

    @property
    def fingerprint(self) -> Hashable:
        """The model, the text, the settings and the beam."""
        return ("bytes", id(self.lm), self.start.digest, self.sampling, self.beam)

    def lost(self, context: Context) -> float:
        """Return the share of the probability that the beam has cut on the way to a string, 0 without one.

        It takes what is cut to go on as likely as what is kept: an estimate of how much `prefix` is too small by.
        """
        return -math.expm1(self._covers([context])[0].log_kept)

    def prefix_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `prefix` of each context, (n,)."""
        return np.array([found.log_prefix for found in self._covers(contexts)])

    def complete_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `complete` of each context, (n,)."""
        found = self._covers(contexts)
        result = np.empty(len(found))
        for part in self._parts(found):
            laws = self._laws(cover.node for at in part for cover in found[at].covers if not cover.depth)
            for at in part:
                result[at] = self._end(found[at], laws)
        return result

    def logw_next_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return the log-weights of what may follow, (n, 258): each byte, −inf for the end token, and the end."""
        found = self._covers(contexts)
        rows = np.full((len(found), END_BYTE + 2), -math.inf)
        for part in self._parts(found):
            laws = self._laws(cover.node for at in part for cover in found[at].covers)
            for at in part:
                rows[at, :END_BYTE] = self._next(found[at], laws)
                rows[at, -1] = self._end(found[at], laws)
        return ratio(rows, np.array([covers.log_prefix for covers in found])[:, None])

    # What may follow

    def _next(self, found: Covers, laws: dict[Node, Law]) -> Floats:
        """Return the log-prefix of a string with each byte after it, (256,)."""
        if not found.covers:
            return np.full(END_BYTE, -math.inf)
        sums = [self.spellings.sums(c.depth, c.low, c.high, laws[c.node].p) for c in found.covers]
        with np.errstate(divide="ignore"):
            rows = np.log(sums) + np.array([[cover.log_p] for cover in found.covers])
        return np.asarray(np.logaddexp.reduce(rows, axis=0))

    def _end(self, found: Covers, laws: dict[Node, Law]) -> float:
        """Return the log-probability of a string as a whole response."""
        ends = [cover.log_p + laws[cover.node].log_end for cover in found.covers if not cover.depth]
        return float(np.logaddexp.reduce(ends)) if ends else -math.inf

    def _after(self, found: Covers, context: Context, laws: dict[Node, Law]) -> Covers:
        """Return the covers of a string, from those of all but its last byte."""
        byte, tree, spellings = context[-1], self.lm.tree, self.spellings
        covers: list[Cover] = []
        for cover in found.covers if byte < END_BYTE else ():
            p, log_p = laws[cover.node].p, cover.log_p
            low, middle, high = spellings.narrow(cover.depth, cover.low, cover.high, byte)
            for place in (low + np.flatnonzero(p[low:middle])).tolist():
                whole = log_p + math.log(p[place])
                node = tree.child(cover.node, int(spellings.ids[place]))
                covers.append(Cover(node, 0, 0, len(spellings.ids), whole, whole))
            mass = float(p[middle:high].sum())
            if mass > 0:
                covers.append(Cover(cover.node, cover.depth + 1, middle, high, log_p, log_p + math.log(mass)))
        masses = np.array([cover.log_mass for cover in covers])
        log_prefix = float(np.logaddexp.reduce(masses)) if covers else -math.inf
        if len(covers) <= (_MOST if self.beam is None else self.beam):
            return Covers(tuple(covers), log_prefix, found.log_kept)
        if self.beam is None:
            raise Unsupported(
                f"{self!r}: tokens spell the {len(context)} bytes {bytes(context)[-20:]!r} in more than {_MOST} ways: "
                "give it a beam, such as beam=8, which follows the likeliest"
            )
        best = np.argsort(-masses, kind="stable")[: self.beam]
        kept = found.log_kept + min(0.0, float(np.logaddexp.reduce(masses[best])) - log_prefix)
        self._warn(context, kept)
        return Covers(tuple(covers[i] for i in sorted(best.tolist())), log_prefix, kept)

    def _warn(self, context: Context, log_kept: float) -> None:
        lost = -math.expm1(log_kept)
        if lost > self.tolerance and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self!r}: a beam of {self.beam} has cut {lost:.1%} of the probability of beginning with "
                f"{bytes(context)[-20:]!r}, so that its weights are too small by as much: use a wider one, or a larger "
                "tolerance",
                BeamWarning,
                stacklevel=2,
            )

    # What is known

    def _forget(self) -> None:
        self._found = Memo[Context, Covers](2048)
        self._found[()] = self._origin = self._begin()
        self._remembered = Memo[Node, Law](max(16, _LAWS // len(self.spellings.ids)))

    def _begin(self) -> Covers:
        assert self.start.node is not None
        return Covers((Cover(self.start.node, 0, 0, len(self.spellings.ids), 0.0, 0.0),), 0.0, 0.0)

    def _covers(self, contexts: Sequence[Context]) -> list[Covers]:
        """Return the covers of each string, a byte of all of them at a time from the longest beginnings known."""
        if self._recall.lapsed(self.lm.version()):
            self._forget()
        here: dict[Context, Covers] = {(): self._origin}
        known: dict[Context, int] = {}  # how much of each string
        for context in dict.fromkeys(contexts):
            known[context] = 0
            for k in range(len(context), 0, -1):
                found = self._found.get(context[:k])
                if found is not None:
                    here[context[:k]], known[context] = found, k
                    break
        while missing := list(dict.fromkeys(context[: k + 1] for context, k in known.items() if k < len(context))):
            for part in self._parts([here[context[:-1]] for context in missing]):
                laws = self._laws(cover.node for at in part for cover in here[missing[at][:-1]].covers)
                for context in [missing[at] for at in part if missing[at] not in here]:
                    self._found[context] = here[context] = self._after(here[context[:-1]], context, laws)
            known = {context: k + 1 for context, k in known.items()}
        return [here[context] for context in contexts]

    def _parts(self, found: Sequence[Covers]) -> list[list[int]]:
        """Cut strings into parts whose laws are held at once."""
        parts: list[list[int]] = [[]]
        size = 0
        for at, covers in enumerate(found):
            size += len(covers.covers) * len(self.spellings.ids)
            if size > _LAWS and parts[-1]:
                parts.append([])
                size = len(covers.covers) * len(self.spellings.ids)
            parts[-1].append(at)
        return parts

    def _laws(self, nodes: Iterable[Node]) -> dict[Node, Law]:
        """Return the law after each history, in one call for those that are not remembered."""
        laws = {node: self._remembered.get(node) for node in nodes}
        missing = [node for node, law in laws.items() if law is None]
        found: dict[Node, Law] = {node: law for node, law in laws.items() if law is not None}
        longest = max((node.length for node in missing), default=0)
        if self.lm.context is not None and longest > self.lm.context:
            raise ContextOverflow(
                f"{self!r}: {longest} tokens are more than its context of {self.lm.context}: use a shorter prompt, "
                "fewer bytes or a narrower beam, or a model with a longer context"
            )
        ends, ids = sorted(self.lm.eos), self.spellings.ids

        def note(rows: NDArray[np.intp], logits: Any) -> None:
            law = read(log_normalise(logits, self.sampling).double())
            log_ends = np.logaddexp.reduce(law[:, ends], axis=1) if ends else np.full(len(law), -math.inf)
            for row, p, log_end in zip(rows.tolist(), law[:, ids], log_ends.tolist()):
                found[missing[row]] = self._remembered[missing[row]] = Law(np.exp(p), log_end)

        if missing:
            tally = Tally(len(missing))
            self.lm.laws(missing, np.arange(len(missing)), tally, note)
            charge(**tally.sums)
        return found


@dataclass(frozen=True, slots=True)
class Law:
    """The probabilities of tokens in the order of their bytes (T,), and the log of that of the end."""

    p: Floats
    log_end: float


_spellings: WeakKeyDictionary[Host, Spellings] = WeakKeyDictionary()

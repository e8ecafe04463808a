"""What a served model asks of whatever carries its requests to an engine: tokens from a seed, and scores of histories.

A server over HTTP is one transport, an engine in this process another. Above it all is the same: `ServedLM` makes the
requests of a wave, replays the tokens that come back through its own endings, and keeps the books.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ...ppl.errors import UnusableAnswer
from ..language.drawing.sampling import Sampling

_NOTHING = -9999.0
"""What engines write for a log-probability of −inf, which JSON does not know."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A request for the tokens after a history.

    Attributes:
        history: all tokens so far.
        seed: of its draws, 0 ≤ seed < 2⁶². What is drawn depends on it, the history and the law alone; a request that
            is sent again has the same.
        most: tokens at most; they fit into the context.
        sampling: the law of each token. All of it is said explicitly, since engines have defaults of their own.
        stops: strings at which it may stop. They save tokens and decide nothing.
        ends: tokens at which it stops, which are the last ones then.
        allowed: the tokens that it draws from; None for all. Never empty.
        shown: tokens whose log-probabilities at the first place are asked for as well.
        top: how many of the most probable tokens are shown, likewise.
    """

    history: tuple[int, ...]
    seed: int
    most: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()
    allowed: tuple[int, ...] | None = None
    shown: tuple[int, ...] = ()
    top: int = 0


def spelled(law: Sampling) -> dict[str, float | int]:
    """Return a law as engines are told it, all of it: what is left out they would take from defaults of their own."""
    return {
        "temperature": float(law.temperature),
        "top_p": 1.0 if law.top_p is None else float(law.top_p),
        "top_k": -1 if law.top_k is None else int(law.top_k),
        "min_p": 0.0 if law.min_p is None else float(law.min_p),
    }


class Drawn(NamedTuple):
    """What came of a `Draw`.

    Attributes:
        tokens: at least one; that at which it stopped is the last, whole.
        log_probs: of each token, as the engine reports them: −inf for −9999. None where it reports none.
        ended: whether the engine says that it stopped at a token, be it one of ``ends`` or an end of its own.
        shown: log-probabilities of tokens at the first place, those of ``shown`` and ``top`` at least.
        forwarded: positions that went through the model: those of the history that no cache had, and the drawn.
    """

    tokens: Sequence[int]
    log_probs: Sequence[float] | None
    ended: bool
    shown: Mapping[int, float]
    forwarded: int


class Scored(NamedTuple):
    """The log-probabilities (n − 1,) of a history's tokens after the first, and the positions forwarded for them."""

    log_probs: Sequence[float]
    forwarded: int


class Transport(Protocol):
    """Carries the requests of a wave to an engine, all at once, and brings what came of each, in order.

    Every number it brings is a real one or −inf: what an answer lacks, and NaN, raise `UnusableAnswer` by name. A
    history that is too long for the engine raises `ContextOverflow`, a request that it does not take `Unsupported`.

    Attributes:
        identity: what the model is called.
        context: most tokens of a history; None where the engine does not tell.
        where: the engine, for messages, such as its URL. No credentials.
    """

    identity: str
    context: int | None
    where: str

    def draw(self, wanted: Sequence[Draw]) -> list[Drawn]:
        """Draw tokens, each request from its own seed: what it gives does not depend on the others."""

    def score(self, histories: Sequence[tuple[int, ...]]) -> list[Scored]:
        """Score given histories under the model's own law: no temperature, nothing cut off."""

    def tokenize(self, string: str) -> tuple[int, ...] | None:
        """Return the engine's own tokens of a string, none added; None where it does not say."""


def used(answer: Mapping[str, Any]) -> tuple[int, int]:
    """Return the prompt's tokens that no cache had, and the drawn ones, as an answer's usage says; 0 where it does not.

    What is no whole number there says nothing.
    """
    usage = answer.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    details = usage.get("prompt_tokens_details")
    cached = _count(details, "cached_tokens") if isinstance(details, Mapping) else 0
    return max(0, _count(usage, "prompt_tokens") - cached), _count(usage, "completion_tokens")


def _count(usage: Mapping[str, Any], name: str) -> int:
    number = usage.get(name)
    return number if isinstance(number, int) and number > 0 else 0


def as_log_prob(number: Any, where: str) -> float:
    """Return a log-probability of what an engine wrote. Raises UnusableAnswer, naming the engine, for what is none."""
    if type(number) not in (int, float) or math.isnan(number) or number > 1e-3:
        raise UnusableAnswer(f"{where}: a log-probability is {number!r}; try the model in float32 (--dtype float32)")
    return -math.inf if number <= _NOTHING else min(0.0, float(number))

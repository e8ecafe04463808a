"""Texts written side by side, each of which sees the others' tokens as they come (Hogwild! inference).

A *cache* holds a prompt and W blocks, one for each text: what it has after the prompt. At a tick every text that is not
finished reads on and draws a token: the tokens of its block that were not written yet, most often the one drawn at the
last tick, go through the model and are *written*, for good; from the last of them the next is drawn. A token that is
written at tick t attends to the prompt, to its own block up to itself, and to all that the others have written up to t.
So each sees what the others drew at the last tick, and not what they draw at this one.

It sees them at these positions, for the text w of W with a prompt of P tokens, where n_v tokens of the text v are seen:

    prompt | block 0 | … | block w−1 | block w+1 | … | block W−1 | block w

The prompt begins at position 0, the block 0 at P, the next at P + n_0, and so on; the text's own block comes last, so
that it goes on from all that it knows (the contiguous layout of the paper). As the others grow, it moves on with the
positions; what was written is not computed again. The law is that of this shared cache, which is not the law after any
one prompt, and so depends on when each token was written: a `Together` holds that, and a plain tuple of texts is a new
cache, in which all that they have after the prompt is written at the first tick.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np

from ....ppl.cost import charge
from ....ppl.errors import ContextOverflow, Unsupported
from ....ppl.keys import Keys
from ....ppl.model import Draws
from ....ppl.sites import short
from ..drawing.endings import Ending
from ..drawing.runs import Run, tokens_after
from ..drawing.sampling import Sampling
from ..host import Floats, Host, Tally
from ..texts.text import Text
from ..texts.tree import Node
from .steps import Step

Times: TypeAlias = tuple[tuple[int, ...], ...]


class Board:
    """The history of a shared cache. Made by `Workers.board`; equal ones of a model are the same.

    Attributes:
        nodes: the history of each text by itself.
        times: for each text, the ticks at which the tokens of its block were written. The others are to be written.
        seat: where the written tokens stand in the model's memory, if they do: its own business.
        known: what the model knows of the next tick, if it has been there: where the rest stands, and what follows.
    """

    __slots__ = ("__weakref__", "known", "nodes", "seat", "times")

    def __init__(self, nodes: tuple[Node, ...], times: Times) -> None:
        self.nodes = nodes
        self.times = times
        self.seat: Any = None
        self.known: Any = None

    @property
    def prompt(self) -> Node:
        """What all texts begin with."""
        return self.nodes[0].top

    @property
    def lengths(self) -> list[int]:
        """Tokens in each block."""
        return [node.length - self.prompt.length for node in self.nodes]

    @property
    def length(self) -> int:
        """Tokens in all: the prompt and the blocks."""
        return self.prompt.length + sum(self.lengths)

    def written(self) -> Times:
        """Return the times as they are once the next tick has written the rest."""
        now = 1 + max(times[-1] if times else 0 for times in self.times)
        return tuple(times + (now,) * (n - len(times)) for times, n in zip(self.times, self.lengths))


class Workers(Protocol):
    """What a model does for texts that are written side by side."""

    turn: int | None
    """Most tokens in all, prompt included, that are read by one law; None for any."""

    def board(self, nodes: tuple[Node, ...], times: Times) -> Board:
        """Return the one board with these histories and times."""

    def draw(self, plays: Sequence[Play], keys: Keys, tally: Tally) -> None:
        """Advance each play to its end, with draws from its own key alone; ``tally[i]`` is of play i."""

    def forced(self, plays: Sequence[Play], owners: Sequence[int], tally: Tally) -> Floats:
        """Return the log-probability (n,) of what plays took; it is charged to ``owners[i]``, or who shares it."""


class Shared(Host, Protocol):
    """A language model whose texts can be written side by side."""

    @property
    def workers(self) -> Workers:
        """What does that."""


@dataclass(frozen=True, repr=False)
class Together(Sequence[Text]):
    """Texts of a shared cache: a sequence of them, which remembers when each token was written. Immutable.

    Attributes:
        texts: the texts. Each by itself is a text as any other, in which the others are not seen.
        times: for each of them, the ticks at which the tokens after the prompt were written.
    """

    texts: tuple[Text, ...]
    times: Times
    board: Board | None = field(default=None, compare=False)

    def __getitem__(self, index: Any) -> Any:
        return self.texts[index]

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[Text]:
        return iter(self.texts)

    def __repr__(self) -> str:
        return f"<Together {', '.join(map(repr, self.texts))}>"

    @property
    def finished(self) -> bool:
        """Whether nothing can follow in any of the texts."""
        return all(text.finished for text in self.texts)

    @property
    def log_prob(self) -> float:
        """Log-probability of all sampled tokens."""
        return sum(text.log_prob for text in self.texts)

    def append(self, index: int, string: str) -> Together:
        """Return the texts with a given string after one of them; it is written at the next tick, with the rest.

        Raises ValueError for a text whose end token the others have seen, and what ``text.append`` raises.
        """
        texts = list(self.texts)
        texts[index] = text = texts[index].append(string)
        kept = self.texts[index].tokens[: len(self.times[index])]
        if text.tokens[: len(kept)] != kept:
            raise ValueError(
                f"{self.texts[index]!r} cannot go on: the others have seen that it ended. Go on with the others, or "
                "give lm.together a plain tuple of texts, which begins a new cache"
            )
        return Together(tuple(texts), self.times)

    def detach(self) -> Together:
        """Return equal texts that hold nothing in the model's memory."""
        return Together(tuple(text.detach() for text in self.texts), self.times)

    def to_json(self) -> dict[str, Any]:
        """Return the texts as plain data for JSON; `from_json` is its inverse."""
        return {"texts": [text.to_json() for text in self.texts], "times": [list(times) for times in self.times]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Together:
        """Return the texts that `to_json` described, without their model. Raises TypeError for data of other types."""
        times = tuple(map(tuple, data["times"]))
        texts = tuple(Text.from_json(text) for text in data["texts"])
        whole = {type(time) for part in times for time in part} <= {int} and len(times) == len(texts)
        if not whole or any(len(part) > len(text.tokens) for part, text in zip(times, texts)):
            raise TypeError("the data are not those of texts of a shared cache")
        return cls(texts, times)


@dataclass(frozen=True)
class Ticks:
    """A request for k ticks: a kernel over texts of a shared cache. Made by ``lm.together``.

    Raises TypeError for what are no texts, ValueError for texts that have no cache in common, ContextOverflow where
    they leave no room for a tick.
    """

    lm: Shared
    texts: Together | Sequence[Text]
    k: int
    sampling: Sampling
    expensive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", _seated(self.lm, self.texts))
        Ending(self.k)
        board, live = self.board, sum(not text.finished for text in self.texts)
        if live and self.lm.context is not None and board.length + live > self.lm.context:
            raise ContextOverflow(
                f"the texts have {board.length} tokens in all, but the context of {self.lm!r} is {self.lm.context}: "
                "they need shorter texts, or a model with a longer context"
            )
        turn = self.lm.workers.turn
        if turn is not None and board.length + live * self.k > turn:
            raise Unsupported(
                f"in texts of more than {turn} tokens {self.lm!r} turns all keys otherwise (LongRoPE), those that are "
                f"written, too; these have {board.length} in all, and {live * self.k} are to come"
            )

    @property
    def board(self) -> Board:
        """The history that it goes on from."""
        board = self.texts.board if isinstance(self.texts, Together) else None
        assert board is not None
        return board

    @property
    def batch_key(self) -> Hashable:
        """Equally many texts of one model, drawn by one law, share a call."""
        return (Ticks, id(self.lm), len(self.texts), self.sampling)

    @property
    def fingerprint(self) -> Hashable:
        """The history and the settings."""
        return (tuple(text.digest for text in self.texts), self.board.times, self.k, self.sampling)

    def __repr__(self) -> str:
        return f"<{self.k} ticks of {self.lm.identity} from {self.texts!r}>"

    def sample_batch(self, requests: Sequence[Ticks], keys: Keys) -> Draws:
        """Draw the next texts for each request, from its own key alone, and their log-probabilities (n,)."""
        plays = [Play(request) for request in requests]
        tally = Tally(len(plays))
        self.lm.workers.draw(plays, keys, tally)
        charge(**tally.amounts)
        return Draws([play.value() for play in plays], np.array([play.log_prob for play in plays]))

    def log_prob_batch(self, requests: Sequence[Ticks], values: Sequence[Any]) -> Floats:
        """Return log p of each sequence of texts under its request, shape (n,); −inf for what it cannot give."""
        result = np.zeros(len(requests))
        plays: list[Play] = []
        owners: list[int] = []
        for i, (request, value) in enumerate(zip(requests, values)):
            play = replay(request, value)
            if play is None:
                result[i] = -math.inf
            elif len(play.boards) > 1:
                plays.append(play)
                owners.append(i)
        if plays:
            tally = Tally(len(requests))
            result[owners] = self.lm.workers.forced(plays, owners, tally)
            charge(**tally.amounts)
        return result

    def observing(self, value: Any) -> tuple[Ticks, Any]:
        """Return the request and the texts that it means to observe: a plain sequence of texts is of this cache.

        Raises TypeError for what are no texts.
        """
        play = None if isinstance(value, Together) else replay(self, value)
        return self, value if play is None else play.value()

    def fits(self, value: Any) -> bool:
        """Return whether a value is a sequence of as many texts."""
        several = isinstance(value, Together | tuple | list) and len(value) == len(self.texts)
        return several and all(isinstance(text, Text) for text in value)

    def covers(self, other: Any) -> bool:
        """Return whether these ticks can reach all texts that ``other`` can."""
        same = isinstance(other, Ticks) and other.lm is self.lm and other.board is self.board and other.k == self.k
        return same and (not self.sampling.truncates or self.sampling == other.sampling)


class Play:
    """One request on its way.

    Attributes:
        request: what is asked for.
        boards: the histories after each tick, that before the first included.
        runs: how each text goes on.
    """

    def __init__(self, request: Ticks) -> None:
        self.request = request
        self.boards = [request.board]
        lm, ending = request.lm, Ending(request.k)
        self.runs = [Run(Step(lm, text, ending, request.sampling)) for text in request.texts]

    @property
    def board(self) -> Board:
        """The history so far."""
        return self.boards[-1]

    @property
    def live(self) -> list[int]:
        """The texts that draw at the next tick."""
        return [w for w, run in enumerate(self.runs) if not run.over]

    @property
    def log_prob(self) -> float:
        """Log-probability of all that was taken."""
        return sum(run.log_prob for run in self.runs)

    @property
    def drawn(self) -> list[tuple[int, ...]]:
        """What each text took."""
        return [run.node.tokens(run.node.length - run.count) for run in self.runs]

    def advance(self, taken: Sequence[tuple[int, float]]) -> None:
        """Take one token, and its log-probability, for each text that draws one."""
        lm, before = self.request.lm, self.board
        for w, (token, log_prob) in zip(self.live, taken):
            self.runs[w].advance(token, log_prob)
        self.boards.append(lm.workers.board(tuple(run.node for run in self.runs), before.written()))
        if lm.context is not None and self.board.length + len(self._going) > lm.context:
            for run in self._going:
                run.finish_reason, run.over = "context", True

    @property
    def _going(self) -> list[Run]:
        return [run for run in self.runs if run.finish_reason is None]

    def value(self) -> Together:
        """Return the texts reached."""
        texts = self.request.texts
        if len(self.boards) == 1 and isinstance(texts, Together):
            return texts
        return Together(tuple(run.text() for run in self.runs), self.board.times, self.board)


def replay(request: Ticks, value: Any) -> Play | None:
    """Walk a request along given texts; None unless it can end exactly there.

    Raises TypeError for what are no texts.
    """
    if not request.fits(value):
        raise TypeError(f"a value of {request!r} is {len(request.texts)} texts, not {short(value, 80)}")
    play = Play(request)
    added = [tokens_after(run.start, text) for run, text in zip(play.runs, value)]
    at = 0
    while play.live:
        tokens = [part[at] for w in play.live if (part := added[w]) is not None and at < len(part)]
        if len(tokens) < len(play.live) or not all(0 <= token < request.lm.vocab_size for token in tokens):
            return None
        play.advance([(token, 0.0) for token in tokens])
        at += 1
    late = isinstance(value, Together) and value.times != play.board.times
    return None if late or any(part is None or len(part) != run.count for part, run in zip(added, play.runs)) else play


def _seated(lm: Shared, texts: Any) -> Together:
    """Return texts with the board that they stand on, in a new cache where they are a plain sequence."""
    if isinstance(texts, Together) and texts.board is not None and texts.texts[0].lm is lm:
        return texts
    several = isinstance(texts, Together | tuple | list) and len(texts) > 0
    if not several or not all(isinstance(text, Text) for text in texts):
        raise TypeError(f"texts go on together from a tuple of texts, such as (a, b), not from {short(texts, 80)}")
    attached = tuple(lm.attach(text) for text in texts)
    if len({text.prompt_tokens for text in attached}) > 1:
        raise ValueError(
            "texts that go on together share one prompt, and these have different ones: give them the same, and what "
            "is theirs alone by text.append"
        )
    bare = [not text.tokens for text in attached]
    if any(bare) and not all(bare):
        raise ValueError(
            f"the text {bare.index(True)} has no token of its own from which it could see the others': append how it "
            "is to begin, such as text.append('Alice: '), or begin with none in any of them"
        )
    times = texts.times if isinstance(texts, Together) else ((),) * len(attached)
    board = lm.workers.board(tuple(node for text in attached if (node := text.node) is not None), times)
    return Together(attached, times, board)

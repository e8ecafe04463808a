"""What texts, steps, scores and rewards ask of the language model that they belong to: all that they know of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...ppl.errors import Unsupported
from ...ppl.keys import Keys
from ...ppl.model import Kernel
from .drawing.runs import Run, Writing
from .drawing.sampling import Law, Sampling
from .texts.text import Text
from .texts.tree import Node

Floats: TypeAlias = NDArray[np.float64]
Sink: TypeAlias = Callable[[NDArray[np.intp], Any], None]
"""Is given the places of some histories among those that were asked about, (k,), and a tensor of k rows."""
Offer: TypeAlias = Literal["law", "few", "hidden"]
_OFFERS: dict[Offer, str] = {
    "law": "the law of the next token",
    "few": "the law of the next token, or that of a few tokens",
    "hidden": "hidden states",
}


class Tally:
    """What a call used: forward passes, and positions forwarded for each of its ``n`` requests."""

    def __init__(self, n: int) -> None:
        self.calls = 0
        self.tokens_in: NDArray[np.int64] = np.zeros(n, np.int64)
        self.tokens_recomputed: NDArray[np.int64] = np.zeros(n, np.int64)
        self.tokens_out: NDArray[np.int64] = np.zeros(n, np.int64)

    @property
    def amounts(self) -> dict[str, Any]:
        """The amounts to be charged."""
        return {
            "model_calls": self.calls,
            "tokens_in": self.tokens_in,
            "tokens_recomputed": self.tokens_recomputed,
            "tokens_out": self.tokens_out,
        }

    @property
    def sums(self) -> dict[str, int]:
        """The amounts to be charged where they belong to the call as a whole, and nothing was drawn."""
        return {
            "model_calls": self.calls,
            "tokens_in": int(self.tokens_in.sum()),
            "tokens_recomputed": int(self.tokens_recomputed.sum()),
        }

    def forwarded(self, owner: int, positions: int, again: int) -> None:
        """Note positions that went through the model for a request, ``again`` of them after having been forgotten."""
        self.tokens_in[owner] += positions
        self.tokens_recomputed[owner] += again


class Host(Writing, Protocol):
    """A language model as its own texts, steps and scores see it; `LanguageModel` is what models inherit from.

    Every model draws steps, and nearly every one scores given tokens. What else it can say, it names in ``offers``:
    "law", the law of the next token after any history, which constraints need; "few", that of a few tokens at a time,
    which judges need (a model with a law has it, too); and "hidden", its hidden states.
    """

    sampling: Sampling
    tokenizer: Any
    eos: frozenset[int]
    context: int | None
    prompt_context: int | None
    offers: frozenset[Offer]

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template."""

    def version(self) -> int:
        """Return a number that is another one whenever the model has been seen to change."""

    def admits(self, law: Law) -> None:
        """Raise Unsupported, naming the remedy, unless steps can be drawn under a law."""

    def weighs(self, law: Law) -> None:
        """Raise Unsupported, naming the remedy, unless given tokens can be scored under a law."""

    def scores(self, law: Law) -> bool:
        """Return whether it tells the log-probabilities of what it draws under a law."""

    def remedy(self, offer: Offer) -> str:
        """Return what to do where something is not offered."""

    @property
    def journal_key(self) -> Any:
        """What its laws depend on, the same in every process. Asked for it, it makes itself known to the journal."""

    def recall(self, run: Run) -> None:
        """Take note of a step that a journal has played."""

    def draw(self, runs: Sequence[Run], keys: Keys, tally: Tally) -> None:
        """Advance each run to the end of its step, with draws from its own key alone; ``tally[i]`` is of run i.

        Where it does not tell log-probabilities (see `scores`), runs advance with NaN.
        """

    def forced(
        self, nodes: Sequence[Node], starts: Sequence[int], laws: Sequence[Law], owners: Sequence[int], tally: Tally,
        *, onward: bool = False,
    ) -> Floats:  # fmt: skip
        """Return the log-probability (n,) of the tokens of each history from position ``starts[i]`` to its end.

        What it takes is charged to ``owners[i]``, or to one of those that share it. With ``onward`` steps are to go on
        from the ends, whose laws a model of whole passes then finds in the same one. Raises Unsupported, naming the
        remedy, before anything is asked, where the model cannot say.
        """

    def laws(self, nodes: Sequence[Node], owners: NDArray[np.intp], tally: Tally, sink: Sink) -> None:
        """Say the model's own law of the next token after each history, some at a time.

        ``sink(rows, logits)`` gets float32 logits (k, V) of the histories ``rows``, on the model's device; every
        history comes once. It neither writes to them nor keeps them, and asks no model. What is forwarded is charged
        to ``owners[i]`` of the first that needs it. Only where "law" is offered.
        """

    def few(
        self,
        nodes: Sequence[Node],
        tokens: Sequence[Sequence[int]],
        laws: Sequence[Sampling],
        owners: NDArray[np.intp],
        tally: Tally,
    ) -> list[Floats]:
        """Return the log-probabilities of some tokens after each history, (k_i,). Only where "few" is, and no "law"."""

    @property
    def depth(self) -> int:
        """How many hidden states a token has: that of its embedding, and one after each layer. Only for "hidden"."""

    def hidden(
        self, nodes: Sequence[Node], layers: Sequence[int], owners: NDArray[np.intp], tally: Tally, sink: Sink
    ) -> None:
        """Say the hidden state of layer ``layers[i]`` (0 ≤ layer < `depth`) at the end of each history.

        As `laws`, which is known afterwards; ``sink(rows, states)`` gets float32 states (k, d). Only where "hidden" is
        offered.
        """

    @property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes that each token stands for within a response, (V,); none for those that are not displayed.

        Raises Unsupported where strings are not those of their tokens, one after another.
        """

    def prompt(self, prompt: Any) -> Text:
        """Return a text with an empty response."""

    def encode(self, string: str, after: Text | None = None) -> tuple[int, ...]:
        """Return the tokens of a string, after a text or alone."""

    def decode_response(self, tokens: Sequence[int]) -> str:
        """Return the string of a response's tokens."""

    def spelled(self, tokens: Iterable[int]) -> list[str]:
        """Return how tokens are spelled."""

    def until(self, text: Text, stop: str | Sequence[str], *, max_tokens: int = 128, **sampling: Any) -> Kernel:
        """Return the kernel of the tokens up to the first stop."""

    def complete(self, text: Text, *, max_tokens: int = 256, **sampling: Any) -> Kernel:
        """Return the kernel of the rest of the response."""


def require(lm: Host, offer: Offer, who: str) -> None:
    """Raise `Unsupported`, naming the model and what it lacks, unless it offers something that ``who`` needs."""
    if offer not in lm.offers and not (offer == "few" and "law" in lm.offers):
        raise Unsupported(f"{who} needs {_OFFERS[offer]}, which {lm!r} does not give: {lm.remedy(offer)}")

"""What programs may read of a model: the law of the next token, numbers that say how sure it is, hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...ppl.cost import charge
from ...ppl.distributions.batching import groups
from .drawing.sampling import Sampling
from .host import Host, Tally
from .scoring import node_of
from .texts.text import Text

What: TypeAlias = Literal["law", "hidden", "entropy", "top", "margin"]


@dataclass(frozen=True)
class Read:
    """What is read after a text.

    Attributes:
        what: the law of the next token, a number that it is summed up by, or a hidden state.
        sampling: how that token is drawn; None for a hidden state.
        layer: of the hidden state, counted from the embeddings, which are 0; None for a law.
    """

    what: What
    sampling: Sampling | None
    layer: int | None


def read_all(lm: Host, items: Sequence[tuple[Text, Read]]) -> list[Any]:
    """Return what is asked for after each text, from one pass of the model."""
    nodes = [node_of(lm, text) for text, _ in items]
    found: list[Any] = [None] * len(items)
    tally = Tally(len(items))
    states = np.array([i for i, (_, read) in enumerate(items) if read.layer is not None], np.intp)
    laws = np.array([i for i, (_, read) in enumerate(items) if read.layer is None], np.intp)

    def note(rows: NDArray[np.intp], hidden: Any) -> None:
        for i, state in zip(states[rows], hidden.cpu().numpy()):
            found[i] = state.copy()

    def sum_up(rows: NDArray[np.intp], logits: Any) -> None:
        from .drawing.laws import summary

        for part in groups(items[i][1] for i in laws[rows]):
            read = items[laws[rows[part[0]]]][1]
            assert read.sampling is not None
            values = summary(logits[part], read.sampling, read.what)
            for i, value in zip(laws[rows[part]], values if read.what == "law" else values.tolist()):
                found[i] = value

    if len(states):  # first, since its pass gives the logits, too
        layers = [items[i][1].layer or 0 for i in states]
        lm.hidden([nodes[i] for i in states], layers, states, tally, note)
    if len(laws):
        lm.laws([nodes[i] for i in laws], laws, tally, sum_up)
    charge(**tally.amounts)
    return found

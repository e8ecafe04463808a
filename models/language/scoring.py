"""What a model says of given tokens, as lazy scores: their log-probability, and the mass of a mask."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...ppl.cost import charge
from ...ppl.distributions.batching import groups
from ...ppl.memory import Memory
from ...ppl.score import Kind
from .drawing.sampling import Sampling
from .host import Floats, Host, Tally
from .texts.text import Text
from .texts.tree import Node


def node_of(lm: Host, text: Text) -> Node:
    """Return the history of a text in its model's tree."""
    node = lm.attach(text).node
    assert node is not None
    return node


class OfModel:
    """What the scorers of a language model share."""

    kind: Kind = "log_weight"

    def __init__(self, lm: Host) -> None:
        self.lm = lm
        self.memory = Memory[float](10_000)

    def version(self) -> Hashable:
        """Return what tells the model as it is now from what it was."""
        return self.lm.version()

    @property
    def journal_key(self) -> Any:
        """What tells it from other scores in a journal: the model."""
        return self.lm.journal_key


class Likelihood(OfModel):
    """Scores log p of the tokens of a text from a position on, under the model's own law."""

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"log p of {self.lm.identity}"

    def score_batch(self, inputs: Sequence[tuple[Any, ...]]) -> list[float]:
        """Return log p for each (text, start)."""
        tally = Tally(len(inputs))
        nodes = [node_of(self.lm, text) for text, _ in inputs]
        laws = [(Sampling(), None)] * len(nodes)
        starts = [start for _, start in inputs]
        result: list[float] = self.lm.forced(nodes, starts, laws, range(len(nodes)), tally).tolist()
        charge(**tally.amounts)
        return result


class Mass(OfModel):
    """Scores the log of the mass that a law gives to a mask at the next token."""

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"mask mass of {self.lm.identity}"

    def score_batch(self, inputs: Sequence[tuple[Any, ...]]) -> list[float]:
        """Return the log-mass for each (text, mask, law)."""
        result = np.zeros(len(inputs))
        going = np.array([i for i, (text, *_) in enumerate(inputs) if not text.finished], np.intp)
        if len(going):
            tally = Tally(len(inputs))
            (self._from_laws if "law" in self.lm.offers else self._from_few)(inputs, going, tally, result)
            charge(**tally.amounts)
        numbers: list[float] = result.tolist()
        return numbers

    def _from_laws(
        self, inputs: Sequence[tuple[Any, ...]], going: NDArray[np.intp], tally: Tally, result: Floats
    ) -> None:
        from .drawing.laws import log_mass, read

        def weigh(rows: NDArray[np.intp], logits: Any) -> None:
            for part in groups(inputs[i][2] for i in going[rows]):
                own = going[rows[part]]
                result[own] = read(log_mass(_rows(logits, part), [inputs[i][1] for i in own], inputs[own[0]][2]))

        self.lm.laws([node_of(self.lm, inputs[i][0]) for i in going], going, tally, weigh)

    def _from_few(
        self, inputs: Sequence[tuple[Any, ...]], going: NDArray[np.intp], tally: Tally, result: Floats
    ) -> None:
        nodes = [node_of(self.lm, inputs[i][0]) for i in going]
        tokens = [np.flatnonzero(inputs[i][1].allowed).tolist() for i in going]
        found = self.lm.few(nodes, tokens, [inputs[i][2] for i in going], going, tally)
        result[going] = [np.logaddexp.reduce(log_probs, initial=-np.inf) for log_probs in found]


def _rows(logits: Any, rows: NDArray[np.intp]) -> Any:
    """Return some rows of logits, without a copy where they are all."""
    return logits if len(rows) == len(logits) else logits[rows]

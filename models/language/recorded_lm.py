"""A language model whose weights or server are gone: what is left of it is a journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from ...ppl.errors import NotRecorded, TokenizerMismatch
from ...ppl.keys import Keys
from .drawing.runs import Run
from .drawing.sampling import Law, Sampling, canonical
from .host import Floats, Sink, Tally
from .model import LanguageModel
from .texts.tree import Node, Tree


class Played(Protocol):
    """What is played: a journal."""

    def models(self) -> dict[str, dict[str, Any]]:
        """Return what is known of language models, by the places where they answered."""


class RecordedLM(LanguageModel):
    """A language model of which there is a journal and a tokenizer, and neither weights nor a server.

    Programs run on it as they ran on the model, in a run that plays the journal: `Journal` says what that keeps. What
    is not in the journal raises `NotRecorded`.

    Args:
        journal: in which the model answered.
        tokenizer: the model's own.
        name: what the model was called, where several answered, or where it was, such as ``"http://localhost:8000"``.

    Raises LookupError where the journal knows no such model, or several and none is named, and TokenizerMismatch for
    another tokenizer.

    >>> import feynkac as fk, tempfile, os
    >>> from feynkac.models.testing import tiny_lm, tiny_tokenizer
    >>> @fk.program
    ... async def line(lm):
    ...     return await fk.sample("line", lm.tokens(lm.prompt("Once"), 3))
    >>> path = os.path.join(tempfile.mkdtemp(), "run.fkj")
    >>> first = fk.infer(line(tiny_lm()), fk.SMC(4), seed=0, journal=path)
    >>> journal = fk.Journal(path, mode="replay")
    >>> lm = fk.models.RecordedLM(journal, tiny_tokenizer())
    >>> again = fk.infer(line(lm), fk.SMC(4), seed=0, journal=journal)
    >>> [str(text) for text in again.values] == [str(text) for text in first.values]
    True
    """

    def __init__(
        self, journal: Played, tokenizer: Any, name: str | None = None, *, sampling: Sampling | None = None
    ) -> None:
        known = {place: facts for place, facts in journal.models().items() if name in (None, facts["name"], place)}
        if len(known) != 1:
            found = [f"{facts['name']} (at {place})" for place, facts in journal.models().items()]
            raise LookupError(
                f"{journal!r} knows {'several models' if known else 'no such model'}, of which name= says one: "
                f"{', '.join(found) or 'none'}"
            )
        [(self._place, facts)] = known.items()
        self._facts, start = facts, facts["start"]
        super().__init__(
            tokenizer,
            Tree(Node),
            name=facts["name"],
            vocab_size=facts["vocab_size"],
            eos=frozenset(facts["eos"]),
            context=facts["context"],
            prompt_context=facts["prompt_context"],
            start=None if start is None else tuple(start),
            sampling=sampling,
        )
        self.offers = frozenset(facts["offers"])
        if self._writer.codec.fingerprint != facts["tokenizer"]:
            raise TokenizerMismatch(f"the tokenizer is not that of {self.identity}: give the model's own")

    @property
    def place(self) -> str:
        """Where the model was."""
        return self._place

    def revision(self) -> Any:
        """Return what told the model from others."""
        return self._facts["revision"]

    def admits(self, law: Law) -> None:
        """Accept every law: whether it was drawn from is known by the journal."""

    def scores(self, law: Law) -> bool:
        """Return whether the model told the log-probabilities of what it drew."""
        own = canonical(law, self.vocab_size) == (Sampling(), None)
        told: list[str] = self._facts["scores"]
        return law[0].temperature == 0 or ("own" if own else "other") in told

    def draw(self, runs: Sequence[Run], keys: Keys, tally: Tally) -> None:
        """Raise NotRecorded."""
        self._refuse()

    def forced(
        self, nodes: Sequence[Node], starts: Sequence[int], laws: Sequence[Law], owners: Sequence[int], tally: Tally,
        *, onward: bool = False,
    ) -> Floats:  # fmt: skip
        """Raise NotRecorded."""
        self._refuse()

    def laws(self, nodes: Sequence[Node], owners: NDArray[np.intp], tally: Tally, sink: Sink) -> None:
        """Raise NotRecorded."""
        self._refuse()

    def few(
        self,
        nodes: Sequence[Node],
        tokens: Sequence[Sequence[int]],
        laws: Sequence[Sampling],
        owners: NDArray[np.intp],
        tally: Tally,
    ) -> list[Floats]:
        """Raise NotRecorded."""
        self._refuse()

    def hidden(
        self, nodes: Sequence[Node], layers: Sequence[int], owners: NDArray[np.intp], tally: Tally, sink: Sink
    ) -> None:
        """Raise NotRecorded."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotRecorded(
            f"{self!r} is known by its journal alone, and was asked for what is not in it, or outside of a run with "
            "journal="
        )

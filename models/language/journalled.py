"""How a journal knows a language model again: where it answered, and what its laws depend on."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from ...ppl.values.canonical import digest, form
from ...ppl.values.recording import current
from .drawing.runs import Run
from .drawing.sampling import Law, Sampling
from .host import Offer
from .writing import Writer


class Journalled:
    """What a `LanguageModel` says to a journal of itself."""

    identity: str
    tokenizer: Any
    vocab_size: int
    eos: frozenset[int]
    context: int | None
    prompt_context: int | None
    offers: frozenset[Offer]
    _writer: Writer
    _signed: tuple[int, str, dict[str, Any]] | None = None

    @abstractmethod
    def version(self) -> int:
        """Return a number that is another one whenever the model has been seen to change, see `Host`."""

    @abstractmethod
    def scores(self, law: Law) -> bool:
        """Return whether it tells the log-probabilities of what it draws under a law, see `Host`."""

    @property
    def place(self) -> str:
        """Where the model answers: a journal refuses another model in the place of the one that it knows."""
        return repr(self)

    def revision(self) -> Any:
        """Return what tells the model's laws from others, the same in every process: by itself, what it is called.

        It is asked for once for each `version`.
        """
        return self.identity

    @property
    def facts(self) -> dict[str, Any]:
        """What there is to know of the model without its weights, as plain data, see `RecordedLM`."""
        settings = (self.vocab_size, sorted(self.eos), self.context, self.prompt_context, self._writer.start)
        laws = {"own": Sampling(), "other": Sampling(temperature=0.5)}
        template = digest(str(getattr(self.tokenizer, "chat_template", ""))).hex()
        return {
            "name": self.identity,
            **dict(zip(("vocab_size", "eos", "context", "prompt_context", "start"), settings)),
            "tokenizer": self._writer.codec.fingerprint,
            "prompts": [template, *self.tokenizer("a").input_ids],
            "revision": self.revision(),
            "offers": sorted(self.offers),
            "scores": [name for name, law in laws.items() if self.scores((law, None))],
        }

    @property
    def journal_key(self) -> Any:
        """What its laws depend on, the same in every process, see `Host`; not what it is called.

        Raises JournalError where the journal of the run in progress knows another model in its place.
        """
        version = self.version()
        if self._signed is None or self._signed[0] != version:
            facts = self.facts
            kept = {name: facts[name] for name in facts if name not in ("name", "offers", "scores")}
            self._signed = version, digest(form(kept)).hex(), facts
        _, key, facts = self._signed
        recorder = current()
        if recorder is not None:
            recorder.meet(self.place, key, facts)
        return key

    def recall(self, run: Run) -> None:  # most have nothing to note
        """Take note of a step that a journal has played, see `Host`."""

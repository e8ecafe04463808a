"""Steps of generation as kernels: a token, some tokens, a line, a sentence, the rest.

All requests of one model share a call, whatever their kind. How the model draws the tokens of a wave of steps is its
own affair.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ....ppl.cost import charge, rows
from ....ppl.errors import ContextOverflow, JournalError
from ....ppl.keys import Keys
from ....ppl.model import Draws
from ....ppl.sites import short
from ....ppl.values.canonical import form
from ....ppl.values.recording import current, served
from ..drawing.endings import Ending
from ..drawing.runs import Run, played, replay
from ..drawing.sampling import Mask, Sampling
from ..host import Floats, Host, Tally
from ..texts.text import Text

MOST_SUPPORT = 512


@dataclass(frozen=True)
class Step:
    """A request for one step from a text: a kernel (see `feynkac.ppl.model.Kernel`) over texts.

    Made by the methods of `LanguageModel`. A finished text gives itself, with log-probability 0 and no call.

    Raises TypeError for what is no text, and Unsupported for a law or a mask that the model cannot draw from.
    """

    lm: Host
    text: Text
    ending: Ending
    sampling: Sampling
    mask: Mask | None = None
    expensive: ClassVar[bool] = True
    journalled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.text, Text):
            raise TypeError(f"a step goes on from a text, such as lm.prompt('Once'), not from {short(self.text, 80)}")
        self.lm.admits((self.sampling, self.mask))

    @property
    def batch_key(self) -> Hashable:
        """All steps of one model share a call, but for those whose log-probabilities it does not tell."""
        return (Step, id(self.lm), self.lm.scores((self.sampling, self.mask)))

    @property
    def fingerprint(self) -> Hashable:
        """The history and the settings."""
        return (self.text.digest, self.ending, self.sampling, self.mask)

    @property
    def journal_key(self) -> Any:
        """All that its law depends on, the same in every process: the model, the history, the end and the settings."""
        text = self.text
        history = np.array(text.prompt_tokens, np.int32), np.array(text.tokens, np.int32)
        return (self.lm.journal_key, *history, text.finish_reason, text.end, self.ending, self.sampling, self.mask)

    def __repr__(self) -> str:
        return f"<step of {self.lm.identity} from {self.text!r}>"

    def sample_batch(self, requests: Sequence[Step], keys: Keys) -> Draws:
        """Draw the next text for each request, from its own key alone.

        Returns the texts and their log-probabilities (n,); −inf, and the text unchanged, where a mask allows
        nothing; None where the model does not tell them.
        """
        runs = [Run(request) for request in requests]
        if current() is None:
            self._draw(runs, keys)
        else:
            self._recorded(runs, keys)
        texts = [run.text() for run in runs]
        known = self.lm.scores((self.sampling, self.mask))
        return Draws(texts, np.array([run.log_prob for run in runs]) if known else None)

    def _draw(self, runs: Sequence[Run], keys: Keys) -> None:
        tally = Tally(len(runs))
        if not all(run.over for run in runs):
            self.lm.draw(runs, keys, tally)
        charge(**tally.amounts)

    def _recorded(self, runs: list[Run], keys: Keys) -> None:
        """Draw what no journal knows, and play the rest. Finished texts are nobody's business."""
        going = [i for i, run in enumerate(runs) if not run.over]
        made: dict[int, Any] = {}

        def make(places: list[int]) -> list[Any]:
            mine = [going[place] for place in places]
            self._draw([runs[i] for i in mine], keys[mine])
            made.update((place, runs[i].told) for place, i in zip(places, mine))
            return list(made.values())

        with rows(going):
            answers = served("draw", [form((runs[i].request, int(keys[i]))) for i in going], make, going)
        for place, (i, told) in enumerate(zip(going, answers)):
            if told is not made.get(place):
                runs[i] = played(runs[i].request, told)
                if math.isnan(runs[i].log_prob) and self.lm.scores((self.sampling, self.mask)):
                    raise JournalError(
                        f"the journal has no log-probability for {runs[i].request!r}, as {self.lm!r} did not tell it "
                        f"under {self.sampling} then, and does now: use another file, or start the server as it was"
                    )
                self.lm.recall(runs[i])

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
                if value.node is not None:  # where it is another model's, what is read of it here is kept with it
                    value.node.beside(run.node)
        if not jobs:
            return result
        places = [i for i, _, _ in jobs]
        if current() is None:
            result[places] = self._forced(jobs, len(requests))
            return result

        def make(mine: list[int]) -> list[Any]:
            return list(map(float, self._forced([(k, *jobs[j][1:]) for k, j in enumerate(mine)], len(mine))))

        with rows(places):
            forms = [form((request, run.told[0])) for _, request, run in jobs]
            result[places] = served("log-probability", forms, make, places)
        return result

    def _forced(self, jobs: Sequence[tuple[int, Step, Run]], n: int) -> Floats:
        """Return the log-probability of what runs took, each charged to its place among n."""
        tally = Tally(n)
        laws = [(request.sampling, request.mask) for _, request, _ in jobs]
        owners = [i for i, _, _ in jobs]
        starts = [run.node.length - run.count for _, _, run in jobs]
        found = self.lm.forced([run.node for _, _, run in jobs], starts, laws, owners, tally)
        charge(**tally.amounts)
        return found

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
        """Return whether this step can reach every text that ``other``, a step or a constrained one, can.

        It may be that of another model, such as a faster `variant`, which has an equal tokenizer if it goes on from the
        same text.
        """
        if hasattr(other, "within"):
            reaches: bool = other.within(self)
            return reaches
        if not isinstance(other, Step) or other.text != self.text or not self._ends_as(other):
            return False
        if replace(other.ending, whole=self.ending.whole) != self.ending:  # it is for constraints alone
            return False
        if self.mask is not None and self.mask != other.mask:
            return False
        return not self.sampling.truncates or (self.sampling == other.sampling and self.lm is other.lm)

    def _ends_as(self, other: Step) -> bool:
        """Whether the model of a step has all tokens of another's, and the same of them end a text."""
        one, two = self.lm, other.lm
        return one is two or (one.eos == two.eos and one.context == two.context and one.vocab_size >= two.vocab_size)

    def support(self) -> list[Text] | None:
        """Return all texts that one token can lead to; None where no law is known, and for a vocabulary above 512."""
        lm = self.lm
        if self.ending.max_tokens > 1 or lm.vocab_size > MOST_SUPPORT or "law" not in lm.offers:
            return None
        start = Run(self)
        if start.over:
            return [start.text()]
        from ..drawing.laws import log_normalise, read, stack, warp

        log_prob = np.zeros(lm.vocab_size)

        def weigh(_: Any, logits: Any) -> None:
            mask = None if self.mask is None else stack([self.mask], logits.device)
            log_prob[:] = read(log_normalise(warp(logits, self.sampling, mask).double()))[0]

        tally = Tally(1)
        lm.laws([start.node], np.zeros(1, np.intp), tally, weigh)
        charge(**tally.sums)
        texts = []
        for token in np.flatnonzero(log_prob > -math.inf).tolist():
            run = Run(self)
            run.advance(token, float(log_prob[token]))
            texts.append(run.text())
        return texts

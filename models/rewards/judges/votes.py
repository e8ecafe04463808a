"""Sampled verdicts of a language model: it writes its reasons first, several times, and the verdicts are averaged."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....ppl import keys
from ....ppl.cost import rows
from ....ppl.errors import FeynkacError
from ....ppl.score import Kind
from ....ppl.sites import short
from ....ppl.values.reals import whole_number
from ...language.host import Host
from ...language.texts.text import Text
from ..base import DetailedReward, Template
from .answers import ask
from .judge import as_prompt

_YES_NO = {"yes": 1.0, "no": 0.0}


@dataclass(frozen=True)
class Verdicts:
    """What the votes on one input said.

    Attributes:
        critiques: the texts written.
        values: the verdict found in each; None where there is none.
    """

    critiques: tuple[str, ...]
    values: tuple[float | None, ...]

    @property
    def found(self) -> list[float]:
        """The verdicts that could be read."""
        return [value for value in self.values if value is not None]

    @property
    def unread(self) -> int:
        """How many critiques hold no verdict."""
        return len(self.values) - len(self.found)


class Votes(DetailedReward[Verdicts]):
    """The mean of several verdicts that a language model reaches in writing, a generative verifier.

    Each vote is a critique sampled from the model (Zhang et al. 2024, arXiv:2408.15240); its verdict is read by a
    pattern or a function. Critiques depend on the prompt, the seed and the number of the vote alone, so that an input
    has one value. ``details`` gives the `Verdicts`; ``cast`` and ``unread`` count all votes so far and those without
    a verdict.

    Args:
        lm: the model asked.
        question: as for `Judge`.
        parse: a regular expression, of which the last match's first group is the verdict ("yes" and "no" are 1 and
            0, or a number; case does not matter), or a function from a critique to a number, or None.
        n: votes per input.
        max_tokens: most tokens of a critique.
        seed: of the votes.
        kind: "probability", or "real" for verdicts that are not in [0, 1].
        default: the value where no vote has a verdict; None makes that an error. Elsewhere such votes are left out.
        cache: results remembered.
        sampling: keywords of `Sampling`, such as ``temperature``.

    >>> from feynkac.models.testing import tiny_lm
    >>> from feynkac.ppl.score import evaluate
    >>> votes = Votes(tiny_lm(), "Polite? {text}", parse=lambda critique: "e" in critique, n=4, max_tokens=8)
    >>> evaluate([votes("Thank you.")])[0] in (0.0, 0.25, 0.5, 0.75, 1.0), votes.details(["Thank you."])[0].unread
    (True, 0)
    """

    def __init__(
        self,
        lm: Host,
        question: Template,
        *,
        parse: str | Callable[[str], float | None] = r"\b(yes|no)\b",
        n: int = 8,
        max_tokens: int = 256,
        seed: int = 0,
        kind: Kind = "probability",
        default: float | None = None,
        name: str = "votes",
        cache: int = 10_000,
        **sampling: Any,
    ) -> None:
        super().__init__(name, kind, question, cache)
        self.lm = lm
        self.n = whole_number(f"the votes of reward {name!r}", n)
        self.cast = self.unread = 0
        self._parse = _reader(parse, name) if isinstance(parse, str) else parse
        self._default = default
        self._max_tokens = whole_number(f"max_tokens of reward {name!r}", max_tokens)
        self._sampling: Mapping[str, Any] = sampling
        self._key = keys.root(seed)
        self._held: Sequence[Text] = ()

    def version(self) -> int:
        """Return a number that is another one whenever the model has been seen to change."""
        return self.lm.version()

    def prepare(self, *args: Any, **named: Any) -> Any:
        """Return the prompt: a string, or a chat as (role, content) pairs."""
        return as_prompt(self, args, named)

    def detail_batch(self, inputs: Sequence[Any]) -> list[Verdicts]:
        """Sample all the votes on some prompts, in shared batches."""
        # Held until the next wave, so that what its prompts begin with need not be forwarded again.
        self._held = texts = [ask(self.lm, key, self.name) for key in inputs]
        steps = [self.lm.complete(text, max_tokens=self._max_tokens, **self._sampling) for text in texts]
        prompts = np.repeat(np.array([_digest(text.prompt_tokens) for text in texts], np.uint64), self.n)
        votes = np.tile(np.arange(self.n), len(texts))
        with rows(np.repeat(np.arange(len(texts)), self.n).tolist()):
            requests = [step for step in steps for _ in range(self.n)]
            drawn = steps[0].sample_batch(requests, keys.fold(self._key, prompts, votes)).values
        critiques = [str(text) for text in drawn]
        return [self._read(key, critiques[i * self.n : (i + 1) * self.n]) for i, key in enumerate(inputs)]

    def number(self, detail: Verdicts) -> float:
        """Return the mean verdict."""
        if detail.found:
            return float(np.mean(detail.found))
        assert self._default is not None
        return self._default

    def _read(self, key: Any, critiques: Sequence[str]) -> Verdicts:
        given = [self._parse(critique) for critique in critiques]
        verdicts = Verdicts(tuple(critiques), tuple(None if value is None else float(value) for value in given))
        self.cast += self.n
        self.unread += verdicts.unread
        if not verdicts.found and self._default is None:
            raise VotesError(
                f"reward {self.name!r}: none of {self.n} critiques of {short(key, 80)} holds a verdict; the first is "
                f"{short(critiques[0], 200)}. Ask for the verdict in the form that parse reads, raise max_tokens "
                f"(now {self._max_tokens}), or give a value for such inputs with default="
            )
        return verdicts


class VotesError(FeynkacError):
    """No vote on an input could be read."""


def _reader(pattern: str, name: str) -> Callable[[str], float | None]:
    """Return the function that reads the last match of a pattern as a number, or as yes or no."""
    compiled = re.compile(pattern, re.IGNORECASE)
    if compiled.groups < 1:
        raise ValueError(f"reward {name!r}: the pattern {pattern!r} needs a group that holds the verdict")

    def read(critique: str) -> float | None:
        found = [match.group(1) for match in compiled.finditer(critique)]
        if not found:
            return None
        word = (found[-1] or "").strip().lower()
        try:
            return _YES_NO[word] if word in _YES_NO else float(word)
        except ValueError:
            return None

    return read


def _digest(tokens: Sequence[int]) -> int:
    """Return a 64-bit number that stands for a prompt, the same in every process."""
    return int.from_bytes(hashlib.blake2b(np.array(tokens, np.int64).tobytes(), digest_size=8).digest(), "little")

"""When a step of generation ends."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ....ppl.values.reals import whole_number

# A full-width stop ends a sentence whatever follows, once it is clear that no quote or bracket closes after it.
_WIDE = "。！？｡"
_CLOSING = "\"'”’»)\\]」』）】》〉"
_SENTENCE = re.compile(
    rf"[.!?…؟۔।]+(?:[{_CLOSING}]+|(?=\s))|[{_WIDE}][{_WIDE}!?…{_CLOSING}]*(?=[^{_WIDE}!?…{_CLOSING}])"
)


@dataclass(frozen=True)
class Ending:
    """When a step ends: after ``max_tokens``, at a stop string or token, at the end of a sentence.

    Raises TypeError for a number of tokens that is none, ValueError for no tokens, or an empty stop string.
    """

    max_tokens: int
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    sentence: bool = False
    whole: bool = False
    """Whether the step is to reach the text's end: a constrained one ends it after ``max_tokens``."""
    stop_tokens: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        whole_number("the number of tokens of a step", self.max_tokens)
        if not all(self.stops):
            raise ValueError("a stop string must not be empty")

    @property
    def reads(self) -> bool:
        """Whether the step must be decoded as it goes."""
        return bool(self.stops) or self.sentence

    def lacks(self, ends: Sequence[str]) -> str:
        """Return what a string lacks that such a step does not end with; nothing where it is to have some tokens."""
        if self.whole:
            return f"write an end token after it, {' or '.join(map(repr, ends)) or 'of which the model has none'}"
        if self.sentence:
            return "a sentence ends with its stop and white space, or a closing quote or bracket, after it"
        stops = [*map(repr, self.stops), *(f"the token {token}" for token in self.stop_tokens)]
        return f"write the stop after it, {' or '.join(stops)}" if stops else ""

    def find(self, string: str, known: int) -> int | None:
        """Return where the display ends, if the step does, which it does not in ``known`` characters."""
        if self.sentence:
            match = _SENTENCE.search(string, max(0, known - 8))
            return None if match is None else match.end()
        found = [
            (at + len(stop), at + len(stop) * self.include_stop)
            for stop in self.stops
            if (at := string.find(stop, max(0, known - len(stop) + 1))) >= 0
        ]
        return min(found)[1] if found else None

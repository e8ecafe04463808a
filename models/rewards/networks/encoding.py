"""Text to tokens, and tokens to padded batches, with limits that are heeded."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ....ppl.errors import ContextOverflow
from ....ppl.sites import short
from ...language.texts.encoding import check_string
from ..base import Input, messages

Truncate = Literal["left", "right"] | None
"""Which end of a long input may be cut off; None: neither, and it is an error."""
Encoding = dict[str, list[int]]

_POSITIONS = 32_768
"""Most positions, padding included, in one pass of several rows."""
_UNLIMITED = 10**9
"""Tokenizers say a larger number where they know of no limit."""


class Encoder:
    """Encodes inputs for one model.

    Args:
        tokenizer: a tokenizer of transformers.
        name: of the reward, for messages.
        wanted: names of what the model takes, such as ``token_type_ids``.
        max_length: most tokens of an input; None: what the tokenizer says, or ``context``.
        truncate: which end of a longer input is cut off; None makes it an error.
        context: most tokens that the model can read, if it is known.
    """

    def __init__(
        self,
        tokenizer: Any,
        name: str,
        wanted: Sequence[str],
        max_length: int | None,
        truncate: Truncate,
        context: int | None = None,
    ) -> None:
        if truncate not in ("left", "right", None):
            raise ValueError(f"truncate must be 'left', 'right' or None, not {truncate!r}")
        self.name = name
        known = [int(limit) for limit in (tokenizer.model_max_length, context) if limit and limit < _UNLIMITED]
        self.max_length = max_length or min(known, default=None)
        self.truncate = truncate
        # Truncation is a setting of the tokenizer, which other threads may use at the same time: so this one has its
        # own, and makes the setting here, once.
        self.tokenizer = copy.deepcopy(tokenizer) if truncate and self.max_length else tokenizer
        self._cut: dict[str, Any] = {}
        if self.truncate and self.max_length:
            self.tokenizer.truncation_side = self.truncate
            self._cut = {"truncation": True, "max_length": self.max_length}
        self._keys = ["input_ids", *("token_type_ids" for key in wanted if key == "token_type_ids")]
        self._tokenize("a")

    @property
    def journal_key(self) -> Any:
        """How inputs become tokens: the vocabulary, some probes, the template of chats, and what is cut off."""
        tokenizer = self.tokenizer
        probes = [self._tokenize(probe)["input_ids"] for probe in ("a B", "1 2\n\tc", "Ü 日")]
        return (tokenizer.get_vocab(), probes, str(tokenizer.chat_template), self.max_length, self.truncate)

    def encode(self, item: Input) -> Encoding:
        """Return the tokens of an input, with the special tokens that the model wants."""
        if isinstance(item, str):
            return self.fit(self._tokenize(item), item)
        if isinstance(item[0], str):
            return self.fit(self._tokenize(*item), item)
        return self.fit(self._tokenize(self.chat(item), add_special_tokens=False), item)

    def chat(self, item: Any, **options: Any) -> str:
        """Return a chat as a string, by the tokenizer's template."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(f"reward {self.name!r} got chat messages, but its tokenizer has no chat template")
        string: str = self.tokenizer.apply_chat_template(messages(item), tokenize=False, **options)
        return string

    def _tokenize(self, *parts: Any, **options: Any) -> Encoding:
        made = self.tokenizer(*map(check_string, parts), **options, **self._cut)
        return {key: list(made[key]) for key in self._keys if key in made}

    def fit(self, encoding: Encoding, shown: Any) -> Encoding:
        """Return an encoding that the model can read. Raises ContextOverflow, and ValueError where it is empty."""
        length = len(encoding["input_ids"])
        if self.max_length is not None and length > self.max_length:
            raise ContextOverflow(
                f"reward {self.name!r} reads {self.max_length} tokens, and {short(shown, 80)} has {length}: shorten "
                "it, or say which end to cut off with truncate='left' or 'right'"
            )
        if not length:
            raise ValueError(f"reward {self.name!r}: {short(shown, 80)} has no tokens; a template can give it some")
        return encoding


def chunks(lengths: Sequence[int], max_batch: int) -> Iterator[list[int]]:
    """Cut rows into batches: like lengths together, at most ``max_batch`` of them, with a bound on positions.

    >>> list(chunks([5, 1, 9, 2], 2))
    [[1, 3], [0, 2]]
    """
    if max_batch < 1:
        raise ValueError(f"max_batch must be at least 1, not {max_batch}")
    chunk: list[int] = []
    for i in np.argsort(lengths, kind="stable").tolist():
        if chunk and (len(chunk) == max_batch or (len(chunk) + 1) * lengths[i] > _POSITIONS):
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk


def pad(encodings: Sequence[Encoding], token: int) -> dict[str, NDArray[np.int64]]:
    """Return a batch: each entry as an array (n, longest), filled up on the right, and its ``attention_mask``.

    >>> pad([{"input_ids": [5]}, {"input_ids": [6, 7]}], 0)["attention_mask"].tolist()
    [[1, 0], [1, 1]]
    """
    lengths = np.array([len(encoding["input_ids"]) for encoding in encodings])
    inside = np.arange(lengths.max()) < lengths[:, None]
    batch = {"attention_mask": inside.astype(np.int64)}
    for key in encodings[0]:
        batch[key] = np.full(inside.shape, token if key == "input_ids" else 0, np.int64)
        batch[key][inside] = np.concatenate([encoding[key] for encoding in encodings])
    return batch

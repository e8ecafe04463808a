"""Models of transformers that read whole inputs: loading them, and running them over padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from typing import Any, TypeVar

import torch

from ....ppl.cost import charge
from ....ppl.values.canonical import weights
from ...local.weights.live import Live
from ...local.weights.wrappers import accepted, core, first_position
from .encoding import Encoder, Encoding, Truncate, chunks, pad

R = TypeVar("R")


class Reader:
    """Runs a model over inputs: like lengths together, padded on the right, in bounded batches; threads take turns.

    Args:
        model: takes ``input_ids`` and ``attention_mask``.
        tokenizer: its tokenizer.
        name: of the reward, for messages.
        max_batch: most inputs in a pass.
        max_length: most tokens of an input; by default what tokenizer and model say.
        truncate: which end of a longer input is cut off; None makes it an error.
    """

    def __init__(
        self, model: Any, tokenizer: Any, name: str, max_batch: int, max_length: int | None, truncate: Truncate
    ) -> None:
        self.model = model.eval()
        self.live = Live(model)
        self._signed: tuple[int, str] | None = None
        self.max_batch = max_batch
        names, inner = accepted(model), core(model)
        config, most = inner.config, getattr(inner.config, "max_position_embeddings", None)
        context = None if most is None else most - first_position(inner)
        self.encoder = Encoder(tokenizer, name, list(names), max_length, truncate, context)
        self._fixed = {"use_cache": False} if "use_cache" in names else {}
        text = config.get_text_config()
        self._configs = [config] if text is config else [config, text]
        self._known: list[int] = [pad for each in (text, config, tokenizer) if (pad := each.pad_token_id) is not None]
        self._ends = _ends(text, config, tokenizer)

    @property
    def journal_key(self) -> Any:
        """What tells it from others in a journal: its weights, and how inputs become tokens."""
        version = self.live.version()
        if self._signed is None or self._signed[0] != version:
            with self.live.hold():
                self._signed = version, weights(self.model)
        return (self._signed[1], self.encoder.journal_key)

    def run(self, encodings: Sequence[Encoding], read: Callable[[Any, Sequence[int]], Sequence[R]]) -> list[R]:
        """Return a result for each encoding: ``read(output, rows)`` gives those of a pass over ``rows``."""
        lengths = [len(encoding["input_ids"]) for encoding in encodings]
        results: list[R | None] = [None] * len(encodings)
        passes = 0
        with torch.inference_mode(), self.live.hold():
            for chunk in chunks(lengths, self.max_batch):
                for i, result in zip(chunk, read(self._forward([encodings[i] for i in chunk]), chunk)):
                    results[i] = result
                passes += 1
        charge(model_calls=passes, tokens_in=lengths)
        return results  # type: ignore[return-value]

    def _forward(self, encodings: Sequence[Encoding]) -> Any:
        token = self._filler(encodings)
        device = core(self.model).device
        batch = {key: torch.from_numpy(array).to(device) for key, array in pad(encodings, token).items()}
        with _padding(self._configs, token):
            return self.model(**batch, **self._fixed)

    def _filler(self, encodings: Sequence[Encoding]) -> int:
        """Return what to fill rows up with: a token that no input holds, and no end token.

        Models that answer at the last token take it for the last that is no padding, whatever the mask says.
        """
        held = self._ends.union(*(encoding["input_ids"] for encoding in encodings))
        return next(token for token in chain(self._known, count()) if token not in held)


@contextmanager
def _padding(configs: Sequence[Any], token: int) -> Iterator[None]:
    """Within the block configurations say that a token is padding; then they are as they were."""
    before = [config.pad_token_id for config in configs]
    try:
        for config in configs:
            config.pad_token_id = token
        yield
    finally:
        for config, known in zip(configs, before):
            config.pad_token_id = known


def _ends(*owners: Any) -> set[int]:
    """Return the end tokens that configurations and tokenizers know."""
    ids: set[int] = set()
    for owner in owners:
        given = getattr(owner, "eos_token_id", None)
        ids.update(given if isinstance(given, list | tuple) else () if given is None else (given,))
    return ids

"""Models of transformers that read whole inputs: loading them, and running them over padded batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from ...ppl.cost import charge
from ..live import Live
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
        self.max_batch = max_batch
        accepted = inspect.signature(model.forward).parameters
        context = getattr(model.config, "max_position_embeddings", None)
        self.encoder = Encoder(tokenizer, name, list(accepted), max_length, truncate, context)
        self._fixed = {"use_cache": False} if "use_cache" in accepted else {}
        self._pad = _pad_token(model, tokenizer)

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
        batch = pad(encodings, self._pad)
        device = self.model.device
        return self.model(**{key: torch.from_numpy(array).to(device) for key, array in batch.items()}, **self._fixed)


def _pad_token(model: Any, tokenizer: Any) -> int:
    """Return the padding token, and tell it to a model that needs it to find the last token of an input."""
    known = model.config.pad_token_id
    if known is None:
        known = tokenizer.pad_token_id
        model.config.pad_token_id = known
    if known is None:
        raise ValueError(
            f"neither {type(model).__name__} nor its tokenizer has a padding token: set one, for example with "
            "tokenizer.pad_token = tokenizer.eos_token"
        )
    return int(known)

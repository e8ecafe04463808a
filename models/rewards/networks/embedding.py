"""Similarity of a text to references, by embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ....ppl.cost import rows
from ...local.weights.loading import load
from ..base import Input, Template, TextReward, as_input
from .encoding import Truncate
from .heads import Reader

Pool = Literal["mean", "cls", "last"]


class Embedding(TextReward):
    """Cosine similarity of a text to one reference or several, a real number in [−1, 1].

    The references are embedded when the reward is made, and again when the model has changed. Sentence embeddings as in
    Reimers and Gurevych 2019 (arXiv:1908.10084).

    Args:
        model: an ``AutoModel`` whose output has a ``last_hidden_state``.
        tokenizer: its tokenizer.
        references: a text, or several.
        pool: how token vectors make one: their "mean", the first ("cls") or the last; as the model was trained.
        reduce: "max" or "mean" over references.
        template: makes the input of the arguments; references are given as they are.
        max_batch: most inputs in a pass.
        max_length: most tokens of an input; by default what the model says.
        truncate: "left" or "right" cuts that end of a longer input off; None makes it a ContextOverflow.
        cache: results remembered.

    >>> from transformers import BertConfig, BertModel
    >>> from feynkac.models.testing import tiny_tokenizer
    >>> from feynkac.ppl.score import evaluate
    >>> config = BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    ...     intermediate_size=16)
    >>> near = Embedding(BertModel(config), tiny_tokenizer(), "the sea")
    >>> near("the hill"), round(evaluate([near("the sea")])[0], 4)
    (<real score of embedding>, 1.0)
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        references: str | Sequence[str],
        *,
        pool: Pool = "mean",
        reduce: Literal["max", "mean"] = "max",
        template: Template = None,
        max_batch: int = 64,
        max_length: int | None = None,
        truncate: Truncate = None,
        name: str = "embedding",
        cache: int = 10_000,
    ) -> None:
        super().__init__(name, "real", template, cache)
        if pool not in ("mean", "cls", "last"):
            raise ValueError(f"pool must be 'mean', 'cls' or 'last', not {pool!r}")
        if reduce not in ("max", "mean"):
            raise ValueError(f"reduce must be 'max' or 'mean', not {reduce!r}")
        given = [references] if isinstance(references, str) else list(references)
        if not given:
            raise ValueError(f"reward {name!r} needs at least one reference")
        self.pool = pool
        self.reduce = reduce
        self._reader = Reader(model, tokenizer, name, max_batch, max_length, truncate)
        self._given = [as_input(name, reference) for reference in given]
        self._embedded = self.version(), self.embed(self._given)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        references: str | Sequence[str],
        *,
        device: str | None = None,
        dtype: Any = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> Embedding:
        """Load a model and its tokenizer: a local folder, a name on the hub, or ``"minilm"`` (see `fetch`).

        ``device`` is a GPU where there is one; ``dtype`` is float32 on a CPU, else the model's own. Other keywords
        are those of the class.
        """
        from transformers import AutoModel

        model, tokenizer = load(
            AutoModel,
            name_or_path,
            device=device,
            dtype=dtype,
            unused="pooler",
            trust_remote_code=trust_remote_code,
        )
        return cls(model, tokenizer, references, **options)

    def version(self) -> int:
        """Return a number that is another one whenever the model has been seen to change."""
        return self._reader.live.version()

    @property
    def references(self) -> NDArray[np.float32]:
        """Unit vectors of the references, shape (m, d)."""
        version = self.version()
        if self._embedded[0] != version:
            with rows([0] * len(self._given)):
                self._embedded = version, self.embed(self._given)
        return self._embedded[1]

    def embed(self, items: Sequence[Input]) -> NDArray[np.float32]:
        """Return unit vectors, shape (n, d)."""
        encodings = [self._reader.encoder.encode(item) for item in items]

        def read(output: Any, places: Sequence[int]) -> list[NDArray[np.float32]]:
            lengths = torch.tensor([len(encodings[i]["input_ids"]) for i in places], device=output[0].device)
            return list(_pooled(output.last_hidden_state.float(), lengths, self.pool).cpu().numpy())

        return np.stack(self._reader.run(encodings, read))

    def score_batch(self, inputs: Sequence[tuple[Any, ...]]) -> list[float]:
        """Return the similarity of each input to the references."""
        cosines = (self.embed([key for (key,) in inputs]) @ self.references.T).clip(-1.0, 1.0)
        numbers: list[float] = (cosines.max(1) if self.reduce == "max" else cosines.mean(1)).tolist()
        return numbers


def _pooled(states: Any, lengths: Any, pool: Pool) -> Any:
    """Return one unit vector per row, (n, d), of states (n, t, d) of which the first ``lengths`` count."""
    if pool == "cls":
        vectors = states[:, 0]
    elif pool == "last":
        vectors = states[torch.arange(len(states), device=states.device), lengths - 1]
    else:
        inside = torch.arange(states.shape[1], device=states.device)[None, :, None] < lengths[:, None, None]
        vectors = (states * inside).sum(1) / lengths[:, None]
    return torch.nn.functional.normalize(vectors, dim=-1)

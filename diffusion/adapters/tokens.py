"""Masked language models of transformers as networks of masked diffusion."""

from __future__ import annotations

from typing import Any

import torch

from ...models.local.weights.devices import find
from ..denoiser import Prediction


class TokenNetwork:
    """A masked language model as what predicts tokens: any ``model(input_ids=…)`` with ``logits`` (n, L, V).

    LLaDA (arXiv:2502.09992) and its like, and BERT's kind: the model must see all positions at once. The condition is a
    dict of what else the model takes, such as ``attention_mask``, a batch each.

    Args:
        model: in its evaluation mode.
        shift: whether its logits at a position predict the token after it, as Dream's do (arXiv:2508.15487).

    >>> import feynkac as fk
    >>> from transformers import BertConfig, BertForMaskedLM
    >>> config = BertConfig(vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    ...     intermediate_size=16, max_position_embeddings=8)
    >>> network = fk.diffusion.TokenNetwork(BertForMaskedLM(config).eval())
    >>> model = fk.diffusion.MaskedDiffusion(network, 4, vocabulary=12, template=[5, 11, 11, 6])
    >>> fk.infer(model, fk.SMC(3), seed=0).values[0][[0, 3]].tolist()
    [5, 6]
    """

    evaluations = 1
    prediction: Prediction = "logits"

    def __init__(self, model: Any, *, shift: bool = False) -> None:
        self.model = model
        self.shift = shift

    @property
    def journal_key(self) -> Any:
        """What tells it from other denoisers in a journal."""
        return (self.model, self.shift)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        shift: bool = False,
        device: str | None = None,
        dtype: Any = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> TokenNetwork:
        """Load a model that transformers knows for masked tokens, or (with ``trust_remote_code``) one of its own code.

        ``device`` is a GPU where there is one; other keywords go to transformers.
        """
        from transformers import AutoModel, AutoModelForMaskedLM

        kind = AutoModel if trust_remote_code else AutoModelForMaskedLM
        model = kind.from_pretrained(name_or_path, dtype=dtype, trust_remote_code=trust_remote_code, **options)
        return cls(model.to(find(device)).eval(), shift=shift)

    def __call__(self, x: Any, time: Any, condition: Any) -> Any:
        """Return the logits (n, L, V) of tokens (n, L)."""
        logits = self.model(input_ids=x, **(condition or {})).logits
        return torch.cat([logits[:, :1], logits[:, :-1]], 1) if self.shift else logits

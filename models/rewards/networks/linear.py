"""A linear head on the hidden states of a language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class LinearHead(nn.Module):  # type: ignore[misc]
    """Gives logits (n, t, labels) of the last hidden states of a model (n, t, d)."""

    def __init__(self, model: Any, weight: Any, bias: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        self.head.weight.data = weight.to(model.device, torch.float32)
        if bias is not None:
            self.head.bias.data = bias.to(model.device, torch.float32)

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self.model.device

    def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool = False) -> tuple[Any]:
        """Return the logits, in a tuple."""
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
        return (self.head(out.last_hidden_state.float()),)


def read_head(path: str, width: int, weight: str | None, bias: str | None) -> tuple[Any, Any]:
    """Return the weight (labels, width) and the bias (labels,), or None, of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in keys}
        fitting = [key for key, shape in shapes.items() if shape in ((1, width), (2, width))]
        if weight is None and len(fitting) == 1:
            weight = fitting[0]
        if weight is None or weight not in fitting:
            what = f"{path} holds {len(fitting)} weights" if weight is None else f"{weight!r} of {path} is no weight"
            raise ValueError(f"{what} of shape (1, {width}) or (2, {width}); name one of: {', '.join(fitting or keys)}")
        guess = weight.removesuffix("weight") + "bias"
        if bias is None and guess in keys:
            bias = guess
        if bias is not None and shapes.get(bias) != shapes[weight][:1]:
            raise ValueError(f"{path} holds no bias {bias!r} of shape {shapes[weight][:1]}")
        return file.get_tensor(weight), None if bias is None else file.get_tensor(bias)

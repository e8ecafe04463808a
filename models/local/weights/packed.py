"""Linear layers with weights packed for the CPU: the same numbers to float32 rounding, two to three times faster.

On a CPU the time of a small batch goes into multiplying it by large matrices. torch hands float32 products to a
general library; oneDNN, which comes with torch, multiplies faster by a matrix that it may lay out itself once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_ROWS = 32
"""Rows that the layout is made for; others are served too."""
_MOST_BYTES = 2 << 30
"""Most bytes of weights that are packed unless asked for: packing holds a second copy of them."""
_SMALL = 1 << 20
"""Products of a layer below which torch's own matrix product is quicker than the call of the other."""
_MADE = ("_source", "_packed", "_stamp")


class PackedLinear(nn.Linear):  # type: ignore[misc]
    """A linear layer that multiplies by a packed copy of its weight; made by `pack`.

    It does so for float32 on a CPU where no gradient is asked for, autocast is off and there is enough to multiply. It
    packs again when the weight was changed in place (but not through ``weight.data``, which torch does not track; call
    `repack` after it). Copies and pickles hold the weight alone.
    """

    def forward(self, input: Any) -> Any:
        """Return x Wᵀ + b for ``input`` x of shape (…, in_features)."""
        weight = self.weight
        if input.numel() * weight.shape[0] < _SMALL or torch.is_grad_enabled():
            return super().forward(input)
        if torch.is_autocast_enabled("cpu") or not _packable(weight):
            return super().forward(input)
        if input.dtype != weight.dtype or input.shape[-1:] != weight.shape[1:]:
            return super().forward(input)  # which says what is wrong, if anything is
        stamp = weight.data_ptr(), weight._version
        if self.__dict__.get("_stamp") != stamp:
            self._source = weight.detach()  # held, so that no other weight comes to stand at its address
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._source, _ROWS)
            self._stamp = stamp
        return torch.ops.mkldnn._linear_pointwise(input, self._packed, self.bias, "none", [], "")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in _MADE}


def pack(model: nn.Module, wanted: bool | None = None) -> int:
    """Let the float32 linear layers of a model on a CPU use packed weights; return the bytes that this takes.

    ``wanted`` None packs models of up to 2 GiB of such weights, where torch has oneDNN; True packs any model, and
    raises ValueError where there is nothing to pack; False does nothing. Layers of other classes are left alone, and so
    are weights that are no plain parameters (quantised, or computed from others). Layers that were packed before are
    packed afresh.

    >>> layer = nn.Linear(8, 4)
    >>> pack(nn.Sequential(layer)), type(layer).__name__
    (128, 'PackedLinear')
    """
    layers = [m for m in model.modules() if type(m) in (nn.Linear, PackedLinear) and _packable(m.weight)]
    size: int = sum(layer.weight.nbytes for layer in layers)
    if wanted is False or (wanted is None and size > _MOST_BYTES):
        return 0
    if wanted and not layers:
        raise ValueError("there is nothing to pack: it needs float32 linear layers on a CPU, and a torch with oneDNN")
    for layer in layers:
        layer.__class__ = PackedLinear
    repack(model)
    return size


def repack(model: nn.Module) -> None:
    """Let packed layers pack their weights again before they are next used."""
    for layer in model.modules():
        if type(layer) is PackedLinear:
            for name in _MADE:
                layer.__dict__.pop(name, None)


def _packable(weight: Any) -> bool:
    # A weight that is computed anew for each call may stand where the last one stood.
    if type(weight) is not nn.Parameter or weight.is_inference():
        return False
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

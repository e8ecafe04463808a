"""Arrays on their way to a model's device: several in one transfer, which nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_ALIGNED = 16


def send(device: Any, *arrays: NDArray[Any]) -> list[Any]:
    """Return arrays as tensors on a device. The caller has no more use for the arrays: on a CPU they are shared."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return packed(device, arrays)


def packed(device: Any, arrays: Sequence[NDArray[Any]]) -> list[Any]:
    """Return copies of arrays as tensors on a device: views of one buffer, sent at once, to CUDA from pinned memory."""
    ends = np.cumsum([-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays]).tolist()
    here = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    places = [slice(start, start + array.nbytes) for start, array in zip([0, *ends], arrays)]
    for place, array in zip(places, arrays):
        here.numpy()[place] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = here.to(device, non_blocking=True)
    return [there[place].view(_type(array)).view(array.shape) for place, array in zip(places, arrays)]


def _type(array: NDArray[Any]) -> Any:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype

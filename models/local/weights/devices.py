"""Devices by name."""

from __future__ import annotations

from typing import Any

import torch


def find(name: Any = None) -> str:
    """Return the name of a device; the best there is where none is given.

    Raises ValueError for one that torch does not know, or that is not there.

    >>> find("cpu")
    'cpu'
    >>> find("gpu")
    Traceback (most recent call last):
    ...
    ValueError: there is no device 'gpu': a GPU is "cuda" ("cuda:1" is the second), or "mps" on a Mac; else use "cpu"
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f'there is no device {name!r}: a GPU is "cuda" ("cuda:1" is the second), or "mps" on a Mac; else use "cpu"'
        ) from error
    there = {
        "cuda": lambda: torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available,
    }
    if device.type in there and not there[device.type]():
        raise ValueError(f'device {name!r} is not on this machine, or this torch was built without it: use "cpu"')
    return str(device)

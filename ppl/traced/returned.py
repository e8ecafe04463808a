"""What a traced program returns: its form, and the arrays that go into it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from ..errors import NotTraceable
from ..values.reals import plain
from .loops import Outputs


class Place(NamedTuple):
    """Where a leaf goes, by its number."""

    leaf: int


class Series(NamedTuple):
    """The ys of a scan: the form of one, whose leaves have an axis of iterations."""

    inner: Any
    length: int


def skeleton(value: Any, leaves: list[Any]) -> Any:
    """Return the form of a value, and append its numbers and arrays to ``leaves``.

    Raises NotTraceable for what is neither a number, an array or a text, nor a container of them.
    """
    if isinstance(value, Outputs):
        return Series(skeleton(value.stacked, leaves), len(value))
    if isinstance(value, dict):
        return {name: skeleton(part, leaves) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(skeleton(part, leaves) for part in value))
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(skeleton(part, leaves) for part in value)
    if isinstance(value, bool | int | float | complex | np.ndarray | np.generic | jax.Array):
        leaves.append(value)
        return Place(len(leaves) - 1)
    if value is None or isinstance(value, str | bytes):
        return value
    raise NotTraceable(f"what the program returns holds a {type(value).__name__}, no array or container of them")


def build(form: Any, leaves: Any, at: Any) -> Any:
    """Return the value of a particle: with numbers of Python's, read-only arrays, and tuples of ys.

    Args:
        form: see `skeleton`.
        leaves: arrays (n, …).
        at: the particle; within ys, with the iteration.
    """
    if isinstance(form, Place):
        return plain(leaves[form.leaf][at])
    if isinstance(form, Series):
        if isinstance(form.inner, Place) and (row := leaves[form.inner.leaf][at]).ndim == 1:
            return tuple(row.tolist())
        return tuple(build(form.inner, leaves, (*at, t)) for t in range(form.length))
    if isinstance(form, dict):
        return {name: build(part, leaves, at) for name, part in form.items()}
    if isinstance(form, tuple) and hasattr(form, "_fields"):
        return type(form)(*(build(part, leaves, at) for part in form))
    if isinstance(form, list | tuple):
        return type(form)(build(part, leaves, at) for part in form)
    return form

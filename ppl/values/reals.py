"""What counts as a number where weights, rewards and log-probabilities are meant, and what only looks like one."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..sites import short

_REAL = ("float", "bfloat", "int", "uint", "longdouble")


def real(value: Any, *, bools: bool = False) -> float:
    """Return a real number as a float: one of Python's, NumPy's, torch's or JAX's, alone or as an array of one element.

    NaN and infinities pass. A bool does not, unless ``bools``: as a log-weight True would mean e¹, which nobody means.
    (As a probability or a reward it is 1, and means it.)

    Raises TypeError, saying what it is, for bools, complex numbers, strings, containers and arrays of several.

    >>> real(np.float32(0.5)), real(np.array(True), bools=True)
    (0.5, 1.0)
    >>> real(np.array(True))
    Traceback (most recent call last):
    ...
    TypeError: a bool, not a number: True
    """
    kind = type(value)
    if kind is float:
        return value  # type: ignore[no-any-return]
    if isinstance(value, bool):
        named = "bool"
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        if math.prod(value.shape) != 1:
            raise TypeError(f"an array of shape {tuple(value.shape)}, not a number")
        if np.ma.is_masked(value):
            raise TypeError("a masked element, not a number")
        named = _name(value.dtype)
        value = value.item() if named == "bool" or named.startswith(_REAL) else value
    else:
        known = isinstance(value, numbers.Number) or hasattr(kind, "__float__")
        named = "int" if known and not isinstance(value, complex) else kind.__name__
    if not (named.startswith(_REAL) or (bools and named == "bool")):
        raise TypeError(f"a {named}, not a number: {short(value, 80)}")
    try:
        return float(value)
    except OverflowError:
        raise TypeError(f"a number beyond the range of floats: {short(value, 40)}") from None


def reals(values: Any, *, bools: bool = False) -> NDArray[np.float64]:
    """Return numbers in order as an array of floats; raises TypeError as `real` does, and for what has no order."""
    dtype = getattr(values, "dtype", None)
    known = dtype == np.float64 or _name(dtype).startswith(_REAL)
    if known and isinstance(values, np.ndarray) and not isinstance(values, np.ma.MaskedArray):
        return values.astype(np.float64, copy=False)
    return np.array([real(value, bools=bools) for value in ordered(values)], np.float64)


def ordered(values: Any) -> list[Any]:
    """Return several values as a list; raises TypeError for one value, a string, and what has no order."""
    if isinstance(values, str | bytes | Set | Mapping) or not hasattr(values, "__iter__"):
        raise TypeError(f"a {type(values).__name__}, not a sequence of numbers: {short(values, 80)}")
    return list(values)


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Return a setting that is a whole number. Raises TypeError for other things, ValueError for less."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if operator.index(value) < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    return operator.index(value)


def is_index(value: Any, below: int) -> bool:
    """Whether a value is a whole number from 0 to below − 1, and no truth value.

    >>> is_index(np.int64(3), 10), is_index(True, 10), is_index(1.0, 10), is_index(10, 10)
    (True, False, False, False)
    """
    return not isinstance(value, bool) and hasattr(type(value), "__index__") and 0 <= operator.index(value) < below


def _name(dtype: Any) -> str:
    """Return a dtype's name: "float64", "bool", …"""
    return getattr(dtype, "name", None) or str(dtype).rpartition(".")[2]


def plain(value: Any) -> Any:
    """Return a number of Python for one of an array, and a read-only view of a row of one."""
    if isinstance(value, np.ndarray) and value.ndim:
        view = value.view()
        view.flags.writeable = False
        return view
    return value.item() if hasattr(value, "item") else value

"""Minimum Bayes risk: the value that the others like best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def most_liked(posterior: Any, utility: Callable[[Any, Any], float] | NDArray[Any]) -> Any:
    """Return the value of the most expected utility; see `Posterior.mbr`."""
    n, p = len(posterior), posterior.probabilities
    index = np.flatnonzero(posterior.complete & (p > 0))
    if not len(index):
        raise ValueError("no particle ran to its end, so that there is nothing to choose from")
    values = [posterior.values[i] for i in index]
    if callable(utility):
        table = np.array([[float(utility(one, other)) for other in values] for one in values])
    else:
        table = np.asarray(utility, float)
        if table.shape != (n, n):
            raise ValueError(f"a table of utilities has a row and a column for each of {n} values, not {table.shape}")
        table = table[np.ix_(index, index)]
    if np.isnan(table).any():
        i, j = index[np.argwhere(np.isnan(table))[0]].tolist()
        raise ValueError(f"the utility of value {i} to value {j} is NaN")
    return values[int(np.argmax(table @ p[index]))]

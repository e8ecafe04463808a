"""How good the draws of Markov chains are: effective sample size, R̂, and how much they moved."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ....ppl.model import Floats, Index
from ...drawing.pixels import identity
from ..columns.columns import columns
from ..columns.latents import variables
from .autocorrelation import chain_ess, rhat

_LARGE = 64
"""Numbers of one draw above which it is looked at as a text is, by its reward and by what it equals."""
_INDICATORS = 10


class Mixing(NamedTuple):
    """How Markov chains moved.

    Attributes:
        ess: effective sample size, the least of what was looked at; 1 where the chains never moved.
        rhat: R̂, the largest; NaN for one chain.
        distinct: how many different values the draws have.
        changes: for each chain, how many draws differ from the one before.
        acceptance: of each chain; NaN where it does not say.
        draws: of a chain.
    """

    ess: float
    rhat: float
    distinct: int
    changes: tuple[int, ...]
    acceptance: tuple[float, ...]
    draws: int


def layout(posterior: Any) -> Index:
    """Return the particle of each draw, (chains, draws): the last draws of each chain, as many as all of them have.

    A chain starts where its path has positive weight, and counts as far as its draws are complete; one that has none
    of these is left out. Raises ValueError where no chain has any.
    """
    good = (posterior.log_weights > -np.inf) & posterior.complete
    ends = np.cumsum([len(chain.log_weights) for chain in posterior.chains])[:-1]
    rows = [part[good[part]] for part in np.split(np.arange(len(posterior)), ends)]
    rows = [part for part in rows if len(part)]
    if not rows:
        raise ValueError("no draw of the chain is complete and has positive weight; raise the budget")
    fewest = min(map(len, rows))
    return np.stack([part[-fewest:] for part in rows])


def mixing(posterior: Any) -> Mixing:
    """Return how the chains of a serial posterior moved.

    The effective sample size is that of the numbers in the values (or, where a program returns none, of its sites). Of
    texts, and of arrays of more than 64 numbers, it is that of the rewards, and of whether a draw is this text or that
    one, for the ten commonest; R̂ is that of the rewards, or of the commonest where these never differ.
    """
    rows = layout(posterior)
    names: dict[Any, int] = {}
    labels = np.array([names.setdefault(identity(posterior.values[i]), len(names)) for i in rows.ravel()])
    labels = labels.reshape(rows.shape)
    numbers, indicators = ([x for x in xs if np.ptp(x) > 0] for xs in _series(posterior, rows, labels))
    sizes = [size for x in numbers + indicators if not math.isnan(size := chain_ess(x))]
    gaps = [gap for x in numbers or indicators[:1] if not math.isnan(gap := rhat(x))]
    return Mixing(
        ess=min(sizes, default=float(len(names))),
        rhat=max(gaps, default=math.nan),
        distinct=len(names),
        changes=tuple((labels[:, 1:] != labels[:, :-1]).sum(1).tolist()),
        acceptance=tuple(posterior._locate(i)[0].info.get("acceptance", math.nan) for i in rows[:, 0].tolist()),
        draws=rows.shape[1],
    )


def _series(posterior: Any, rows: Index, labels: Index) -> tuple[list[Floats], list[Floats]]:
    """Return the numbers to look at and the indicators of values, each (chains, draws)."""
    found = columns(posterior.values) or {name: v.array for name, v in variables(posterior).items()}
    numbers = [a for a in found.values() if a.dtype.kind in "biuf" and math.prod(a.shape[1:]) <= _LARGE]
    out = [series for array in numbers for series in scalars(array, rows)]
    if found and len(numbers) == len(found):
        return out, []
    seen, counts = np.unique(labels, return_counts=True)
    common = seen[np.argsort(-counts, kind="stable")][:_INDICATORS]
    return [*out, posterior.log_potential[rows]], [(labels == label).astype(np.float64) for label in common.tolist()]


def scalars(array: NDArray[Any], rows: Index) -> list[Floats]:
    """Return each number of a column (n, …) as a series (chains, draws); what is missing counts as the least."""
    flat = array.astype(np.float64).reshape(len(array), -1)[rows]
    least = np.nanmin(flat, initial=0.0) - 1.0
    return list(np.moveaxis(np.where(np.isnan(flat), least, flat), -1, 0))

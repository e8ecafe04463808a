"""Ladders of inverse temperatures λ, from 0 to 1: the next rung by effective sample size, or rungs that are given."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from ...ppl.errors import LadderStuck
from ...ppl.model import Floats
from ..base.checks import is_real
from ..base.weights import normalize

_HALVINGS = 50
_NEAREST = 1e-10
"""Rungs that are closer than this lead nowhere."""


def reweighted(log_weights: Floats, log_potential: Floats, gap: float) -> Floats:
    """Return log-weights (n,) times G^gap; a potential of zero has none left at any gap, 0 included."""
    alive = log_potential > -np.inf
    return np.where(alive, log_weights + gap * np.where(alive, log_potential, 0.0), -np.inf)


def conditional_ess(log_weights: Floats, log_potential: Floats) -> Callable[[float], float]:
    """Return the conditional effective sample size of a rise of λ, as a function of the rise, in [0, 1].

    With normalised weights W and u = G^gap it is (ΣWu)² / ΣWu²: how much is lost by this rise alone, whatever was lost
    before. Of equal weights it is ESS/n. Zhou, Johansen and Aston (2016), doi:10.1080/10618600.2015.1060885.

    >>> conditional_ess(np.zeros(2), np.array([0.0, -np.inf]))(0.0)
    0.5
    """
    weights = normalize(log_weights)
    alive = (weights > 0.0) & (log_potential > -np.inf)
    mass, logs = weights[alive], log_potential[alive]
    logs = logs - logs.max(initial=-np.inf)

    def share(gap: float) -> float:
        u = np.exp(gap * logs)
        return float((mass @ u) ** 2 / (mass @ (u * u))) if len(u) else 0.0

    return share


def next_inverse(share: Callable[[float], float], at: float) -> float:
    """Return the next inverse temperature: 1 where ``share(1 - at)`` reaches 1, else where it falls to 1 or below.

    Args:
        share: of a rise of λ, the effective sample size that is left, by that which is asked for.
        at: λ now.

    Raises:
        LadderStuck: where the next rung is closer than 1e-10.
    """
    if share(1.0 - at) >= 1.0:
        return 1.0
    low, high = 0.0, 1.0 - at
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(middle) >= 1.0 else (low, middle)
    if low < _NEAREST:
        raise LadderStuck(
            f"the ladder of temperatures is stuck at λ = {at:.6g}: however small the next rise, the effective sample "
            "size falls below what is asked for. The log-potentials of the particles are too far apart: soften the "
            "factors (look at what they return), ask for a lower ess, or give a ladder"
        )
    return at + low


def checked_ladder(ladder: Any) -> tuple[float, ...] | None:
    """Return a ladder as a tuple of floats; ValueError unless it rises from 0 to 1, or is None.

    >>> checked_ladder([0, 0.3, 1])
    (0.0, 0.3, 1.0)
    """
    if ladder is None:
        return None
    wrong = ValueError(f"ladder must rise from 0 to 1, such as (0, 0.1, 0.4, 1), or be None, not {ladder!r:.200}")
    try:
        rungs = tuple(ladder.tolist() if isinstance(ladder, np.ndarray) else ladder)
    except TypeError:
        raise wrong from None
    if not all(map(is_real, rungs)) or len(rungs) < 2 or (rungs[0], rungs[-1]) != (0, 1):
        raise wrong
    if not all(a < b for a, b in pairwise(rungs)):
        raise wrong
    return tuple(map(float, rungs))

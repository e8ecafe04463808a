"""Copies that never part: particles that resampling made equal, and no later draw told apart."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from ....ppl.model import Index
from ...base.chain import Chain
from ...base.paths import drew


def distinct(posterior: Any) -> tuple[int, float]:
    """Return how many particles of positive weight are no copies of each other, and their effective number.

    Particles of a program are copies where they have drawn nothing since they had an ancestor in common. Those of a
    model whose choices are arrays of floats, such as a diffusion without noise, are copies where the last are equal.
    The effective number is 1 / Σ W_g², with W_g the weight of all copies of one particle together.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def once():
    ...     x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
    ...     for _ in range(60):
    ...         await fk.factor("G", -x * x)
    >>> posterior = fk.infer(once(), fk.SMC(100), seed=0)
    >>> distinct(posterior)[1] < posterior.ess / 4
    True
    """
    weights, offset = posterior.probabilities, 0
    shares: dict[Any, float] = {}
    for c, chain in enumerate(posterior.chains):
        alive = np.flatnonzero(chain.log_weights > -np.inf)
        for i, original in zip(alive.tolist(), _originals(chain, alive)):
            shares[c, original] = shares.get((c, original), 0.0) + float(weights[offset + i])
        offset += len(chain.log_weights)
    return len(shares), 1.0 / sum(share * share for share in shares.values())


def _originals(chain: Chain, alive: Index) -> list[Any]:
    """Return for each of some particles what it shares with its copies."""
    lines, last = chain.lines, cast(Any, chain.steps[-1].choices)
    if isinstance(last, np.ndarray) and last.dtype.kind == "f":
        return [last[i].tobytes() for i in lines[-1][alive].tolist()]
    origin = np.zeros(len(alive), np.intp)  # the step that drew last for each
    left = np.arange(len(alive))
    for t in range(len(chain.steps) - 1, -1, -1):
        choices = chain.steps[t].choices
        fresh = np.array([drew(choices[i]) for i in lines[t][alive[left]].tolist()], bool)
        origin[left[fresh]] = t
        left = left[~fresh]
        if not len(left):
            break
    return list(zip(origin.tolist(), lines[origin, alive].tolist()))

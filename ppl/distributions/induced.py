"""The proposal that a twist induces: a law tilted by an estimate of what is still to come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import CannotScore, InvalidWeight, Unsupported
from .adapters import as_kernel
from .dist import Categorical


def induced(law: Any, log_twist: Callable[[Any], float]) -> Categorical:
    """Return the law q(x) ∝ p(x)·ψ(x), where p has a small finite support: the proposal of a twisted model.

    Together with the twist it makes a program of twisted SMC, in which a step is drawn with its future in mind:

        law = fk.dist.Categorical(probs, values=letters)
        x = await fk.sample("x", law, proposal=fk.induced(law, log_psi))
        await fk.twist("psi", log_psi(x))

    The weight of the step is then Σ p·ψ over ψ(x), and that of the particle with its twist does not depend on x. With
    ψ the exact expected weight to come, every particle has the weight Z, and the evidence no variance. With any other
    positive ψ, given or learned, the target and E[Ẑ] are as they were.

    Args:
        law: a distribution or a step of a language model with a ``support()``, such as one token of a small vocabulary.
        log_twist: log ψ of a value; finite wherever p is positive.

    Raises:
        Unsupported: where the support is not small and finite.
        CannotScore: where p gives no log-probabilities.
        InvalidWeight: where log ψ is not finite.

    Source: Zhao, Brekelmans, Makhzani and Grosse (2024), arXiv:2404.17546; Whiteley and Lee (2014),
    doi:10.1214/13-AOS1167.

    >>> q = induced(Categorical([0.5, 0.3, 0.2], values=["a", "b", "c"]), {"a": 0.0, "b": 1.0, "c": 0.0}.get)
    >>> [round(float(np.exp(q.log_prob(x))), 3) for x in "abc"]
    [0.33, 0.538, 0.132]
    """
    kernel = as_kernel(law)
    values = kernel.support() if hasattr(kernel, "support") else None
    if values is None:
        raise Unsupported(
            f"induced needs a law with a small finite support, and {law!r} has none: give a proposal of your own"
        )
    if not hasattr(kernel, "log_prob_batch"):
        raise CannotScore(f"induced needs log-probabilities, and {law!r} gives none")
    levels = np.array([float(log_twist(value)) for value in values])
    if not np.isfinite(levels).all():
        bad = int(np.flatnonzero(~np.isfinite(levels))[0])
        raise InvalidWeight(f"the twist of {values[bad]!r} is {levels[bad]}; it must be finite")
    logits = np.asarray(kernel.log_prob_batch([kernel] * len(values), values), float) + levels
    return Categorical(logits=logits, values=values)

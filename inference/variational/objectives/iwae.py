"""The importance-weighted bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ...base.checks import positive
from .objective import Drawing


@dataclass(frozen=True)
class IWAE(Drawing):
    """The importance-weighted bound, E[log (1/K) Σ_k p(x_k, y)/q(x_k)] of K draws from the guide: log Z as K grows.

    A guide that it fits covers the posterior more than one of `ELBO`, as suits a proposal (see `handlers.propose`). The
    score of a draw has as its baseline the bound with that draw's log-weight replaced by the mean of the others'.

    The guide's support must be the model's.

    Args:
        particles: K.
        batch: bounds of each step, to be averaged.

    Source: Burda, Grosse and Salakhutdinov (2016), arXiv:1509.00519; the baseline: Mnih and Rezende (2016),
    arXiv:1602.06725.

    >>> IWAE(5)
    IWAE(particles=5, batch=1)
    """

    particles: int
    batch: int = 1
    additive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive("particles", self.particles)
        positive("batch", self.batch)

    def own(self, mine: Any, others: Any) -> Any:
        """See `Drawing`."""
        from jax.numpy import logaddexp
        from jax.scipy.special import logsumexp

        if not others.size:
            return mine
        rest = logsumexp(others)
        return logaddexp(mine, rest) - logaddexp(others.mean(), rest)

    def value(self, log_weights: Any) -> Any:
        """See `Drawing`."""
        from jax.numpy import log
        from jax.scipy.special import logsumexp

        return logsumexp(log_weights) - log(self.particles)

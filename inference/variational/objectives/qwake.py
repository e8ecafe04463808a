"""The wake phase of a guide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...base.checks import positive
from .checking import check, no_estimators

if TYPE_CHECKING:
    from ....ppl.program import Program
    from ..gradients.problem import Problem


@dataclass(frozen=True)
class QWake:
    """The wake phase of a guide: minimise KL(posterior‖q), by importance sampling from the guide itself.

    With K draws x_k from the guide and self-normalised weights W_k ∝ p(x_k, y)/q(x_k), the gradient is −Σ_k W_k·∂log
    q(x_k). It is biased, by O(1/K); with K = 1 it is 0 on average. It passes through no draw, so that no site needs an
    estimator, and the guide may reach beyond the model's support (where all K draws do, they say nothing).

    Args:
        particles: K.
        batch: sets of K draws of each step, to be averaged.

    Source: Bornschein and Bengio (2015), arXiv:1406.2751; Le et al. (2019), arXiv:1805.10469.

    >>> QWake(8)
    QWake(particles=8, batch=1)
    """

    particles: int
    batch: int = 1

    def __post_init__(self) -> None:
        positive("particles", self.particles)
        positive("batch", self.batch)

    def problem(self, model: Program, guide: Program, estimators: Mapping[str, str]) -> Problem:
        """See `Objective`."""
        from ..gradients.problem import Problem

        no_estimators("QWake", estimators)
        check(model, guide, within=False)
        return Problem(model, guide)

    def loss(self, problem: Problem, params: Mapping[str, Any], key: Any) -> tuple[Any, Any]:
        """See `Objective`."""
        import jax
        import jax.numpy as jnp

        def one(key: Any) -> Any:
            keys = jax.random.split(key, self.particles)
            drawn = jax.vmap(lambda key: problem.draw(params, key, problem.still))(keys)
            log_weights = jax.lax.stop_gradient(drawn.log_joint - drawn.log_guide)
            weights = jnp.where(log_weights.max() > -jnp.inf, jax.nn.softmax(log_weights), 0.0)
            return -jnp.sum(weights * drawn.log_guide)

        loss = jax.vmap(one)(jax.random.split(key, self.batch)).mean()
        return loss, loss

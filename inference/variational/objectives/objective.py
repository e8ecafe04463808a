"""What an objective is, and what those that draw from the guide share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from .checking import check

if TYPE_CHECKING:
    from ....ppl.program import Program
    from ..gradients.problem import Problem


class Objective(Protocol):
    """What `fit` makes small: a frozen dataclass of settings."""

    def problem(self, model: Program, guide: Program, estimators: Mapping[str, str]) -> Problem:
        """Return model and guide as this objective needs them.

        Raises UnfitGuide, or UnsupportedProposal, for a guide that does not fit, before anything is traced.
        """

    def loss(self, problem: Problem, params: Mapping[str, Any], key: Any) -> tuple[Any, Any]:
        """Return a number with the gradient of an estimate of the loss, and the estimate."""


class Drawing:
    """Base of objectives E[g(log w₁, …, log w_K)] of K draws from the guide, w = p/q; g is the mean unless overridden.

    ``batch`` of them are averaged.
    """

    additive: ClassVar[bool] = True
    particles: int
    batch: int

    def own(self, mine: Any, others: Any) -> Any:
        """Return g less a baseline that depends on ``others`` (K − 1,) alone, for log-weights (…) of one draw."""
        return (mine - (others.mean() if others.size else 0.0)) / self.particles

    def value(self, log_weights: Any) -> Any:
        """Return g of log-weights (K,)."""
        return log_weights.mean()

    def problem(self, model: Program, guide: Program, estimators: Mapping[str, str]) -> Problem:
        """See `Objective`."""
        from ..gradients.problem import Problem

        check(model, guide, within=True)
        return Problem(model, guide, estimators)

    def loss(self, problem: Problem, params: Mapping[str, Any], key: Any) -> tuple[Any, Any]:
        """See `Objective`."""
        import jax

        from ..gradients.problem import surrogate

        def one(key: Any) -> tuple[Any, Any]:
            slope, log_weights = surrogate(problem, params, key, self.particles, self.own, self.additive)
            return -slope, -self.value(log_weights)

        slopes, losses = jax.vmap(one)(jax.random.split(key, self.batch))
        return slopes.mean(), losses.mean()

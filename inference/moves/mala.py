"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from .fared import Fared, library
from .metropolis import Metropolis
from .target import Point, gradient, log_density


@dataclass(frozen=True)
class MALA(Metropolis):
    """The Metropolis-adjusted Langevin algorithm on the continuous sites of a program: a step along the gradient.

    Feynman–Kac mapping: a kernel on whole paths (see `RandomWalk`). With g = ∇log π and C = L·Lᵀ, the proposal is
    y = x + h·C·g(x) + √(2h)·L·ξ, ξ ~ N(0, I), and the log of the acceptance ratio
    log π(y) − log π(x) + log q(x|y) − log q(y|x), where log q(b|a) = −‖L⁻¹(b − a − h·C·g(a))‖²/(4h). Without ``step``,
    C is the covariance of the population and h is tuned to an acceptance of .574; the evidence of an engine is then
    consistent. With one, h is the step and C the identity.

    Args:
        moves: steps of one application.
        step: h, in squared unconstrained coordinates; None: learned.

    Raises:
        Unsupported: for a model without a density, or with a potential that is a random estimate.
        NotDifferentiable: for a site through which there is no gradient.
        ImpossibleStart: for a path where the density is not positive, or has no finite gradient. (A proposal without
            one is rejected.)
        InconsistentDensity: where the model's density is not that of its paths.

    Source: Roberts and Tweedie (1996), doi:10.2307/3318418; Roberts and Rosenthal (1998), doi:10.1111/1467-9868.00123.
    On densities of JAX the step is BlackJAX's.
    """

    gradient: ClassVar[bool] = True

    def goal(self, d: int) -> float:
        """Return the acceptance that its step size is tuned to."""
        return 0.574

    def first(self, d: int) -> float:
        """Return the step size to begin with, where it is not given."""
        return float(1.36 * d ** (-1 / 3))

    def propose(self, now: Point, noise: Any, inverse: Any, size: Any) -> Any:
        """Return the proposal (…, d)."""
        return now.position + size * gradient(now, inverse) + (2 * size) ** 0.5 * noise

    def log_ratio(self, now: Point, new: Point, inverse: Any, size: Any, xp: Any) -> Any:
        """Return the log of the acceptance ratio, (…)."""

        def log_q(b: Point, a: Point) -> Any:
            return -((b.position - a.position - size * gradient(a, inverse)) ** 2).sum(-1) / (4 * size)

        gain = log_density(new, inverse, xp) - log_density(now, inverse, xp)
        return gain + log_q(now, new) - log_q(new, now)

    def traced(self, target: Any, size: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return BlackJAX's step for one walker."""
        import jax.numpy as jnp

        walk = library().mala(target.log_density, size)

        def step(key: Any, state: Any) -> tuple[Any, Fared]:
            state, info = walk.step(key, state)
            return state, Fared(info.acceptance_rate, False, jnp.nan, 1)

        return walk.init, step

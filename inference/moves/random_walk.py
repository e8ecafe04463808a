"""Random-walk Metropolis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from .fared import Fared, library
from .metropolis import Metropolis
from .target import Point, log_density


@dataclass(frozen=True)
class RandomWalk(Metropolis):
    """Random-walk Metropolis on the continuous sites of a program: a Gaussian step, accepted or not.

    Feynman–Kac mapping: a kernel on whole paths, for ``SMC(n, move=RandomWalk())`` and its kin, or ``MCMC``. The
    continuous choices of a path, as unconstrained numbers x of dimension d, become y = x + s·L·ξ with ξ ~ N(0, I), with
    probability min(1, π(y)/π(x)), where π is the target p·∏G of the path's steps (with its Jacobian; tempered where an
    engine tempers). All other choices stay. Without ``step``, L·Lᵀ is the covariance of the population and s starts at
    2.38/√d and is tuned to an acceptance of .234 (.44 for d = 1): the evidence of an engine is then consistent. With
    one, s is the step and L the identity, and the engine keeps its promise. It asks for no gradient, and moves
    potentials that are random estimates (`nested`) too: the estimate is a part of the state.

    Args:
        moves: steps of one application.
        step: s, in unconstrained coordinates; None: learned.

    Raises:
        Unsupported: for a model without a density over continuous sites.
        ImpossibleStart: for a path where the density is not positive.
        InconsistentDensity: where the model's density is not that of its paths.

    Source: Metropolis et al. (1953), doi:10.1063/1.1699114; Roberts, Gelman and Gilks (1997),
    doi:10.1214/aoap/1034625254. On densities of JAX the step is BlackJAX's.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def mean(seen):
    ...     z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
    ...     for y in seen:
    ...         await fk.observe("y", fk.dist.Normal(z, 0.5), y)
    ...     return z
    >>> posterior = fk.infer(mean([1.5, 0.3]), fk.SMC(500, 1.0, move=fk.RandomWalk(3)), seed=0)
    >>> abs(posterior.expect(float) - 0.8) < 0.1, posterior.guarantee
    (True, 'consistent')
    """

    estimates: ClassVar[bool] = True

    def goal(self, d: int) -> float:
        """Return the acceptance that its step size is tuned to."""
        return 0.44 if d == 1 else 0.234

    def first(self, d: int) -> float:
        """Return the step size to begin with, where it is not given."""
        return 2.38 / math.sqrt(d)

    def propose(self, now: Point, noise: Any, inverse: Any, size: Any) -> Any:
        """Return the proposal (…, d)."""
        return now.position + size * noise

    def log_ratio(self, now: Point, new: Point, inverse: Any, size: Any, xp: Any) -> Any:
        """Return the log of the acceptance ratio, (…)."""
        return log_density(new, inverse, xp) - log_density(now, inverse, xp)

    def traced(self, target: Any, size: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return BlackJAX's step for one walker."""
        import jax.numpy as jnp

        walk = library().normal_random_walk(target.log_density, size * jnp.ones(target.center.shape))

        def step(key: Any, state: Any) -> tuple[Any, Fared]:
            state, info = walk.step(key, state)
            return state, Fared(info.acceptance_rate, False, jnp.nan, 1)

        return walk.init, step

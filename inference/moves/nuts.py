"""The no-U-turn sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ...ppl.density import Density
from ...ppl.errors import Unsupported
from ...ppl.keys import Keys
from ...ppl.model import Floats
from ..base.checks import positive
from .fared import Fared, library
from .hmc import DIVERGENT
from .kernel import Stepping
from .target import Point


@dataclass(frozen=True)
class NUTS(Stepping):
    """The no-U-turn sampler on the continuous sites of a program: HMC whose trajectory ends where it turns back.

    Feynman–Kac mapping: a kernel on whole paths (see `RandomWalk` and `HMC`). The trajectory is doubled forwards or
    backwards until it turns, and its draw comes from all of it, by weight. Densities must be JAX's: the kernel is
    BlackJAX's. In a population all wait for the deepest tree, so `HMC` is often the quicker move inside SMC. The rate
    that it returns is the mean acceptance along its trajectories; without ``step`` that is tuned to .8.

    Args:
        moves: trajectories of one application.
        step: ε, in unconstrained coordinates; None: learned, with the covariance of the population.
        doublings: of a trajectory, at most.

    Raises:
        Unsupported: for a model whose density is none of JAX's (`HMC` moves those), or has no density.
        NotDifferentiable: for a site through which there is no gradient.
        ImpossibleStart: for a path where the density is not positive, or has no finite gradient. (A trajectory that
            meets such a place ends there, and counts as divergent.)
        InconsistentDensity: where the model's density is not that of its paths.

    Source: Hoffman and Gelman (2014), arXiv:1111.4246; multinomial draws: Betancourt (2017), arXiv:1701.02434.
    """

    doublings: int = 10

    gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("doublings", self.doublings)

    def goal(self, d: int) -> float:
        """Return the acceptance that its step size is tuned to."""
        return 0.8

    def first(self, d: int) -> float:
        """Return the step size to begin with, where it is not given."""
        return float(d**-0.25)

    def trajectory(self, density: Density, keys: Keys, inverse: Floats, count: int) -> tuple[Point, Point, Fared]:
        """Move n walkers; see `Continuous`."""
        if density.logdensity is None:
            raise Unsupported(
                f"NUTS needs a density that JAX can trace, and this one is evaluated in batches{density.named}: "
                "move by HMC"
            )
        return super().trajectory(density, keys, inverse, count)

    def traced(self, target: Any, size: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return BlackJAX's trajectory for one walker."""
        import jax.numpy as jnp

        nuts = library().nuts
        kernel, unit = nuts.build_kernel(divergence_threshold=DIVERGENT), jnp.ones(target.center.shape)

        def step(key: Any, state: Any) -> tuple[Any, Fared]:
            state, info = kernel(key, state, target.log_density, size, unit, self.doublings)
            return state, Fared(info.acceptance_rate, info.is_divergent, info.energy, info.num_integration_steps)

        return lambda z: nuts.init(z, target.log_density), step

    def adaptable(self) -> tuple[Any, dict[str, Any]]:
        """Return BlackJAX's algorithm and its settings, for its window adaptation."""
        return library().nuts, {"max_num_doublings": self.doublings}

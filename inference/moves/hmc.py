"""Hamiltonian Monte Carlo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ..base.checks import positive
from .fared import Fared, library
from .kernel import Stepping
from .target import Point, Target, gradient, log_density

DIVERGENT = 1000.0
"""By how much the energy may rise before a trajectory counts as divergent."""


@dataclass(frozen=True)
class HMC(Stepping):
    """Hamiltonian Monte Carlo on the continuous sites of a program: a leapfrog trajectory, accepted or not.

    Feynman–Kac mapping: a kernel on whole paths (see `RandomWalk`). A momentum p ~ N(0, C⁻¹) is drawn, the Hamiltonian
    H = −log π(x) + ½·pᵀCp followed for ``leapfrogs`` steps of size ε, and its end accepted with probability
    min(1, exp(−ΔH)); where ΔH > 1000 the trajectory is divergent, and rejected. Each trajectory has a size of its own,
    uniform within ``jitter`` of ε, so that none is in step with a period of the target. Without ``step``, C is the
    covariance of the population, and ε is tuned to an acceptance of .8; the evidence of an engine is then consistent.
    With one, ε is the step and C the identity.

    Args:
        moves: trajectories of one application.
        step: ε, in unconstrained coordinates; None: learned.
        leapfrogs: steps of a trajectory.
        jitter: relative, at least 0 and below 1.

    Raises:
        Unsupported: for a model without a density, or with a potential that is a random estimate.
        NotDifferentiable: for a site through which there is no gradient.
        ImpossibleStart: for a path where the density is not positive, or has no finite gradient. (A trajectory that
            meets such a place is rejected, and counts as divergent.)
        InconsistentDensity: where the model's density is not that of its paths.

    Source: Duane et al. (1987), doi:10.1016/0370-2693(87)91197-X; Neal (2011), arXiv:1206.1901. On densities of JAX the
    trajectory is BlackJAX's.
    """

    leapfrogs: int = 8
    jitter: float = 0.2

    gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("leapfrogs", self.leapfrogs)
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter must be at least 0 and below 1, not {self.jitter!r}")

    def goal(self, d: int) -> float:
        """Return the acceptance that its step size is tuned to."""
        return 0.8

    def first(self, d: int) -> float:
        """Return the step size to begin with, where it is not given."""
        return float(d**-0.25)

    def walk(self, target: Target, now: Point, keys: Keys, size: float) -> tuple[Point, Fared]:
        """Make a trajectory of each of n walkers; one whose numbers run away stays."""
        n, d = now.position.shape
        u = _keys.uniform(_keys.fold(keys, _keys.tag("jitter")))
        epsilon = (size * (1 + self.jitter * (2 * u - 1)))[:, None]
        p = start = _keys.normal(_keys.fold(keys, _keys.tag("momentum")), d)
        here, lost = now, np.zeros(n, bool)
        for _ in range(self.leapfrogs):
            p = np.where(lost[:, None], p, p + 0.5 * epsilon * gradient(here, target.inverse))
            there = np.where(lost[:, None], now.position, here.position + epsilon * p)
            here = target.at(there, True)
            push = gradient(here, target.inverse)
            lost |= ~(np.isfinite(push).all(1) & np.isfinite(log_density(here, target.inverse)))
            p = np.where(lost[:, None], p, p + 0.5 * epsilon * push)
        energy = -log_density(here, target.inverse) + 0.5 * (p**2).sum(1)
        rise = energy + log_density(now, target.inverse) - 0.5 * (start**2).sum(1)
        rise = np.where(lost | np.isnan(rise), np.inf, rise)
        chance = np.exp(np.minimum(-rise, 0.0))
        accept = _keys.uniform(_keys.fold(keys, _keys.tag("accept"))) < chance
        merged = Point(*(np.where(accept if a.ndim == 1 else accept[:, None], b, a) for a, b in zip(now, here)))
        return merged, Fared(chance, rise > DIVERGENT, energy, np.full(n, float(self.leapfrogs)))

    def traced(self, target: Any, size: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return BlackJAX's trajectory for one walker."""
        import jax
        import jax.numpy as jnp

        hmc = library().hmc
        kernel, unit = hmc.build_kernel(divergence_threshold=DIVERGENT), jnp.ones(target.center.shape)

        def step(key: Any, state: Any) -> tuple[Any, Fared]:
            shaken, key = jax.random.split(key)
            epsilon = size * (1 + self.jitter * jax.random.uniform(shaken, minval=-1.0, maxval=1.0, dtype=unit.dtype))
            state, info = kernel(key, state, target.log_density, epsilon, unit, self.leapfrogs)
            return state, Fared(info.acceptance_rate, info.is_divergent, info.energy, self.leapfrogs)

        return lambda z: hmc.init(z, target.log_density), step

    def adaptable(self) -> tuple[Any, dict[str, Any]]:
        """Return BlackJAX's algorithm and its settings, for its window adaptation."""
        return library().hmc, {"num_integration_steps": self.leapfrogs}

"""The preconditioned Crank–Nicolson Langevin proposal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .metropolis import Metropolis
from .target import Point


@dataclass(frozen=True)
class PCNL(Metropolis):
    """Preconditioned Crank–Nicolson Langevin: `PCN` that leans along the gradient of the potential.

    Feynman–Kac mapping: a kernel on whole paths (see `RandomWalk`). In coordinates in which the prior of the sites is
    N(0, I), with Φ = −λ·log G, the proposal is y = [(2 − δ)·x − 2δ·∇Φ(x) + √(8δ)·ξ]/(2 + δ), ξ ~ N(0, I), and
    ρ(x, y) − ρ(y, x) the log of the acceptance ratio, where

        ρ(a, b) = Φ(a) + ½⟨b − a, ∇Φ(a)⟩ + δ/4·⟨a + b, ∇Φ(a)⟩ + δ/4·‖∇Φ(a)‖².

    The acceptance does not fall with the dimension. Without ``step``, δ starts at ½ and is tuned to an acceptance of
    .574; the evidence of an engine is then consistent.

    Args:
        moves: steps of one application.
        step: δ, above 0 and below 2; None: learned.

    Raises:
        Unsupported: for a model without a density, where the prior of its sites is not one normal law, or where its
            potential is a random estimate.
        NotDifferentiable: for a site through which there is no gradient.
        ImpossibleStart: for a path where the density is not positive, or has no finite gradient. (A proposal without
            one is rejected.)
        InconsistentDensity: where the model's density is not that of its paths.

    Source: Cotter, Roberts, Stuart and White (2013), doi:10.1214/13-STS421, arXiv:1202.0709.
    """

    gradient: ClassVar[bool] = True
    most: ClassVar[float] = 1.999
    by_prior: ClassVar[bool] = True

    def goal(self, d: int) -> float:
        """Return the acceptance that its step size is tuned to."""
        return 0.574

    def first(self, d: int) -> float:
        """Return the step size to begin with, where it is not given."""
        return 0.5

    def propose(self, now: Point, noise: Any, inverse: Any, size: Any) -> Any:
        """Return the proposal (…, d)."""
        pull = 2 * size * _push(now, inverse)
        return ((2 - size) * now.position - pull + (8 * size) ** 0.5 * noise) / (2 + size)

    def log_ratio(self, now: Point, new: Point, inverse: Any, size: Any, xp: Any) -> Any:
        """Return the log of the acceptance ratio, (…)."""

        def rho(a: Point, b: Point) -> Any:
            push = _push(a, inverse)
            along = (0.5 * (b.position - a.position) + size / 4 * (a.position + b.position)) * push
            return -inverse * a.log_potential + (along + size / 4 * push**2).sum(-1)

        return rho(now, new) - rho(new, now)


def _push(point: Point, inverse: Any) -> Any:
    """Return ∇Φ, (…, d)."""
    return -inverse[..., None] * point.grad_potential

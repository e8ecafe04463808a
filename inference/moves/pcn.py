"""The preconditioned Crank–Nicolson proposal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .metropolis import Metropolis
from .target import Point


@dataclass(frozen=True)
class PCN(Metropolis):
    """Preconditioned Crank–Nicolson on the continuous sites of a program whose prior is Gaussian.

    Feynman–Kac mapping: a kernel on whole paths (see `RandomWalk`). The prior of the sites is N(m, L·Lᵀ), and the
    proposal y = m + √(1−b²)·(x − m) + b·L·ξ with ξ ~ N(0, I) leaves it invariant. So y is accepted with probability
    min(1, G(y)^λ/G(x)^λ), in which the prior has no part, and the acceptance does not fall with the dimension: it suits
    the noise of a diffusion model. Without ``step``, b starts at ½ and is tuned to an acceptance of .3; the evidence of
    an engine is then consistent. It asks for no gradient, and moves potentials that are random estimates, too.

    Args:
        moves: steps of one application.
        step: b, above 0 and at most 1 (which draws from the prior); None: learned.

    Raises:
        Unsupported: for a model without a density, or where the prior of its sites is not one normal law.
        ImpossibleStart: for a path where the density is not positive.
        InconsistentDensity: where the model's density is not that of its paths.

    Source: Cotter, Roberts, Stuart and White (2013), doi:10.1214/13-STS421, arXiv:1202.0709.
    """

    most: ClassVar[float] = 1.0
    by_prior: ClassVar[bool] = True
    estimates: ClassVar[bool] = True

    def goal(self, d: int) -> float:
        """Return the acceptance that its step size is tuned to."""
        return 0.3

    def first(self, d: int) -> float:
        """Return the step size to begin with, where it is not given."""
        return 0.5

    def propose(self, now: Point, noise: Any, inverse: Any, size: Any) -> Any:
        """Return the proposal (…, d)."""
        return (1.0 - size**2) ** 0.5 * now.position + size * noise

    def log_ratio(self, now: Point, new: Point, inverse: Any, size: Any, xp: Any) -> Any:
        """Return the log of the acceptance ratio, (…)."""
        return inverse * (new.log_potential - now.log_potential)

"""Steps along the gradient that nothing corrects: Langevin dynamics, and ascent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..base.engine import Guarantee
from .metropolis import Metropolis
from .target import Point, gradient


@dataclass(frozen=True)
class Langevin(Metropolis):
    """Steps x + h·g(x) + √(2h)·ξ along the gradient g = ∇log π, with noise ξ ~ N(0, I) and no accept–reject.

    Feynman–Kac mapping: a kernel on whole paths (see `RandomWalk`) that leaves nothing quite invariant. With noise it
    is the unadjusted Langevin algorithm, of a target that nears π as the step gets smaller (a normal law of precision a
    gets the variance 1/(a·(1 − ha/2))), so that engines that move by it are "discretised"; `MALA` corrects it. Without,
    it is gradient ascent to a mode, the "thinking" of energy-based transformers and of latent programs; engines are
    then "heuristic". Where a step leads out of the support, or to where the density is no number, the path stays.

    Args:
        moves: steps of one application.
        step: h, in squared unconstrained coordinates. It must be given.
        noise: whether there is any.

    Raises:
        Unsupported: for a model without a density, or with a potential that is a random estimate.
        NotDifferentiable: for a site through which there is no gradient.
        ImpossibleStart: for a path where the density is not positive, or has no finite gradient.
        InconsistentDensity: where the model's density is not that of its paths.

    Source: Roberts and Tweedie (1996), doi:10.2307/3318418; as thinking, Gladstone et al. (2025), arXiv:2507.02092, and
    Bonnet and Macfarlane (2024), arXiv:2411.08706.

    >>> Langevin(10, 0.1).limit, Langevin(10, 0.1, noise=False).limit
    ('discretised', 'heuristic')
    """

    noise: bool = True
    gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step is None:
            raise ValueError("Langevin needs a step, since nothing corrects one that is too large: Langevin(10, 0.1)")

    @property
    def limit(self) -> Guarantee:
        """The most that an engine can promise that moves by it; see `promise`."""
        return "discretised" if self.noise else "heuristic"

    def propose(self, now: Point, noise: Any, inverse: Any, size: Any) -> Any:
        """Return where the step leads, (…, d)."""
        there = now.position + size * gradient(now, inverse)
        return there + (2 * size) ** 0.5 * noise if self.noise else there

    def log_ratio(self, now: Point, new: Point, inverse: Any, size: Any, xp: Any) -> Any:
        """Return zeros (…): a step is never weighed."""
        return 0.0 * new.log_prior

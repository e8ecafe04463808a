"""The evidence lower bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...base.checks import positive
from .objective import Drawing


@dataclass(frozen=True)
class ELBO(Drawing):
    """The evidence lower bound, E_q[log p(x, y) − log q(x)] = log Z − KL(q‖posterior).

    Each step takes its gradient from ``particles`` draws of the guide; the score of a draw has the mean of the others
    as its baseline, if there are any.

    The guide's support must be the model's.

    Args:
        particles: draws of each step.

    Source: Jordan et al. (1999), doi:10.1023/A:1007665907178; Ranganath, Gerrish and Blei (2014), arXiv:1401.0118. The
    baseline: Mnih and Rezende (2016), arXiv:1602.06725.

    >>> ELBO(16)
    ELBO(particles=16)
    """

    particles: int = 8
    batch: ClassVar[int] = 1  # type: ignore[misc]

    def __post_init__(self) -> None:
        positive("particles", self.particles)

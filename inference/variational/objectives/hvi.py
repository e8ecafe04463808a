"""Hierarchical variational models: guides with auxiliary draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...base.checks import positive
from .checking import check
from .objective import Drawing

if TYPE_CHECKING:
    from ....ppl.program import Program
    from ..gradients.problem import Problem


@dataclass(frozen=True)
class HVI(Drawing):
    """A bound for guides that draw more than the model: E[log p(x, y) + log r(a|x) − log q(a, x)].

    The guide's further draws a make its law of x richer, which then is q(x) = ∫ q(a, x) da. The bound is that of `ELBO`
    less E KL(q(a|x)‖r(a|x)), so that r, which has parameters of its own, is fitted along with the guide.

    Args:
        reverse: r, a `program` of one argument: the values of the model's latents by address (those of a scan stacked,
            under the address of the first). It draws what the guide draws and the model does not.
        particles: draws of each step.

    Source: Ranganath, Tran and Blei (2016), arXiv:1511.02386.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def reverse(latents):
    ...     await fk.sample("a", fk.dist.Normal(fk.param("slope", 0.0) * latents["z"], 1.0))
    >>> fk.HVI(reverse).particles
    8
    """

    reverse: Callable[[Mapping[str, Any]], Program]
    particles: int = 8
    batch: ClassVar[int] = 1  # type: ignore[misc]

    def __post_init__(self) -> None:
        positive("particles", self.particles)
        if not callable(self.reverse):
            raise ValueError(f"reverse must be a program of the latents, not {self.reverse!r}")

    def problem(self, model: Program, guide: Program, estimators: Mapping[str, str]) -> Problem:
        """See `Objective`."""
        from ..gradients.problem import Problem

        check(model, guide, within=True, more=True)
        return Problem(model, guide, estimators, self.reverse)

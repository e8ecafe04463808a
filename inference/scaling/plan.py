"""How a budget was shared out over problems."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ..results.posterior import Posterior


class Share(NamedTuple):
    """What a problem was given.

    Attributes:
        problem: its number.
        best: the best reward of its first look.
        mean: the mean reward of its first look.
        engine: what its posterior is of.
        size: its particles.
        expected: the success (with a policy) or reward that was expected when it was last given more; NaN where it was
            given no more than the look.
        cost: of all its runs, the look included.
    """

    problem: int
    best: float
    mean: float
    engine: str
    size: int
    expected: float
    cost: int


@dataclass(frozen=True)
class Plan:
    """How a budget was shared out.

    Attributes:
        shares: of the problems.
        unit: what the budget limits: "tokens", "nfe" or "reward_calls".
        budget: the limit.
        looked: what the first look cost.
        stopped: why a run was cut short ("interrupted", or the unit), or None.
    """

    shares: tuple[Share, ...] = field(repr=False)
    unit: str
    budget: int
    looked: int
    stopped: str | None = None

    @property
    def used(self) -> int:
        """What all runs cost."""
        return sum(share.cost for share in self.shares)

    def table(self) -> str:
        """Return a line for each problem, and one for all."""
        lines = [f"problem    best    mean  {'engine':20}  size  expected  {self.unit:>8}"]
        for row in self.shares:
            told = f"{row.problem:7} {row.best:7.3g} {row.mean:7.3g}  {row.engine:20} {row.size:5}"
            lines.append(f"{told}  {row.expected:8.3f}  {row.cost:8}")
        lines.append(f"{self.used} of {self.budget} {self.unit} spent, {self.looked} of them on the first look")
        return "\n".join(lines)


class Allocated(NamedTuple):
    """The posterior of each problem, and how the budget was shared out among them."""

    posteriors: list[Posterior]
    plan: Plan

    def __repr__(self) -> str:
        return f"Allocated({len(self.posteriors)} posteriors, plan={self.plan!r})"

"""What posteriors and budgets say together: curves, saturation, cost models, allocation, closed forms.

    from feynkac import scaling
    scaling.bounds_at_k([True, False, False], 2).best       # pass@k
    scaling.Saturation.fit([1, 2, 4, 8], accuracies).enough(0.01)
    scaling.greedy([0.9, 0.3, 0.05], budget=12)

None of it draws anything but `fk.allocate`, which spends a budget over problems, and `records`, for its policy.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ...ppl.cards import Card
from ...ppl.cards import index as _index
from ...ppl.lazy import find

if TYPE_CHECKING:
    from .allocate import records
    from .allocation import Allocation, greedy, gvm, spend
    from .costs import Kinetics, Runtime
    from .curves import Curve, Saturation, anytime, regret
    from .plan import Allocated, Plan, Share
    from .policy import ComputeOptimal, Record, difficulty
    from .samples import (
        Bounds,
        Gap,
        Variability,
        best_of_k,
        bounds_at_k,
        length_gap,
        pass_at_k,
        prefix_diversity,
        tail,
    )
    from .verdicts import Judge, conformal, majority, verify_or_vote

_HOME = {
    "Allocated": "plan",
    "Allocation": "allocation",
    "Bounds": "samples",
    "ComputeOptimal": "policy",
    "Curve": "curves",
    "Gap": "samples",
    "Judge": "verdicts",
    "Kinetics": "costs",
    "Plan": "plan",
    "Record": "policy",
    "Runtime": "costs",
    "Saturation": "curves",
    "Share": "plan",
    "Variability": "samples",
    "anytime": "curves",
    "best_of_k": "samples",
    "bounds_at_k": "samples",
    "conformal": "verdicts",
    "difficulty": "policy",
    "greedy": "allocation",
    "gvm": "allocation",
    "length_gap": "samples",
    "majority": "verdicts",
    "pass_at_k": "samples",
    "prefix_diversity": "samples",
    "records": "allocate",
    "regret": "curves",
    "spend": "allocation",
    "tail": "samples",
    "verify_or_vote": "verdicts",
}

__all__ = [
    "Allocated",
    "Allocation",
    "Bounds",
    "ComputeOptimal",
    "Curve",
    "Gap",
    "Judge",
    "Kinetics",
    "Plan",
    "Record",
    "Runtime",
    "Saturation",
    "Share",
    "Variability",
    "anytime",
    "best_of_k",
    "bounds_at_k",
    "conformal",
    "difficulty",
    "greedy",
    "gvm",
    "index",
    "length_gap",
    "majority",
    "pass_at_k",
    "prefix_diversity",
    "records",
    "regret",
    "spend",
    "tail",
    "verify_or_vote",
]


def index() -> tuple[Card, ...]:
    """Return the index cards of what is here: paper, promise, engines, and what was measured, see `Card`."""
    return _index(sys.modules[__name__], "fk.scaling")


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "plots")


def __dir__() -> list[str]:
    return list(__all__)

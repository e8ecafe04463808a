"""What posteriors and budgets say together: curves, saturation, cost models, allocation, closed forms.

    from feynkac import scaling
    scaling.bounds_at_k([True, False, False], 2).best       # pass@k
    scaling.Saturation.fit([1, 2, 4, 8], accuracies).enough(0.01)
    scaling.greedy([0.9, 0.3, 0.05], budget=12)

None of it draws anything.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ...ppl.cards import Card
from ...ppl.cards import index as _index
from ...ppl.lazy import find

if TYPE_CHECKING:
    from .allocation import Allocation, greedy, gvm
    from .costs import Kinetics, Runtime
    from .curves import Curve, Saturation, anytime, regret
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
    "Allocation": "allocation",
    "Bounds": "samples",
    "Curve": "curves",
    "Gap": "samples",
    "Judge": "verdicts",
    "Kinetics": "costs",
    "Runtime": "costs",
    "Saturation": "curves",
    "Variability": "samples",
    "anytime": "curves",
    "best_of_k": "samples",
    "bounds_at_k": "samples",
    "conformal": "verdicts",
    "greedy": "allocation",
    "gvm": "allocation",
    "length_gap": "samples",
    "majority": "verdicts",
    "pass_at_k": "samples",
    "prefix_diversity": "samples",
    "regret": "curves",
    "tail": "samples",
    "verify_or_vote": "verdicts",
}

__all__ = [
    "Allocation",
    "Bounds",
    "Curve",
    "Gap",
    "Judge",
    "Kinetics",
    "Runtime",
    "Saturation",
    "Variability",
    "anytime",
    "best_of_k",
    "bounds_at_k",
    "conformal",
    "greedy",
    "gvm",
    "index",
    "length_gap",
    "majority",
    "pass_at_k",
    "prefix_diversity",
    "regret",
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

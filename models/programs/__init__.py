"""Published methods as programs: what a paper calls a system is one small file here, under any engine.

>>> import feynkac as fk
>>> model = fk.programs.HGF(omega=(-2.0, -2.0), precision=4.0)
>>> posterior = fk.infer(model.program([0.5, -0.2]), fk.SMC(1000), seed=0)
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ...ppl.cards import Card
from ...ppl.cards import index as _index
from ...ppl.lazy import find

if TYPE_CHECKING:
    from .agents.archon import archon
    from .agents.grm_vote import grm_vote
    from .agents.hogwild import hogwild
    from .agents.memorise import Memory, memorise
    from .agents.plan_and_verify import plan_and_verify
    from .agents.solve_or_verify import solve_or_verify
    from .agents.threads import threads
    from .agents.unlearn import unlearn
    from .hgf import HGF, Beliefs

__all__ = [
    "HGF",
    "Beliefs",
    "Memory",
    "archon",
    "grm_vote",
    "hogwild",
    "index",
    "memorise",
    "plan_and_verify",
    "solve_or_verify",
    "threads",
    "unlearn",
]

_HOME = {
    "Beliefs": "hgf",
    "HGF": "hgf",
    "Memory": "agents.memorise",
    "archon": "agents.archon",
    "grm_vote": "agents.grm_vote",
    "hogwild": "agents.hogwild",
    "memorise": "agents.memorise",
    "plan_and_verify": "agents.plan_and_verify",
    "solve_or_verify": "agents.solve_or_verify",
    "threads": "agents.threads",
    "unlearn": "agents.unlearn",
}


def index() -> tuple[Card, ...]:
    """Return the index cards of what is here: paper, promise, engines, and what was measured, see `Card`."""
    return _index(sys.modules[__name__], "fk.programs")


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "text")


def __dir__() -> list[str]:
    return list(__all__)

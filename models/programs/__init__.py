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
    from .hgf import HGF, Beliefs

__all__ = ["HGF", "Beliefs", "index"]

_HOME = {
    "Beliefs": "hgf",
    "HGF": "hgf",
}


def index() -> tuple[Card, ...]:
    """Return the index cards of what is here: paper, promise, engines, and what was measured, see `Card`."""
    return _index(sys.modules[__name__], "fk.programs")


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "text")


def __dir__() -> list[str]:
    return list(__all__)

"""Published methods as programs: what a paper calls a system is one small file here, under any engine.

>>> import feynkac as fk
>>> model = fk.programs.HGF(omega=(-2.0, -2.0), precision=4.0)
>>> posterior = fk.infer(model.program([0.5, -0.2]), fk.SMC(1000), seed=0)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...ppl.lazy import find

if TYPE_CHECKING:
    from .hgf import HGF, Beliefs

__all__ = ["HGF", "Beliefs"]

_HOME = {
    "Beliefs": "hgf",
    "HGF": "hgf",
}


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "text")


def __dir__() -> list[str]:
    return list(__all__)

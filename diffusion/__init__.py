"""Images, video and any tensor by diffusion: schedules, denoisers, generators, correctors, rewards that steer.

torch is imported when a name is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .correctors import Corrected, anneal, guide, product, tilt
    from .denoiser import Guided, Network
    from .generator import Diffusion
    from .mixture import Mixture
    from .schedule import Schedule
    from .steering import Steering

_HOME = {
    "Corrected": "correctors",
    "Diffusion": "generator",
    "Guided": "denoiser",
    "Mixture": "mixture",
    "Network": "denoiser",
    "Schedule": "schedule",
    "Steering": "steering",
    "anneal": "correctors",
    "guide": "correctors",
    "product": "correctors",
    "tilt": "correctors",
}

__all__ = [
    "Corrected",
    "Diffusion",
    "Guided",
    "Mixture",
    "Network",
    "Schedule",
    "Steering",
    "anneal",
    "guide",
    "product",
    "tilt",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)

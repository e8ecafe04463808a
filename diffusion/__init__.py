"""Images, video and any tensor by diffusion: schedules, denoisers, generators, correctors, rewards that steer.

torch is imported when a name is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .convnets import Classifier
    from .correctors import Corrected, anneal, guide, product, tilt
    from .denoiser import Guided, Network
    from .frames import Frames
    from .generator import Diffusion
    from .mixture import Mixture
    from .motion import Motion, centroids
    from .schedule import Schedule
    from .steering import Steering
    from .zoo import NO_DIGIT, bouncing, bouncing_clip, bouncing_motion, digit_classifier, digit_judge, digits

_HOME = {
    "NO_DIGIT": "zoo",
    "Classifier": "convnets",
    "Corrected": "correctors",
    "Diffusion": "generator",
    "Frames": "frames",
    "Guided": "denoiser",
    "Mixture": "mixture",
    "Motion": "motion",
    "Network": "denoiser",
    "Schedule": "schedule",
    "Steering": "steering",
    "anneal": "correctors",
    "bouncing": "zoo",
    "bouncing_clip": "zoo",
    "bouncing_motion": "zoo",
    "centroids": "motion",
    "digit_classifier": "zoo",
    "digit_judge": "zoo",
    "digits": "zoo",
    "guide": "correctors",
    "product": "correctors",
    "tilt": "correctors",
}

__all__ = [
    "NO_DIGIT",
    "Classifier",
    "Corrected",
    "Diffusion",
    "Frames",
    "Guided",
    "Mixture",
    "Motion",
    "Network",
    "Schedule",
    "Steering",
    "anneal",
    "bouncing",
    "bouncing_clip",
    "bouncing_motion",
    "centroids",
    "digit_classifier",
    "digit_judge",
    "digits",
    "guide",
    "product",
    "tilt",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)

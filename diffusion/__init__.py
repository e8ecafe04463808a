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
    from .kernels import begin, denoise
    from .mixture import Mixture
    from .motion import Motion, centroids
    from .networks import DiffusersNetwork
    from .pipelines import from_pipeline
    from .schedule import Schedule
    from .steering import Steering
    from .zoo import NO_DIGIT, bouncing, bouncing_clip, bouncing_motion, digit_classifier, digit_judge, digits

_HOME = {
    "NO_DIGIT": "zoo",
    "Classifier": "convnets",
    "Corrected": "correctors",
    "DiffusersNetwork": "networks",
    "Diffusion": "generator",
    "Frames": "frames",
    "Guided": "denoiser",
    "Mixture": "mixture",
    "Motion": "motion",
    "Network": "denoiser",
    "Schedule": "schedule",
    "Steering": "steering",
    "anneal": "correctors",
    "begin": "kernels",
    "bouncing": "zoo",
    "bouncing_clip": "zoo",
    "bouncing_motion": "zoo",
    "centroids": "motion",
    "denoise": "kernels",
    "digit_classifier": "zoo",
    "digit_judge": "zoo",
    "digits": "zoo",
    "from_pipeline": "pipelines",
    "guide": "correctors",
    "product": "correctors",
    "tilt": "correctors",
}

__all__ = [
    "NO_DIGIT",
    "Classifier",
    "Corrected",
    "DiffusersNetwork",
    "Diffusion",
    "Frames",
    "Guided",
    "Mixture",
    "Motion",
    "Network",
    "Schedule",
    "Steering",
    "anneal",
    "begin",
    "bouncing",
    "bouncing_clip",
    "bouncing_motion",
    "centroids",
    "denoise",
    "digit_classifier",
    "digit_judge",
    "digits",
    "from_pipeline",
    "guide",
    "product",
    "tilt",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)

"""Images, video and any tensor by diffusion: schedules, denoisers, generators, correctors, rewards that steer.

torch is imported when a name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..ppl.lazy import find

if TYPE_CHECKING:
    from .adapters.canvas import CanvasNetwork
    from .adapters.networks import DiffusersNetwork
    from .adapters.pipelines import from_pipeline
    from .adapters.schedulers import from_scheduler
    from .adapters.tokens import TokenNetwork
    from .correctors import Corrected, anneal, guide, product, tilt
    from .denoiser import Guided, Network
    from .gaussian.frames import Frames
    from .gaussian.gaussian import Diffusion
    from .gaussian.mixture import Mixture
    from .gaussian.schedule import Schedule
    from .jumps.generator import JumpDiffusion
    from .kernels import begin, denoise
    from .masked.generator import MaskedDiffusion
    from .masked.rules import Ancestral, AtRandom, Confident, InOrder
    from .masked.unmask import unmask
    from .rewards.clip import Aesthetic, ClipScore
    from .rewards.motion import Motion, centroids
    from .rewards.quality import ImageQuality
    from .shipped.convnets import Classifier
    from .shipped.strings import string_law
    from .shipped.zoo import (
        NO_DIGIT,
        bouncing,
        bouncing_clip,
        bouncing_motion,
        digit_classifier,
        digit_judge,
        digits,
        digits_masked,
        digits_small,
        latent_digits,
        strings,
    )
    from .steering import Steering
    from .table import TokenTable
    from .uniform.generator import UniformDiffusion
    from .uniform.ratios import Ratios
    from .uniform.rules import BlockRefinement, DiscreteDDIM, EntropyBound

_HOME = {
    "NO_DIGIT": "shipped.zoo",
    "Aesthetic": "rewards.clip",
    "Ancestral": "masked.rules",
    "AtRandom": "masked.rules",
    "BlockRefinement": "uniform.rules",
    "CanvasNetwork": "adapters.canvas",
    "Classifier": "shipped.convnets",
    "ClipScore": "rewards.clip",
    "Confident": "masked.rules",
    "Corrected": "correctors",
    "DiffusersNetwork": "adapters.networks",
    "Diffusion": "gaussian.gaussian",
    "DiscreteDDIM": "uniform.rules",
    "EntropyBound": "uniform.rules",
    "Frames": "gaussian.frames",
    "Guided": "denoiser",
    "ImageQuality": "rewards.quality",
    "InOrder": "masked.rules",
    "JumpDiffusion": "jumps.generator",
    "MaskedDiffusion": "masked.generator",
    "Mixture": "gaussian.mixture",
    "Motion": "rewards.motion",
    "Network": "denoiser",
    "Ratios": "uniform.ratios",
    "Schedule": "gaussian.schedule",
    "Steering": "steering",
    "TokenNetwork": "adapters.tokens",
    "TokenTable": "table",
    "UniformDiffusion": "uniform.generator",
    "anneal": "correctors",
    "begin": "kernels",
    "bouncing": "shipped.zoo",
    "bouncing_clip": "shipped.zoo",
    "bouncing_motion": "shipped.zoo",
    "centroids": "rewards.motion",
    "denoise": "kernels",
    "digit_classifier": "shipped.zoo",
    "digit_judge": "shipped.zoo",
    "digits": "shipped.zoo",
    "digits_masked": "shipped.zoo",
    "digits_small": "shipped.zoo",
    "from_pipeline": "adapters.pipelines",
    "from_scheduler": "adapters.schedulers",
    "guide": "correctors",
    "latent_digits": "shipped.zoo",
    "product": "correctors",
    "string_law": "shipped.strings",
    "strings": "shipped.zoo",
    "tilt": "correctors",
    "unmask": "masked.unmask",
}

__all__ = [
    "NO_DIGIT",
    "Aesthetic",
    "Ancestral",
    "AtRandom",
    "BlockRefinement",
    "CanvasNetwork",
    "Classifier",
    "ClipScore",
    "Confident",
    "Corrected",
    "DiffusersNetwork",
    "Diffusion",
    "DiscreteDDIM",
    "EntropyBound",
    "Frames",
    "Guided",
    "ImageQuality",
    "InOrder",
    "JumpDiffusion",
    "MaskedDiffusion",
    "Mixture",
    "Motion",
    "Network",
    "Ratios",
    "Schedule",
    "Steering",
    "TokenNetwork",
    "TokenTable",
    "UniformDiffusion",
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
    "digits_masked",
    "digits_small",
    "from_pipeline",
    "from_scheduler",
    "guide",
    "latent_digits",
    "product",
    "string_law",
    "strings",
    "tilt",
    "unmask",
]


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "diffusion")


def __dir__() -> list[str]:
    return list(__all__)

"""What a diffusers scheduler says of a network: its levels of noise, and what goes in and comes out of it.

Only that is read of a scheduler. Its own steps are not used: many hold a place and a history, which a population that
forks has not one of but many. The levels of a multistep solver are thus taken with steps of the first order.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...ppl.model import Floats
from ..denoiser import Prediction, estimate
from ..gaussian.schedule import Schedule

_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "sample": "sample",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
_REFUSED = {
    "LCMScheduler": "its network is a consistency model, whose steps draw the noise anew",
    "TCDScheduler": "its network is a consistency model, whose steps draw the noise anew",
    "CMStochasticIterativeScheduler": "its network is a consistency model, whose steps draw the noise anew",
    "FlowMatchLCMScheduler": "its network is a consistency model, whose steps draw the noise anew",
    "SCMScheduler": "its network is a consistency model, whose steps draw the noise anew",
    "ScoreSdeVeScheduler": "its network predicts a score, and it corrects by Langevin steps",
    "DDIMInverseScheduler": "it goes from data to noise",
    "DPMSolverMultistepInverseScheduler": "it goes from data to noise",
    "RePaintScheduler": "it goes back and forth between levels",
}


@dataclass(frozen=True, eq=False)
class Convention:
    """The levels of a scheduler, and its network's units: at level i it sees ``scale[i]``·x, and what it returns,
    times ``gain[i]`` and with ``skip[i]``·x added, is the prediction. Arrays (T,).

    Attributes:
        schedule: levels; its time is what the network is told.
        prediction: what is predicted, in the terms of `Denoiser`.
        clip: bound on the estimate of the data, or None.
    """

    schedule: Schedule
    prediction: Prediction
    scale: Floats
    gain: Floats
    skip: Floats
    clip: float | None = None

    @property
    def predicts(self) -> Prediction:
        """What `finish` returns: a clipped estimate is a sample."""
        return self.prediction if self.clip is None else "sample"

    def find(self, time: Any) -> Any:
        """Return the level (n,) whose time is nearest to each of ``time`` (n,), a tensor."""
        times = torch.tensor(self.schedule.time[:-1].tolist(), dtype=torch.float64, device=time.device)
        return (time.double()[:, None] - times).abs().argmin(1)

    def prepare(self, x: Any, level: Any) -> Any:
        """Return the network's input for particles (n, …) at levels (n,)."""
        return x if (self.scale == 1.0).all() else x * _spread(self.scale, level, x)

    def finish(self, out: Any, x: Any, level: Any) -> Any:
        """Return the prediction for particles (n, …) at levels (n,), from the network's output."""
        if not (self.gain == 1.0).all():
            out = out * _spread(self.gain, level, x)
        if self.skip.any():
            out = out + x * _spread(self.skip, level, x)
        if self.clip is None:
            return out
        alpha, sigma = (_spread(each, level, x) for each in (self.schedule.alpha, self.schedule.sigma))
        return estimate(self.prediction, out, x, alpha, sigma).clamp(-self.clip, self.clip)


def convention(scheduler: Any, steps: int, **settings: Any) -> Convention:
    """Return what a scheduler says where it takes ``steps`` steps; ``settings`` go to its ``set_timesteps``.

    The scheduler itself stays as it is. Raises ValueError, naming it, for one that cannot be read: of order two, of
    a consistency model, without noise levels that fall, or with dynamic thresholding.
    """
    mine = copy.deepcopy(scheduler)
    given = {"sigmas", "timesteps"} & {name for name, value in settings.items() if value is not None}
    mine.set_timesteps(**settings if given else {"num_inference_steps": steps} | settings)
    found = read(mine)
    if len(found.schedule) != steps:
        raise ValueError(f"{type(scheduler).__name__} has {len(found.schedule)} levels of noise, but steps is {steps}")
    return found


def read(scheduler: Any) -> Convention:
    """Return what a scheduler says whose timesteps are set."""
    name, config = type(scheduler).__name__, scheduler.config
    if name in _REFUSED:
        raise ValueError(f"{name} cannot be used: {_REFUSED[name]}")
    if scheduler.order != 1:
        raise ValueError(f"{name} cannot be used: it calls its network {scheduler.order} times a step")
    if config.get("thresholding"):
        raise ValueError(f"{name} cannot be used with thresholding=True: the bound depends on the sample")
    if config.get("invert_sigmas"):
        raise ValueError(f"{name} cannot be used with invert_sigmas=True: its time runs from data to noise")
    said = config.get("prediction_type", "flow_prediction")
    if said not in _PREDICTIONS:
        raise ValueError(f"{name} cannot be used: its prediction_type {said!r} is none of {sorted(_PREDICTIONS)}")
    time = np.asarray(torch.as_tensor(scheduler.timesteps).cpu().double())
    start = float(getattr(scheduler, "init_noise_sigma", 1.0))
    if "sigma_data" in config:
        return _edm(scheduler, _PREDICTIONS[said], time, start)
    if hasattr(scheduler, "sigmas"):
        return _by_sigmas(scheduler, _PREDICTIONS[said], time, start)
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"{name} cannot be used: it has neither alphas_cumprod nor sigmas")
    # PNDM visits its second level twice, as a warm-up; a first-order step has no use for that.
    index = time[np.append(True, np.diff(time) != 0)].astype(int)
    final = getattr(scheduler, "final_alpha_cumprod", 1.0)
    squared = np.append(np.asarray(scheduler.alphas_cumprod, float)[index], float(final))
    if squared[-1] <= squared[-2]:
        raise ValueError(
            f"{name} cannot be used: its last step goes nowhere; give it set_alpha_to_one=True or an offset"
        )
    schedule = Schedule(np.sqrt(squared), np.sqrt(1.0 - squared), np.append(index, 0), start)
    clip = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None
    return _plain(schedule, _PREDICTIONS[said], clip)


def _by_sigmas(scheduler: Any, prediction: Prediction, time: Floats, start: float) -> Convention:
    sigma = np.asarray(torch.as_tensor(scheduler.sigmas).cpu().double())
    time = np.append(time, 0.0)
    if prediction == "flow" or scheduler.config.get("use_flow_sigmas"):
        return _plain(Schedule(1.0 - sigma, sigma, time, start), prediction)
    size = np.sqrt(1.0 + sigma**2)
    if not hasattr(scheduler, "scale_model_input") or not hasattr(scheduler, "is_scale_input_called"):
        return _plain(Schedule(1.0 / size, sigma / size, time, start), prediction)
    # Particles are x + σε, but the network was trained on them divided by √(1 + σ²).
    schedule = Schedule(np.ones_like(sigma), sigma, time, start)
    gain = size[:-1] if prediction == "v" else np.ones(len(schedule))
    return Convention(schedule, prediction, 1.0 / size[:-1], gain, np.zeros(len(schedule)))


def _edm(scheduler: Any, prediction: Prediction, time: Floats, start: float) -> Convention:
    """Preconditioning by Karras et al. (2022), arXiv:2206.00364."""
    sigma = np.asarray(torch.as_tensor(scheduler.sigmas).cpu().double())
    data = float(scheduler.config.sigma_data)
    schedule = Schedule(np.ones_like(sigma), sigma, np.append(time, 0.0), start)
    sigma = sigma[:-1]
    size = np.sqrt(sigma**2 + data**2)
    gain = (-1.0 if prediction == "v" else 1.0) * sigma * data / size
    return Convention(schedule, "sample", 1.0 / size, gain, (data / size) ** 2)


def _plain(schedule: Schedule, prediction: Prediction, clip: float | None = None) -> Convention:
    ones = np.ones(len(schedule))
    return Convention(schedule, prediction, ones, ones, 0.0 * ones, clip)


def _spread(array: Floats, level: Any, x: Any) -> Any:
    """Return an entry per particle, as a tensor that broadcasts against ``x`` (n, …)."""
    values = torch.as_tensor(array[level.cpu().numpy()], dtype=x.dtype, device=x.device)
    return values.reshape((-1,) + (1,) * (x.dim() - 1))


def from_scheduler(scheduler: Any, steps: int, **settings: Any) -> Schedule:
    """Return the levels of a diffusers scheduler over ``steps`` steps.

    ``settings`` go to its ``set_timesteps``, such as ``sigmas``, or ``mu`` for dynamic shifting. A network whose
    scheduler scales its input (Euler, EDM) must be wrapped in `DiffusersNetwork`, which does so.

    Raises ValueError, naming the scheduler, for one that cannot be read; see `feynkac.diffusion.adapters.schedulers`.

    >>> from diffusers import FlowMatchEulerDiscreteScheduler
    >>> from_scheduler(FlowMatchEulerDiscreteScheduler(), 4, sigmas=[1.0, 0.75, 0.5, 0.25]).sigma.tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return convention(scheduler, steps, **settings).schedule

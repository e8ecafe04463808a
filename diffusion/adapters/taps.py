"""Taps: a pipeline of diffusers is shown one level, and what it predicts there is taken from its scheduler's step."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


class Tap:
    """Mixed into a copy of a scheduler: shows a pipeline one level or none, and takes what it predicts there."""

    init_noise_sigma = property(lambda self: 1.0)  # the noise that pipelines are given has its scale already
    _taken: Any = None

    def show(self, time: Any, scale: float = 1.0, sigmas: Any = None) -> None:
        """Have the pipeline's next loop visit the level at ``time`` alone; None: no level."""
        self._shown = torch.zeros(0) if time is None else time[None]
        self._sigmas, self._scale = sigmas, scale

    def taken(self) -> tuple[Any, Any]:
        """Return the prediction and the sample that ``step`` got, once."""
        found, self._taken = self._taken, None
        if found is None:
            raise ValueError("the pipeline made no step at the level it was shown")
        return found  # type: ignore[no-any-return]

    def scale_model_input(self, sample: Any, timestep: Any = None) -> Any:
        """Return what the network sees of a sample."""
        return sample if self._scale == 1.0 else sample * self._scale

    def step(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        """Take a prediction, and stay where the sample is."""
        self._taken = (model_output, sample)
        return (sample,)


def tapped(pipe: Any) -> tuple[Any, Any]:
    """Return a shallow copy of a pipeline and its scheduler, a copy that is tapped."""
    kind = type(pipe.scheduler)

    @functools.wraps(kind.set_timesteps)  # pipelines look at its signature
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        self.asked = (args, kwargs)
        device = kwargs.get("device")
        self.timesteps = self._shown.to(device) if device is not None else self._shown
        if self._sigmas is not None:
            self.sigmas = self._sigmas

    tap = copy.deepcopy(pipe.scheduler)
    tap.__class__ = type(kind.__name__, (Tap, kind), {"set_timesteps": set_timesteps})
    mine = copy.copy(pipe)
    # Past the pipeline's own setter, which would write to the configuration that both share.
    object.__setattr__(mine, "scheduler", tap)
    object.__setattr__(mine, "_progress_bar_config", {"disable": True})
    return mine, tap


@contextmanager
def counting(networks: Sequence[Any]) -> Iterator[list[int]]:
    """Within the block, add to the list the rows of each call of the networks."""
    seen: list[int] = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.dim()]
        named = [kwargs[name] for name in ("hidden_states", "sample") if isinstance(kwargs.get(name), torch.Tensor)]
        seen.append(len((named or tensors)[0]))

    with ExitStack() as stack:
        for network in networks:
            handle = network.register_forward_pre_hook(count, with_kwargs=True)
            stack.callback(handle.remove)
        yield seen

"""Networks of diffusers as denoisers."""

from __future__ import annotations

from typing import Any

from ..denoiser import Prediction
from .schedulers import convention


class DiffusersNetwork:
    """A network of diffusers as a denoiser, at the levels of a scheduler: inputs scaled, outputs preconditioned.

    Args:
        network: such as a ``UNet2DModel``, a ``UNet2DConditionModel`` or a transformer.
        scheduler: which it was trained for; only its levels and units are used (see `schedulers`).
        steps: T.
        inputs: what the network calls the noisy batch and the times, where it takes them by name.
        settings: to the scheduler's ``set_timesteps``, such as ``sigmas`` or ``mu``.

    The condition is a batch of dicts of what else the network takes, such as ``{"class_labels": labels}`` or
    ``{"encoder_hidden_states": embeddings}``, or a bare tensor, its third argument. `Diffusion` with eta = 1 is then
    what ``DDPMPipeline`` does, with 0 < eta < 1 what ``DDIMPipeline`` does, with 0 also what ``EulerDiscreteScheduler``
    and ``FlowMatchEulerDiscreteScheduler`` do. Where the scheduler clips the estimate of the data, the noise is
    found from the clipped one (DDIM's ``use_clipped_model_output=True``).

    Raises ValueError for a scheduler that cannot be read (see `convention`).

    >>> from diffusers import DDPMScheduler, UNet2DModel
    >>> from feynkac.diffusion import Diffusion
    >>> unet = UNet2DModel(
    ...     sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1,
    ...     norm_num_groups=4, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    >>> denoiser = DiffusersNetwork(unet, DDPMScheduler(), steps=10)
    >>> Diffusion(denoiser, denoiser.schedule, (1, 8, 8))
    Diffusion(10 steps, shape (1, 8, 8), eta=1)
    """

    evaluations = 1

    def __init__(
        self, network: Any, scheduler: Any, steps: int, *, inputs: tuple[str, str] | None = None, **settings: Any
    ) -> None:
        self.network = network
        self._convention = convention(scheduler, steps, **settings)
        self._inputs = inputs
        self.schedule = self._convention.schedule
        self.prediction: Prediction = self._convention.predicts

    def __call__(self, x: Any, time: Any, condition: Any) -> Any:
        """Return the prediction (n, …)."""
        level = self._convention.find(time)
        noisy = self._convention.prepare(x, level)
        named = condition if isinstance(condition, dict) else {}
        further = () if condition is None or named else (condition,)
        if self._inputs is None:
            out = self.network(noisy, time, *further, **named)
        else:
            out = self.network(**dict(zip(self._inputs, (noisy, time))), **named)
        out = getattr(out, "sample", out)
        if out.shape != x.shape:
            raise ValueError(
                f"{type(self.network).__name__} returned shape {tuple(out.shape)} for {tuple(x.shape)}: networks that "
                "predict a variance too are not supported"
            )
        return self._convention.finish(out, x, level)

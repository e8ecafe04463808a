"""Pipelines of diffusers as generators: the pipeline encodes, predicts and decodes; the steps are ours.

A pipeline is run for one level at a time, as its user would run it: with latents, embeddings that were computed
before, and a scheduler that shows it a single level and takes what it hands to ``step``, which is the prediction after
guidance. So whatever a pipeline does for a prediction is done here too, at any level and for any particles.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...ppl.cost import charge, rows
from ..denoiser import Prediction, repeat, select
from ..gaussian.gaussian import Diffusion
from .embeddings import fill, template
from .networks import DiffusersNetwork
from .schedulers import Convention, read
from .taps import counting, tapped

_REFUSED = {
    "latents": "a generation begins with noise of its own keys; force it with given=",
    "generator": "noise comes from the keys of the particles; set the seed of infer",
    "output_type": "use decode=",
    "return_dict": "values are arrays",
    "num_inference_steps": "use steps=",
    "num_images_per_prompt": "the engine says how many particles there are",
    "num_videos_per_prompt": "the engine says how many particles there are",
    "callback_on_step_end": "steps are the engine's; steer by steering=",
    "skip_guidance_layers": "it depends on the number of the step, and the pipeline is run for one at a time",
}
_PROMPT = re.compile(r"((?:negative_)?(?:pooled_)?prompt(?:_\d+)?)(?:_embeds(?:_mask)?|_attention_mask)?(?:_\d+)?")
_NEEDED = ("prompt", "latents", "output_type", "num_inference_steps", "generator")


def from_pipeline(
    pipe: Any,
    prompt: str | Sequence[str] | None = None,
    *,
    steps: int = 50,
    eta: float = 1.0,
    steering: Any = None,
    decode: bool = True,
    batch: int | None = None,
    **inputs: Any,
) -> Diffusion:
    """Return a pipeline of diffusers as a generator: Stable Diffusion, Flux, Wan and most that take a prompt.

    A particle is the pipeline's latent tensor, its condition the embeddings of its prompt. The scheduler gives the
    levels; the steps are those of `Diffusion`, of the first order, also where the scheduler's are not (so that at
    eta = 0 it agrees with the pipeline under DDIM, Euler and flow-matching Euler, and at eta = 1 under DDPM).

    Args:
        pipe: the pipeline, which is left as it is; its modules are shared.
        prompt: one for all particles, or as many as there are particles.
        steps: T.
        eta: as in `Diffusion`; also ``steering``.
        decode: whether values and rewards are decoded (the pipeline's "pt" output: in [0, 1], channels first) or
            latents.
        batch: most particles in one call of the pipeline; None: all.
        inputs: to the pipeline, such as ``negative_prompt``, ``guidance_scale``, ``height`` or ``num_frames``.

    Particles at several levels take one call for each level. The cost counts what the pipeline's networks are run on:
    two evaluations for each particle and step under classifier-free guidance, in one call or two as the pipeline
    does it. Pipelines without a prompt that hold a ``unet`` and a scheduler alone, such as ``DDPMPipeline``, work too.

    Raises ValueError, by name, for a pipeline, scheduler or input that cannot work this way.

    >>> from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    >>> unet = UNet2DModel(
    ...     sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
    ...     down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    >>> from_pipeline(DDPMPipeline(unet, DDPMScheduler()), steps=10)
    Diffusion(10 steps, shape (3, 8, 8), eta=1)
    """
    accepted = inspect.signature(type(pipe).__call__).parameters
    if set(pipe.components) == {"unet", "scheduler"}:
        return _pixels(pipe, prompt, steps, eta, steering, decode, inputs)
    name = type(pipe).__name__
    for needed in _NEEDED:
        if needed not in accepted:
            raise ValueError(f"{name} cannot be used: its call takes no {needed!r}")
    if not hasattr(pipe, "encode_prompt"):
        raise ValueError(f"{name} cannot be used: it has no encode_prompt, so that embeddings cannot follow particles")
    for given in inputs:
        if given in _REFUSED:
            raise ValueError(f"{name}: {given} cannot be given here: {_REFUSED[given]}")
        if given not in accepted:
            raise TypeError(f"{name} takes no argument {given!r}")
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be a positive number of particles, not {batch}")
    denoiser = PipelineDenoiser(pipe, steps, ({"prompt": prompt} if prompt is not None else {}) | inputs, batch)
    return Diffusion(
        denoiser,
        denoiser.schedule,
        denoiser.shape,
        eta=eta,
        steering=steering,
        condition=denoiser.condition,
        decode=denoiser.decode if decode else None,
        device=str(denoiser.device),
    )


def _pixels(pipe: Any, prompt: Any, steps: int, eta: float, steering: Any, decode: bool, inputs: Any) -> Diffusion:
    if prompt is not None or inputs:
        raise ValueError(f"{type(pipe).__name__} takes no prompt and no further inputs, only steps and eta")
    config = pipe.unet.config
    size = config.sample_size if not isinstance(config.sample_size, int) else (config.sample_size,) * 2
    denoiser = DiffusersNetwork(pipe.unet, pipe.scheduler, steps)
    return Diffusion(
        denoiser,
        denoiser.schedule,
        (config.in_channels, *size),
        eta=eta,
        steering=steering,
        decode=(lambda x: (x / 2 + 0.5).clamp(0, 1)) if decode else None,
        device=str(pipe.device),
    )


class PipelineDenoiser:
    """What a pipeline predicts, after guidance, as a denoiser; made by `from_pipeline`.

    Its condition is the batch of embeddings of the prompts, and its time the number of the level. It charges what the
    networks of the pipeline are run on itself.

    Attributes:
        schedule: levels of the pipeline's scheduler.
        shape: of one latent, as the pipeline's loop holds it (Flux packs its own).
        condition: embeddings of the prompts.
    """

    evaluations = 0

    def __init__(self, pipe: Any, steps: int, inputs: dict[str, Any], batch: int | None = None) -> None:
        self._name = type(pipe).__name__
        self._pipe, self._tap = tapped(pipe)
        self._steps = steps
        self._batch = batch
        self._networks = [
            module
            for name, module in pipe.components.items()
            if name.startswith(("unet", "transformer")) and isinstance(module, torch.nn.Module)
        ]
        if not self._networks:
            raise ValueError(f"{self._name} cannot be used: it has no unet or transformer")
        if any(getattr(network, "is_cache_enabled", False) for network in self._networks):
            raise ValueError(f"{self._name}: its network caches features of the last step; call its disable_cache()")
        self.device = pipe._execution_device
        self._dtype = next(self._networks[0].parameters()).dtype
        if not any(_is_text(name, value) for name, value in inputs.items()):
            raise ValueError(f"{self._name} needs a prompt")
        texts = {name: value for name, value in inputs.items() if _is_text(name, value)}
        self._inputs = {name: value for name, value in inputs.items() if name not in texts}
        self._encode(texts)
        self._convention = self._read(pipe.scheduler)
        self.schedule = replace(self._convention.schedule, time=np.arange(len(self._convention.schedule) + 1.0))
        self.prediction: Prediction = self._convention.predicts

    def __repr__(self) -> str:
        return f"PipelineDenoiser({self._name})"

    def __call__(self, x: Any, time: Any, condition: Any) -> Any:
        """Return the prediction (n, …) for latents (n, …) at levels ``time`` (n,)."""
        levels = time.round().long().cpu().numpy()
        out = torch.zeros_like(x)
        for level in np.unique(levels).tolist():
            at = np.flatnonzero(levels == level)
            for part in np.array_split(at, -(-len(at) // (self._batch or len(at)))):
                index = torch.as_tensor(part, device=x.device)
                with rows(part.tolist()):
                    out = out.index_copy(0, index, self._predict(x[index], level, select(condition, part)))
        return out

    def decode(self, x: Any) -> Any:
        """Return the images or clips (n, …) of latents (n, …), as the pipeline gives them for output_type="pt"."""
        self._tap.show(None)
        made = []
        for part in torch.split(x, self._batch or max(len(x), 1)):
            condition = repeat(select(self.condition, [0]), len(part))
            made.append(self._run(condition, len(part), latents=part.to(self._dtype), output_type="pt"))
        return torch.cat(made).to(x.dtype)

    def _predict(self, x: Any, level: int, condition: Any) -> Any:
        self._tap.show(self._times[level], self._convention.scale[level], self._sigmas(level))
        latents = x.to(self._dtype)
        with counting(self._networks) as seen:
            self._run(condition, len(x), latents=latents, output_type="latent")
        out, stepped = self._tap.taken()
        if stepped.shape != latents.shape or not torch.equal(stepped.to(latents.dtype), latents):
            raise ValueError(f"{self._name} cannot be used: it steps something else than the latents it was given")
        if out.shape != x.shape:
            raise ValueError(f"{self._name} cannot be used: it predicts {tuple(out.shape)} for {tuple(x.shape)}")
        charge(model_calls=len(seen), nfe=np.full(len(x), sum(seen) // len(x)))
        return self._convention.finish(out.to(x.dtype), x, torch.full((len(x),), level, device=x.device))

    def _run(self, condition: Any, n: int, **inputs: Any) -> Any:
        """Call the pipeline, with embeddings that are known."""
        known = iter([fill(known, condition) for known in self._templates])
        object.__setattr__(self._pipe, "encode_prompt", lambda *args, **kwargs: next(known))
        return self._call({name: [""] * n for name in self._names} | inputs)

    def _call(self, inputs: dict[str, Any]) -> Any:
        run = inspect.unwrap(type(self._pipe).__call__)  # without its no_grad: gradients may be asked for
        return run(
            self._pipe,
            **(self._inputs | inputs),
            num_inference_steps=self._steps,
            generator=torch.Generator().manual_seed(0),
            return_dict=False,
        )[0]

    def _encode(self, texts: dict[str, Any]) -> None:
        """Let the pipeline encode the prompts once, and once more twice over: what doubles belongs to a prompt."""
        counts = {name: len(value) for name, value in texts.items() if not isinstance(value, str)}
        n = next(iter(counts.values()), 1)
        if set(counts.values()) - {n}:
            raise ValueError(f"{self._name}: prompts of different number: {counts}")
        lists = {name: [value] * n if isinstance(value, str) else value for name, value in texts.items()}
        once, latents = self._encoded(lists)
        twice, _ = self._encoded(
            {name: torch.cat([v, v]) if isinstance(v, torch.Tensor) else [*v, *v] for name, v in lists.items()}
        )
        kept: list[Any] = []
        self._templates = [template(a, b, kept, self._name) for a, b in zip(once, twice, strict=True)]
        self.condition = tuple(kept)
        self.shape = tuple(latents.shape[1:])
        # What was given as embeddings is known from now on, so that empty prompts may stand for it.
        self._names = {_PROMPT.fullmatch(name)[1].replace("pooled_", "") for name in lists}  # type: ignore[index]

    def _encoded(self, texts: dict[str, Any]) -> tuple[list[Any], Any]:
        """Return what encode_prompt gave at each of its calls, and the noise that the pipeline would begin with."""
        found: list[Any] = []

        def encode(*args: Any, **kwargs: Any) -> Any:
            found.append(type(self._pipe).encode_prompt(self._pipe, *args, **kwargs))
            return found[-1]

        object.__setattr__(self._pipe, "encode_prompt", encode)
        self._tap.show(None)
        with torch.no_grad():
            latents = self._call(texts | {"output_type": "latent"})
        if not found:
            raise ValueError(f"{self._name} cannot be used: it does not call its encode_prompt")
        return found, latents

    def _read(self, scheduler: Any) -> Convention:
        """Return the levels that the pipeline asked its scheduler for."""
        mine = copy.deepcopy(scheduler)
        args, kwargs = self._tap.asked
        mine.set_timesteps(*args, **kwargs)
        found = read(mine)
        self._times = torch.tensor(found.schedule.time[:-1].tolist(), dtype=mine.timesteps.dtype)
        self._all_sigmas = getattr(mine, "sigmas", None)
        return found

    def _sigmas(self, level: int) -> Any:
        return None if self._all_sigmas is None else self._all_sigmas[level : level + 2]


def _is_text(name: str, value: Any) -> bool:
    return _PROMPT.fullmatch(name) is not None and isinstance(value, str | list | tuple | torch.Tensor)

"""Video that is drawn one frame after the other: each by denoising, given the frames before it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import Draws
from ..denoiser import Denoiser
from ..generator import Floats, Moved, impose
from ..latents import Latents, replace_fields
from ..rewards.base import as_reward
from .gaussian import Gaussian, check_eta
from .schedule import Schedule
from .transitions import log_normal, transition


class Frames(Gaussian):
    """A frame-autoregressive video model: ``frames`` runs of a diffusion, each under the condition of the last few.

    Feynman–Kac mapping: each frame is one step that draws noise and T that denoise it, so that a clip takes
    frames·(T + 1) − 1 steps and ``unit`` = T + 1 of them make a frame. With a reward r of the frames so far, the
    potential of a step that ends frame t is exp(scale·(r_t − r_{t−1})), where r_0 = 0; their product is
    exp(scale·r(clip)). Judges may come in stages, at some frames alone: r then keeps its last value in between, and
    −inf for good.
    `Blocks` makes a step one whole frame, and `frame` is a kernel for programs.

    Args:
        denoiser: predicts the next frame from a noisy one and the condition {"past": (n, past, …), "known": (n,)},
            the frames before it (blank ones first, where there are fewer) and how many of them there are.
        schedule: the levels of one frame.
        shape: of a frame.
        frames: of a clip.
        past: how many frames the next one is drawn from.
        reward: of a batch of clips (n, t, …) of t frames, for any t ≥ 1, to (n,); or a mapping of such, from the
            number of frames that a clip has when it is judged.
        scale: of the reward.
        eta: 1 is DDPM, 0 draws nothing but the noise of each frame; as in `Diffusion`.
        blank: the value of pixels of a frame that is not there.
        dtype: of the particles.
        device: where they are.

    A particle's value is a clip (t, …) of the frames it has; the last of them an estimate while it is being drawn.
    Raises ValueError for settings out of range.

    >>> import feynkac as fk
    >>> def darker(x, time, condition):  # the data is half of the frame before it
    ...     return condition["past"][:, -1] / 2
    >>> denoiser = fk.diffusion.Network(darker, "sample")
    >>> video = Frames(denoiser, Schedule.flow(4), (2,), frames=3, past=1, blank=1.0)
    >>> posterior = fk.infer(fk.Blocks(video, video.unit), fk.ImportanceSampling(1), seed=0)
    >>> posterior.values[0].tolist()
    [[0.5, 0.5], [0.25, 0.25], [0.125, 0.125]]
    """

    remembers = True

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        shape: Sequence[int],
        frames: int,
        *,
        past: int,
        reward: Any = None,
        scale: float = 1.0,
        eta: float = 1.0,
        blank: float = -1.0,
        dtype: Any = torch.float32,
        device: str = "cpu",
    ) -> None:
        super().__init__(denoiser, schedule, shape, dtype=dtype, device=device)
        if frames < 1 or past < 1:
            raise ValueError(f"frames and past must be at least 1, not {frames} and {past}")
        self.frames = frames
        self.past = past
        if not isinstance(reward, Mapping):
            reward = {} if reward is None else dict.fromkeys(range(1, frames + 1), reward)
        if not all(1 <= count <= frames for count in reward):
            raise ValueError(f"clips are judged when they have 1…{frames} frames, not {sorted(reward)}")
        self.judges = {count: as_reward(judge) for count, judge in reward.items()}
        self.scale_of_reward = scale
        self.eta = check_eta(eta)
        self.blank = blank

    def __repr__(self) -> str:
        return f"Frames({self.frames} frames of shape {self.shape}, {len(self.schedule)} steps each, eta={self.eta:g})"

    @property
    def unit(self) -> int:
        """How many steps make a frame."""
        return len(self.schedule) + 1

    @property
    def steps(self) -> int:
        """How many steps a generation takes after its start."""
        return self.frames * self.unit - 1

    def levels(self, step: NDArray[np.int64]) -> tuple[Any, Any]:
        """Return α and σ at the level of the frame being drawn."""
        return super().levels(step % self.unit)

    def begin(self, latents: Latents) -> tuple[Floats, Latents]:
        """Return log G_0 = 0 and particles with blank clips."""
        n = len(latents)
        clip = torch.full((n, self.frames, *self.shape), self.blank, dtype=self.dtype, device=self.device)
        latents = replace_fields(latents, clip=clip, reward=torch.zeros(n, dtype=torch.float64))
        return np.zeros(n), self.look(latents)

    def look(self, latents: Latents) -> Latents:
        """Return particles with the estimate of the frame being drawn; a finished one is its own."""
        level = latents.step % self.unit
        going = np.flatnonzero(level < len(self.schedule))
        data = latents.x.clone()
        if len(going):
            part = latents.select(going)
            noisy = Latents(part.x, level[going], len(self.schedule), self._past(part))
            data[torch.as_tensor(going, device=self.device)] = self.denoise(noisy, owners=going)
        return replace_fields(latents, estimate=data)

    def _past(self, latents: Latents) -> dict[str, Any]:
        """Return the condition of the frame being drawn."""
        at = latents.step // self.unit
        before = at[:, None] + np.arange(-self.past, 0)  # negative: there is no such frame
        past = latents.fields["clip"][np.arange(len(at))[:, None], np.maximum(before, 0)]
        there = torch.as_tensor(before >= 0, device=self.device).reshape(*before.shape, *[1] * len(self.shape))
        known = torch.as_tensor(np.minimum(at, self.past), device=self.device)
        return {"past": torch.where(there, past, self.blank), "known": known}

    def move(self, latents: Latents, noise: Any, given: Any) -> Moved:
        """Move unfinished particles one step on, and weigh those that have finished a frame."""
        there, log_prob = self._step(latents, noise, given)
        log_potential = np.zeros(len(latents))
        if self.judges:
            log_potential, there = self._weigh(there)
        return Moved(there.x, log_prob, log_prob, log_potential, there.fields)

    def _step(self, latents: Latents, noise: Any, given: Any) -> tuple[Latents, Floats]:
        """Return particles one step on, with their clips and estimates, and log p of the step (n,)."""
        n, last = len(latents), len(self.schedule)
        k = latents.step % self.unit
        level, following = super().levels(np.minimum(k, last - 1)), super().levels(np.minimum(k + 1, last))
        mean, std = transition(latents.x, latents.fields["estimate"], level, following, self.eta)
        fresh = torch.as_tensor(k == last, device=self.device).reshape(-1, *[1] * len(self.shape))
        mean, std = torch.where(fresh, 0.0, mean), torch.where(fresh, self.scale, std)
        x = mean + std * noise
        impose(x, given)
        step = latents.step + 1
        ended = np.flatnonzero(step % self.unit == last)
        clip = latents.fields["clip"].clone()
        clip[ended, step[ended] // self.unit] = x[ended]
        there = Latents(x, step, latents.steps, None, {**latents.fields, "clip": clip})
        return self.look(there), log_normal(x, mean, std.reshape(n))

    def _weigh(self, latents: Latents) -> tuple[Floats, Latents]:
        """Return log G (n,) and the particles with the reward of their frames so far."""
        before = latents.fields["reward"]
        value = before.clone()
        ended = latents.step % self.unit == len(self.schedule)
        whole = np.where(ended, latents.step // self.unit + 1, 0)
        for count in sorted(set(whole.tolist()) & set(self.judges)):
            at = np.flatnonzero(whole == count)
            value[at] = self.scale_of_reward * self.judges[count](latents.fields["clip"][at, :count], latents, at)
        value = torch.where(before.isneginf(), before, value)  # what is impossible stays so, whatever comes
        gained = torch.where(value == before, 0.0, value - before)
        return gained.numpy(), replace_fields(latents, reward=value)

    def values(self, state: Latents) -> list[Any]:
        """Return the clip of each particle: its frames so far, the one being drawn as it is estimated."""
        clip = state.fields["clip"].clone()
        at = state.step // self.unit
        index = np.arange(len(state))
        clip[index, at] = state.fields["estimate"]
        arrays = clip.detach().cpu().numpy()
        return [one[: count + 1] for one, count in zip(arrays, at)]

    def frame(self, past: Sequence[Any]) -> Frame:
        """Return the next frame, given all frames so far (each an array), as a kernel for a program.

        ``await fk.sample("frame", video.frame(frames))`` gives an array. Its law has no density that can be
        computed, since the noise on the way to it is summed out. Raises ValueError for frames of another shape, or
        a clip that is whole.
        """
        frames = [np.asarray(one) for one in past]
        for one in frames:
            if one.shape != self.shape:
                raise ValueError(f"a frame has shape {self.shape}, not {one.shape}")
        if len(frames) >= self.frames:
            raise ValueError(f"a clip has {self.frames} frames, and all of them are given")
        return Frame(self, tuple(frames))


@dataclass(frozen=True, eq=False)
class Frame:
    """A request for the next frame of a clip: a kernel (see `feynkac.ppl.model.Kernel`). Made by `Frames.frame`."""

    model: Frames
    past: tuple[NDArray[Any], ...]
    expensive: ClassVar[bool] = True
    journalled: ClassVar[bool] = True

    @property
    def batch_key(self) -> Hashable:
        """All frames of one model share its calls."""
        return (Frame, id(self.model))

    @property
    def fingerprint(self) -> Hashable:
        """The frames that the next one is drawn from."""
        return (len(self.past), *(one.tobytes() for one in self.past[-self.model.past :]))

    def sample_batch(self, requests: Sequence[Frame], keys: Keys) -> Draws:
        """Draw one frame for each request; there are no log-probabilities."""
        model, n = self.model, len(requests)
        clip = torch.full((n, model.frames, *model.shape), model.blank, dtype=model.dtype, device=model.device)
        for row, request in zip(clip, requests):
            if request.past:
                row[: len(request.past)] = model.tensor(np.stack(request.past))
        at = np.array([len(request.past) for request in requests])
        # A frame that has ended is followed by noise; so is the beginning.
        latents = Latents(
            torch.zeros(n, *model.shape, dtype=model.dtype, device=model.device),
            at * model.unit - 1,
            model.steps,
            None,
            {"clip": clip, "estimate": torch.zeros(n, *model.shape, dtype=model.dtype, device=model.device)},
        )
        with torch.no_grad():
            for k in range(model.unit):
                latents, _ = model._step(latents, model.noise(_keys.fold(keys, k)), None)
        return Draws(list(latents.x.cpu().numpy()), None)

"""Generation by denoising, from Gaussian noise to an image, a clip, or any tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...ppl import keys as _keys
from ...ppl.cost import rows
from ...ppl.density import Density
from ...ppl.keys import Keys
from ...ppl.model import Advance
from ..denoiser import Denoiser, estimate, predict
from ..generator import Floats, Generator, InvalidOutput, Moved, impose
from ..latents import Latents, replace_fields
from ..steering import check_samples
from .increments import densities
from .schedule import Schedule
from .transitions import log_normal, transition


class Gaussian(Generator):
    """A diffusion model whose noise is Gaussian: the base of all that generate by denoising.

    Args:
        denoiser: what predicts the data.
        schedule: its levels, T steps.

    The others are those of `Generator`. Raises ValueError where ε is predicted at a level without data (α = 0), which
    says nothing of the data.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        shape: Sequence[int],
        *,
        condition: Any = None,
        decode: Any = None,
        dtype: Any = torch.float32,
        device: str = "cpu",
    ) -> None:
        super().__init__(shape, condition=condition, decode=decode, dtype=dtype, device=device)
        if denoiser.prediction in ("logits", "log_ratios"):
            raise ValueError(
                f"{denoiser.prediction} are of tokens, which have no Gaussian noise: use MaskedDiffusion (logits) or "
                "JumpDiffusion (log_ratios)"
            )
        if denoiser.prediction == "epsilon" and not schedule.alpha[0] > 0:
            raise ValueError("a prediction of ε needs some data in the first level: Schedule.flow(steps, start=0.99)")
        self.denoiser = denoiser
        self.schedule = schedule

    @property
    def scale(self) -> float:
        """Standard deviation of the noise that a generation begins with: 1 where variance is preserved, else σ_0.

        A schedule may say otherwise, as those of diffusers do.
        """
        if self.schedule.initial is not None:
            return self.schedule.initial
        alpha, sigma = float(self.schedule.alpha[0]), float(self.schedule.sigma[0])
        return 1.0 if math.isclose(alpha**2 + sigma**2, 1.0) else sigma

    @property
    def steps(self) -> int:
        """How many steps a generation takes after its start."""
        return len(self.schedule)

    def initial(self, keys: Keys) -> Any:
        """Draw pure noise for each key, (n, …)."""
        return self.noise(keys) * self.scale

    def initial_log_prob(self, x: Any) -> Floats:
        """Return its log-density (n,)."""
        return log_normal(x, 0.0, self.scale)

    def noise(self, keys: Keys) -> Any:
        """Return standard normal noise, one key per particle."""
        size = math.prod(self.shape)
        return self.tensor(_keys.normal(keys, size)).reshape(len(keys), *self.shape)

    def look(self, latents: Latents) -> Latents:
        """Return particles with what is computed where they are: here, the estimate of the data."""
        return replace_fields(latents, estimate=self.denoise(latents))

    # The network

    def levels(self, step: NDArray[np.int64]) -> tuple[Any, Any]:
        """Return α and σ at levels (n,), as tensors that broadcast against a batch."""
        width = (len(step),) + (1,) * len(self.shape)
        alpha, sigma = self.schedule.alpha[step], self.schedule.sigma[step]
        return self.tensor(alpha).reshape(width), self.tensor(sigma).reshape(width)

    def denoise(
        self, latents: Latents, denoiser: Denoiser | None = None, owners: NDArray[np.intp] | None = None
    ) -> Any:
        """Return the estimate of the data for each particle, from one call of the network for all unfinished ones.

        ``denoiser`` is the model's own by default; ``owners`` tells whose each row is, where it is not row i of the
        particles. Raises InvalidOutput where the network returns another shape, or numbers that are not finite.
        """
        denoiser = self.denoiser if denoiser is None else denoiser
        going = np.flatnonzero(~latents.done)
        if not len(going):
            return latents.x
        part = latents if len(going) == len(latents) else latents.select(going)
        alpha, sigma = self.levels(part.step)
        mine = going if owners is None else owners[going]
        with rows(mine.tolist()):
            out = predict(denoiser, part.x, self.tensor(self.schedule.time[part.step]), part.condition)
        check_output(out, part.x, mine)
        found = estimate(denoiser.prediction, out, part.x, alpha, sigma)
        if part is latents:
            return found
        whole = latents.x.clone()
        whole[torch.as_tensor(going, device=whole.device)] = found
        return whole


def check_eta(eta: float) -> float:
    """Return how stochastic steps are, or raise ValueError."""
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be between 0 (deterministic) and 1 (DDPM), not {eta}")
    return eta


def check_output(out: Any, x: Any, owners: NDArray[np.intp]) -> None:
    """Raise InvalidOutput unless a network's output fits its input and is finite."""
    if out.shape != x.shape:
        raise InvalidOutput(f"the network got {tuple(x.shape)} and returned {tuple(out.shape)}: a prediction fits x")
    if not bool(torch.isfinite(out).all()):
        bad = (~torch.isfinite(out.reshape(len(out), -1))).any(1).nonzero()
        raise InvalidOutput(f"the network returned NaN or infinite numbers for particle {owners[int(bad[0, 0])]}")


class Diffusion(Gaussian):
    """Generation by DDPM, DDIM or a stochastic flow, in T steps, with an optional reward that steers it.

    Feynman–Kac mapping: M_0 is pure noise, M_t the step of `transition` with its exact density (none for a
    deterministic one), and G_t what ``steering`` makes of the reward; without one, G = 1. The last step reaches the
    data without noise.

    Args:
        eta: 1 is DDPM (or its counterpart for flows), 0 deterministic; for resampling to help it must be positive.
        steering: what weighs and guides particles; see `feynkac.diffusion.steering`.

    The others are those of `Gaussian`. Raises ValueError for an eta outside [0, 1].

    >>> import feynkac as fk
    >>> from feynkac.diffusion import Diffusion, Mixture, Schedule
    >>> data = Mixture(weights=[0.3, 0.7], means=[[-2.0], [1.0]], variances=[0.1, 0.1])
    >>> model = Diffusion(data.denoiser(Schedule.vp(60)), Schedule.vp(60), (1,), dtype=torch.float64)
    >>> posterior = fk.infer(model, fk.ImportanceSampling(2000), seed=0)
    >>> abs(posterior.expect(lambda x: x[0] > 0) - 0.7) < 0.05
    True
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        shape: Sequence[int],
        *,
        eta: float = 1.0,
        steering: Any = None,
        condition: Any = None,
        decode: Any = None,
        dtype: Any = torch.float32,
        device: str = "cpu",
    ) -> None:
        super().__init__(denoiser, schedule, shape, condition=condition, decode=decode, dtype=dtype, device=device)
        self.eta = check_eta(eta)
        check_samples(steering)
        self.steering = steering

    def __repr__(self) -> str:
        steered = f", {self.steering!r}" if self.steering is not None else ""
        return f"Diffusion({len(self.schedule)} steps, shape {self.shape}, eta={self.eta:g}{steered})"

    def move(self, latents: Latents, noise: Any, given: Any) -> Moved:
        """Move unfinished particles one level on."""
        level, following = self.levels(latents.step), self.levels(latents.step + 1)
        data = latents.fields["estimate"]
        mean, std = transition(latents.x, data, level, following, self.eta)
        guided = mean
        if self.steering is not None and "gradient" in latents.fields:
            shifted = self.steering.shift(latents, data, level)
            guided, _ = transition(latents.x, shifted, level, following, self.eta)
            guided = torch.where(std > 0, guided, mean)  # a step without noise cannot be proposed otherwise
        x = guided + std * noise
        impose(x, given)
        log_proposal = log_normal(x, guided, std.reshape(len(x)))
        log_prob = log_proposal if guided is mean else log_normal(x, mean, std.reshape(len(x)))
        there = Latents(x, latents.step + 1, latents.steps, latents.condition)
        log_potential, there = self.arrive(latents, there)
        return Moved(x, log_prob, log_proposal, log_potential, there.fields)

    def unconstrained(self, paths: Sequence[Any], horizon: int | None) -> list[Density]:
        """Return the density of paths over their noise, with its gradient; see `increments`."""
        return densities(self, paths, horizon)

    def renoise(self, state: Latents, keys: Keys, depth: int) -> Advance[Latents]:
        """Take particles back to an earlier depth, by adding noise as the forward process does.

        x_j = (α_j/α_i)·x_i + √(σ_j² − (α_j·σ_i/α_i)²)·z. It is no step of the model, so that it has no density; it is
        weighed as a step is. Raises ValueError for a depth that is not before that of every particle.
        """
        self.check_back(state, depth)
        step = np.full(len(state), depth)
        (alpha, sigma), (alpha2, sigma2) = self.levels(state.step), self.levels(step)
        ratio = alpha2 / alpha
        x = ratio * state.x + (sigma2**2 - (ratio * sigma) ** 2).clamp(min=0.0).sqrt() * self.noise(keys)
        return self.back(state, Latents(x, step, state.steps, state.condition))

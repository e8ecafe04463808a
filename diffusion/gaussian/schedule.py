"""Noise schedules: how much of the data and how much noise is left at each step, from noise to data.

Every one is a list of levels i = 0…T with x_i = α_i·x + σ_i·ε, x the data and ε standard normal; only α and σ tell
the kinds apart: variance-preserving (α² + σ² = 1), variance-exploding (α = 1) and flow matching (α = 1 − σ).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ppl.model import Floats


@dataclass(frozen=True, eq=False)
class Schedule:
    """Levels of a generation in T steps, each an array of shape (T + 1,), from noise to data.

    Attributes:
        alpha: scale of the data, growing.
        sigma: scale of the noise, falling; 0 at the end, where the data is reached.
        time: what the network is told of the level, in its own units.
        initial: standard deviation of the noise that a generation begins with; None: that of `Gaussian.scale`.

    Raises ValueError where the ratio α/σ does not grow from level to level, or a level is not a finite number.

    >>> schedule = Schedule.flow(4)
    >>> schedule.sigma.tolist(), len(schedule)
    ([1.0, 0.75, 0.5, 0.25, 0.0], 4)
    """

    alpha: Floats
    sigma: Floats
    time: Floats
    initial: float | None = None

    def __post_init__(self) -> None:
        for name in ("alpha", "sigma", "time"):
            levels = np.array(getattr(self, name), float)
            levels.flags.writeable = False
            object.__setattr__(self, name, levels)
        if not len(self.alpha) == len(self.sigma) == len(self.time) >= 2:
            raise ValueError("alpha, sigma and time must have one length, of at least 2 levels")
        if not all(np.isfinite(levels).all() for levels in (self.alpha, self.sigma, self.time)):
            raise ValueError("alpha, sigma and time must be finite numbers")
        noise = self.sigma / np.maximum(self.alpha, 1e-300)
        if not (np.diff(noise) < 0).all() or (self.sigma < 0).any():
            raise ValueError("the noise-to-data ratio sigma / alpha must fall from level to level, and sigma be ≥ 0")

    def __len__(self) -> int:
        return len(self.alpha) - 1

    @classmethod
    def vp(cls, steps: int, beta_min: float = 0.1, beta_max: float = 20.0, *, end: float = 0.0) -> Schedule:
        """Return the variance-preserving SDE dx = −½βx dt + √β dW, β linear in t, at even times from 1 to ``end``.

        Song et al. (2021), arXiv:2011.13456. ``time`` is t; with ``end`` > 0 the last level keeps a little noise.
        """
        t = np.linspace(1.0, end, steps + 1)
        alpha = np.exp(-0.5 * (beta_min * t + 0.5 * (beta_max - beta_min) * t**2))
        return cls(alpha, np.sqrt(-np.expm1(2.0 * np.log(alpha))), t)

    @classmethod
    def ddpm(cls, steps: int, alphas_cumprod: Any = None) -> Schedule:
        """Return every (1000/steps)-th level of a DDPM, by default β linear from 1e-4 to 0.02 over 1000.

        Ho et al. (2020), arXiv:2006.11239. ``time`` is the index of the level in ``alphas_cumprod`` (α², from data
        to noise), spaced as by diffusers' "trailing", so that the first level is the noisiest.
        """
        if alphas_cumprod is None:
            alphas_cumprod = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
        kept = np.asarray(alphas_cumprod, float)
        if not 1 <= steps <= len(kept):
            raise ValueError(f"steps must be between 1 and the {len(kept)} levels of the model, not {steps}")
        index = np.round(np.arange(len(kept), 0, -len(kept) / steps))[:steps].astype(int) - 1
        squared = np.append(kept[index], 1.0)
        return cls(np.sqrt(squared), np.sqrt(1.0 - squared), np.append(index, 0))

    @classmethod
    def ve(cls, steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
        """Return the variance-exploding levels of EDM, from ``sigma_max`` to ``sigma_min``, and 0 at the end.

        ``time`` is σ. A single step has ``sigma_max`` alone. Karras et al. (2022), arXiv:2206.00364.
        """
        ramp = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps)
        sigma = np.append(ramp**rho, 0.0)
        sigma[steps - 1], sigma[0] = sigma_min, sigma_max  # the powers do not quite undo each other
        return cls(np.ones(steps + 1), sigma, sigma)

    @classmethod
    def flow(cls, steps: int, shift: float = 1.0, *, start: float = 1.0) -> Schedule:
        """Return the levels of flow matching, α = 1 − σ; ``time`` is σ.

        Lipman et al. (2023), arXiv:2210.02747; ``shift`` moves steps towards the noise, as Esser et al. (2024),
        arXiv:2403.03206; ``start`` < 1 begins with a little of the data.
        """
        sigma = np.linspace(start, 0.0, steps + 1)
        sigma = shift * sigma / (1.0 + (shift - 1.0) * sigma)
        return cls(1.0 - sigma, sigma, sigma)

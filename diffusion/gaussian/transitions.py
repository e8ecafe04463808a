"""A step from one level of noise to the next, and the density of where it leads."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...ppl.model import Floats


def transition(x: Any, data: Any, level: Any, following: Any, eta: float) -> tuple[Any, Any]:
    """Return mean and standard deviation of the step from one level to the next, given the estimate of the data.

    One formula for all schedules: x' = α'·x̂ + √(σ'² − τ²)·ε̂ + τ·z with ε̂ = (x − α·x̂)/σ and
    τ² = η²·σ'²·(1 − (ασ'/(α'σ))²). It is DDIM (Song et al. 2021, arXiv:2010.02502); η = 1 is DDPM's posterior, η = 0
    deterministic. ``level`` and ``following`` are pairs (α, σ) that broadcast against x.
    """
    (alpha, sigma), (alpha2, sigma2) = level, following
    noise = (x - alpha * data) / sigma
    variance = eta**2 * sigma2**2 * (1.0 - (alpha * sigma2 / (alpha2 * sigma)) ** 2)
    mean = alpha2 * data + (sigma2**2 - variance).clamp(min=0.0).sqrt() * noise
    return mean, variance.clamp(min=0.0).sqrt()


def log_normal(x: Any, mean: Any, std: Any) -> Floats:
    """Return the log-density (n,) of particles under independent normals; where std is 0, log 1 if x is the mean.

    Summed in float64. ``std`` is a number, or a tensor with one entry per particle.
    """
    n, size = len(x), math.prod(x.shape[1:])
    width = torch.as_tensor(std, dtype=torch.float64, device=x.device).reshape(-1, 1)
    off = (x.double() - mean).reshape(n, size)
    safe = width.clamp(min=1e-300)
    squares = torch.linalg.vector_norm(off, dim=1, keepdim=True).div(safe).square()[:, 0]
    density = -0.5 * squares - size * (safe.log()[:, 0] + 0.5 * math.log(2.0 * math.pi))
    if bool((width > 0).all()):
        return density.detach().cpu().numpy()  # type: ignore[no-any-return]
    met = off.abs().amax(1) <= 1e-4 * (1.0 + x.double().abs().reshape(n, size).amax(1))
    certain = torch.where(met, 0.0, -math.inf)
    result: Floats = torch.where(width[:, 0] > 0, density, certain).detach().cpu().numpy()
    return result

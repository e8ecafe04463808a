"""Warm-up of one walker: what a kernel learns from where the walker has been, before its draws count."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ...ppl import keys as _keys
from ...ppl.density import Density
from ...ppl.keys import Keys
from ...ppl.model import Floats
from .hmc import HMC
from .kernel import Continuous, Stepping
from .nuts import NUTS
from .target import Shape, Tuning, key_of, shapes_of

WINDOWS = 40
"""Windows of a warm-up, after each of which the step size is set anew."""


def warm_up(kernel: Continuous, density: Density, key: Keys, steps: int) -> Iterator[tuple[Continuous, Density]]:
    """Walk ``steps`` draws, and yield after each window the kernel as it has learned, and the density where it stands.

    HMC and NUTS on a density of JAX learn by BlackJAX's window adaptation (dual averaging, and variances), in one
    compiled run. Others set their step by log s += γ·(acceptance − goal) after each window, with γ falling, and take
    their coordinates from where the walker has been in the last half of its way, each time that has doubled. A kernel
    with a step that is given just walks.
    """
    if not steps:
        return
    if kernel.adaptive and isinstance(kernel, HMC | NUTS) and density.logdensity is not None:
        from .compiled import warm_up_compiled

        position, size, variances = warm_up_compiled(kernel, density, key, steps)
        d = len(position)
        learned = Tuning(math.log(size / kernel.first(d)), {key_of(density): Shape(np.zeros(d), np.sqrt(variances))})
        yield replace(kernel, tuning=learned), replace(density, position=position[None])
        return
    window = -(-steps // WINDOWS)
    been: list[Floats] = []
    for k in range(-(-steps // window)):
        shape = kernel.shape(density)
        _, draws, fared = kernel.trajectory(density, _keys.fold(key, k), np.ones(1), window)
        been.append(shape.position(draws.position[:, 0]))
        density = replace(density, position=been[-1][-1:])
        if isinstance(kernel, Stepping) and kernel.adaptive:
            kernel = _learn(kernel, density, been, float(fared.chance.mean()))
        yield kernel, density


def _learn(kernel: Stepping, density: Density, been: list[Floats], acceptance: float) -> Stepping:
    """Return a kernel after a window: ``been`` (draws, d) of each window."""
    k, d = len(been), density.position.shape[1]
    gain = 3.0 / math.sqrt(k)
    log_scale = kernel.tuning.log_scale + gain * (acceptance - kernel.goal(d))
    log_scale = min(log_scale, math.log(kernel.most / kernel.first(d)))
    shapes = kernel.tuning.shapes
    if not kernel.by_prior and k >= 4 and not k & (k - 1):  # 4, 8, 16, …
        x = np.concatenate(been[k // 2 :])
        if len(np.unique(x, axis=0)) > 4:
            past = replace(density, rows=np.arange(len(x)), position=x)
            shapes = shapes_of([past], np.zeros(len(x)))
    return replace(kernel, tuning=Tuning(log_scale, shapes))

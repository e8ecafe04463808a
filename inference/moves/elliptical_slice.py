"""Elliptical slice sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ppl import keys as _keys
from ...ppl.density import Density
from ...ppl.keys import Keys
from .fared import Fared, library
from .kernel import Continuous, gaussian_shape
from .target import Point, Shape, Target, log_density

SHRINKS = 1000
"""How often a bracket is shrunk, at most: by then it is one number, and the walker stays."""


@dataclass(frozen=True)
class EllipticalSlice(Continuous):
    """Elliptical slice sampling on the continuous sites of a program whose prior is Gaussian: it has no step size.

    Feynman–Kac mapping: a kernel on whole paths (see `RandomWalk`). In coordinates in which the prior is N(0, I), a
    ν ~ N(0, I) and a level log t = λ·log G(x) + log U are drawn, and an angle θ ~ U(0, 2π) with the bracket
    [θ − 2π, θ]. Until λ·log G(y) > log t for y = x·cos θ + ν·sin θ, the bracket is shrunk to θ on its side of 0, and θ
    drawn from it anew. It always moves, and learns nothing: the engine keeps its promise.

    Args:
        moves: steps of one application.

    Raises:
        Unsupported: for a model without a density, where the prior of its sites is not one normal law, or where its
            potential is a random estimate.
        ImpossibleStart: for a path where the density is not positive.
        InconsistentDensity: where the model's density is not that of its paths.

    Source: Murray, Adams and MacKay (2010), arXiv:1001.0175. On densities of JAX the step is BlackJAX's.
    """

    def shape(self, density: Density) -> Shape:
        """Return the prior's coordinates."""
        return gaussian_shape(self.name, density)

    def walk(self, target: Target, now: Point, keys: Keys, size: float) -> tuple[Point, Fared]:
        """Make a step of n walkers; all wait for the last."""
        n, d = now.position.shape
        nu = _keys.normal(_keys.fold(keys, _keys.tag("ellipse")), d)
        u = _keys.uniform(_keys.fold(keys, _keys.tag("level")), 2)
        level = _likelihood(now, target.inverse, np) + np.log(u[:, 0])
        angle = 2 * math.pi * u[:, 1]
        low, high = angle - 2 * math.pi, angle.copy()
        here, going, evaluations = now, np.ones(n, bool), np.zeros(n)
        for k in range(SHRINKS):
            y = np.where(
                going[:, None],
                now.position * np.cos(angle)[:, None] + nu * np.sin(angle)[:, None],
                here.position,
            )
            new = target.at(y, False)
            evaluations += going
            found = going & (_likelihood(new, target.inverse, np) > level)
            here = Point(*(np.where(found if a.ndim == 1 else found[:, None], b, a) for a, b in zip(here, new)))
            going &= ~found
            if not going.any():
                break
            low, high = np.where(angle < 0, angle, low), np.where(angle < 0, high, angle)
            draw = _keys.uniform(_keys.fold(keys, _keys.tag("shrink"), k))
            angle = np.where(going, low + (high - low) * draw, angle)
        return here, Fared(np.where(going, 0.0, 1.0), np.zeros(n, bool), np.full(n, np.nan), evaluations)

    def traced(self, target: Any, size: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return BlackJAX's step for one walker."""
        import jax.numpy as jnp

        zero = jnp.zeros(target.center.shape)
        walk = library().elliptical_slice(
            lambda z: _likelihood(target.at(z, False), target.inverse, jnp), mean=zero, cov=zero + 1.0
        )

        def step(key: Any, state: Any) -> tuple[Any, Fared]:
            state, info = walk.step(key, state)
            return state, Fared(1.0, False, jnp.nan, info.subiter)

        return walk.init, step


def _likelihood(point: Point, inverse: Any, xp: Any) -> Any:
    """Return λ·log G, −inf wherever the density is zero."""
    fine = log_density(point, inverse, xp) > -xp.inf
    return xp.where(fine, inverse * point.log_potential, -xp.inf)

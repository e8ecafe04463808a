"""Moves on densities of JAX: one step of a kernel, mapped over walkers, scanned over moves, and compiled once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ...ppl import keys as _keys
from ...ppl.density import Density
from ...ppl.keys import Keys
from ...ppl.model import Floats
from .kernel import Continuous, Fared, Stepping
from .target import UNTUNED, Point, Shape, log_density, stretch


@dataclass(frozen=True, eq=False)
class Traced:
    """A density at one inverse temperature, for one walker, in coordinates of some shape; inside a JAX trace."""

    parts: Callable[[Any], tuple[Any, Any]]
    """u -> (log_prior, log_potential)."""
    inverse: Any
    center: Any
    scale: Any

    def at(self, z: Any, gradients: bool) -> Point:
        """Evaluate the density at z (d,)."""
        import jax
        import jax.numpy as jnp

        def parts(z: Any) -> tuple[Any, Any]:
            return self.parts(self.center + stretch(self.scale, z))

        if not gradients:
            zero = jnp.zeros_like(z)
            prior, potential = parts(z)
            return Point(z, prior, potential, zero, zero)
        (prior, potential), pullback = jax.vjp(parts, z)
        one, none = (jnp.asarray(x, prior.dtype) for x in (1.0, 0.0))
        return Point(z, prior, potential, pullback((one, none))[0], pullback((none, one))[0])

    def log_density(self, z: Any) -> Any:
        """Return log π_λ at z (d,)."""
        import jax.numpy as jnp

        return log_density(self.at(z, False), self.inverse, jnp)


def walk_compiled(
    kernel: Continuous,
    density: Density,
    shape: Shape,
    z: Floats,
    size: float,
    keys: Keys,
    inverse: Floats,
) -> tuple[Point, Point, Fared]:
    """Make the moves of n walkers from z (n, d): where they begin, where they end, and how they fared."""
    import jax

    words = np.ascontiguousarray(_keys.fold(keys, _keys.tag("jax"))).view(np.uint32).reshape(-1, 2)
    with jax.enable_x64(True):
        run = _compiled(density.logdensity, settings_of(kernel))
        begin, end, fared = run(z, density.fixed, inverse, words, size, shape.center, shape.scale)
        begin, end, fared = jax.device_get((begin, end, fared))
    return begin, end, Fared(*(np.mean(part, 1) for part in fared))


def settings_of(kernel: Continuous) -> Continuous:
    """Return a kernel without what is an argument of its compiled form: those that differ in it alone share one."""
    return replace(kernel, step=None, tuning=UNTUNED) if isinstance(kernel, Stepping) else kernel


@lru_cache(maxsize=128)
def _compiled(logdensity: Callable[..., Any], kernel: Continuous) -> Callable[..., Any]:
    """Compile the moves of a kernel on a density. JAX itself keeps one program for each number of walkers."""
    import jax
    import jax.numpy as jnp

    def one(
        z: Any, fixed: Any, inverse: Any, word: Any, size: Any, center: Any, scale: Any
    ) -> tuple[Point, Point, Any]:
        target = Traced(lambda u: logdensity(u, fixed), inverse, center, scale)
        init, step = kernel.traced(target, size)
        begin = target.at(z, kernel.gradient)
        keys = jax.random.split(jax.random.wrap_key_data(word, impl="threefry2x32"), kernel.moves)
        state, fared = jax.lax.scan(lambda state, key: step(key, state), init(z), keys)
        end = target.at(state.position, False)
        fared = jax.tree.map(jnp.asarray, fared)
        return begin, end, fared

    compiled: Callable[..., Any] = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, 0, None, None, None)))
    return compiled

"""Moves on densities of JAX: one step of a kernel, mapped over walkers, scanned over moves, and compiled once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ...ppl import keys as _keys
from ...ppl.density import Density
from ...ppl.keys import Keys
from ...ppl.model import Floats
from .fared import Fared, library
from .target import Point, Shape, log_density, stretch


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
        # One by one: where the one gradient is infinite, a pullback of both would make the other NaN.
        prior, grad_prior = jax.value_and_grad(lambda z: parts(z)[0])(z)
        potential, grad_potential = jax.value_and_grad(lambda z: parts(z)[1])(z)
        return Point(z, prior, potential, grad_prior, grad_potential)

    def log_density(self, z: Any) -> Any:
        """Return log π_λ at z (d,)."""
        import jax.numpy as jnp

        return log_density(self.at(z, False), self.inverse, jnp)


def apart(density: Density) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the function of a density that is compiled, once for all that have it, and its first arguments."""
    from jax.tree_util import Partial

    logdensity = density.logdensity
    assert logdensity is not None
    return (logdensity.func, logdensity.args) if isinstance(logdensity, Partial) else (logdensity, ())


def walk_compiled(
    kernel: Any,
    density: Density,
    shape: Shape,
    z: Floats,
    size: float,
    keys: Keys,
    inverse: Floats,
    count: int,
) -> tuple[Point, Point, Fared]:
    """Move n walkers from z (n, d); see `Continuous.trajectory`."""
    import jax

    words = np.ascontiguousarray(_keys.fold(keys, _keys.tag("jax"))).view(np.uint32).reshape(-1, 2)
    with jax.enable_x64(True):
        logdensity, numbers = apart(density)
        run = _compiled(logdensity, kernel.settings(), count)
        found = run(numbers, z, density.fixed, inverse, words, size, shape.center, shape.scale)
        begin, draws, fared = jax.device_get(found)
    return begin, draws, fared.summed()


@lru_cache(maxsize=128)
def _compiled(logdensity: Callable[..., Any], kernel: Any, count: int) -> Callable[..., Any]:
    """Compile a kernel's trajectories on a density. JAX itself keeps one program for each number of walkers."""
    import jax
    import jax.numpy as jnp

    def one(
        numbers: Any, z: Any, fixed: Any, inverse: Any, word: Any, size: Any, center: Any, scale: Any
    ) -> tuple[Point, Point, Any]:
        target = Traced(lambda u: logdensity(*numbers, u, fixed), inverse, center, scale)
        init, step = kernel.traced(target, size)

        def walk(state: Any, key: Any) -> Any:
            state, fared = step(key, state)
            return state, (state.position, jax.tree.map(jnp.asarray, fared))

        def draw(state: Any, keys: Any) -> Any:
            state, (positions, fared) = jax.lax.scan(walk, state, keys)
            return state, (positions[-1], fared)

        keys = jax.random.split(jax.random.wrap_key_data(word, impl="threefry2x32"), (count, kernel.moves))
        _, (positions, fared) = jax.lax.scan(draw, init(z), keys)
        return target.at(z, kernel.gradient), jax.vmap(lambda z: target.at(z, False))(positions), fared

    axes = (None, 0, 0, 0, 0, None, None, None)
    compiled: Callable[..., Any] = jax.jit(jax.vmap(one, in_axes=axes, out_axes=(0, 1, 2)))
    return compiled


def warm_up_compiled(kernel: Any, density: Density, key: Keys, steps: int) -> tuple[Floats, float, Floats]:
    """Run BlackJAX's window adaptation on one walker, which is Stan's: its position, step size and variances (d,)."""
    import jax

    words = np.ascontiguousarray(_keys.fold(key, _keys.tag("jax"))).view(np.uint32).reshape(-1, 2)
    with jax.enable_x64(True):
        logdensity, numbers = apart(density)
        run = _warm_up(logdensity, kernel.settings(), steps)
        fixed = jax.tree.map(lambda array: array[0], density.fixed)
        position, size, variances = jax.device_get(run(numbers, density.position[0], fixed, words[0]))
    return np.asarray(position, float), float(size), np.asarray(variances, float)


@lru_cache(maxsize=32)
def _warm_up(logdensity: Callable[..., Any], kernel: Any, steps: int) -> Callable[..., Any]:
    """Compile the warm-up of a kernel that has BlackJAX's settings for it."""
    import jax
    import jax.numpy as jnp

    def run(numbers: Any, u: Any, fixed: Any, word: Any) -> tuple[Any, Any, Any]:
        target = Traced(lambda u: logdensity(*numbers, u, fixed), jnp.asarray(1.0), jnp.zeros_like(u), jnp.ones_like(u))
        algorithm, settings = kernel.adaptable()
        warm_up = library().window_adaptation(
            algorithm,
            target.log_density,
            target_acceptance_rate=kernel.goal(len(u)),
            adaptation_info_fn=lambda *told: None,
            **settings,
        )
        key = jax.random.wrap_key_data(word, impl="threefry2x32")
        (state, found), _ = warm_up.run(key, u, num_steps=steps)
        return state.position, found["step_size"], found["inverse_mass_matrix"]

    compiled: Callable[..., Any] = jax.jit(run)
    return compiled

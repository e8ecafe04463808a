"""Bootstrap filter with cuthbert: its particle filter, with systematic resampling behind its ESS decorator, compiled.

It weighs nothing at its start, so that the start is a step before the first: the law of x is stationary. It gives each
particle a key of its own, and keeps the whole history.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from cuthbert import filtering
from cuthbert.smc import particle_filter
from cuthbertlib.resampling import adaptive, systematic
from worker import serve

jax.config.update("jax_enable_x64", True)


def prepare(*, y, n, rho, sigma_x, sigma_y):
    constant = math.log(sigma_y) + 0.5 * math.log(2 * math.pi)
    built = particle_filter.build_filter(
        init_sample=lambda key: jax.random.normal(key) * (sigma_x / math.sqrt(1 - rho * rho)),
        propagate_sample=lambda key, x, observed: rho * x + sigma_x * jax.random.normal(key),
        log_potential=lambda before, x, observed: -0.5 * ((observed - x) / sigma_y) ** 2 - constant,
        n_filter_particles=n,
        resampling_fn=adaptive.ess_decorator(systematic.resampling, 0.5),
    )

    @jax.jit
    def filtered(key, data):
        first, rest = jax.random.split(key)
        return filtering.filter(built, data, built.init_prepare(key=first), key=rest)

    data = jnp.array(y)
    return lambda seed: {"log_z": float(filtered(jax.random.key(seed), data).log_normalizing_constant[-1])}


if __name__ == "__main__":
    serve(prepare)

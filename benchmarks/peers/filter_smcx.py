"""Bootstrap filter with smcx: ``bootstrap_filter`` of its three functions, compiled. It keeps the whole history.

Its transition is a function of one particle, with a key of its own.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import smcx
from worker import serve

jax.config.update("jax_enable_x64", True)


def prepare(*, y, n, rho, sigma_x, sigma_y):
    constant = math.log(sigma_y) + 0.5 * math.log(2 * math.pi)

    def initial(key, size):
        return jax.random.normal(key, (size,)) * (sigma_x / math.sqrt(1 - rho * rho))

    def transition(key, x):
        return rho * x + sigma_x * jax.random.normal(key)

    def log_observation(observed, x):
        return -0.5 * ((observed[0] - x) / sigma_y) ** 2 - constant

    @jax.jit
    def filtered(key, data):
        return smcx.bootstrap_filter(key, initial, transition, log_observation, data, num_particles=n)

    data = jnp.array(y)
    return lambda seed: {"log_z": float(filtered(jax.random.key(seed), data).marginal_loglik)}


if __name__ == "__main__":
    serve(prepare)

"""Bootstrap filter by hand in JAX: one ``lax.scan``, which resamples behind a ``cond``. It keeps log Ẑ alone."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from worker import serve

jax.config.update("jax_enable_x64", True)


def prepare(*, y, n, rho, sigma_x, sigma_y):
    constant = math.log(sigma_y) + 0.5 * math.log(2 * math.pi)

    def weigh(x, observed):
        return -0.5 * ((observed - x) / sigma_y) ** 2 - constant

    def step(carry, observed_and_key):
        x, log_w, log_z = carry
        observed, key = observed_and_key
        move, draw = jax.random.split(key)
        peak = log_w.max()
        w = jnp.exp(log_w - peak)
        total = w.sum()

        def resample():
            edges = jnp.cumsum(w)
            points = (jnp.arange(n) + jax.random.uniform(draw)) / n * edges[-1]
            index = jnp.clip(jnp.searchsorted(edges, points, side="right"), 0, n - 1)
            return x[index], jnp.zeros(n), log_z + peak + jnp.log(total / n)

        few = total * total <= 0.5 * n * (w @ w)
        x, log_w, log_z = jax.lax.cond(few, resample, lambda: (x, log_w, log_z))
        x = rho * x + sigma_x * jax.random.normal(move, (n,))
        return (x, log_w + weigh(x, observed), log_z), None

    @jax.jit
    def filtered(key, data):
        first, rest = jax.random.split(key)
        x = jax.random.normal(first, (n,)) * (sigma_x / math.sqrt(1 - rho * rho))
        keys = jax.random.split(rest, len(data) - 1)
        (_, log_w, log_z), _ = jax.lax.scan(step, (x, weigh(x, data[0]), 0.0), (data[1:], keys))
        return log_z + logsumexp(log_w) - math.log(n)

    data = jnp.array(y)
    return lambda seed: {"log_z": float(filtered(jax.random.key(seed), data))}


if __name__ == "__main__":
    serve(prepare)

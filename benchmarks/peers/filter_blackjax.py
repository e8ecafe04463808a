"""Bootstrap filter with BlackJAX: ``smc.base.step`` in one compiled ``lax.scan``.

``smc.base`` resamples at every step and knows no earlier weights. To resample at ESS < N/2 alone, each particle carries
its log-weight and its index: where the indices are in order, nothing was resampled, and the weights go on.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from blackjax.smc import base, ess, resampling
from jax.scipy.special import logsumexp
from worker import serve

jax.config.update("jax_enable_x64", True)


def prepare(*, y, n, rho, sigma_x, sigma_y):
    order = jnp.arange(n, dtype=jnp.int32)  # as `systematic` gives them
    constant = math.log(sigma_y) + 0.5 * math.log(2 * math.pi)

    def resample(key, weights, size):
        few = ess.ess(jnp.log(weights)) < 0.5 * n
        return jax.lax.cond(few, lambda: resampling.systematic(key, weights, size), lambda: order)

    def log_potential(x, observed):
        return -0.5 * ((observed - x) / sigma_y) ** 2 - constant

    def step(carry, observed_and_key):
        state, log_z = carry
        observed, key = observed_and_key

        def move(keys, particles, _):
            x, log_w, index = particles
            log_w = jnp.where((index == order).all(), log_w, 0.0)
            # One draw for all from the first key is several times faster than one for each key.
            x = rho * x + sigma_x * jax.random.normal(keys[0], (n,))
            return (x, log_w + log_potential(x, observed), order), None

        before = logsumexp(state.particles[1])
        state, info = base.step(key, state, move, lambda particles: particles[1], resample)
        kept = (info.ancestors == order).all()
        log_z += info.log_likelihood_increment - jnp.where(kept, before - math.log(n), 0.0)
        return (state, log_z), None

    @jax.jit
    def filtered(key, data):
        first, rest = jax.random.split(key)
        x = jax.random.normal(first, (n,)) * (sigma_x / math.sqrt(1 - rho * rho))
        log_w = log_potential(x, data[0])
        start = base.SMCState((x, log_w, order), jax.nn.softmax(log_w), None)
        keys = jax.random.split(rest, len(data) - 1)
        (_, log_z), _ = jax.lax.scan(step, (start, logsumexp(log_w) - math.log(n)), (data[1:], keys))
        return log_z

    data = jnp.array(y)
    return lambda seed: {"log_z": float(filtered(jax.random.key(seed), data))}


if __name__ == "__main__":
    serve(prepare)

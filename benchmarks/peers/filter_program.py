"""Bootstrap filter with feynkac: an async program with `fk.scan`, compiled; as a whole, or step by step."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from worker import serve

import feynkac as fk

D = fk.dist


@fk.program
async def linear_gaussian(y, rho, sigma_x, sigma_y):
    async def step(carry, observed):
        x, first = carry
        spread = jnp.where(first, sigma_x / jnp.sqrt(1 - rho * rho), sigma_x)
        x = await fk.sample("x", D.Normal(rho * x, spread))
        await fk.observe("y", D.Normal(x, sigma_y), observed)
        return (x, False), x

    (x, _), _ = await fk.scan(step, (0.0, True), y, compiled=True)
    return x


def prepare(*, y, n, rho, sigma_x, sigma_y, watched=False):
    model, engine = linear_gaussian(np.array(y), rho, sigma_x, sigma_y), fk.SMC(n)
    callbacks = [lambda step: None] if watched else []
    return lambda seed: {"log_z": fk.infer(model, engine, seed=seed, callbacks=callbacks).log_evidence}


if __name__ == "__main__":
    serve(prepare)

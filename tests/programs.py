"""What the tests of the language share: short programs, a kernel without scores, and keys."""

from __future__ import annotations

import numpy as np

import feynkac as fk
from feynkac import handlers

COIN = fk.dist.Bernoulli(0.3)


def run(model, n=4, **settings):
    return fk.infer(model, fk.SMC(n, **settings), seed=0)


def keyring(n):
    return fk.keys.fold(fk.keys.root(0), np.arange(n))


class NoScores:
    """A kernel like an API that gives no log-probabilities."""

    batch_key = "no scores"
    fingerprint = None
    expensive = True

    def sample_batch(self, requests, keys):
        return fk.Draws([f"text {int(k) % 7}" for k in keys], None)


@fk.program
async def copies(notes):
    notes = list(notes)
    notes.append(1)
    return notes


@fk.program
async def everything(n):
    """Sites of all kinds, to be forked anywhere."""

    async def branch(k):
        total = await fk.sample("start", fk.dist.Normal(0.0, 1.0))
        for _ in range(k):
            await fk.twist("guide", 0.1 * total)
            total = total + await fk.sample("more", fk.dist.Normal(0.0, 1.0))
            await fk.factor("G", -0.1 * total * total)
        return total

    async def step(carry, x):
        z = await fk.sample("z", fk.dist.Normal(carry, 1.0))
        await fk.observe("y", fk.dist.Normal(z, 1.0), x)
        noted = await fk.call("note", lambda: z * 2)
        inner, _ = await fk.scan(inner_step, noted, [0, 1])
        return inner, z

    async def inner_step(carry, x):
        await fk.factor("inner", -0.01 * carry * carry)
        return carry * 0.5, None

    async def nested():
        return await fk.gather(branch(1), branch(2), name="inner")

    fk.deterministic("output", "begun")
    first = await fk.gather(branch(2), branch(0), branch(1))
    with handlers.scope(prefix="chain"):
        last, zs = await fk.scan(step, first[0], [1.0] * n)
    second = await fk.gather(branch(1), nested())
    fk.deterministic("output", last)
    await fk.factor("end", -abs(last))
    return round(last, 6), [round(z, 6) for z in zs], second

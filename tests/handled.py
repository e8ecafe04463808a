"""What the tests of handlers share: a chain of bits, and its law by hand."""

from __future__ import annotations

import math

import pytest

import feynkac as fk
from laws import check_unbiased


@fk.program
async def chain(n=3):
    """A chain of bits with repeated names: "x", "x[1]", "x[2]", and a factor after each."""
    x, path = 0, []
    for _ in range(n):
        x = await fk.sample("x", fk.dist.Bernoulli(0.3 if x else 0.6))
        path.append(x)
        await fk.factor("G", 0.7 * x)
    return tuple(path)


def weight(path, laws=(0.6, 0.3)):
    """p·G of a path of `chain`, by hand."""
    total, last = 1.0, 0
    for x in path:
        p = laws[last]
        total *= (p if x else 1 - p) * math.exp(0.7 * x)
        last = x
    return total


PATHS = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]


def normalised(weights):
    z = sum(weights.values())
    return {path: w / z for path, w in weights.items() if w > 0}, z


def agrees(model, weights, **settings):
    """The enumeration of a model has these weights, and SMC (with its forks) is unbiased for them."""
    law, z = normalised(weights)
    found = fk.enumerate_program(model)
    assert found.log_evidence == pytest.approx(math.log(z))
    assert found.law() == pytest.approx(law)
    engine = fk.SMC(4, ess_threshold=1.0, resampling="multinomial")
    check_unbiased(model, engine, law, math.log(z), runs=400, **settings)
    return True

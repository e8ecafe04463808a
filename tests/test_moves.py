"""Moves on continuous sites: what they accept, what they leave invariant, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import feynkac as fk
from densities import g1_exact, gaussian_toy, paths_at
from laws import Z_LIMIT, z_score

M = 100_000
KEYS = fk.keys.fold(fk.keys.root(3), np.arange(M))
SD = math.sqrt(0.2)


@cache
def g1(jax):
    return gaussian_toy(jax=jax)


def density(model, x):
    """The density of a toy, with n walkers at x (n, d): what moves see of paths, without the paths."""
    (found,) = model.unconstrained(paths_at(model, x[:2]), None)
    return replace(found, rows=np.arange(len(x)), position=np.log(x) if model.log_link else x)


def taken(model, kernel, x, inverse=1.0, seed=0):
    """Exact draws x after a kernel's moves, in the model's own coordinates, and the mean chance of acceptance."""
    keys = fk.keys.fold(KEYS[: len(x)], seed)
    found = kernel.transition(density(model, x), keys, np.full(len(x), inverse))
    return model.into(np, found.position)[0], found.acceptance.mean()


def check_invariant(model, kernel, x, inverse=1.0, seed=0):
    """Paired z of h(x′) − h(x) for h = x, x², x³, 1{x > 1.5}, by coordinate: 4 comparisons of each at |z| < 4.26."""
    new, rate = taken(model, kernel, x, inverse, seed)
    for j in range(x.shape[1]):
        a, b = x[:, j], new[:, j]
        for gap in (b - a, b**2 - a**2, b**3 - a**3, (b > 1.5) * 1.0 - (a > 1.5)):
            assert abs(z_score(gap, 0.0)) < Z_LIMIT, (kernel, inverse)
    return rate


# What each accepts on G1 from exact draws.
RATES = [
    (fk.RandomWalk(step=2.38 * SD), 2 / math.pi * math.atan(2 / 2.38)),
    (fk.PCN(step=0.3), 0.795),
    (fk.PCN(step=0.6), 0.601),
    (fk.PCN(step=1.0), 0.246),
]


@pytest.mark.parametrize("jax", [False, True])
@pytest.mark.parametrize(("kernel", "rate"), RATES)
def test_what_is_accepted_on_exact_draws(kernel, rate, jax):
    """And the target stays. 5 comparisons of each kernel at |z| < 4.26: 1e-4."""
    found = check_invariant(g1(jax), kernel, g1_exact(KEYS))
    # The standard error of the rate is below .0015; those printed are rounded to three digits.
    assert found == pytest.approx(rate, abs=4.26 * 0.0015)


def test_smc_with_a_fixed_kernel_says_unbiased_and_with_one_that_learns_consistent():
    model = gaussian_toy((1.5, 0.3, -0.2))
    for kernel, promise in (
        (fk.SuffixMH(1), "unbiased"),
        (fk.RandomWalk(step=0.5), "unbiased"),
        (fk.RandomWalk(), "consistent"),
        (fk.PCN(), "consistent"),
    ):
        posterior = fk.infer(model, fk.SMC(20, 1.0, move=kernel), seed=0)
        assert posterior.guarantee == promise
        assert 0.05 < posterior.info["acceptance"] < 0.95

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
    """Exact draws x after a kernel's moves, in the model's own coordinates, and how they fared."""
    keys = fk.keys.fold(KEYS[: len(x)], seed)
    found = kernel.transition(density(model, x), keys, np.full(len(x), inverse))
    return model.into(np, found.position)[0], found.fared


def gaps(old, new):
    """h(x′) − h(x) for h = x, x², x³, 1{x > 1.5}, by coordinate: (4·d, n)."""
    hs = (lambda x: x, lambda x: x**2, lambda x: x**3, lambda x: (x > 1.5) * 1.0)
    return np.concatenate([(h(new) - h(old)).T for h in hs])


def check_invariant(model, kernel, x, inverse=1.0, seed=0):
    """Paired z of h(x′) − h(x), 4·d comparisons at |z| < 4.26: 2e-5 each. Return how the moves fared."""
    new, fared = taken(model, kernel, x, inverse, seed)
    for gap in gaps(x, new):
        assert abs(z_score(gap, 0.0)) < Z_LIMIT, (kernel, inverse)
    return fared


# What each accepts on G1 from exact draws.
RATES = [
    (fk.RandomWalk(step=2.38 * SD), 2 / math.pi * math.atan(2 / 2.38)),
    (fk.MALA(step=0.1), 0.921),
    (fk.MALA(step=0.2), 0.784),
    (fk.MALA(step=0.4), 0.500),
    (fk.HMC(step=0.5, leapfrogs=4, jitter=0.0), 0.881),
    (fk.HMC(step=0.7, leapfrogs=3, jitter=0.0), 0.768),
    (fk.PCN(step=0.3), 0.795),
    (fk.PCN(step=0.6), 0.601),
    (fk.PCN(step=1.0), 0.246),
    (fk.PCNL(step=0.2), 0.840),
    (fk.PCNL(step=0.5), 0.536),
    (fk.PCNL(step=1.0), 0.282),
]


@pytest.mark.parametrize("jax", [False, True], ids=["numpy", "jax"])
@pytest.mark.parametrize(("kernel", "rate"), RATES, ids=[repr(kernel) for kernel, _ in RATES])
def test_what_is_accepted_on_exact_draws(kernel, rate, jax):
    """And the target stays. 5 comparisons of each kernel at |z| < 4.26: 1e-4."""
    found = check_invariant(g1(jax), kernel, g1_exact(KEYS)).chance.mean()
    # The standard error of the rate is below .0015; those printed are rounded to three digits.
    assert found == pytest.approx(rate, abs=4.26 * 0.0015)


@pytest.mark.parametrize("jax", [False, True], ids=["numpy", "jax"])
def test_elliptical_slices_always_move_and_take_few_evaluations(jax):
    x = g1_exact(KEYS)
    new, fared = taken(g1(jax), fk.EllipticalSlice(), x)
    assert (new != x).all()
    assert fared.evaluations.mean() == pytest.approx(2.76, abs=0.02)  # its standard error is .005


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

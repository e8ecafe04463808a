"""Moves on continuous sites: what they accept, what they leave invariant, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

import feynkac as fk
from densities import (
    G3_MEAN,
    Toy,
    g1_exact,
    g2_exact,
    g3_exact,
    gaussian_toy,
    modes_toy,
    moved,
    paths_at,
    poisson_toy,
    serve,
)
from feynkac.inference.moves.target import Shape, Target, log_density
from laws import Z_LIMIT, z_score

M = 100_000
KEYS = fk.keys.fold(fk.keys.root(3), np.arange(M))
SD = math.sqrt(0.2)


@cache
def g1(jax):
    return gaussian_toy(jax=jax)


@cache
def g2(jax):
    return poisson_toy(jax=jax)


@cache
def g3(jax):
    return modes_toy(jax=jax)


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


def sides(quick, slow):
    """Cases in NumPy, and in JAX: each compiles for a second or two, so that those of some kernels are slow."""
    numpy = [pytest.param(*case, False, id=f"{case[0]!r}-numpy") for case in (*quick, *slow)]
    jax = [pytest.param(*case, True, id=f"{case[0]!r}-jax") for case in quick]
    return [*numpy, *jax, *(pytest.param(*c, True, id=f"{c[0]!r}-jax", marks=pytest.mark.slow) for c in slow)]


QUICK = (fk.RandomWalk,)
BY_TIER = [[case for case in RATES if isinstance(case[0], QUICK) == quick] for quick in (True, False)]


@pytest.mark.parametrize(("kernel", "rate", "jax"), sides(*BY_TIER))
def test_what_is_accepted_on_exact_draws(kernel, rate, jax):
    """And the target stays, at inverse temperature .3 too. 9 comparisons of each kernel at |z| < 4.26: 2e-4."""
    found = check_invariant(g1(jax), kernel, g1_exact(KEYS)).chance.mean()
    # The standard error of the rate is below .0015; those printed are rounded to three digits.
    assert found == pytest.approx(rate, abs=4.26 * 0.0015)
    check_invariant(g1(jax), kernel, g1_exact(KEYS, 0.3), 0.3, seed=1)


@pytest.mark.parametrize("jax", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["numpy", "jax"])
def test_elliptical_slices_always_move_and_take_few_evaluations(jax):
    x = g1_exact(KEYS)
    fared = check_invariant(g1(jax), fk.EllipticalSlice(), x)
    assert fared.evaluations.mean() == pytest.approx(2.76, abs=0.02)  # its standard error is .005
    assert (taken(g1(jax), fk.EllipticalSlice(), x)[0] != x).all()
    check_invariant(g1(jax), fk.EllipticalSlice(), g1_exact(KEYS, 0.3), 0.3, seed=1)


ANY = [fk.RandomWalk(step=0.6), fk.MALA(step=0.3), fk.HMC(step=0.4, leapfrogs=3), fk.RandomWalk(moves=3, step=0.9)]
GAUSSIAN = [fk.PCN(step=0.4), fk.PCNL(step=0.3), fk.EllipticalSlice(2)]


@pytest.mark.parametrize(("kernel", "jax"), sides([], [(kernel,) for kernel in ANY]))
def test_a_constrained_target_stays(kernel, jax):
    """G2, Gamma(4, rate 2), in u = log θ. 4 comparisons of each kernel at |z| < 4.26: 1e-4."""
    x = g2_exact(KEYS)
    assert abs(z_score(x[:, 0], 2.0)) < Z_LIMIT
    assert check_invariant(g2(jax), kernel, x).chance.mean() > 0.3


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "jax"), sides([], [(kernel,) for kernel in (*ANY[:3], *GAUSSIAN)]))
def test_a_target_of_two_modes_stays(kernel, jax):
    """G3. 8 comparisons of each kernel at |z| < 4.26: 2e-4."""
    x = g3_exact(KEYS)
    for j in range(2):
        assert abs(z_score(x[:, j], G3_MEAN[j])) < Z_LIMIT
    check_invariant(g3(jax), kernel, x)


@pytest.mark.slow
@pytest.mark.parametrize(("toy", "exact"), [(g1, g1_exact), (g2, g2_exact), (g3, g3_exact)])
def test_targets_stay_under_nuts(toy, exact):
    """At most 8 comparisons at |z| < 4.26: 2e-4; and at inverse temperature .3."""
    check_invariant(toy(True), fk.NUTS(step=0.5, doublings=5), exact(KEYS[:20_000]))
    if toy is g1:
        check_invariant(g1(True), fk.NUTS(step=0.5, doublings=5), g1_exact(KEYS[:20_000], 0.3), 0.3)


class NoRatio(fk.MALA):
    """Broken: the ratio of the proposals is forgotten."""

    def log_ratio(self, now, new, inverse, size, xp):
        return fk.RandomWalk.log_ratio(self, now, new, inverse, size, xp)


class NoGradient(fk.PCNL):
    """Broken: the ratio of `PCN`."""

    def log_ratio(self, now, new, inverse, size, xp):
        return fk.PCN.log_ratio(self, now, new, inverse, size, xp)


@dataclass(frozen=True, eq=False)
class NoJacobian(Toy):
    """Broken: log|det dx/du| is forgotten, so that the target would be Gamma(3, rate 2), of mean 1.5."""

    def log_parts(self, xp, u, steps):
        log_prior, log_potential = super().log_parts(xp, u, steps)
        return log_prior - u.sum(-1), log_potential


def test_broken_kernels_are_found_out():
    """Each is at least ten standard errors off."""
    x, y = g1_exact(KEYS), g2_exact(KEYS)
    for broken in (NoRatio(4, step=0.3), NoGradient(4, step=0.5)):
        new, _ = taken(g1(False), broken, x)
        assert max(abs(z_score(gap, 0.0)) for gap in gaps(x, new)) > 10
    forgetful = NoJacobian(
        **{name: getattr(g2(False), name) for name in ("d", "draw", "log_prior", "grad_prior")},
        potentials=g2(False).potentials,
        grad_potentials=g2(False).grad_potentials,
        log_link=True,
    )
    new, _ = taken(forgetful, fk.RandomWalk(step=0.8), y)
    assert max(abs(z_score(gap, 0.0)) for gap in gaps(y, new)) > 10
    with pytest.raises(fk.errors.InconsistentDensity, match="particle 0: its density says that log_prior is"):
        moved(forgetful, fk.RandomWalk(4, step=0.8), y[:5])


def test_the_ratio_of_pcnl_is_that_of_its_densities():
    """log π(y)q(x|y) − log π(x)q(y|x), where q(·|x) = N([(2 − δ)x + 2δ·∇log G(x)]/(2 + δ), 8δ/(2 + δ)²)."""
    delta, kernel = 0.7, fk.PCNL(step=0.7)
    target = Target(density(g3(False), g3_exact(KEYS[:50])), np.full(50, 0.8), Shape.plain(2))
    x = target.at(fk.keys.normal(KEYS[:50], 2), True)
    y = target.at(kernel.propose(x, fk.keys.normal(fk.keys.fold(KEYS[:50], 1), 2), target.inverse, delta), True)

    def log_q(b, a):
        mean = ((2 - delta) * a.position + 2 * delta * 0.8 * a.grad_potential) / (2 + delta)
        return -((b.position - mean) ** 2).sum(-1) * (2 + delta) ** 2 / (16 * delta)

    direct = log_density(y, target.inverse) - log_density(x, target.inverse) + log_q(x, y) - log_q(y, x)
    found = kernel.log_ratio(x, y, target.inverse, delta, np)
    assert np.abs(found - direct).max() < 1e-14 * np.abs(direct).max() * 10


# -- inside SMC ------------------------------------------------------------------------------------------------------

SEEN = (1.5, 0.3, -0.2)
INCREMENTS = (-1.930510, -1.419685, -1.794269)
FIXED = [
    fk.HMC(step=0.3, leapfrogs=3),
    fk.Sweep(fk.RandomWalk(step=0.5), fk.PCN(step=0.5)),
    *(
        pytest.param(kernel, marks=pytest.mark.slow)
        for kernel in (
            fk.RandomWalk(2, step=0.5), fk.MALA(step=0.15), fk.PCN(2, step=0.5), fk.PCNL(step=0.3), fk.EllipticalSlice()
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("kernel", FIXED, ids=repr)
def test_smc_with_fixed_moves_is_unbiased(kernel):
    """E[Ẑ]/Z and E[Ẑ·mean]/Z of IBIS: 2 comparisons of each kernel at |z| < 4.26: 4e-5."""
    model, log_z = gaussian_toy(SEEN), -5.144464
    posteriors = fk.infer([model] * 150, fk.SMC(6, 1.0, move=kernel), seed=0)
    ratios = np.exp([p.log_evidence - log_z for p in posteriors])
    assert abs(z_score(ratios, 1.0)) < Z_LIMIT
    means = [p.expect(lambda x: x) for p in posteriors]
    # After the last weighing: its posterior has mean .492308, variance 1/13.
    assert abs(z_score(ratios * means, 0.492308)) < Z_LIMIT
    assert {p.guarantee for p in posteriors} == {"unbiased"}


def test_iterated_batch_importance_sampling_has_the_evidence_of_each_observation():
    run = fk.steps(gaussian_toy(SEEN), fk.SMC(4000, 1.0, move=fk.RandomWalk(3)), seed=1)
    levels = [step.log_evidence for step in run]
    posterior = run.posterior
    # Standard errors are about .02, .01 and .01.
    assert np.diff([0.0, *levels]) == pytest.approx(INCREMENTS, abs=0.08)
    assert posterior.expect(lambda x: x) == pytest.approx(0.492308, abs=0.02)
    assert posterior.expect(lambda x: (x - 0.492308) ** 2) == pytest.approx(1 / 13, abs=0.01)


@pytest.mark.slow
def test_moves_of_the_next_stage_are_not_compiled_again():
    """Once for coordinates that are learned or not; steps and covariances are arguments."""
    model = gaussian_toy(SEEN[:2], jax=True)
    counts = []
    for first, second in ((fk.RandomWalk(), fk.RandomWalk()), (fk.RandomWalk(step=0.3), fk.RandomWalk(step=0.7))):
        for seed, kernel in enumerate((first, second)):
            posterior = fk.infer(model, fk.SMC(50, 1.0, move=kernel), seed=seed)
            counts.append(model.calls["traced"])
    assert counts[0] == counts[1] < counts[2] == counts[3]
    assert abs(posterior.expect(lambda x: x) - 0.8) < 0.3


def test_only_what_moved_is_made_again():
    model = gaussian_toy((1.5,))
    paths = paths_at(model, g1_exact(KEYS[:200]))
    model.calls.update(replayed=0, evaluate=0)
    out, rate = serve(model, fk.RandomWalk(step=2.0).move(model, paths, KEYS[:200], None, np.ones(200)))
    stayed = sum(new is old for new, old in zip(out, paths))
    assert model.calls == {"evaluate": 2, "replayed": 200 - stayed, "traced": 0}
    assert 0 < stayed < 200
    assert rate == pytest.approx(1 - stayed / 200, abs=0.1)


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


@pytest.mark.parametrize("jax", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["numpy", "jax"])
def test_langevin_steps_have_the_law_that_they_are_known_to_have_and_ascent_climbs(jax):
    # The posterior has precision 5, so that steps of .1 keep N(1.2, 1/(5·(1 − .25))) as it is, and not N(1.2, .2).
    kept = 1.2 + math.sqrt(4 / 15) * fk.keys.normal(fk.keys.fold(KEYS, 9), 1)
    check_invariant(g1(jax), fk.Langevin(2, 0.1), kept)
    moved_on, _ = taken(g1(jax), fk.Langevin(1, 0.1), g1_exact(fk.keys.fold(KEYS, 8)))
    assert moved_on.var() == pytest.approx(0.25 * 0.2 + 0.2, rel=0.02)
    climbed, fared = taken(g1(jax), fk.Langevin(3, 0.1, noise=False), np.zeros((3, 1)))
    np.testing.assert_allclose(climbed, 1.2 * (1 - 0.5**3))  # .6, .9, 1.05
    assert (fared.chance == 1.0).all()


def test_what_moves_by_steps_that_nothing_corrects_promises_less():
    model = gaussian_toy()
    for noise, promise in ((True, "discretised"), (False, "heuristic")):
        kernel = fk.Langevin(1, 0.1, noise=noise)
        for engine in (
            fk.SMC(4, move=kernel),
            fk.TemperedSMC(4, fk.Sweep(fk.RandomWalk(step=1.0), kernel), ladder=(0.0, 0.5, 1.0)),
            fk.PersistentSampling(4, kernel),
            fk.NestedSampling(4, kernel),
            fk.ParallelTempering((1.0, 2.0), 4, kernel=kernel),
            fk.MCMC(kernel, draws=2, warmup=0, chains=1),
        ):
            assert engine.guarantee == promise
        assert fk.infer(model, engine, seed=0).guarantee == promise
    with pytest.raises(ValueError, match="Langevin needs a step"):
        fk.Langevin(3)

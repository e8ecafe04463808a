"""Moves on continuous sites: potentials that are estimates, twists, temperatures, and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

import feynkac as fk
from densities import (
    G3_MEAN,
    G3_MODE,
    Toy,
    g1_exact,
    gaussian_toy,
    log_normal,
    modes_toy,
    moved,
    paths_at,
    poisson_toy,
    serve,
)
from feynkac.inference.base.paths import adapts, tune
from feynkac.inference.moves.sweep import mean_rate
from laws import Z_LIMIT, z_score

KEYS = fk.keys.fold(fk.keys.root(5), np.arange(1000))
NUMERIC = [fk.RandomWalk(), fk.MALA(), fk.HMC(), fk.NUTS(), fk.PCN(), fk.PCNL(), fk.EllipticalSlice()]


def of(toy, **more):
    """The fields of a toy, for a subclass of `Toy`."""
    return {name: getattr(toy, name) for name in Toy.__dataclass_fields__ if name not in ("calls", "compiled")} | more


# -- potentials that are estimates -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Noisy(Toy):
    """Its potential is an unbiased estimate, rough below 1.2, which each start draws anew; the density knows none."""

    def start(self, keys, given=None):
        advance = super().start(keys, given)
        error = self.error(advance.state.x, keys, -0.5)
        return replace(advance, log_potential=advance.log_potential + error)

    def error(self, x, keys, lean):
        """Errors of log G: normal, of mean −σ²/2 (lean −½), and of +σ²/2 in the target, where e^error weighs."""
        sd = np.where(x[:, 0] < 1.2, 1.3, 0.1)
        return sd * fk.keys.normal(fk.keys.fold(keys, 7)) + lean * sd**2

    def unconstrained(self, paths, horizon):
        def unknown(evaluate):
            return lambda u, gradients: evaluate(u, gradients)._replace(log_potential=np.full(len(u), np.nan))

        found = super().unconstrained(paths, horizon)
        return [replace(one, evaluate=unknown(one.evaluate), estimated="Z") for one in found]


@pytest.mark.parametrize("kernel", [fk.RandomWalk(3, step=1.0), fk.PCN(3, step=0.7)], ids=repr)
def test_an_estimate_is_a_part_of_the_state(kernel):
    """From exact draws of values and their errors: 4 comparisons at |z| < 4.26: 1e-4."""
    n = 12_000
    model, keys = Noisy(**of(gaussian_toy())), fk.keys.fold(fk.keys.root(8), np.arange(n))
    x = g1_exact(keys)
    errors = model.error(x, fk.keys.fold(keys, 1), 0.5).tolist()
    exact = paths_at(gaussian_toy(), x)
    paths = [replace(path, log_potential=path.log_potential + e) for path, e in zip(exact, errors)]
    out, rate = serve(model, kernel.move(model, paths, fk.keys.fold(keys, 2), None, np.ones(n)))
    new = np.array([path.cut(1).choices for path in out])
    for h in (lambda x: x, lambda x: x**2, lambda x: x**3, lambda x: (x > 1.5) * 1.0):
        assert abs(z_score((h(new) - h(x))[:, 0], 0.0)) < Z_LIMIT
    assert 0.1 < rate < 0.9
    posterior = fk.infer(model, fk.MCMC(kernel, draws=20, warmup=5, chains=1), seed=0)  # by paths, not by numbers
    assert 0.0 < posterior.info["acceptance"] < 1.0


@pytest.mark.parametrize("kernel", [fk.MALA(), fk.HMC(), fk.NUTS(), fk.PCNL(), fk.EllipticalSlice()], ids=repr)
def test_gradients_and_slices_refuse_estimates(kernel):
    with pytest.raises(fk.errors.Unsupported, match=f"{type(kernel).__name__} .*site 'Z'.*RandomWalk"):
        moved(Noisy(**of(gaussian_toy())), kernel, g1_exact(KEYS[:4]))


# -- twists, temperatures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [fk.RandomWalk(2, step=0.6), fk.PCN(step=0.6)], ids=repr)
def test_moves_keep_the_target_under_twists(kernel):
    """E[Ẑ]/Z, E[Ẑ·mean]/Z: 2 comparisons of each at |z| < 4.26: 4e-5."""
    model = gaussian_toy((1.5, 0.3, -0.2), twist=-1.5)
    posteriors = fk.infer([model] * 200, fk.SMC(4, 1.0, move=kernel), seed=0)
    ratios = np.exp([p.log_evidence + 5.144464 for p in posteriors])
    assert abs(z_score(ratios, 1.0)) < Z_LIMIT
    assert abs(z_score(ratios * [p.expect(lambda x: x) for p in posteriors], 0.492308)) < Z_LIMIT


@pytest.mark.slow
def test_hot_chains_find_both_modes_and_each_has_its_temperature():
    """Of 24 ladders: 3 comparisons at |t| < 5.5 of 23 degrees: 4e-5."""
    engine = fk.ParallelTempering((1.0, 3.0, 12.0), 200, kernel=fk.HMC(2, step=0.3, leapfrogs=4), chains=24)
    x = np.array(fk.infer(modes_toy(), engine, seed=0).values).reshape(24, -1, 2)
    assert abs(z_score((x[..., 0] > 0).mean(1), G3_MODE)) < 5.5
    for j in range(2):
        assert abs(z_score(x[..., j].mean(1), G3_MEAN[j])) < 5.5


# -- learning ----------------------------------------------------------------------------------------------------------


def test_kernels_learn_their_coordinates_and_steps_from_a_population():
    model, x = modes_toy(), np.random.default_rng(0).normal(size=(400, 2)) @ np.array([[2.0, 0.0], [1.5, 0.1]]).T
    paths, ones = paths_at(model, x), np.ones(400)
    weights = np.where(np.arange(400) < 200, 0.0, -np.inf)
    (density,) = model.unconstrained(paths, None)
    kernel = fk.RandomWalk()
    assert adapts(kernel)
    assert not adapts(fk.RandomWalk(step=1.0))
    assert not adapts(fk.EllipticalSlice())
    assert adapts(fk.Sweep(fk.SuffixMH(1), kernel))
    first = tune(kernel, model, paths, weights, None, ones, None)
    assert first.size(2) == kernel.size(2) == pytest.approx(2.38 / math.sqrt(2))
    scale = first.shape(density).scale
    s = 2 / 202
    cov = np.cov(x[:200].T, bias=True)
    assert scale @ scale.T == pytest.approx((1 - s) * cov + s * np.diag(np.diag(cov)))
    for acceptance, factor in ((0.5, math.exp(0.5 - 0.234)), (0.1, math.exp(0.1 - 0.234))):
        assert tune(first, model, paths, weights, None, ones, acceptance).size(2) == pytest.approx(
            factor * first.size(2)
        )
    assert tune(fk.RandomWalk(step=1.0), model, paths, weights, None, ones, 0.9) == fk.RandomWalk(step=1.0)
    bold = fk.PCN()
    for _ in range(5):
        bold = tune(bold, model, paths, weights, None, ones, 1.0)
    assert bold.size(2) == 1.0
    assert tune(bold, model, paths, weights, None, ones, 0.0).size(2) == pytest.approx(math.exp(-0.3))


def test_each_kernel_of_a_sweep_learns_by_its_own_acceptance():
    model, x = gaussian_toy(), g1_exact(KEYS[:200])
    sweep, ones = fk.Sweep(fk.PCN(step=1.0), fk.RandomWalk()), np.ones(200)
    paths = paths_at(model, x)
    _, rate = serve(model, sweep.move(model, paths, KEYS[:200], None, ones))
    assert rate == pytest.approx(np.mean(rate.parts))
    assert rate.parts[0] == pytest.approx(0.246, abs=0.1)
    learned = tune(sweep, model, paths, np.zeros(200), None, ones, mean_rate([rate, rate])).kernels[1]
    assert learned.size(1) == pytest.approx(2.38 * math.exp(rate.parts[1] - 0.44))


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", NUMERIC, ids=lambda kernel: type(kernel).__name__)
def test_models_without_a_density_are_refused(kernel):
    class Plain:
        """A model that offers no density."""

        def __init__(self):
            toy = gaussian_toy()
            self.start, self.advance, self.select = toy.start, toy.advance, toy.select
            self.concat, self.values = toy.concat, toy.values

    name = type(kernel).__name__
    with pytest.raises(fk.errors.Unsupported, match=f"{name} moves continuous sites.*SuffixMH"):
        fk.infer(Plain(), fk.MCMC(kernel, draws=2, warmup=0), seed=0)


def test_what_a_kernel_needs_of_a_density_is_named():
    for kernel in (fk.PCN(), fk.PCNL(), fk.EllipticalSlice()):
        with pytest.raises(fk.errors.Unsupported, match=r"Gaussian prior.*at 'x'.*RandomWalk or HMC"):
            moved(poisson_toy(), kernel, np.ones((3, 1)))
    with pytest.raises(fk.errors.Unsupported, match=r"NUTS needs a density that JAX can trace.*at 'x'.*HMC"):
        moved(gaussian_toy(), fk.NUTS(), np.ones((3, 1)))


@pytest.mark.parametrize("jax", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_start_of_no_density_or_gradient_is_named(jax):
    def cliff(xp, x):
        return xp.where(x[..., 0] > 5.0, -xp.inf, xp.sqrt(x[..., 0] - 1.0))

    # log G is no number below 1, −inf above 5, and its gradient is infinite at 1.
    slope = lambda x: 0.5 / np.sqrt(x - 1.0)  # noqa: E731
    toy = gaussian_toy(jax=jax)
    model = Toy(**of(toy, potentials=(cliff,), grad_potentials=(slope,)))
    fine = np.full((3, 1), 2.0)
    paths = paths_at(model, fine)
    kernel = fk.HMC(step=0.1, leapfrogs=2)
    serve(model, kernel.move(model, paths, KEYS[:3], None, np.ones(3)))
    dead = paths_at(model, np.array([[2.0], [6.0], [2.0]]))
    with pytest.raises(fk.errors.ImpossibleStart, match="HMC starts particle 1 where its weight is zero"):
        serve(model, kernel.move(model, dead, KEYS[:3], None, np.ones(3)))
    (density,) = model.unconstrained(paths, None)
    for where, what in ((0.5, "log_potential is nan"), (1.0, "gradient of log_potential at site 'x' is inf")):
        at = replace(density, position=np.array([[2.0], [2.0], [where]]))
        with pytest.raises(fk.errors.ImpossibleStart, match=f"{what}.*"):
            kernel.transition(at, KEYS[:3], np.ones(3))
    at = replace(density, position=np.full((1000, 1), 1.1), rows=np.arange(1000))
    for one in (kernel, fk.MALA(step=0.1), fk.RandomWalk(step=1.0)):  # proposals beyond the edge are rejected
        found = one.transition(at, KEYS, np.ones(1000))
        assert (found.position >= 1.0).all()
        assert 0 < found.changed.sum() < 1000


def test_a_chain_with_nowhere_to_start_says_so():
    nothing = Toy(**of(gaussian_toy(), potentials=(lambda xp, x: -np.inf + 0 * x[..., 0],)))
    with pytest.raises(fk.errors.ImpossibleStart, match="none of 111 runs"):
        fk.infer(nothing, fk.MCMC(fk.RandomWalk(), draws=2), seed=0)


@dataclass(frozen=True, eq=False)
class Twofold(Toy):
    """Its potential is counted twice by the density."""

    def log_parts(self, xp, u, steps):
        log_prior, log_potential = super().log_parts(xp, u, steps)
        return log_prior, 2 * log_potential


@pytest.mark.parametrize("jax", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_density_that_is_not_the_model_s_is_found_out(jax):
    wrong = Twofold(**of(gaussian_toy(jax=jax)))
    with pytest.raises(fk.errors.InconsistentDensity, match=r"particle \d: its density says that log_potential is"):
        fk.infer(wrong, fk.MCMC(fk.RandomWalk(step=0.5), draws=20, warmup=0, chains=1), seed=0)
    with pytest.raises(fk.errors.InconsistentDensity):
        fk.infer(Twofold(**of(gaussian_toy((1.5, 0.3), jax=jax))), fk.SMC(9, 1.0, move=fk.RandomWalk(step=0.5)), seed=0)


def test_log_normal_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    x = np.array([[0.3], [2.0]])
    assert log_normal(np, x, 1.0, 0.7) == pytest.approx(stats.norm(1.0, 0.7).logpdf(x[:, 0]))

"""Densities of programs of ``torch.distributions``: by torch's gradients, equal to what a replay gives."""

import math

import numpy as np
import pytest
from test_unconstrained import check, draw

import feynkac as fk
from densities import g1_exact, g2_exact, serve
from feynkac.inference.base.paths import extend
from feynkac.ppl.errors import NotDifferentiable
from laws import z_score

torch = pytest.importorskip("torch")
td = torch.distributions


@pytest.fixture(autouse=True)
def validating(monkeypatch):
    """torch's own default, which torch.compile turns off for the process."""
    monkeypatch.setattr(td.Distribution, "_validate_args", True)


SINGLE = 1e-6  # torch rounds a float that the interpreted program hands it


@fk.program
async def g1():
    z = await fk.sample("z", td.Normal(0.0, 1.0))
    await fk.observe("y", td.Normal(z, 0.5), 1.5)
    return z


@fk.program
async def g2():
    rate = await fk.sample("rate", td.Exponential(1.0))
    await fk.observe("count", td.Poisson(rate), 3)
    return rate


def route(model):
    """Return the file of what gives the model's densities."""
    (found,) = {type(kept).__module__ for kept in model.kept_densities.values() if not isinstance(kept, tuple)}
    return found.rpartition(".")[2]


def test_the_jacobian_is_in_the_prior():
    model = g2()
    (density,) = check(model, tolerance=SINGLE)
    assert route(model) == "torch_densities"
    assert density.logdensity is None
    assert density.gaussian is None
    assert td.Distribution._validate_args is True  # the setting is back
    (one,) = model.unconstrained(draw(model, 2001), None)
    u = np.linspace(-12.0, 4.0, 2001)[:, None]
    found = one.evaluate(u, False)
    density_at = np.exp(found.log_prior + found.log_potential)
    width = u[1, 0] - u[0, 0]
    assert density_at.sum() * width == pytest.approx(1 / 16, rel=1e-6)
    assert (density_at * np.exp(u[:, 0])).sum() * width * 16 == pytest.approx(2.0, rel=1e-6)


def test_a_normal_prior_is_told():
    (density,) = check(g1(), tolerance=SINGLE)
    mean, root = density.gaussian
    assert (mean.tolist(), root.tolist()) == ([0.0], [1.0])


@fk.program
async def five():
    a = await fk.sample("a", td.Normal(0.5, 2.0))
    s = await fk.sample("s", td.Gamma(2.0, 1.5))
    b = await fk.sample("b", td.MultivariateNormal(torch.stack([torch.as_tensor(a)] * 2), torch.eye(2)))
    p = await fk.sample("p", td.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    q = await fk.sample("q", td.Uniform(a, a + 2.0))
    k = await fk.sample("k", td.Categorical(torch.as_tensor(p)))
    if k > 0:  # a whole number stays what it is
        await fk.factor("f", torch.as_tensor(p)[0].log() * 0.3)
    await fk.observe("y", td.Normal(torch.as_tensor(b).sum() * q, s), 1.5)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("horizon", [None, 1])
def test_simplexes_supports_that_move_and_whole_numbers(horizon):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # so that the interpreted program rounds nothing
    try:
        model = five()
        densities = check(model, n=6, horizon=horizon)
        assert route(model) == "torch_densities"
        assert len(densities) > 1  # one for each value of k
        assert densities[0].position.shape[1] == 7  # a simplex has a coordinate less
        assert densities[0].stays == ("k",)
        assert densities[0].tolerance == 1e-6
    finally:
        torch.set_default_dtype(before)


@fk.program
async def plate(y):
    width = await fk.sample("width", td.HalfNormal(2.0))
    loc = await fk.sample("loc", td.Normal(torch.zeros(3), 1.0))
    with fk.handlers.mask(mask=~np.isnan(y)), fk.handlers.scale(scale=2.0):
        await fk.observe("y", td.Normal(torch.as_tensor(loc), width), y)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_masks_and_scales_count():
    model = plate(np.array([0.4, np.nan, -1.0]))
    (density,) = check(model, tolerance=1e-5)  # small widths make much of single precision
    assert route(model) == "torch_densities"
    assert density.sites == ("width", "loc", "loc", "loc")
    assert np.isfinite(density.evaluate(density.position, True).grad_potential).all()


@fk.program
async def mixed():
    a = await fk.sample("a", fk.dist.Normal(0.0, 1.0))
    await fk.observe("y", td.Normal(a, 1.0), 0.5)


def test_a_law_that_is_none_of_torchs_leaves_the_reason_of_jax():
    model = mixed()
    (density,) = model.unconstrained(draw(model, 3), None)
    with pytest.raises(NotDifferentiable, match=r"after site 'a': ValueError"):
        density.evaluate(density.position, True)


@fk.program
async def brancher():
    z = await fk.sample("z", td.Normal(0.0, 1.0))
    await fk.factor("f", torch.as_tensor(z).exp() if z > 0 else 0.0)


@fk.program
async def cutter():
    z = await fk.sample("z", td.Normal(0.0, 1.0))
    await fk.observe("y", td.Normal(torch.as_tensor(z).detach(), 0.5), 1.5)


@fk.program
async def by_math():
    z = await fk.sample("z", td.Normal(0.0, 1.0))
    await fk.observe("y", td.Normal(math.exp(z), 0.5), 1.5)


@pytest.mark.parametrize(
    ("make", "why"), [(brancher, "after site 'z'.*control flow"), (by_math, "after site 'z'"), (cutter, "as_tensor")]
)
def test_what_torch_cannot_trace_is_run_for_each_path(make, why):
    model = make()
    paths = draw(model, 3)
    (density,) = model.unconstrained(paths, None)
    assert route(model) == "interpreted"
    with pytest.raises(NotDifferentiable, match=why):
        density.evaluate(density.position, True)
    log_prob = [path.log_prob for path in paths]
    assert density.evaluate(density.position, False).log_prior == pytest.approx(log_prob, rel=1e-6)
    assert td.Distribution._validate_args is True


def moved(model, kernel, u):
    """Move paths that are at coordinates u once; return the new coordinates."""
    n = len(u)
    keys = fk.keys.fold(fk.keys.root(2), np.arange(n))
    (density,) = model.unconstrained(draw(model, n), None)
    given = [choices[0] for choices in density.choices(u)]
    paths = serve(model, extend(model, [None] * n, keys, given))
    out, _ = serve(model, kernel.move(model, paths, fk.keys.fold(keys, 1), None, np.ones(n)))
    (after,) = model.unconstrained(out, None)
    return after.position


@pytest.mark.parametrize(
    ("kernel", "rate"), [(fk.HMC(step=0.7, leapfrogs=3, jitter=0.0), 0.768), (fk.MALA(step=0.4), 0.500)], ids=str
)
def test_hmc_and_mala_keep_the_posterior(kernel, rate):
    """Their moments, and the rates of acceptance of exact gradients. 3 comparisons of each at |z| < 4.26: 1.2e-4."""
    n = 800
    x = g1_exact(fk.keys.fold(fk.keys.root(1), np.arange(n)))
    y = moved(g1(), kernel, x)
    assert abs(z_score(y[:, 0], 1.2)) < 4.26
    assert abs(z_score((y[:, 0] - 1.2) ** 2, 0.2)) < 4.26
    assert abs(z_score((np.abs(y - x) > 1e-5).mean(1), rate)) < 4.26


def test_hmc_finds_a_posterior_from_the_prior_and_keeps_a_constrained_one():
    """3 comparisons at |z| < 4.26: 6e-5. From the prior, six moves forget the start."""
    n = 300
    keys = fk.keys.fold(fk.keys.root(3), np.arange(n))
    z = moved(g1(), fk.HMC(moves=6, step=0.25, leapfrogs=3), fk.keys.normal(keys)[:, None])[:, 0]
    assert abs(z_score(z, 1.2)) < 4.26
    assert abs(z_score((z - 1.2) ** 2, 0.2)) < 4.26
    theta = np.exp(moved(g2(), fk.HMC(step=0.5, leapfrogs=3), np.log(g2_exact(keys))))[:, 0]
    assert abs(z_score(theta, 2.0)) < 4.26

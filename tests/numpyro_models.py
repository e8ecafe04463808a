"""NumPyro models of every kind that the bridges take, with their arguments; nothing in them is symmetric."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer.reparam import LocScaleReparam

Y = np.array([0.4, -1.1, 2.3])
COUNTS = np.array([[3, 0], [1, 2], [5, 4]])


def gaussian(y):
    """G1: the posterior of z is N(1.2, 0.2) at y = 1.5."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
    return z


def poisson(y):
    """G2: the posterior of rate is Gamma(4, 2) at y = 3."""
    rate = numpyro.sample("rate", dist.Exponential(1.0))
    numpyro.sample("y", dist.Poisson(rate), obs=y)


def plates(counts):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.5))
    columns = numpyro.plate("columns", counts.shape[1], dim=-1)
    with columns:
        share = numpyro.sample("share", dist.Beta(2.0, 3.0))
    with numpyro.plate("rows", counts.shape[0], dim=-2), columns:
        effect = numpyro.sample("effect", dist.LogNormal(0.1, 0.4))
        numpyro.sample("counts", dist.Poisson(rate * share * effect), obs=counts)
    numpyro.deterministic("total", rate * share.sum())


def supports(y):
    low = numpyro.sample("low", dist.Normal(-3.0, 0.5))
    width = numpyro.sample("width", dist.HalfNormal(1.3))
    x = numpyro.sample("x", dist.Uniform(low, low + width))  # a support that moves
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.array([1.5, 2.0, 0.7])))
    numpyro.sample("y", dist.StudentT(4.0, x + weights * y, 0.8).to_event(1), obs=y)


def more_supports(y):
    corr = numpyro.sample("corr", dist.LKJCholesky(2, 1.4))
    both = numpyro.sample("both", dist.MultivariateNormal(jnp.array([0.3, -0.2]), scale_tril=corr))
    tail = numpyro.sample("tail", dist.TruncatedNormal(0.2, 1.1, low=-0.5))
    angle = numpyro.sample("angle", dist.VonMises(0.3, 2.0))
    numpyro.sample("y", dist.Normal(both.sum() + tail + jnp.cos(angle), 0.8).expand([3]).to_event(1), obs=y)


def funnel(y):
    """Normal laws that are not one together."""
    v = numpyro.sample("v", dist.Normal(0.3, 1.0))
    x = numpyro.sample("x", dist.Normal(0.0, jnp.exp(0.5 * v)))
    numpyro.sample("y", dist.Normal(x, 0.5), obs=y)


def terms(y):
    scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
    with handlers.scale(scale=0.7):
        z = numpyro.sample("z", dist.Normal(0.5, scale))
    doubled = numpyro.sample("doubled", dist.Delta(2.0 * z, log_density=-0.3))
    numpyro.deterministic("square", z**2)
    numpyro.factor("soft", -0.25 * (doubled - 1.0) ** 2)
    seen = np.isfinite(y)
    with numpyro.plate("data", len(y)), handlers.mask(mask=seen):
        numpyro.sample("y", dist.Gamma(1.0 + scale, 1.2), obs=y)
    with handlers.mask(mask=False):
        numpyro.factor("off", z)


def walk(y):
    sigma = numpyro.sample("sigma", dist.Exponential(2.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(0.9 * x, sigma))
        up = numpyro.sample("up", dist.LogNormal(-0.3, 0.5 + sigma))
        numpyro.sample("y", dist.Normal(x + up, 0.5), obs=y)
        return x, x

    _, xs = scan(step, 0.3, y)
    return {"last": xs[-1]}


def branches(y):
    z = numpyro.sample("z", dist.Normal(0.2, 1.0))
    x = cond(
        z > 0,
        lambda m: numpyro.sample("x", dist.Normal(m, 0.3)),
        lambda m: numpyro.sample("x", dist.Normal(-m, 0.8)),
        1.0,
    )
    numpyro.sample("y", dist.Normal(x, 0.5), obs=y)


def mixture(y):
    with numpyro.plate("data", len(y)):
        side = numpyro.sample("side", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(2.0 * side - 0.5, 0.7), obs=y)
    kind = numpyro.sample("kind", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
    numpyro.factor("kind likes sides", 0.3 * kind * side.sum())


def mixed(y):
    side = numpyro.sample("side", dist.Bernoulli(0.3))
    mean = numpyro.sample("mean", dist.Normal(3.0 * side - 1.0, 0.5))
    numpyro.sample("y", dist.Normal(mean, 0.7), obs=y)


def centred(y, s):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, s), obs=y)


noncentred = handlers.reparam(centred, config={"theta": LocScaleReparam(0.0)})


def chain(y):
    """A prior that is one normal law, though each of its parts is given others."""
    a = numpyro.sample("a", dist.Normal(0.5, 2.0))
    b = numpyro.sample("b", dist.Normal(0.7 * a - 1.0, 0.5).expand([2]).to_event(1))
    c = numpyro.sample("c", dist.MultivariateNormal(b * jnp.array([1.0, -2.0]), jnp.array([[1.0, 0.3], [0.3, 0.5]])))
    numpyro.sample("y", dist.Normal(c.sum(), 0.5), obs=y)


EIGHT = np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
MODELS = {
    "gaussian": (gaussian, (1.5,)),
    "poisson": (poisson, (3,)),
    "plates": (plates, (COUNTS,)),
    "supports": (supports, (Y,)),
    "more supports": (more_supports, (Y,)),
    "funnel": (funnel, (0.9,)),
    "terms": (terms, (np.array([0.4, np.nan, 2.3]),)),
    "walk": (walk, (Y,)),
    "branches": (branches, (0.7,)),
    "mixed": (mixed, (0.7,)),
    "centred": (centred, EIGHT),
    "noncentred": (noncentred, EIGHT),
    "chain": (chain, (0.9,)),
}
"""Models with continuous sites."""

"""Laws in JAX: what is drawn, scored and made unconstrained where parameters and values may be symbols.

``fk.dist`` distributions are scored by their own formulas, so that their log-probs are those of the interpreted ones to
rounding; NumPyro's are taken as they are, and frozen ones of SciPy and torch where NumPyro has the family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
from numpyro.distributions import biject_to

from ..distributions import batching as _b
from ..distributions import dist as fd
from ..distributions.adapt_numpyro import exact
from ..distributions.adapters import library_of
from ..distributions.terms import Masked
from ..errors import NotTraceable
from ..keys import Keys


class Law:
    """A law with parameters that may be symbols.

    Attributes:
        dist: the NumPyro distribution that draws it; its batch counts as one event.
        shape: of a draw.
        discrete: whether draws are whole numbers, or items of a list.
        fixed: whether all its mass is on one value (then `value` is that).
        covers_rows: whether an observed value may have more axes than a draw, for independent data under one law.
    """

    fixed = False
    covers_rows = False

    def __init__(self, dist: Any) -> None:
        self.dist = dist
        self.shape = tuple(dist.batch_shape + dist.event_shape)
        self.discrete = bool(dist.support.is_discrete)

    def __repr__(self) -> str:
        return f"Law({type(self.dist).__name__})"

    def draw(self, key: Any) -> Any:
        """Draw one value from a JAX key."""
        return self.dist.sample(key)

    def log_prob(self, x: Any) -> Any:
        """Return log p(x), summed over batch and event; −inf outside the support.

        Raises ValueError for a value of another shape.
        """
        return jnp.sum(self.terms(x))

    def terms(self, x: Any) -> Any:
        """Return log p of each component of a value."""
        return self._within(self._array(x))

    def _within(self, x: Any) -> Any:
        """Score where the support can be checked exactly, as far as a value is in it; elsewhere −inf, of gradient 0."""
        support = self.dist.support
        if not exact(support):
            return self.dist.log_prob(x)
        inside = support(x)
        if inside.shape == x.shape:
            x = jnp.where(inside, x, support.feasible_like(x))
        return jnp.where(inside, self.dist.log_prob(x), -jnp.inf)

    def _array(self, x: Any) -> Any:
        x = jnp.asarray(x)
        if not (_b.fits(self.shape, x.shape) if self.covers_rows else x.shape == self.shape):
            raise ValueError(f"{type(self.dist).__name__}: a value of shape {x.shape} for draws of {self.shape}")
        return x

    def bijector(self) -> Any:
        """Return NumPyro's bijection from unconstrained numbers to the support.

        Raises NotImplementedError where there is none.
        """
        return biject_to(self.dist.support)

    def support(self) -> Any:
        """Return the values of a discrete law, stacked, where they are finitely many; else None."""
        if self.discrete and not self.dist.batch_shape and self.dist.has_enumerate_support:
            return self.dist.enumerate_support(expand=False)
        return None


class _Whole(Law):
    """A discrete law of NumPyro: of values that are not whole it has none."""

    def terms(self, x: Any) -> Any:
        x = self._array(x)
        whole = jnp.floor(x) == x
        number = x if jnp.issubdtype(x.dtype, jnp.integer) else jnp.where(whole, x, -1).astype(int)
        if n := len(self.dist.event_shape):
            whole = whole.all(tuple(range(-n, 0)))
        return jnp.where(whole, self._within(number), -jnp.inf)


class _Ours(Law):
    """A distribution of `fk.dist`: drawn by NumPyro, scored by its own formula of the components."""

    covers_rows = True

    def __init__(self, dist: Any, density: Callable[[Any], Any]) -> None:
        super().__init__(dist)
        self._density = density

    def terms(self, x: Any) -> Any:
        return self._density(self._array(x))


class _Vector(_Ours):
    """One whose components are not independent."""

    covers_rows = False


class _Items(Law):
    """A categorical law over the items of a list, compared by ``==``: numbers, or what cannot be a symbol."""

    def __init__(self, dist: Any, logs: Any, values: Any) -> None:
        super().__init__(dist)
        self._logs = logs
        self._values = list(values)

    def draw(self, key: Any) -> Any:
        items = self.support()
        if items is None:
            raise TypeError("its values are no numbers, so that JAX cannot hold a draw of them")
        return items[self.dist.sample(key)]

    def terms(self, x: Any) -> Any:
        hit = [item == x if _number(item) and _number(x) else bool(_b.same(item, x)) for item in self._values]
        return jax.nn.logsumexp(jnp.where(jnp.stack([jnp.asarray(h) for h in hit]), self._logs, -jnp.inf))

    def support(self) -> Any:
        return jnp.asarray(self._values) if all(map(_number, self._values)) else None


class _Fixed(Law):
    """All mass on one value."""

    fixed = True

    def __init__(self, value: Any, dist: Any = None) -> None:
        self.value = value
        self.discrete = True
        self.dist = dist
        self.shape = tuple(jnp.shape(value)) if _number(value) else ()

    def __repr__(self) -> str:
        return f"Law(Delta({self.value!r}))"

    def draw(self, key: Any) -> Any:
        return self.value

    def terms(self, x: Any) -> Any:
        if _number(self.value) and _number(x):
            same = jnp.shape(x) == jnp.shape(self.value) and jnp.all(jnp.asarray(x) == jnp.asarray(self.value))
        else:
            same = _b.same(self.value, x)
        return jnp.where(same, 0.0, -jnp.inf)

    def support(self) -> Any:
        return jnp.asarray(self.value)[None] if _number(self.value) else None


def law_of(dist: Any, where: str = "a law") -> Law:
    """Return the law in JAX of a distribution of ``fk.dist``, NumPyro, SciPy or torch.

    Raises NotTraceable for anything else, naming ``where``: a step of a language model, a user's own kernel, a family
    that NumPyro lacks.

    >>> from ..distributions.dist import Normal
    >>> round(float(law_of(Normal(0.0, 1.0)).log_prob(0.0)), 4)
    -0.9189
    """
    if isinstance(dist, fd.Distribution):
        make = _OURS.get(type(dist).__name__) if type(dist).__module__ == fd.__name__ else None
        found = make(dist) if make is not None else None
    elif isinstance(dist, Masked):
        found = None
    else:
        if hasattr(dist, "sample_batch") and hasattr(dist, "dist"):
            dist = dist.dist  # a kernel that wraps another library's: made where no tracer looked
        found = _FOREIGN.get(library_of(type(dist)) or "", lambda _: None)(dist)  # type: ignore[arg-type]
    if found is None:
        kind = type(dist)
        raise NotTraceable(f"{where}: {kind.__module__}.{kind.__qualname__} is not a law that JAX can trace")
    return found


# -- keys ---------------------------------------------------------------------------------------------------------


def words(keys: Keys) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return keys (n,) as the words (n, 2) of as many keys of JAX."""
    return np.ascontiguousarray(keys).view(np.uint32).reshape(-1, 2)


def jax_key(pair: Any) -> Any:
    """Return the keys of JAX (…,) that have these words (…, 2)."""
    return jax.random.wrap_key_data(pair, impl="threefry2x32")


# -- fk.dist ------------------------------------------------------------------------------------------------------


def _floats(x: Any) -> Any:
    return jnp.asarray(x, float)


def _normal(d: Any) -> Law:
    loc, scale = _floats(d.loc), _floats(d.scale)
    return _Ours(
        nd.Normal(loc, scale),
        lambda x: -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * math.log(2 * math.pi),
    )


def _uniform(d: Any) -> Law:
    low, high = _floats(d.low), _floats(d.high)
    return _Ours(nd.Uniform(low, high), lambda x: jnp.where((low <= x) & (x <= high), -jnp.log(high - low), -jnp.inf))


def _exponential(d: Any) -> Law:
    rate = _floats(d.rate)
    return _Ours(nd.Exponential(rate), lambda x: jnp.where(x >= 0, jnp.log(rate) - rate * x, -jnp.inf))


def _bernoulli(d: Any) -> Law:
    p = _floats(d.probs)
    return _Ours(
        nd.BernoulliProbs(p),
        lambda x: jnp.where(x == 1, jnp.log(p), jnp.where(x == 0, jnp.log1p(-p), -jnp.inf)),
    )


def _discrete_uniform(d: Any) -> Law:
    low, high = jnp.asarray(d.low), jnp.asarray(d.high)
    return _Ours(
        nd.DiscreteUniform(low.astype(int), high.astype(int)),
        lambda x: jnp.where((low <= x) & (x <= high) & (x == jnp.floor(x)), -jnp.log(1.0 * high - low + 1), -jnp.inf),
    )


def _categorical(d: Any) -> Law:
    if d.probs is not None:
        probs = _floats(d.probs)
        probs = probs / probs.sum(-1, keepdims=True)
        dist, logs = nd.CategoricalProbs(probs), jnp.log(probs)
    else:
        logs = jax.nn.log_softmax(_floats(d.logits), -1)
        dist = nd.CategoricalLogits(logs)
    if d.values is not None:
        return _Items(dist, logs, d.values)

    def density(x: Any) -> Any:
        known = (x >= 0) & (x < logs.shape[-1]) & (x == jnp.floor(x))
        table = jnp.broadcast_to(logs, jnp.shape(x) + logs.shape[-1:])
        index = jnp.where(known, x, 0).astype(int)[..., None]
        return jnp.where(known, jnp.take_along_axis(table, index, -1)[..., 0], -jnp.inf)

    return _Ours(dist, density)


def _multivariate_normal(d: Any) -> Law:
    loc, root = _floats(d.loc), jnp.linalg.cholesky(_floats(d.cov))

    def density(x: Any) -> Any:
        z = jax.scipy.linalg.solve_triangular(root, x - loc, lower=True)
        return -0.5 * (z**2).sum() - jnp.log(jnp.diagonal(root)).sum() - 0.5 * len(loc) * math.log(2 * math.pi)

    return _Vector(nd.MultivariateNormal(loc, scale_tril=root), density)


_OURS: dict[str, Callable[[Any], Law]] = {
    "Normal": _normal,
    "Uniform": _uniform,
    "Exponential": _exponential,
    "Bernoulli": _bernoulli,
    "DiscreteUniform": _discrete_uniform,
    "Categorical": _categorical,
    "MultivariateNormal": _multivariate_normal,
    "Delta": lambda d: _Fixed(d.value, nd.Delta(jnp.asarray(d.value)) if _number(d.value) else None),
}


# -- other libraries ----------------------------------------------------------------------------------------------


def _numpyro(dist: Any) -> Law | None:
    if not isinstance(dist, nd.Distribution):
        return None
    if isinstance(dist, nd.Delta) and not np.any(np.asarray(dist.log_density) != 0):
        return _Fixed(dist.v, dist)
    return _Whole(dist) if dist.support.is_discrete else Law(dist)


def _scipy(frozen: Any) -> Law | None:
    """Map a frozen univariate family, or the multivariate normal, to NumPyro's."""
    family = getattr(frozen, "dist", None)
    if type(frozen).__name__ == "multivariate_normal_frozen":
        return Law(nd.MultivariateNormal(_floats(frozen.mean), _floats(frozen.cov_object.covariance)))
    shapes = (getattr(family, "shapes", None) or "").replace(" ", "").split(",")
    names = [name for name in shapes if name]
    make = _SCIPY.get(getattr(family, "name", ""))
    if make is None or family is None:
        return None
    given = dict(zip([*names, "loc", "scale"], frozen.args), **frozen.kwds)
    loc, scale = given.pop("loc", 0.0), given.pop("scale", 1.0)
    dist = make(loc, scale, **given)
    return None if dist is None else (_Whole(dist) if dist.support.is_discrete else Law(dist))


def _at_zero(make: Callable[..., Any]) -> Callable[..., Any]:
    """Make a family that NumPyro has without location, where that is the number 0."""
    return lambda loc, scale, **given: make(scale, **given) if _is(loc, 0.0) else None


def _whole_at_zero(make: Callable[..., Any]) -> Callable[..., Any]:
    return lambda loc, scale, **given: make(**given) if _is(loc, 0) else None


def _is(x: Any, number: float) -> bool:
    return not isinstance(x, jax.core.Tracer) and bool(np.all(np.asarray(x) == number))


_SCIPY: dict[str, Callable[..., Any]] = {
    "norm": nd.Normal,
    "uniform": lambda loc, scale: nd.Uniform(loc, loc + scale),
    "cauchy": nd.Cauchy,
    "laplace": nd.Laplace,
    "logistic": nd.Logistic,
    "gumbel_r": nd.Gumbel,
    "t": lambda loc, scale, df: nd.StudentT(df, loc, scale),
    "expon": _at_zero(lambda scale: nd.Exponential(1.0 / scale)),
    "gamma": _at_zero(lambda scale, a: nd.Gamma(a, 1.0 / scale)),
    "invgamma": _at_zero(lambda scale, a: nd.InverseGamma(a, scale)),
    "halfnorm": _at_zero(nd.HalfNormal),
    "halfcauchy": _at_zero(nd.HalfCauchy),
    "lognorm": _at_zero(lambda scale, s: nd.LogNormal(jnp.log(scale), s)),
    "weibull_min": _at_zero(lambda scale, c: nd.Weibull(scale, c)),
    "beta": _at_zero(lambda scale, a, b: nd.Beta(a, b) if _is(scale, 1.0) else None),
    "bernoulli": _whole_at_zero(lambda p: nd.BernoulliProbs(p)),
    "binom": _whole_at_zero(lambda n, p: nd.BinomialProbs(p, n)),
    "poisson": _whole_at_zero(lambda mu: nd.Poisson(mu)),
}


def _torch(dist: Any) -> Law | None:
    """Map a family of torch whose parameters are constants to NumPyro's."""
    while type(dist).__name__ == "Independent":
        dist = dist.base_dist
    entry = _TORCH.get(type(dist).__name__) if type(dist).__module__.startswith("torch.distributions") else None
    if entry is None:
        return None
    name, names = entry
    mapped = getattr(nd, name)(**{ours: np.asarray(getattr(dist, its).detach(), float) for ours, its in names.items()})
    return _Whole(mapped) if mapped.support.is_discrete else Law(mapped)


def _alike(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_TORCH: dict[str, tuple[str, dict[str, str]]] = {
    "Normal": ("Normal", _alike("loc", "scale")),
    "Uniform": ("Uniform", _alike("low", "high")),
    "Exponential": ("Exponential", _alike("rate")),
    "Gamma": ("Gamma", _alike("concentration", "rate")),
    "Beta": ("Beta", _alike("concentration1", "concentration0")),
    "Dirichlet": ("Dirichlet", _alike("concentration")),
    "HalfNormal": ("HalfNormal", _alike("scale")),
    "HalfCauchy": ("HalfCauchy", _alike("scale")),
    "Cauchy": ("Cauchy", _alike("loc", "scale")),
    "Laplace": ("Laplace", _alike("loc", "scale")),
    "LogNormal": ("LogNormal", _alike("loc", "scale")),
    "StudentT": ("StudentT", _alike("df", "loc", "scale")),
    "Gumbel": ("Gumbel", _alike("loc", "scale")),
    "MultivariateNormal": ("MultivariateNormal", _alike("loc", "scale_tril")),
    "Bernoulli": ("BernoulliProbs", _alike("probs")),
    "Categorical": ("CategoricalProbs", _alike("probs")),
    "Poisson": ("Poisson", _alike("rate")),
}
_FOREIGN: dict[str, Callable[[Any], Law | None]] = {"numpyro": _numpyro, "scipy": _scipy, "torch": _torch}


@lru_cache(maxsize=64)
def _numeric(kind: type) -> bool:
    return issubclass(kind, int | float | np.ndarray | np.generic | jax.Array | jax.core.Tracer)


def _number(x: Hashable) -> bool:
    """Whether a value is a number, or an array of them."""
    return _numeric(type(x))

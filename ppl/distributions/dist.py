"""Light NumPy distributions, drawn and scored in batches. Names and keywords are NumPyro's.

Constructing one costs a fraction of a microsecond: it only stores its parameters, which are checked when a
whole batch is stacked. A parameter may be a number or an array. An array makes one draw a vector of
independent components, whose log-probabilities are summed (NumPyro's ``.to_event`` over every axis); such
draws are read-only, since particles share them. An observed value may have more axes than the parameters, for
independent data under one distribution: ``Normal(mu, 1.0).log_prob(data)`` is the sum over ``data``.

Every draw is a function of its own key alone, mostly by inversion of the distribution function (Devroye 1986,
ch. 2, doi:10.1007/978-1-4613-8643-8). Parameters that make no distribution raise ``ValueError``, naming the
distribution and the offending number.

>>> from ..keys import fold, root
>>> draws = Normal().sample_batch([Normal(0.0, 1.0), Normal(10.0, 0.1)], fold(root(0), np.arange(2)))
>>> draws.values.shape, draws.log_prob.shape
((2,), (2,))
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..keys import Keys
from ..model import Draws, Floats
from . import batching as _b
from .batching import Bounds, Ragged
from .distribution import Distribution, Elementwise, Integers, Values
from .permutations import Permutation

__all__ = [
    "Bernoulli",
    "Categorical",
    "Delta",
    "DiscreteUniform",
    "Distribution",
    "Exponential",
    "MultivariateNormal",
    "Normal",
    "Permutation",
    "Uniform",
]


class Normal(Elementwise):
    """The normal law with mean ``loc`` and standard deviation ``scale`` > 0.

    >>> Normal(loc=1.0, scale=2.0).log_prob([1.0, 1.0]) == 2 * Normal(1.0, 2.0).log_prob(1.0)
    True
    """

    __slots__ = ("loc", "scale")
    parameters = ("loc", "scale")

    def __init__(self, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> None:
        self.loc = loc
        self.scale = scale

    def _check(self, *params: Floats) -> None:
        loc, scale = params
        self._require("loc", "finite", np.isfinite(loc), loc)
        self._require("scale", "positive and finite", (scale > 0) & (scale < np.inf), scale)

    def _draw(self, keys: Keys, shape: tuple[int, ...], *params: Floats) -> NDArray[Any]:
        return params[0] + params[1] * _b.normals(keys, shape)

    def _density(self, x: Floats, *params: Floats) -> Floats:
        loc, scale = params
        return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * math.log(2 * math.pi)

    def _limits(self, *params: Floats) -> tuple[Floats, Floats]:
        wide = np.full(np.broadcast_shapes(*(p.shape for p in params)), np.inf)
        return -wide, wide


class Uniform(Elementwise):
    """The uniform law on [``low``, ``high``], ``low`` < ``high``.

    >>> Uniform(0.0, 4.0).log_prob(5.0)
    -inf
    """

    __slots__ = ("high", "low")
    parameters = ("low", "high")

    def __init__(self, low: ArrayLike = 0.0, high: ArrayLike = 1.0) -> None:
        self.low = low
        self.high = high

    def _check(self, *params: Floats) -> None:
        low, high = params
        self._require("low", "finite", np.isfinite(low), low)
        self._require("high", "finite and above low", (low < high) & (high < np.inf), high)

    def _draw(self, keys: Keys, shape: tuple[int, ...], *params: Floats) -> NDArray[Any]:
        low, high = params
        return np.minimum(low + (high - low) * _b.uniforms(keys, shape), high)

    def _density(self, x: Floats, *params: Floats) -> Floats:
        low, high = params
        return np.where((low <= x) & (x <= high), -np.log(high - low), -np.inf)

    def _limits(self, *params: Floats) -> tuple[Floats, Floats]:
        low, high = np.broadcast_arrays(*params)
        return low, high


class Exponential(Elementwise):
    """The exponential law with mean 1 / ``rate``, ``rate`` > 0.

    >>> Exponential(rate=2.0).log_prob(0.0) == math.log(2.0)
    True
    """

    __slots__ = ("rate",)
    parameters = ("rate",)

    def __init__(self, rate: ArrayLike = 1.0) -> None:
        self.rate = rate

    def _check(self, *params: Floats) -> None:
        (rate,) = params
        self._require("rate", "positive and finite", (rate > 0) & (rate < np.inf), rate)

    def _draw(self, keys: Keys, shape: tuple[int, ...], *params: Floats) -> NDArray[Any]:
        return -np.log(_b.uniforms(keys, shape)) / params[0]

    def _density(self, x: Floats, *params: Floats) -> Floats:
        (rate,) = params
        return np.where(x >= 0, np.log(rate) - rate * x, -np.inf)

    def _limits(self, *params: Floats) -> tuple[Floats, Floats]:
        return np.zeros_like(params[0]), np.full_like(params[0], np.inf)


class Bernoulli(Integers):
    """1 with probability ``probs``, else 0.

    >>> Bernoulli(0.25).support(), round(math.exp(Bernoulli(0.25).log_prob(1)), 12)
    ([0, 1], 0.25)
    """

    __slots__ = ("probs",)
    parameters = ("probs",)

    def __init__(self, probs: ArrayLike) -> None:
        self.probs = probs

    def _check(self, *params: Floats) -> None:
        (probs,) = params
        self._require("probs", "in [0, 1]", (probs >= 0) & (probs <= 1), probs)

    def _draw(self, keys: Keys, shape: tuple[int, ...], *params: Floats) -> NDArray[Any]:
        return (_b.uniforms(keys, shape) < params[0]).astype(np.int64)

    def _density(self, x: Floats, *params: Floats) -> Floats:
        (probs,) = params
        with np.errstate(divide="ignore"):
            return np.where(x == 1, np.log(probs), np.where(x == 0, np.log1p(-probs), -np.inf))

    def _limits(self, *params: Floats) -> tuple[Floats, Floats]:
        (probs,) = params
        return np.where(probs < 1, 0.0, 1.0), np.where(probs > 0, 1.0, 0.0)


class DiscreteUniform(Integers):
    """The uniform law on the integers ``low`` to ``high``, both included.

    >>> DiscreteUniform(1, 6).support()
    [1, 2, 3, 4, 5, 6]
    """

    __slots__ = ("high", "low")
    parameters = ("low", "high")

    def __init__(self, low: ArrayLike = 0, high: ArrayLike = 1) -> None:
        self.low = low
        self.high = high

    def _check(self, *params: Floats) -> None:
        low, high = params
        # Beyond 2^51 the floats that carry a range no longer tell every integer from the next.
        for name, end in (("low", low), ("high", high)):
            whole = (end == np.floor(end)) & (np.abs(end) <= 2.0**51)
            self._require(name, "an integer within ±2^51", whole, end)
        self._require("high", "at least low", low <= high, high)

    def _draw(self, keys: Keys, shape: tuple[int, ...], *params: Floats) -> NDArray[Any]:
        low, high = params
        drawn = low + np.floor(_b.uniforms(keys, shape) * (high - low + 1))
        return np.minimum(drawn, high).astype(np.int64)

    def _density(self, x: Floats, *params: Floats) -> Floats:
        low, high = params
        return np.where((low <= x) & (x <= high) & (x == np.floor(x)), -np.log(high - low + 1), -np.inf)

    def _limits(self, *params: Floats) -> tuple[Floats, Floats]:
        low, high = np.broadcast_arrays(*params)
        return low, high


class Categorical(Distribution):
    """One of K categories, with probabilities ``probs`` or log-weights ``logits``, shape (K,).

    ``probs`` must sum to 1 within 1e-6; ``logits`` need no normalising, and −inf excludes a category. Draws
    are indices, or items of ``values`` where given (compared by ``==``; the mass of equal items adds up).
    Parameters of shape (..., K) make vectors of independent indices.

    >>> Categorical(probs=[0.5, 0.0, 0.5], values=["a", "b", "c"]).support()
    ['a', 'c']
    """

    __slots__ = ("logits", "probs", "values")
    parameters = ("probs", "logits", "values")

    def __init__(
        self,
        probs: ArrayLike | None = None,
        *,
        logits: ArrayLike | None = None,
        values: Sequence[Any] | None = None,
    ) -> None:
        if (probs is None) is (logits is None):
            raise ValueError("Categorical: give either probs or logits")
        self.probs = probs
        self.logits = logits
        self.values = values

    def _shape(self, request: Any) -> Hashable:
        return np.shape(request.probs), np.shape(request.logits), request.values is None

    def _tables(self, requests: Sequence[Any]) -> tuple[Floats, Floats]:
        """Stack to probabilities and log-probabilities, each (n, *event, K)."""
        by_probs, bare = requests[0].logits is None, requests[0].values is None
        if any((r.logits is None) is not by_probs or (r.values is None) is not bare for r in requests):
            raise Ragged("Categorical: mixed parameters")
        name = "probs" if by_probs else "logits"
        table = self._numbers(name, [getattr(r, name) for r in requests])
        if table.ndim < 2 or table.shape[-1] == 0:
            raise ValueError(f"Categorical: {name} must list the categories, got shape {table.shape[1:]}")
        if not bare and any((len(r.values),) != table.shape[1:] for r in requests):
            raise ValueError(f"Categorical: values must be as many as {name}, of shape {table.shape[1:]}")
        if by_probs:
            self._require("probs", "nonnegative and finite", (table >= 0) & (table < np.inf), table)
            sums = table.sum(-1)
            self._require("the sum of probs", "1 within 1e-6", np.abs(sums - 1) <= 1e-6, sums)
            probs = table / sums[..., None]
            with np.errstate(divide="ignore"):
                return probs, np.log(probs)
        self._require("logits", "a number less than +inf", table < np.inf, table)
        peak = table.max(-1, keepdims=True)
        self._require("the largest of logits", "finite", peak > -np.inf, peak)
        weight = np.exp(table - peak)
        sums = weight.sum(-1, keepdims=True)
        return weight / sums, table - peak - np.log(sums)

    def _sample(self, requests: Sequence[Any], keys: Keys) -> Draws:
        probs, logs = self._tables(requests)
        index = _b.invert(probs, _b.uniforms(keys, probs.shape[:-1]))
        if requests[0].values is not None:
            values = [r.values[i] for r, i in zip(requests, index.tolist())]
            return Draws(values, np.array([_mass(*item) for item in zip(requests, logs, values)]))
        return Draws(_b.frozen(index), _b.total(np.take_along_axis(logs, index[..., None], -1)[..., 0]))

    def _score(self, requests: Sequence[Any], values: Values) -> Floats:
        return _b.total(self.log_prob_terms(requests, values))

    def log_prob_terms(self, requests: Sequence[Any], values: Values) -> Floats:
        """Return log p of each component of each value, (n, *event), for requests of one shape."""
        _, logs = self._tables(requests)
        if requests[0].values is not None:
            return np.array([_mass(*item) for item in zip(requests, logs, values)])
        table, x = _b.align([logs, self._numbers("the value", values)[..., None]])
        if not _b.fits(table.shape[:-1], x.shape[:-1]):
            shape = np.shape(values[0])
            raise ValueError(f"Categorical: a value of shape {shape} for draws of shape {logs.shape[1:-1]}")
        known = (x >= 0) & (x < table.shape[-1]) & (x == np.floor(x))
        table = np.broadcast_to(table, x.shape[:-1] + table.shape[-1:])
        found = np.take_along_axis(table, np.where(known, x, 0).astype(np.intp), -1)
        terms: Floats = np.where(known, found, -np.inf)[..., 0]
        return terms

    def support(self) -> list[Any] | None:
        """Return the values of positive probability, or None where the event is a vector."""
        probs = self._tables([self])[0][0]
        if probs.ndim > 1:
            return None
        index: list[int] = np.flatnonzero(probs).tolist()
        if self.values is None:
            return index
        found: list[Any] = []
        for value in (self.values[i] for i in index):
            if not any(_b.same(value, other) for other in found):
                found.append(value)
        return found

    def fits(self, value: Any) -> bool:
        """Whether a value is an index, or array of them, as draws are; of ``values``, anything may be compared."""
        table: Any = self.logits if self.probs is None else self.probs
        return self.values is not None or _b.has_form(value, np.shape(table)[:-1], True)

    def covers(self, other: Any) -> bool:
        """Whether every value that ``other`` can take has positive probability here."""
        mine = self._tables([self])[0][0]
        if mine.ndim == 1:
            return _b.covers(self, other)
        theirs = other._tables([other])[0][0] if isinstance(other, Categorical) else np.zeros(0)
        return mine.shape == theirs.shape and not bool(((mine == 0) & (theirs > 0)).any())


class MultivariateNormal(Distribution):
    """The normal law on vectors with mean ``loc`` (d,) and covariance ``cov`` (d, d), positive definite.

    >>> p = MultivariateNormal(loc=[0.0, 0.0], cov=[[2.0, 1.0], [1.0, 2.0]])
    >>> round(p.log_prob([0.0, 0.0]), 4)
    -2.3872
    """

    __slots__ = ("cov", "loc")
    parameters = ("loc", "cov")

    def __init__(self, loc: ArrayLike, cov: ArrayLike) -> None:
        self.loc = loc
        self.cov = cov

    def _factors(self, requests: Sequence[Any]) -> tuple[Floats, Floats]:
        """Stack to means (n, d) and Cholesky factors (n, d, d)."""
        loc = self._numbers("loc", [r.loc for r in requests])
        cov = self._numbers("cov", [r.cov for r in requests])
        if loc.ndim != 2 or cov.shape != (*loc.shape, loc.shape[1]):
            raise ValueError(f"MultivariateNormal: loc of shape {loc.shape[1:]}, cov of {cov.shape[1:]}")
        self._require("loc", "finite", np.isfinite(loc), loc)
        symmetric = np.isclose(cov, cov.swapaxes(-1, -2), atol=1e-8 * float(np.abs(cov).max(initial=0.0)))
        self._require("cov", "symmetric and finite", symmetric & np.isfinite(cov), cov)
        try:
            root = np.linalg.cholesky(cov).astype(np.float64, copy=False)
        except np.linalg.LinAlgError:
            lowest = float(np.linalg.eigvalsh(cov).min())
            raise ValueError(
                f"MultivariateNormal: cov must be positive definite, got an eigenvalue of {lowest}"
            ) from None
        return loc, root

    def _sample(self, requests: Sequence[Any], keys: Keys) -> Draws:
        loc, root = self._factors(requests)
        z = _b.normals(keys, loc.shape)
        return Draws(_b.frozen(loc + (root @ z[..., None])[..., 0]), _gauss(z, root))

    def _score(self, requests: Sequence[Any], values: Values) -> Floats:
        loc, root = self._factors(requests)
        x = self._numbers("the value", values)
        if x.shape != loc.shape:
            shape = np.shape(values[0])
            raise ValueError(f"MultivariateNormal: a value of shape {shape} for draws of {loc.shape[1:]}")
        z = np.linalg.solve(root, (x - loc)[..., None])[..., 0]
        return _gauss(z.astype(np.float64, copy=False), root)

    def fits(self, value: Any) -> bool:
        """Whether a value is a vector of draws' length."""
        return _b.has_form(value, np.shape(self.loc), False)

    def bounds(self) -> Bounds:
        """Return the whole of R^d."""
        wide = np.full(np.shape(self.loc), np.inf)
        return Bounds(False, -wide, wide)


class Delta(Distribution):
    """All mass on ``value``, which may be anything that ``==`` can compare.

    >>> Delta("yes").log_prob("no")
    -inf
    """

    __slots__ = ("value",)
    parameters = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def _sample(self, requests: Sequence[Any], keys: Keys) -> Draws:
        return Draws([r.value for r in requests], np.zeros(len(requests)))

    def _score(self, requests: Sequence[Any], values: Values) -> Floats:
        return np.array([0.0 if _b.same(r.value, v) else -np.inf for r, v in zip(requests, values)])

    def support(self) -> list[Any]:
        """Return the one value."""
        return [self.value]


def _gauss(z: Floats, root: Floats) -> Floats:
    """Return log N(x; loc, root rootᵀ) for the standardised z = root⁻¹ (x − loc) of shape (n, d)."""
    log_det = np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(-1)
    density: Floats = -0.5 * (z**2).sum(-1) - log_det - 0.5 * z.shape[-1] * math.log(2 * math.pi)
    return density


def _mass(request: Categorical, logs: Floats, value: Any) -> float:
    """Return log p of an item of ``values``, over all positions that hold it."""
    items = zip(logs.tolist(), request.values or ())
    found: list[float] = [log for log, item in items if _b.same(item, value)]
    if len(found) == 1:
        return found[0]
    return float(np.logaddexp.reduce(found)) if found else -math.inf

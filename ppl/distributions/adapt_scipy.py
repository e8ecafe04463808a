"""Frozen ``scipy.stats`` distributions as kernels.

Univariate families are drawn and scored together, in about a microsecond for each particle; but SciPy takes 400 µs to
freeze one, each time that a program makes it (`fk.dist` takes 0.3 µs), so in a loop make it once, where its parameters
are constant, or take ``fk.dist`` or NumPyro. Multivariate families are drawn and scored one by one: another 100 µs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import keys as _keys
from ..keys import Keys
from ..model import Draws, Floats
from . import batching as _b
from .adapted import Adapted, arrays, listed, whole
from .batching import Bounds


def adapt(dist: Any) -> Adapted | None:
    """Wrap a frozen distribution (or an unfrozen one with no shape parameters)."""
    from scipy import stats

    if isinstance(dist, stats.rv_continuous | stats.rv_discrete):
        return Univariate(dist, dist, (), {})
    if hasattr(dist, "dist") and isinstance(dist.dist, stats.rv_continuous | stats.rv_discrete):
        return Univariate(dist, dist.dist, dist.args, dist.kwds)
    if type(dist).__name__.endswith("_frozen") and (hasattr(dist, "logpdf") or hasattr(dist, "logpmf")):
        return Multivariate(dist, ("scipy", type(dist)))
    return None


class Univariate(Adapted):
    """A family with an inverse distribution function; array-valued parameters make vectors."""

    __slots__ = ("columns", "family", "names")

    def __init__(self, dist: Any, family: Any, args: tuple[Any, ...], kwds: dict[str, Any]) -> None:
        self.family = family
        self.names = tuple(kwds)
        self.columns = [np.asarray(item, np.float64) for item in (*args, *kwds.values())]
        super().__init__(dist, ("scipy", self._kind(), self.names, tuple(c.shape for c in self.columns)))

    def _kind(self) -> Any:
        from scipy import stats

        # SciPy's own families are told by class; tables, histograms and the user's carry state of their own.
        standard = getattr(stats, self.family.name, None)
        return type(self.family) if type(standard) is type(self.family) else id(self.family)

    def _parameters(self) -> Sequence[Any]:
        table = [getattr(self.family, name) for name in ("xk", "pk") if hasattr(self.family, name)]
        return [self.family.name, self.names, *self.columns, *table]

    def _stack(self, requests: Sequence[Any], *extra: Floats) -> tuple[list[Floats], tuple[int, ...]]:
        """Stack parameters, and then what else is given, to one rank; and say the shape of the draws."""
        columns = [np.stack([r.columns[j] for r in requests]) for j in range(len(self.columns))]
        columns = _b.align([np.zeros(len(requests)), *columns, *extra])
        return columns[1:], np.broadcast_shapes(*(c.shape for c in columns[: 1 + len(self.columns)]))

    def _call(self, method: str, x: Any, columns: Sequence[Any]) -> Any:
        split = len(columns) - len(self.names)
        with np.errstate(all="ignore"):
            return getattr(self.family, method)(x, *columns[:split], **dict(zip(self.names, columns[split:])))

    def sample_batch(self, requests: Sequence[Any], keys: Keys) -> Draws:
        """Draw by inversion of the distribution function: values (n, *event)."""
        columns, shape = self._stack(requests)
        values = np.asarray(self._call("ppf", _b.uniforms(keys, shape), columns))
        if np.isnan(values).any():
            i = int(np.argwhere(np.isnan(values))[0, 0])
            given = ", ".join(repr(c.tolist()) for c in requests[i].columns)
            raise ValueError(f"scipy.stats.{self.family.name}: no distribution has parameters ({given})")
        if self._whole:
            values = whole(values)
        return Draws(_b.frozen(values), _b.total(self._density(values, columns)))

    def log_prob_batch(self, requests: Sequence[Any], values: Sequence[Any] | NDArray[Any]) -> Floats:
        """Return log p of each value, shape (n,); a value may have more axes than the parameters."""
        return _b.total(self.log_prob_terms(requests, values))

    def log_prob_terms(self, requests: Sequence[Any], values: Sequence[Any] | NDArray[Any]) -> Floats:
        """Return log p of each component of each value, (n, *event)."""
        (*columns, x), event = self._stack(requests, _b.numbers(self.family.name, "the value", arrays(values)))
        if not _b.fits(event, x.shape):
            shape, event = np.shape(values[0]), np.broadcast_shapes(*(c.shape for c in self.columns))
            raise ValueError(f"scipy.stats.{self.family.name}: a value of shape {shape} for draws of {event}")
        return self._density(x, columns)

    def _density(self, x: Floats, columns: Sequence[Floats]) -> Floats:
        method = "logpmf" if hasattr(self.family, "logpmf") else "logpdf"
        return np.asarray(self._call(method, x, columns), np.float64)

    def fits(self, value: Any) -> bool:
        """Whether a value has the shape of a draw, and is whole where draws are."""
        return _b.has_form(value, np.broadcast_shapes(*(c.shape for c in self.columns)), self._whole)

    @property
    def _whole(self) -> bool:
        return hasattr(self.family, "logpmf") and not np.any(np.mod(getattr(self.family, "xk", 0), 1))

    def _ends(self) -> tuple[Any, Any]:
        split = len(self.columns) - len(self.names)
        kwds = dict(zip(self.names, self.columns[split:]))
        low, high = self.family.support(*self.columns[:split], **kwds)
        return low, high

    def _candidates(self) -> list[Any] | None:
        if not hasattr(self.family, "logpmf") or any(c.ndim for c in self.columns):
            return None
        low, high = map(float, self._ends())
        if hasattr(self.family, "xk"):
            split = len(self.columns) - len(self.names)
            loc = dict(zip(self.names, self.columns[split:])).get("loc", sum(self.columns[:split]))
            return listed(np.asarray(self.family.xk) + loc)
        if not (math.isfinite(low) and high - low < _b.FEW):
            return None
        return list(range(int(low), int(high) + 1))

    def bounds(self) -> Bounds | None:
        """Return where the draws lie, or None for a table of values."""
        if hasattr(self.family, "xk"):
            return None
        shape = np.broadcast_shapes(*(c.shape for c in self.columns))
        low, high = (np.broadcast_to(np.asarray(end, np.float64), shape) for end in self._ends())
        return Bounds(hasattr(self.family, "logpmf"), low, high)


class Multivariate(Adapted):
    """A multivariate family, drawn and scored one by one."""

    __slots__ = ()

    def _parameters(self) -> Sequence[Any]:
        held = [item for name, item in sorted(vars(self.dist).items()) if name != "_dist"]
        # A covariance is an object of SciPy's own: its arrays count, not its class alone.
        return [sorted(vars(item).items()) if hasattr(item, "__dict__") else item for item in held]

    def sample_batch(self, requests: Sequence[Any], keys: Keys) -> Draws:
        """Draw with one NumPy generator per key."""
        values = []
        for request, generator in zip(requests, _keys.generators(keys)):
            value = _drawn(request.dist, generator)
            value.flags.writeable = False
            values.append(value)
        return Draws(values, self.log_prob_batch(requests, values))

    def log_prob_batch(self, requests: Sequence[Any], values: Sequence[Any]) -> Floats:
        """Return log p of each value, shape (n,)."""
        score = "logpmf" if hasattr(self.dist, "logpmf") else "logpdf"
        pairs = zip(requests, arrays(values))
        with np.errstate(divide="ignore"):
            return np.array([float(np.sum(getattr(r.dist, score)(v))) for r, v in pairs])

    def fits(self, value: Any) -> bool:
        """Whether a value has the form of a draw, and is one that SciPy does not refuse to score (off a simplex)."""
        if not _b.has_form(value, np.shape(_drawn(self.dist, 0)), hasattr(self.dist, "logpmf")):
            return False
        try:
            self.log_prob_batch([self], [value])
        except ValueError:
            return False
        return True

    def bounds(self) -> Bounds | None:
        """Return the whole space for the normal and Student families, else None."""
        if type(self.dist).__name__ not in ("multivariate_normal_frozen", "multivariate_t_frozen"):
            return None
        wide = np.full(self.dist.dim, np.inf)
        return Bounds(False, -wide, wide)


def _drawn(dist: Any, seed: Any) -> NDArray[Any]:
    value = np.asarray(dist.rvs(size=1, random_state=seed))
    return value[0] if value.ndim > 1 and len(value) == 1 else value

"""What the light distributions of `dist` share: batching over shapes, stacking, scoring, fingerprints."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import CannotScore
from ..keys import Keys
from ..model import Draws, Floats
from . import batching as _b
from .batching import Bounds, Ragged

Values: TypeAlias = Sequence[Any] | NDArray[Any]


class Distribution:
    """Base of the distributions: a kernel whose ``batch_key`` is its class.

    Subclasses name their parameters and define ``_sample`` and ``_score`` for requests of one shape.
    """

    __slots__ = ()
    parameters: ClassVar[tuple[str, ...]] = ()
    batch_key: ClassVar[Any] = None
    _get: ClassVar[Callable[[Any], Any]]

    def __init_subclass__(cls) -> None:
        cls.batch_key = cls
        if cls.parameters:
            cls._get = attrgetter(*cls.parameters)

    def __repr__(self) -> str:
        given = ((name, getattr(self, name)) for name in self.parameters)
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in given if v is not None)})"

    @property
    def fingerprint(self) -> Hashable:
        """The class and its parameters, arrays by shape and checksum."""
        values = type(self)._get(self)
        if len(self.parameters) == 1:
            values = (values,)
        if not _b.PLAIN.issuperset(map(type, values)):
            values = tuple(_b.digest(value) for value in values)
        return type(self).__name__, values

    def sample_batch(self, requests: Sequence[Any], keys: Keys) -> Draws:
        """Draw one value for each of n requests: values (n, *event), or a list where shapes differ."""
        try:
            return self._sample(requests, keys)
        except Ragged:
            values: list[Any] = [None] * len(requests)
            log_prob = np.empty(len(requests))
            for index in _b.groups(map(self._shape, requests)):
                part = self._sample([requests[i] for i in index], keys[index])
                log_prob[index] = part.log_prob
                for i, value in zip(index, _b.unstack(part.values)):
                    values[i] = value
            return Draws(values, log_prob)

    def log_prob_batch(self, requests: Sequence[Any], values: Values) -> Floats:
        """Return log p of each value under its request, shape (n,); −inf outside the support."""
        try:
            return self._score(requests, values)
        except Ragged:
            log_prob = np.empty(len(requests))
            for index in _b.groups((self._shape(r), np.shape(v)) for r, v in zip(requests, values)):
                log_prob[index] = self._score([requests[i] for i in index], [values[i] for i in index])
            return log_prob

    def log_prob_terms(self, requests: Sequence[Any], values: Values) -> Floats:
        """Return log p of each component of each value, (n, *event), for requests of one shape.

        Raises CannotScore where the components are not independent, and `Ragged` for several shapes.
        """
        raise CannotScore(f"{type(self).__name__}: its components are not independent, so none has a weight of its own")

    def log_prob(self, value: Any) -> float:
        """Return log p(value), summed over the event."""
        return float(self.log_prob_batch([self], [value])[0])

    def bounds(self) -> Bounds | None:
        """Return where the draws lie, or None where bounds alone do not say."""
        return None

    def support(self) -> list[Any] | None:
        """Return all possible values where they are few, else None."""
        return None

    def covers(self, other: Any) -> bool:
        """Whether this distribution can reach all that ``other`` can; see `batching.covers`."""
        return _b.covers(self, other)

    def fits(self, value: Any) -> bool:
        """Whether a value has the form of a draw."""
        return True

    def _shape(self, request: Any) -> Hashable:
        return tuple(np.shape(getattr(request, name)) for name in self.parameters)

    def _numbers(self, what: str, items: Values) -> Floats:
        return _b.numbers(type(self).__name__, what, items)

    def _require(self, what: str, rule: str, ok: NDArray[np.bool_], given: Floats) -> None:
        if not ok.all():
            bad = float(np.broadcast_to(given, ok.shape)[~ok].flat[0])
            raise ValueError(f"{type(self).__name__}: {what} must be {rule}, got {bad}")

    def _sample(self, requests: Sequence[Any], keys: Keys) -> Draws:
        raise NotImplementedError

    def _score(self, requests: Sequence[Any], values: Values) -> Floats:
        raise NotImplementedError


class Elementwise(Distribution):
    """Independent components. Subclasses work on parameters stacked to (n, *event), broadcasting."""

    __slots__ = ()
    discrete: ClassVar[bool] = False

    def _check(self, *params: Floats) -> None:
        raise NotImplementedError

    def _draw(self, keys: Keys, shape: tuple[int, ...], *params: Floats) -> NDArray[Any]:
        raise NotImplementedError

    def _density(self, x: Floats, *params: Floats) -> Floats:
        raise NotImplementedError

    def _limits(self, *params: Floats) -> tuple[Floats, Floats]:
        raise NotImplementedError

    def _stack(self, requests: Sequence[Any]) -> list[Floats]:
        params = [self._numbers(name, [getattr(r, name) for r in requests]) for name in self.parameters]
        params = _b.align(params)
        try:
            np.broadcast_shapes(*(p.shape for p in params))
        except ValueError:
            shapes = ", ".join(f"{n} of {np.shape(getattr(requests[0], n))}" for n in self.parameters)
            raise ValueError(f"{type(self).__name__}: shapes do not broadcast: {shapes}") from None
        self._check(*params)
        return params

    def _sample(self, requests: Sequence[Any], keys: Keys) -> Draws:
        params = self._stack(requests)
        values = self._draw(keys, np.broadcast_shapes(*(p.shape for p in params)), *params)
        return Draws(_b.frozen(values), _b.total(self._density(values, *params)))

    def log_prob_terms(self, requests: Sequence[Any], values: Values) -> Floats:
        """Return log p of each component of each value, (n, *event), for requests of one shape."""
        stacked = self._stack(requests)
        *params, x = _b.align([*stacked, self._numbers("the value", values)])
        if not _b.fits(np.broadcast_shapes(*(p.shape for p in params)), x.shape):
            shape, event = np.shape(values[0]), np.broadcast_shapes(*(p.shape for p in stacked))[1:]
            raise ValueError(f"{type(self).__name__}: a value of shape {shape} for draws of shape {event}")
        return self._density(x, *params)

    def _score(self, requests: Sequence[Any], values: Values) -> Floats:
        return _b.total(self.log_prob_terms(requests, values))

    def fits(self, value: Any) -> bool:
        """Whether a value has the shape of a draw, and is whole where draws are."""
        shape = np.broadcast_shapes(*(np.shape(getattr(self, name)) for name in self.parameters))
        return _b.has_form(value, shape, self.discrete)

    def bounds(self) -> Bounds:
        """Return where the draws lie."""
        low, high = self._limits(*self._stack([self]))
        return Bounds(self.discrete, low[0], high[0])


class Integers(Elementwise):
    """Components with positive probability on every integer between their bounds, and on nothing else."""

    __slots__ = ()
    discrete = True

    def support(self) -> list[int] | None:
        """Return the possible integers, or None where the event is a vector or they are more than 1000."""
        _, low, high = self.bounds()
        return list(range(int(low), int(high) + 1)) if low.ndim == 0 and high - low < _b.FEW else None

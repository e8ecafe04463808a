"""Metropolis–Hastings moves that differ in their proposal and its ratio alone; the arithmetic is NumPy's and JAX's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...ppl import keys as _keys
from ...ppl.density import Density
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats
from ..base.paths import Asking, Path
from .fared import Fared
from .kernel import Stepping
from .replay import check_paths, rebuild
from .target import Point, Target, check_start


@dataclass(frozen=True)
class Metropolis(Stepping):
    """Propose, and accept by the ratio; both in isotropic coordinates."""

    estimates: ClassVar[bool] = False
    """Whether it moves by potentials that are random estimates, too."""

    def propose(self, now: Point, noise: Any, inverse: Any, size: Any) -> Any:
        """Return the proposal (…, d) from standard normal noise (…, d)."""
        raise NotImplementedError

    def log_ratio(self, now: Point, new: Point, inverse: Any, size: Any, xp: Any) -> Any:
        """Return the log of the acceptance ratio, (…); it may be NaN where a part of the density is no number."""
        raise NotImplementedError

    def walk(self, target: Target, now: Point, keys: Keys, size: float) -> tuple[Point, Fared]:
        """Make a step of n walkers."""
        n, d = now.position.shape
        noise = _keys.normal(_keys.fold(keys, _keys.tag("noise")), d)
        new = target.at(self.propose(now, noise, target.inverse, size), self.gradient)
        accept, chance = self._decide(now, new, target.inverse, size, keys)
        pairs = zip(now, new)
        merged = Point(*(np.where(accept if old.ndim == 1 else accept[:, None], fresh, old) for old, fresh in pairs))
        return merged, Fared(chance, np.zeros(n, bool), np.full(n, np.nan), np.ones(n))

    def _decide(
        self, now: Point, new: Point, inverse: Floats, size: float, keys: Keys, gain: Floats | float = 0.0
    ) -> tuple[Any, Floats]:
        """Return which of n are accepted, and the chance of it; ``gain`` is added to the log ratio."""
        with np.errstate(all="ignore"):
            log_ratio = self.log_ratio(now, new, inverse, size, np) + gain
        log_ratio = np.where(_possible(new, log_ratio, np), log_ratio, -np.inf)
        u = _keys.uniform(_keys.fold(keys, _keys.tag("accept")))
        return np.log(u) < log_ratio, np.exp(np.minimum(log_ratio, 0.0))

    def traced(self, target: Any, size: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return the same for one walker in JAX."""
        import jax
        import jax.numpy as jnp

        def init(z: Any) -> Point:
            return target.at(z, self.gradient)  # type: ignore[no-any-return]

        def step(key: Any, now: Point) -> tuple[Point, Fared]:
            noisy, coin = jax.random.split(key)
            noise = jax.random.normal(noisy, now.position.shape, now.position.dtype)
            new = target.at(self.propose(now, noise, target.inverse, size), self.gradient)
            log_ratio = self.log_ratio(now, new, target.inverse, size, jnp)
            log_ratio = jnp.where(_possible(new, log_ratio, jnp), log_ratio, -jnp.inf)
            accept = jnp.log(jax.random.uniform(coin, dtype=now.position.dtype)) < log_ratio
            merged = Point(*(jnp.where(accept, fresh, old) for old, fresh in zip(now, new)))
            return merged, Fared(jnp.exp(jnp.minimum(log_ratio, 0.0)), False, jnp.nan, 1)

        return init, step

    def _estimated(
        self, model: FeynmanKac[Any], density: Density, olds: list[Path], keys: Keys, inverse: Floats
    ) -> Asking[tuple[list[Path], Floats]]:
        """Move by paths that are made first: their potentials are estimates, which are drawn once and kept.

        The estimate is a part of the state (pseudo-marginal Metropolis–Hastings), so that the old one is never drawn
        again.
        """
        if not self.estimates:
            return (yield from super()._estimated(model, density, olds, keys, inverse))
        shape, d = self.shape(density), density.position.shape[1]
        size, paths, total = self.size(d), list(olds), np.zeros(len(olds))
        target = Target(density, inverse, shape)
        now = _worth(target.at(shape.coordinates(density.position), False), paths)
        check_start(self.name, density, now, False)
        for k in range(self.moves):
            key = _keys.fold(keys, _keys.tag("walk"), k)
            noise = _keys.normal(_keys.fold(key, _keys.tag("noise")), d)
            new = target.at(self.propose(now, noise, inverse, size), False)
            rows = np.flatnonzero(np.isfinite(new.log_prior))
            news: list[Path | None] = [None] * len(paths)
            if len(rows):
                u = shape.position(new.position)
                made = yield from rebuild(model, density, paths, u, rows, _keys.fold(key, _keys.tag("replay")))
                check_paths(density, made, rows, u, new.log_prior, None)
                for i, path in zip(rows.tolist(), made):
                    news[i] = path
            new = _worth(new, news)
            twists = [0.0 if b is None else b.log_twist - a.log_twist for a, b in zip(paths, news)]
            accept, chance = self._decide(now, new, inverse, size, key, np.array(twists))
            total += chance / self.moves
            now = Point(*(np.where(accept if a.ndim == 1 else accept[:, None], b, a) for a, b in zip(now, new)))
            paths = [b if yes and b is not None else a for a, b, yes in zip(paths, news, accept.tolist())]
        return paths, total


def _possible(new: Point, log_ratio: Any, xp: Any) -> Any:
    """Whether a proposal can be accepted at all: its density and the ratio are numbers."""
    return xp.isfinite(new.log_prior) & xp.isfinite(new.log_potential) & ~xp.isnan(log_ratio)


def _worth(point: Point, paths: Sequence[Path | None]) -> Point:
    """Return points with the potentials of their paths; −inf where there is none."""
    found = [-np.inf if path is None else path.log_potential for path in paths]
    return point._replace(log_potential=np.array(found))

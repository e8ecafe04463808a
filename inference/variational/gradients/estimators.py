"""How gradients pass a random choice of a guide: by its path, its score, its values, or measures of its derivative.

A guide draws z ~ q_φ, and an objective F(φ) = E_q[f_φ(z)] has the gradient E[∂f_φ(z)] + ∫ f ∂q_φ. Each site of the
guide has an estimator for the second part:

- ``"reparam"``: z is a smooth function of φ and noise, and f is followed along it (arXiv:1312.6114). f must be
  continuous in z, which `kinks` checks.
- ``"score"``: f(z)·∂log q(z), with the mean of the other draws as baseline (arXiv:1401.4082).
- ``"enum"``: Σ_z q(z)·f(z) over all values, exact.
- ``"mvd"``: for normal laws, differences of f at pairs of points drawn from the two parts of the law's derivative,
  coupled (arXiv:1906.10652); f need not be continuous.

Estimators of different sites go together, as in arXiv:2212.06386 and doi:10.1145/3656463.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
from jax.ad_checkpoint import checkpoint_name
from jax.scipy.special import ndtr

from ....ppl.errors import Unsupported
from ....ppl.sites import address
from ....ppl.traced.listeners import Weigher
from ....ppl.traced.met import Met, Spot

ESTIMATORS = ("reparam", "score", "enum", "mvd")
MARK = "feynkac reparam "
"""Before the name of a site whose gradient goes along its path, in what JAX traces."""
STILL = "feynkac still"
"""The name of draws that are constants to gradients."""
_FEW = 16
"""Values of a site that is enumerated unless it is said how."""
_TOGETHER = 256
"""Combinations of values of all such sites; of those beyond it the score is taken."""
_MOST = 4096
"""Combinations that are enumerated where it is asked for."""
_PAIRS = 4
"""Runs for each number that is drawn from a normal law: two for its mean, two for its standard deviation."""


@dataclass(frozen=True)
class Latent:
    """What is known of a site that draws: its place, the shape of a draw, and which estimators it has."""

    spot: Spot
    shape: tuple[int, ...]
    values: int | None
    smooth: bool
    normal: bool

    @property
    def visits(self) -> int:
        """How often it is drawn, in all iterations of its loops."""
        return math.prod(self.spot.lengths)

    @property
    def size(self) -> int:
        """Numbers in one draw."""
        return math.prod(self.shape)

    def addresses(self) -> dict[str, tuple[int, ...]]:
        """Return where in its loops each of its addresses is."""
        return {address(*self.spot.at(at)[:2]): at for at in np.ndindex(self.spot.lengths)}


class Look(Weigher):
    """Runs a program once, and notes what it draws, observes and weighs."""

    def __init__(self, key: Any, latents: dict[str, Latent] | None = None, others: list[Spot] | None = None) -> None:
        super().__init__(key)
        self.latents = {} if latents is None else latents
        self.others = [] if others is None else others

    def choose(self, site: Met) -> tuple[Any, Any]:
        """Draw a latent, and note it."""
        law = site.law
        if not law.fixed:
            values = None if law.shape or (found := law.support()) is None else len(found)
            smooth = not law.discrete and bool(law.dist.has_rsample)
            self.latents[site.slot] = Latent(site.spot, law.shape, values, smooth, normal_of(law) is not None)
        return super().choose(site)

    def observe(self, site: Met) -> None:
        """Note it."""
        self.others.append(site.spot)

    factor = twist = observe

    def iterate(self, extra: Any) -> Look:
        """Return the listener of an iteration, which notes in the same place."""
        return Look(self.key, self.latents, self.others)


def normal_of(law: Any) -> Any:
    """Return the univariate normal law that a law of independent components consists of, or None."""
    dist = law.dist
    while isinstance(dist, nd.Independent | nd.ExpandedDistribution):
        dist = dist.base_dist
    return dist if type(dist) is nd.Normal else None


@dataclass(frozen=True)
class Way:
    """A site with its estimator, and where it stands among the combinations of values, or among the pairs of runs."""

    latent: Latent
    estimator: str
    place: int = 0


@dataclass(frozen=True)
class Ways:
    """The estimators of all sites.

    Attributes:
        of: by slot.
        combinations: of the values of all sites that are enumerated; 1 where none is.
        modes: runs of the measure-valued sites, from 1 up; mode 0 is the ordinary run.
    """

    of: Mapping[str, Way]
    combinations: int
    modes: int


def ways(latents: Mapping[str, Latent], chosen: Mapping[str, str]) -> Ways:
    """Choose an estimator for each site: those that are asked for, by address or name, or the default.

    Raises ValueError for one that is none, or that no site is asked for; Unsupported, naming the site, for one that a
    law does not have.
    """
    unknown = set(chosen) - set(latents) - {latent.spot.name for latent in latents.values()}
    if unknown:
        raise ValueError(f"estimators are asked for {sorted(unknown)}, and the guide draws {sorted(latents)}")
    found: dict[str, Way] = {}
    combinations, modes = 1, 0
    for slot, latent in latents.items():
        asked = chosen.get(slot, chosen.get(latent.spot.name))
        if asked is None:
            asked = _default(latent, combinations)
        _check(slot, latent, asked)
        place = combinations if asked == "enum" else 1 + modes
        if asked == "enum":
            assert latent.values is not None
            combinations *= latent.values**latent.visits
            if combinations > _MOST:
                raise Unsupported(
                    f"site {slot!r}: with it there are {combinations:,} combinations of values to enumerate, more than "
                    f"{_MOST:,}: take the score of some sites, estimators={{{slot!r}: 'score'}}"
                )
        elif asked == "mvd":
            modes += _PAIRS * latent.size * latent.visits
        found[slot] = Way(latent, asked, place)
    return Ways(found, combinations, modes)


def _default(latent: Latent, combinations: int) -> str:
    if latent.smooth:
        return "reparam"
    few = latent.values is not None and latent.values <= _FEW
    return "enum" if few and combinations * (latent.values or 1) ** latent.visits <= _TOGETHER else "score"


def _check(slot: str, latent: Latent, estimator: str) -> None:
    if estimator not in ESTIMATORS:
        raise ValueError(f"site {slot!r}: the estimator is one of {', '.join(ESTIMATORS)}, not {estimator!r}")
    lacks = {
        "reparam": None if latent.smooth else "its draw is no smooth function of its parameters",
        "enum": None if latent.values is not None else "its values cannot be listed",
        "mvd": None if latent.normal else "only normal laws have it here",
        "score": None,
    }[estimator]
    if lacks is not None:
        raise Unsupported(f"site {slot!r}: no estimator {estimator!r}, for {lacks}; the score always is one")


class Drawn(Weigher):
    """A run of a guide, in which each site is drawn as its estimator needs it.

    ``log_prob`` is log q of the draws. The ``combination`` says which values enumerated sites have, and a ``mode``
    above 0 moves one number of a measure-valued site to one point of a pair; ``moments`` are means and standard
    deviations of these sites, by slot.
    """

    def __init__(self, key: Any, plan: Ways, combination: Any = 0, mode: Any = 0) -> None:
        super().__init__(key)
        self.plan = plan
        self.combination = combination
        self.mode = mode
        self.moments: dict[str, tuple[Any, Any]] = {}

    def choose(self, site: Met) -> tuple[Any, Any]:
        """Return a value."""
        law, way = site.law, self.plan.of.get(site.slot)
        if way is None:  # all its mass is on one value
            return law.draw(None), None
        if way.estimator == "enum":
            return self._listed(site, way), None
        key, noise = jax.random.split(site.key(self.key))
        value = law.draw(key)
        if way.estimator == "reparam":
            return checkpoint_name(value, MARK + site.slot), None
        value = jax.lax.stop_gradient(value)
        if way.estimator == "mvd":
            value = self._moved(site, way, value, noise)
        return checkpoint_name(value, STILL), None

    def _listed(self, site: Met, way: Way) -> Any:
        n = way.latent.values
        assert n is not None
        places = np.array([way.place * n**visit for visit in range(way.latent.visits)])
        return site.law.support()[(self.combination // jnp.asarray(places)[_visit(site)]) % n]

    def _moved(self, site: Met, way: Way, value: Any, key: Any) -> Any:
        """Return the value, in modes of this site with one number moved to one of a pair of points, by noise."""
        normal, shape = normal_of(site.law), site.law.shape
        loc, scale = (jnp.broadcast_to(x, shape).ravel() for x in (normal.loc, normal.scale))
        self.moments[site.slot] = loc, scale
        move = self.mode - way.place - _PAIRS * way.latent.size * _visit(site)
        number, point = move // _PAIRS, move % _PAIRS
        mine = (move >= 0) & (move < _PAIRS * way.latent.size)
        number = jnp.where(mine, number, 0)
        noise = jax.random.normal(key, (7,))
        radius = jnp.sqrt(jnp.sum(noise[:2] ** 2))  # Rayleigh
        maxwell = jnp.sqrt(jnp.sum(noise[2:5] ** 2)) * jnp.sign(noise[5])  # on both sides
        normal_too = maxwell * ndtr(noise[6])  # a standard normal number, coupled to it
        points = jnp.stack([radius, -radius, maxwell, normal_too])
        flat = jnp.ravel(value)
        moved = flat.at[number].set((loc + scale * points[point])[number])
        return jnp.where(mine, jax.lax.stop_gradient(moved), flat).reshape(shape)

    def iterate(self, extra: Any) -> Drawn:
        """Return the listener of an iteration."""
        return Drawn(self.key, self.plan, self.combination, self.mode)

    def outputs(self) -> Any:
        """Return what it drew, and the moments."""
        return super().outputs(), self.moments

    def leave(self, plan: Any, inside: Any, stacked: Any) -> None:
        """Take up what all iterations drew."""
        drawn, moments = stacked
        super().leave(plan, inside, drawn)
        self.moments |= moments

    def total(self, estimator: str) -> Any:
        """Return Σ log q of the sites that have an estimator."""
        terms = [jnp.sum(r.log_prob) for r in self.records if self._way(r.spot) == estimator]
        return sum(terms, jnp.zeros(()))

    def _way(self, spot: Spot) -> str | None:
        way = self.plan.of.get(spot.slot)
        return None if way is None or spot.kind != "sample" else way.estimator


def slopes(plan: Ways, moments: Mapping[str, tuple[Any, Any]], moved: Any) -> Any:
    """Return a number whose gradient is the measure-valued part: ``moved`` (modes,) holds f at each of the points."""
    total = jnp.zeros(())
    for slot, (loc, scale) in moments.items():
        way = plan.of[slot]
        loc, scale = jnp.ravel(loc), jnp.ravel(scale)
        start = way.place - 1
        f = jax.lax.stop_gradient(moved[start : start + _PAIRS * loc.size].reshape(loc.size, _PAIRS))
        still = jax.lax.stop_gradient(scale)
        by_loc = (f[:, 0] - f[:, 1]) / (still * math.sqrt(2 * math.pi))
        by_scale = (f[:, 2] - f[:, 3]) / still
        total += jnp.sum(by_loc * new(loc) + by_scale * new(scale))
    return total


def new(x: Any) -> Any:
    """Return 0 with the gradient of x."""
    return x - jax.lax.stop_gradient(x)


def scored(plan: Ways) -> Ways:
    """Return the plan in which nothing passes a draw but the score."""
    return Ways({slot: replace(way, estimator="score", place=0) for slot, way in plan.of.items()}, 1, 0)


def _visit(site: Met) -> Any:
    """Return the number of a site's iteration among those of its loops."""
    number: Any = 0
    for length, index in zip(site.spot.lengths, site.index):
        number = number * length + index
    return number

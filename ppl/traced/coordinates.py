"""A program's continuous choices as unconstrained coordinates, in JAX: listeners that find and follow them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
from numpy.typing import NDArray

from ..effects import fingerprint
from ..errors import NotDifferentiable, NotTraceable
from ..sites import MISSING, address
from .fiber import Stop
from .met import Listener, Met, Probe, Spot

Role = Literal["moves", "follows", "fixed", "stays", "forced"]


@dataclass(frozen=True)
class Entry:
    """A latent of the traced code.

    Attributes:
        spot: where it is; in loops, in all iterations.
        role: "moves" with the coordinates; "follows" where all its mass is on one value; "fixed" is a number that goes
            in and stays; "stays" is a constant of the traced code (a text, say); "forced" by a handler.
        count: of iterations of the outermost loop that the paths have; 0 outside loops.
        shape: of the coordinates of one visit.
        offset: of its coordinates among all.
    """

    spot: Spot
    role: Role
    count: int = 0
    shape: tuple[int, ...] = ()
    offset: int = 0

    @property
    def lengths(self) -> tuple[int, ...]:
        """The iterations that the paths have: axes before those of a value."""
        return (self.count, *self.spot.lengths[1:]) if self.spot.lengths else ()

    @property
    def size(self) -> int:
        """How many coordinates it has."""
        return int(np.prod((*self.lengths, *self.shape))) if self.role == "moves" else 0

    def addresses(self) -> list[str]:
        """Return the address of each visit, in the order of the loops."""
        return [address(*self.spot.at(at)[:2]) for at in np.ndindex(self.lengths)]


@dataclass(frozen=True)
class Layout:
    """The latents of paths of one signature, and what is constant in the traced code.

    Attributes:
        entries: by slot, in the order of the code.
        constants: values, by slot, that stay as they are.
        requests: fingerprints of what is not traced, by slot: they must not depend on what is.
        estimated: the first `fk.nested` run, by slot, if any.
        single: whether an interpreted run computes some of it in single precision (NumPyro's distributions, unless JAX
            is set to double).
    """

    entries: Mapping[str, Entry]
    constants: Mapping[str, Any]
    requests: Mapping[str, Any]
    estimated: str | None
    single: bool

    @property
    def size(self) -> int:
        """The number d of coordinates."""
        return sum(entry.size for entry in self.entries.values())

    def of(self, *roles: Role) -> list[Entry]:
        """Return the latents of some roles, in order."""
        return [entry for entry in self.entries.values() if entry.role in roles]

    def pack(self, parts: Mapping[str, Any]) -> Any:
        """Return the vector of coordinates that are given by slot."""
        found = [jnp.reshape(parts[entry.spot.slot], entry.size) for entry in self.of("moves") if entry.size]
        return jnp.concatenate(found).astype(float) if found else jnp.zeros(0)

    def unpack(self, u: Any) -> dict[str, Any]:
        """Return the coordinates by slot."""
        return {
            entry.spot.slot: u[entry.offset : entry.offset + entry.size].reshape((*entry.lengths, *entry.shape))
            for entry in self.of("moves")
        }

    def check(self, site: Met) -> None:
        """Raise NotTraceable where what is asked of a model depends on what is traced."""
        try:
            same = bool(self.requests.get(site.slot) == fingerprint(site.effect.request))
        except Exception:  # a symbol in it says neither
            same = False
        if not same:
            raise NotTraceable(f"{site!r}: what is asked there depends on numbers that are traced")


class Pilot(Probe):
    """Finds the latents, with the values of one path by address, in an abstract run.

    Where the code meets a latent that the path does not have, the run ends.
    """

    def __init__(self, values: Mapping[str, Any], static: bool, double: bool) -> None:
        super().__init__()
        self._double = double
        self._values = values
        self._static = static
        self._entries: dict[str, Entry] = {}
        self._requests: dict[str, Any] = {}
        self._estimated: str | None = None
        self._laws: list[Any] = []  # as the program wrote them

    def layout(self) -> Layout:
        """Return what was found."""
        offset, placed = 0, {}
        for slot, entry in self._entries.items():
            placed[slot] = replace(entry, offset=offset)
            offset += entry.size
        constants = {slot: self._values[slot] for slot, entry in placed.items() if entry.role == "stays"}
        return Layout(placed, constants, self._requests, self._estimated, self._numpyro and not self._double)

    def sample(self, site: Met) -> Any:
        """Find out what part a latent plays, and answer the path's value."""
        slot, spot = site.slot, site.spot
        if spot not in self.spots:
            self.spots.append(spot)
        if slot not in self._values and not spot.lengths:
            raise Stop
        value = self._values.get(slot, MISSING)
        self._laws.append(site.kernel)
        try:
            role, shape = self._role(site, value)
        except NotTraceable:
            if spot.lengths or _is_real(value):
                raise
            self._requests[slot] = fingerprint(site.effect.request)
            role, shape = "stays", ()
        if role == "stays" and spot.lengths:
            raise NotTraceable(f"site {slot!r}: within a scan its value must be known as a number")
        self._entries[slot] = Entry(spot, role, self._count(spot), shape)
        return site.law.draw(jax.random.key(0)) if spot.lengths or value is MISSING else value

    def _role(self, site: Met, value: Any) -> tuple[Role, tuple[int, ...]]:
        law = site.law
        if site.forced is not MISSING:
            return "forced", ()
        if law.fixed:
            return "follows", ()
        if not law.discrete:
            return "moves", _free_shape(site)
        number = value is MISSING or isinstance(value, int | float | np.ndarray | np.generic)
        return ("fixed" if number and not self._static else "stays"), ()

    def _count(self, spot: Spot) -> int:
        """Return of how many iterations of the outermost loop the path has a site."""
        if not spot.lengths:
            return 0
        have = np.zeros(spot.lengths, bool)
        for at in np.ndindex(spot.lengths):
            have[at] = address(*spot.at(at)[:2]) in self._values
        rows = have.reshape(spot.lengths[0], -1)
        some: NDArray[np.bool_] = np.any(rows, axis=1)
        every: NDArray[np.bool_] = np.all(rows, axis=1)
        count = int(every.sum())
        if not every[:count].all() or some[count:].any():
            raise NotTraceable(f"site {spot.slot!r}: the path ends in the midst of a scan within a scan")
        return count

    def observe(self, site: Met) -> None:
        """Note what is observed of laws that cannot be traced."""
        self._laws.append(site.kernel)
        try:
            _ = site.law
        except NotTraceable:
            self._ask(site)

    def score(self, site: Met) -> Any:
        """Note a lazy score, whose number the path has."""
        self._ask(site)
        return 0.0

    def factor(self, site: Met) -> None:
        """Pass."""

    twist = record = factor

    def other(self, site: Met) -> Any:
        """Note a run within the program."""
        if site.effect.kind == "nested":
            self._estimated = self._estimated or site.slot
        return _estimate(self, site)

    def _ask(self, site: Met) -> None:
        if site.spot.lengths:
            raise NotTraceable(f"{site!r}: what a model scores within a scan cannot be traced")
        self._requests[site.slot] = fingerprint(site.effect.request)

    @property
    def _numpyro(self) -> bool:
        return any(isinstance(law, nd.Distribution) for law in self._laws)

    def scan(self, plan: Any) -> Any:
        """Go on behind the scan, where the path has all of it."""
        found = plan.run(self)
        if whole_iterations(plan, self._entries) < plan.length:
            raise Stop
        return found


def whole_iterations(plan: Any, entries: Mapping[str, Entry]) -> int:
    """Return of how many iterations of a scan the paths have all latents; of one within a scan they have them."""
    if plan.depth:
        return int(plan.length)
    return min([int(plan.length), *(entries[spot.slot].count for spot in plan.spots if spot.slot in entries)])


def _is_real(value: Any) -> bool:
    return isinstance(value, float | np.ndarray) and np.asarray(value).dtype.kind == "f"


def _free_shape(site: Met) -> tuple[int, ...]:
    try:
        return tuple(site.law.bijector().inverse_shape(site.law.shape))
    except NotImplementedError:
        raise NotDifferentiable(
            f"site {site.slot!r}: NumPyro has no bijection to the support of {site.law!r}, so that it cannot be moved"
        ) from None


class Estimate:
    """Stands for the posterior of a run within the program, of which the code may read the evidence, and no more."""

    log_evidence = 0.0


def _estimate(listener: Listener, site: Met) -> Any:
    return Estimate() if site.effect.kind == "nested" else Listener.other(listener, site)


class _Through(Probe):
    """Finds out about scans, with runs within them."""

    def other(self, site: Met) -> Any:
        """Let a run within the program pass."""
        return _estimate(self, site)


class Coordinates(Listener):
    """Scores the traced code at coordinates (or at values, ``inward``, whose coordinates it finds).

    Args:
        layout: of the paths.
        data: by slot, the coordinates (or values) of what moves and the values of what is fixed.
        horizon: steps of which potentials count.
        inward: whether the data of what moves are values.

    Attributes:
        log_prior: of all latents that are traced, with ``log_jacobian``.
        log_potential: of observations and factors of steps below the horizon.
        parts: what was found, by slot: values of what moves or follows; ``inward`` the coordinates.
        normal: by slot, mean and scale (or Cholesky factor) of what is drawn from a normal law, outside loops.
        terms: what each site outside loops weighs, by slot.
        stopped: the step at which the paths end, None where they do not.
    """

    checkpoint = True

    def __init__(self, layout: Layout, data: Mapping[str, Any], horizon: Any, inward: bool = False) -> None:
        self.layout = layout
        self._data = data
        self._horizon = horizon
        self._inward = inward
        self.log_prior: Any = 0.0
        self.log_potential: Any = 0.0
        self.log_jacobian: Any = 0.0
        self.parts: dict[str, Any] = {}
        self.normal: dict[str, Any] = {}
        self.terms: list[tuple[str, Any]] = []
        self.stopped: Any = None

    def sample(self, site: Met) -> Any:
        """Answer a latent's value, and score it."""
        slot = site.slot
        entry = self.layout.entries.get(slot)
        if entry is None or (entry.role in ("moves", "fixed") and slot not in self._data):
            self.stopped = site.step
            raise Stop
        if slot in self.layout.requests:
            self.layout.check(site)
            return self.layout.constants[slot]
        value, jacobian = self._value(site, entry)
        weight = site.log_prob(value) + jacobian
        self.log_prior = self.log_prior + weight
        self.log_jacobian = self.log_jacobian + jacobian
        self.terms.append((slot, weight))
        return value

    def _value(self, site: Met, entry: Entry) -> tuple[Any, Any]:
        """Return a latent's value, and log|det dx/du|."""
        slot, law = site.slot, site.law
        if entry.role == "stays":
            return self.layout.constants[slot], 0.0
        if entry.role == "forced":
            return site.forced, 0.0
        if entry.role == "follows":
            if not self._inward and jnp.shape(law.value) == law.shape:
                self.parts[slot] = law.value
            return law.value, 0.0
        given = self._data[slot]
        if entry.role == "fixed":
            return given, 0.0
        bijector = law.bijector()
        u, x = (bijector.inv(given), given) if self._inward else (given, bijector(given))
        self.parts[slot] = u if self._inward else x
        if type(law.dist) in (nd.Normal, nd.MultivariateNormal) and site.terms.scale == 1.0:
            scale = law.dist.scale if type(law.dist) is nd.Normal else law.dist.scale_tril
            self.normal[slot] = law.dist.loc, scale
        return x, jnp.sum(bijector.log_abs_det_jacobian(u, x))

    def observe(self, site: Met) -> None:
        """Add log p of the observation; where its law is not traced, the path has the number."""
        if site.slot in self.layout.requests:
            self.layout.check(site)
        else:
            self._weigh(site, site.log_prob(site.value))

    def score(self, site: Met) -> Any:
        """Leave out the score, whose number the path has."""
        self.layout.check(site)
        return 0.0

    def factor(self, site: Met) -> None:
        """Add the log-weight."""
        self._weigh(site, site.value)

    def _weigh(self, site: Met, weight: Any) -> None:
        self.log_potential = self.log_potential + jnp.where(site.step < self._horizon, weight, 0.0)
        self.terms.append((site.slot, weight))

    def other(self, site: Met) -> Any:
        """Let a run within the program pass: it is an estimate of the potential."""
        return _estimate(self, site)

    def probe(self) -> Listener:
        """Return what finds out about scans."""
        return _Through()

    def scan(self, plan: Any) -> Any:
        """Run the iterations of which the paths have all latents, and what they have of the next."""
        whole = whole_iterations(plan, self.layout.entries)
        if whole == plan.length:
            return plan.run(self)
        carry = plan.run(self, whole)[0] if whole else plan.init
        last = {slot: column[whole] for slot, column in self._rows(plan).items() if len(column) > whole}
        inside = self.iterate(last)
        try:
            plan.step(carry, jax.tree.map(lambda column: column[whole], plan.xs), whole, inside)
        except Stop:
            self.stopped = inside.stopped
        self._add(inside.log_prior, inside.log_potential, inside.log_jacobian)
        for slot, part in inside.parts.items():
            part = jnp.asarray(part)[None]
            self.parts[slot] = jnp.concatenate([self.parts[slot], part]) if slot in self.parts else part
        raise Stop

    def _rows(self, plan: Any) -> dict[str, Any]:
        return {spot.slot: self._data[spot.slot] for spot in plan.spots if spot.slot in self._data}

    def enter(self, plan: Any) -> Any:
        """Return the data of the scan's sites."""
        return self._rows(plan)

    def iterate(self, extra: Any) -> Coordinates:
        """Return the listener of an iteration, with its data."""
        return Coordinates(self.layout, extra, self._horizon, self._inward)

    def outputs(self) -> Any:
        """Return the sums and the parts."""
        return jax.tree.map(jnp.asarray, (self.log_prior, self.log_potential, self.log_jacobian, self.parts))

    def leave(self, plan: Any, inside: Any, stacked: Any) -> None:
        """Add the sums of all iterations, and take up the parts."""
        *sums, parts = stacked
        self._add(*(jnp.sum(term) for term in sums))
        self.parts |= parts

    def _add(self, log_prior: Any, log_potential: Any, log_jacobian: Any) -> None:
        self.log_prior = self.log_prior + log_prior
        self.log_potential = self.log_potential + log_potential
        self.log_jacobian = self.log_jacobian + log_jacobian

"""Listeners: one that finds out what a step does, and one that draws or takes values and sums up what they weigh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..sites import MISSING, Site
from ..values.guard import guard
from .met import Listener, Met, Spot


@dataclass(frozen=True)
class Record:
    """What happened at a site, in all iterations of its loops: arrays with a leading axis for each loop."""

    spot: Spot
    value: Any
    log_prob: Any = 0.0
    log_proposal: Any = 0.0


class Weigher(Listener):
    """Takes given values, or draws from a key; sums up the parts of the weight, and keeps records.

    Args:
        key: a JAX key, from which each site's is folded; None: all values must be given.
        given: values by slot (the address in the first iteration); of a site in scans, arrays with a leading axis for
            each scan. What handlers force yields to it.

    Attributes:
        log_prob: Σ log p of the choices so far, and so ``log_proposal``, ``log_potential``.
        records: of all sites, in order.
    """

    def __init__(self, key: Any = None, given: Mapping[str, Any] | None = None) -> None:
        self.key = key
        self.given = given or {}
        self.log_prob: Any = 0.0
        self.log_proposal: Any = 0.0
        self.log_potential: Any = 0.0
        self.records: list[Record] = []

    def choose(self, site: Met) -> tuple[Any, Any]:
        """Return a latent's value and log q, which is None where it is drawn from its own law."""
        value = self.given.get(site.slot, site.forced)
        if value is MISSING:
            value = (site.proposal or site.law).draw(site.key(self.key))
        return value, None if site.proposal is None else site.proposal.log_prob(value)

    def sample(self, site: Met) -> Any:
        """Choose a value, and weigh it."""
        value, log_q = self.choose(site)
        log_p = site.log_prob(value)
        if log_q is None:
            log_q = log_p if site.terms.scale == 1.0 else site.law.log_prob(value)
        self.log_prob = self.log_prob + log_p
        self.log_proposal = self.log_proposal + log_q
        self.keep(site, value, log_p, log_q)
        return value

    def observe(self, site: Met) -> None:
        """Add log p of the observation to the potential."""
        log_p = site.log_prob(site.value)
        self.log_potential = self.log_potential + log_p
        self.keep(site, site.value, log_p)

    def factor(self, site: Met) -> None:
        """Add the log-weight to the potential."""
        self.log_potential = self.log_potential + site.value
        self.keep(site, site.value)

    def twist(self, site: Met) -> None:
        """Keep the level; it weighs nothing."""
        self.keep(site, site.value)

    record = twist

    def keep(self, site: Met, value: Any, log_prob: Any = 0.0, log_proposal: Any = 0.0) -> None:
        """Keep a record; override it to keep fewer."""
        self.records.append(Record(site.spot, value, log_prob, log_proposal))

    def enter(self, plan: Any) -> Any:
        """Return the given values of the scan's sites."""
        return {spot.slot: self.given[spot.slot] for spot in plan.spots if spot.slot in self.given}

    def iterate(self, extra: Any) -> Weigher:
        """Return the listener of an iteration, with that iteration's values."""
        return type(self)(self.key, extra)

    def outputs(self) -> Any:
        """Return the sums, and what was recorded."""
        columns = [(record.value, record.log_prob, record.log_proposal) for record in self.records]
        return jax.tree.map(jnp.asarray, (self.log_prob, self.log_proposal, self.log_potential, columns))

    def leave(self, plan: Any, inside: Any, stacked: Any) -> None:
        """Add the sums of all iterations, and keep their records."""
        *sums, columns = stacked
        for name, terms in zip(("log_prob", "log_proposal", "log_potential"), sums):
            setattr(self, name, getattr(self, name) + jnp.sum(terms))
        self.records += [Record(record.spot, *column) for record, column in zip(inside.records, columns)]


def expand(records: Sequence[Record], upto: float = np.inf) -> list[tuple[int, Site]]:
    """Return the sites of records whose values are numbers by now, each with its step, of the first ``upto`` steps.

    They are in the order of steps and, within one, of the iterations of a loop.
    """
    found: list[tuple[tuple[Any, ...], Site]] = []
    group = 0
    for place, record in enumerate(records):
        spot = record.spot
        if place and spot.lengths != records[place - 1].spot.lengths:
            group = place
        columns = [np.asarray(x) if spot.lengths else x for x in (record.value, record.log_prob, record.log_proposal)]
        for at in np.ndindex(spot.lengths):
            name, visit, step = spot.at(at)
            if step < upto:
                value, log_p, log_q = (_number(column[at] if at else column) for column in columns)
                site = Site(name, visit, spot.kind, guard(value), float(log_p), float(log_q), spot.hidden)
                found.append(((step, group, at, place), site))
    found.sort(key=lambda item: item[0])
    return [(order[0], site) for order, site in found]


def _number(value: Any) -> Any:
    """Return a value as a program sees it: one of Python's numbers, or an array of NumPy's."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        return array.item() if array.ndim == 0 else array
    return value

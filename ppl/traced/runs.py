"""Whole runs of a traced program from their coordinates: as arrays, without running its code for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import keys as _keys
from ..errors import NotTraceable
from ..model import Advance
from ..running.particle import Particle, Particles
from ..sites import MISSING, Site
from ..values.reals import plain
from .coordinates import Coordinates
from .driver import trace
from .fiber import Stop
from .met import Met, Spot
from .returned import build, skeleton


class Recorder(Coordinates):
    """Notes what each site of a run at some coordinates is: value (None where it is no symbol) and log-probability."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.columns: dict[tuple[str, str], tuple[Any, Any]] = {}
        self.spots: dict[tuple[str, str], Spot] = {}

    def sample(self, site: Met) -> Any:
        """Note a latent; one that is drawn from another law than it is scored by is left to the interpreter."""
        if site.effect.proposal is not None or site.forced is not MISSING or site.terms.scale != 1.0:
            raise Stop
        value = super().sample(site)
        self._note(site, value, site.log_prob(value))
        return value

    def observe(self, site: Met) -> None:
        """Note an observation."""
        super().observe(site)
        self._note(site, None, site.log_prob(site.value))

    def factor(self, site: Met) -> None:
        """Note a weight."""
        super().factor(site)
        self._note(site, site.value, 0.0)

    def record(self, site: Met) -> None:
        """Note a quantity, where it is a number or an array."""
        self._note(site, site.value, 0.0)

    def twist(self, site: Met) -> None:
        """Leave the run to the interpreter."""
        raise Stop

    def _note(self, site: Met, value: Any, log_prob: Any) -> None:
        if site.spot.names is not None or len(site.spot.lengths) > 1:
            raise Stop
        stays = value is None or isinstance(value, str | bytes)  # the same in all runs
        if not stays and not isinstance(value, bool | int | float | np.ndarray | np.generic | jax.Array):
            raise Stop
        column = None if stays else jnp.asarray(value)
        self.columns[site.spot.kind, site.slot] = column, jnp.asarray(log_prob, float)
        self.spots[site.spot.kind, site.slot] = site.spot

    def iterate(self, extra: Any) -> Recorder:
        """Return the listener of an iteration."""
        return Recorder(self.layout, extra, self._horizon, self._inward)

    def outputs(self) -> Any:
        """Return the sums, the parts, and what was noted."""
        return super().outputs(), self.columns

    def leave(self, plan: Any, inside: Any, stacked: Any) -> None:
        """Take up what all iterations noted."""
        sums, columns = stacked
        super().leave(plan, inside, sums)
        self.columns |= columns
        self.spots.update(inside.spots)


def recorded(program: Any, layout: Any, unpacked: Any, fixed: Any, seen: dict[str, Any]) -> Any:
    """Return what a run at some coordinates notes, and the arrays in what it returns; ``seen`` gets their form."""
    listener = Recorder(layout, unpacked | fixed["values"], fixed["horizon"])
    leaves: list[Any] = []
    seen["form"] = skeleton(trace(program, listener).value, leaves)
    seen["spots"] = listener.spots
    return listener.columns, [jnp.asarray(leaf) for leaf in leaves]


class Runs:
    """Makes runs of one signature from arrays: their steps, as `Advance`s.

    Args:
        program: a bound program.
        spots: by kind and slot, where its sites are.
        form: of what it returns.
        tolerance: relative difference to be expected from the interpreter.
    """

    def __init__(self, program: Any, spots: Mapping[tuple[str, str], Spot], form: Any, tolerance: float) -> None:
        self._program = program
        self._form = form
        self._tolerance = tolerance
        self._spots = spots
        self._agrees: bool | None = None

    def make(
        self,
        columns: Mapping[tuple[str, str], Any],
        leaves: Sequence[Any],
        olds: Sequence[list[Any]],
        given: Sequence[list[Any]],
    ) -> list[Advance[Any]] | None:
        """Return the steps of m runs that have the sites of ``olds``; None where the interpreter is to make them.

        The first time, it makes one of them, too, and they must agree.

        Args:
            columns: by kind and slot, value (m, …), or None where it stays, and log-probability (m, …).
            leaves: of what is returned, (m, …).
            olds: the choices of a run with the same sites, by step.
            given: what forces each run.
        """
        if self._agrees is False:
            return None
        made = self._made(self._cells(columns), leaves, olds, given)
        if made is not None and self._agrees is None:
            self._agrees = _agree(self._program, made, given[0], self._tolerance)
        return made if self._agrees else None

    def _cells(self, columns: Mapping[tuple[str, str], Any]) -> dict[Any, tuple[Any, Any]]:
        """Return value and log-probability of the runs, by kind, name and visit."""
        cells = {}
        for (kind, slot), (values, log_prob) in columns.items():
            spot = self._spots[kind, slot]
            for at in np.ndindex(log_prob.shape[1:]):
                row = (slice(None), *at)
                column = None if values is None else values[row]
                if column is not None:
                    column = column.tolist() if column.ndim == 1 else [plain(value) for value in column]
                name, visit, _ = spot.at(at)
                cells[kind, name, visit] = column, log_prob[row].tolist()
        return cells

    def _made(
        self, cells: Mapping[Any, Any], leaves: Sequence[Any], olds: Sequence[list[Any]], given: Sequence[list[Any]]
    ) -> list[Advance[Any]] | None:
        n, steps = len(olds), len(olds[0])
        made: list[list[tuple[Site, ...]]] = [[] for _ in range(steps)]
        sums = np.zeros((steps, 2, n))
        for i, old in enumerate(olds):
            if len(old) != steps:
                return None
            for t, choices in enumerate(old):
                sites = []
                for name, visit, kind, value, _, _, hidden in choices:
                    if (cell := cells.get((kind, name, visit))) is None:
                        return None
                    log_p, drawn = cell[1][i], kind == "sample"
                    value = value if cell[0] is None else cell[0][i]
                    sites.append(Site(name, visit, kind, value, log_p, log_p if drawn else 0.0, hidden))
                    sums[t, 0 if drawn else 1, i] += value if kind == "factor" else log_p
                made[t].append(tuple(sites))
        if not np.isfinite(sums).all():
            return None
        again, ends = Again(self._program, given), []
        for i in range(n):
            outputs = [s.value for step in made for s in step[i] if s.kind == "deterministic" and s.name == "output"]
            ends.append(Particle.ended(self._program, steps - 1, build(self._form, leaves, (i,)), [None, *outputs][-1]))
        states = [*(Earlier(again, t) for t in range(steps - 1)), Particles(ends)]
        zero, one = np.zeros(n), np.ones(n, bool)
        return [
            Advance(state, choices, log_prob, log_prob, log_potential, zero, one & (t == steps - 1), one)
            for t, (state, choices, (log_prob, log_potential)) in enumerate(zip(states, made, sums))
        ]


class Again:
    """Makes runs by the interpreter after all, when somebody goes on from one of their steps."""

    def __init__(self, program: Any, given: Sequence[list[Any]]) -> None:
        self._program = program
        self._given = given
        self._made: list[Advance[Any]] = []

    def __len__(self) -> int:
        return len(self._given)

    def step(self, t: int) -> Advance[Any]:
        """Return a step of theirs."""
        keys = _keys.fold(_keys.root(0), np.arange(len(self)))  # nothing is drawn
        while len(self._made) <= t:
            forced = [given[len(self._made)] for given in self._given]
            if not self._made:
                self._made.append(self._program.start(keys, forced))
            else:
                self._made.append(self._program.advance(self._made[-1].state, keys, forced))
        return self._made[t]


class Earlier(Particles):
    """Particles at a step before the last, which are made when they are looked at."""

    __slots__ = ("_again", "_t")

    def __init__(self, again: Again, t: int) -> None:
        self._again = again
        self._t = t

    def __len__(self) -> int:
        return len(self._again)

    @property
    def items(self) -> list[Particle]:  # type: ignore[override]
        """The particles."""
        return self._again.step(self._t).state.items  # type: ignore[no-any-return]


def _agree(program: Any, made: list[Advance[Any]], given: list[Any], tolerance: float) -> bool:
    """Whether the first of some runs is what the interpreter makes of it."""
    again = Again(program, [given])
    for t, step in enumerate(made):
        theirs = again.step(t)
        if bool(theirs.done[0]) is not bool(step.done[0]) or not _close(
            [(s.address, s.kind, s.hidden, s.value, s.log_prob, s.log_proposal) for s in step.choices[0]],
            [(s.address, s.kind, s.hidden, s.value, s.log_prob, s.log_proposal) for s in theirs.choices[0]],
            tolerance,
        ):
            return False
    mine, its = made[-1].state.items[0], theirs.state.items[0]
    return _close([mine.result, mine.output], [its.result, its.output], tolerance)


def _close(mine: Any, its: Any, tolerance: float) -> bool:
    """Whether two values have the same form, and numbers that are as good as equal."""
    both: tuple[list[Any], list[Any]] = [], []
    try:
        forms = [skeleton(value, leaves) for value, leaves in zip((mine, its), both)]
    except NotTraceable:
        return False
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(*both)]
    return forms[0] == forms[1] and all(
        a.shape == b.shape and np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True) for a, b in pairs
    )

"""Densities of programs that cannot be traced: a coroutine for each path, log-probs in batches, and no gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import keys as _keys
from ..density import Density, Evaluation
from ..distributions.batching import Bounds
from ..effects import Call, Effect, Sample, fingerprint
from ..errors import NotDifferentiable, Unsupported
from ..model import Floats
from ..running.handling import Handler
from ..sites import MISSING


class Interpreted:
    """The densities of a program's paths of one signature, by forced runs.

    Args:
        program: a bound program.
        reason: why it is not traced.
        signature: of the paths.
    """

    constants = ()

    def __init__(self, program: Any, reason: str, signature: Any, launch: Any) -> None:
        self._program = program
        self._launch = launch
        self._reason = reason
        self._signature = signature

    def density(self, rows: Sequence[int], paths: Sequence[list[Any]], horizon: int | None) -> Density:
        """Return the density at paths, each the list of its steps' choices.

        Raises Unsupported, naming the site, for a real value whose law does not tell its bounds.
        """
        kinds = ("sample", "call")
        values = [{s.address: s.value for choices in path for s in choices if s.kind in kinds} for path in paths]
        here = self._run([Place(row) for row in values], horizon)
        position = np.array([np.concatenate([np.zeros(0), *place.coordinates.values()]) for place in here.places])
        sizes = {at: len(u) for at, u in here.places[0].coordinates.items()}
        ends = np.cumsum([0, *sizes.values()]).tolist()
        spans = {at: slice(a, b) for at, a, b in zip(sizes, ends, ends[1:])}
        known: list[tuple[bytes, _Made]] = []

        def made(u: Floats) -> _Made:
            u = np.asarray(u, np.float64)
            if not known or known[0][0] != u.tobytes():
                there = [
                    Place(row, {at: x[span] for at, span in spans.items()}, place.asked)
                    for row, x, place in zip(values, u, here.places)
                ]
                known[:] = [(u.tobytes(), self._run(there, horizon))]
            return known[0][1]

        def evaluate(u: Floats, gradients: bool) -> Evaluation:
            if gradients:
                raise NotDifferentiable(
                    f"there is no gradient, as the program cannot be traced: {self._reason}. Moves that need none are "
                    "RandomWalk and SuffixMH"
                )
            found = made(u)
            return Evaluation(found.log_prob + found.log_jacobian, found.log_potential)

        stays = [at for at, value in values[0].items() if at not in spans and at not in here.places[0].asked]
        return Density(
            rows=np.asarray(rows, np.intp),
            position=position,
            evaluate=evaluate,
            choices=lambda u: made(u).choices,
            log_jacobian=lambda u: made(u).log_jacobian,
            stays=tuple(stays),
            signature=self._signature,
            sites=tuple(at for at, size in sizes.items() for _ in range(size)),
        )

    def _run(self, places: list[Place], horizon: int | None) -> _Made:
        """Run a particle for each path, under what places its values, to its end or to the horizon."""
        keys = _keys.fold(_keys.root(0), np.arange(len(places)))
        advance = self._launch([self._program.with_handler(place) for place in places], _keys.fold(keys, 0))
        log_prob, log_potential = advance.log_prob.copy(), advance.log_potential.copy()
        choices = [[chosen] for chosen in advance.choices]
        steps = 1
        while not advance.done.all() and (horizon is None or steps < horizon):
            going = np.flatnonzero(~advance.done).tolist()
            advance = self._program.advance(advance.state, _keys.fold(keys, steps))
            log_prob, log_potential = log_prob + advance.log_prob, log_potential + advance.log_potential
            for i in going:
                choices[i].append(advance.choices[i])
            steps += 1
        met = np.array([place.met(chosen) for place, chosen in zip(places, choices)])
        jacobian = np.array([place.log_jacobian for place in places])
        return _Made(np.where(met, log_prob, -np.inf), log_potential, jacobian, choices, places)


class _Made(NamedTuple):
    log_prob: Floats
    log_potential: Floats
    log_jacobian: Floats
    choices: list[list[Any]]
    places: list[Place]


class Place(Handler):
    """Forces the values of a path, those of continuous sites by their coordinates.

    Args:
        values: by address, of samples and calls.
        given: coordinates by address; None: find them out, from the values.
        asked: fingerprints of the calls' requests, by address, where they are known.

    Attributes:
        coordinates: by address, in order.
        log_jacobian: Σ log|det dx/du|.
        asked: see above.
    """

    sees_hidden = True

    def __init__(
        self,
        values: Mapping[str, Any],
        given: Mapping[str, Floats] | None = None,
        asked: Mapping[str, Any] | None = None,
    ) -> None:
        self._values = values
        self._given = given
        self._left = set(values)
        self._strange: set[str] = set()
        self._known = asked
        self.coordinates: dict[str, Floats] = {}
        self.log_jacobian = 0.0
        self.asked: dict[str, Any] = {}

    def met(self, choices: list[Any]) -> bool:
        """Return whether the program, which made these choices, asked for these values, and for no others.

        At a horizon it has come to a site of the next step, which it has not drawn.
        """
        if self._left or not self._strange:
            return not self._left
        return self._strange.isdisjoint(site.address for step in choices for site in step)

    def touch(self, effect: Effect, address: str, length: int) -> bool:
        """Force a sample or a call."""
        if not isinstance(effect, Sample | Call):
            return False
        if isinstance(effect, Sample) and (effect.obs is not MISSING or effect.fixed is not MISSING):
            return False
        if address not in self._values:
            self._strange.add(address)
            return False
        self._left.discard(address)
        if effect.forced is MISSING:
            value = self._values[address]
            effect.forced = self._placed(effect, address, value) if isinstance(effect, Sample) else value
        if isinstance(effect, Call):
            self.asked[address] = fingerprint(effect.request)
            if self._known is not None and self._known.get(address) != self.asked[address]:
                raise Unsupported(
                    f"site {address!r}: fk.call would be asked something else where the coordinates move, and its "
                    "value was recorded; compute it without fk.call, or before what moves"
                )
        return False

    def _placed(self, effect: Sample, address: str, value: Any) -> Any:
        array = np.asarray(value) if isinstance(value, float | np.ndarray) else None
        if array is None or array.dtype.kind != "f":
            return value
        bounds = effect.kernel.bounds() if hasattr(effect.kernel, "bounds") else None
        if bounds is None:
            if hasattr(effect.kernel, "support") and effect.kernel.support() is not None:
                return value  # one of a list of numbers
            raise Unsupported(
                f"site {address!r}: {effect.kernel!r} does not say by `bounds` where its values lie, so that they "
                "cannot be moved in a program that JAX cannot trace"
            )
        if bounds.discrete:
            return value
        given = _free(array, bounds) if self._given is None else self._given[address].reshape(array.shape)
        self.coordinates[address] = given.ravel()
        x, jacobian = _bound(given, bounds)
        self.log_jacobian += jacobian
        if self._given is None:
            return value
        return float(x) if array.ndim == 0 else x


def _free(x: Floats, bounds: Bounds) -> Floats:
    """Return the coordinates of values: x, log(x − low), log(high − x), or the logit between the two."""
    low, high = np.isfinite(bounds.low), np.isfinite(bounds.high)
    with np.errstate(all="ignore"):
        above, below = np.log(x - bounds.low), np.log(bounds.high - x)
        found: Floats = np.where(low & high, above - below, np.where(low, above, np.where(high, below, x)))
    return found


def _bound(u: Floats, bounds: Bounds) -> tuple[NDArray[np.float64], float]:
    """Return the values at coordinates, and log|det dx/du|."""
    low, high = np.isfinite(bounds.low), np.isfinite(bounds.high)
    with np.errstate(all="ignore"):
        part = 1.0 / (1.0 + np.exp(-u))
        both = bounds.low + (bounds.high - bounds.low) * part
        slope = np.log(bounds.high - bounds.low) - np.logaddexp(0.0, u) - np.logaddexp(0.0, -u)
        one = np.where(low, bounds.low + np.exp(u), np.where(high, bounds.high - np.exp(u), u))
    jacobian = np.where(low & high, slope, np.where(low | high, u, 0.0))
    return np.where(low & high, both, one), float(jacobian.sum())

"""What a traced piece of a program does: draws or takes its latents, sums its weights, and notes what went wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InvalidWeight, NotTraceable, UnsupportedProposal
from ..sites import MISSING
from ..traced.fiber import Stop
from ..traced.laws import jax_key
from ..traced.met import Listener, Met
from .choices import Line
from .draws import draw

MOST_UNROLLED = 64
"""Iterations of a scan within a step, or after the main one, that are written out."""


class Doing(Listener):
    """Listens to one particle. All that it sums up is in `made`.

    Args:
        words: of the particle's key, or of the key of all particles.
        slot: the particle's number.
        alive: whether its weight is positive yet.
        given: values of its latents, and ``masks``, whether each is given. Without values none is, without masks all
            are.
        fixed: the values of the latents before the main scan, which are then no part of the piece; None: they are.
        main: what the main scan does: ``main(plan)`` returns carry and ys, or raises `Stop`.
    """

    def __init__(
        self,
        words: Any,
        slot: Any,
        alive: Any,
        given: Sequence[Any],
        masks: Sequence[Any],
        fixed: Sequence[Any] | None,
        main: Callable[[Any], Any],
    ) -> None:
        self.words, self.slot, self.alive = words, slot, alive
        self.given, self.masks, self.fixed = given, masks, fixed
        self.main: Callable[[Any], Any] | None = main
        self.tag = 0
        self.result: tuple[Any, Any] = (), ()
        self.counts = fixed is None
        self.log_prob = self.log_proposal = self.log_potential = jnp.asarray(0.0, float)
        self.level: Any = jnp.asarray(0.0, float)
        self.proposes = self.twists = self.weighs = False
        self.latents: list[Any] = []
        self.lines: list[Line] = []
        self.columns: list[tuple[Any, Any, Any]] = []
        self.bad = jnp.asarray(0, jnp.int32)
        self.faults: list[tuple[type[Exception], str]] = []
        self._before = 0  # latents before the scan that were taken

    # -- sites ------------------------------------------------------------------------------------------------------

    def sample(self, site: Met) -> Any:
        """Choose a latent's value, and weigh it."""
        if not self.counts:
            assert self.fixed is not None
            value = self.fixed[self._before]
            self._before += 1
            return value
        law, place = site.law, len(self.latents)
        source = site.proposal or law
        self._check_law(site, law)
        if site.proposal is not None:
            self._check_law(site, source)
            cannot = f"{site.slot!r}: the proposal cannot reach all that the law can"
            self._fault(~_covers(site, source, law), cannot, UnsupportedProposal)
        own = site.forced is MISSING
        value = self._draw(site, source) if own else _array(site, site.forced)
        if self.given:
            forced = jnp.asarray(self.given[place], value.dtype)
            value = jnp.where(self.masks[place], forced, value) if self.masks else forced
        log_p = jnp.asarray(site.log_prob(value), float)
        log_q = log_p
        if site.proposal is not None or site.terms.scale != 1.0:
            log_q, self.proposes = jnp.asarray(source.log_prob(value), float), True
        self.log_prob = self.log_prob + jnp.where(self.alive, log_p, 0.0)
        self.log_proposal = self.log_proposal + jnp.where(self.alive, log_q, 0.0)
        if self.given or not own or log_q is not log_p:  # what is drawn from its own law is possible
            self._fault(~(log_p < jnp.inf), f"{site.slot!r}: the log-probability of a value is NaN or +inf")
            cannot = f"{site.slot!r}: its proposal cannot reach a value"
            self._fault((log_q == -jnp.inf) & (log_p > -jnp.inf), cannot, UnsupportedProposal)
            self._kill(log_p == -jnp.inf)
        self.latents.append(value)
        self._note(site, None, log_p, log_q, place, own)
        return value

    def observe(self, site: Met) -> None:
        """Weigh an observation."""
        if self.counts:
            self._check_law(site, site.law)
            log_p = jnp.asarray(site.log_prob(site.value), float)
            self._weigh(site, log_p)
            self._note(site, site.value, log_p)

    def factor(self, site: Met) -> None:
        """Multiply the weight."""
        if self.counts:
            weight = jnp.asarray(site.value, float)
            self._weigh(site, weight)
            self._note(site, weight)

    def twist(self, site: Met) -> None:
        """Set the guide's level."""
        level = jnp.asarray(site.value, float)
        self.twists, self.level = True, level
        if self.counts:
            self._fault(~jnp.isfinite(level), f"{site.slot!r}: a twist must be finite; −inf belongs in a factor")
            self._note(site, level)

    def record(self, site: Met) -> None:
        """Note a quantity."""
        if self.counts:
            self._note(site, site.value)

    # -- scans ------------------------------------------------------------------------------------------------------

    def scan(self, plan: Any) -> Any:
        """Do the main scan; write out any other."""
        if self.main is not None:
            main, self.main = self.main, None
            return main(plan)
        if plan.length > MOST_UNROLLED:
            raise NotTraceable(
                f"scan {plan.name!r}: of {plan.length} iterations, within another or after it: such are written out up "
                f"to {MOST_UNROLLED}"
            )
        return plan.unrolled(self)

    def iterate_main(self, plan: Any, carry: Any, x: Any, t: Any, level: Any) -> tuple[Any, Any]:
        """Make iteration t of the main scan; return carry and y."""
        self.counts = True
        carry, y, found = plan.step(carry, x, t, self)
        self.level = found if plan.twisted else level + found
        return carry, y

    # -- what they share --------------------------------------------------------------------------------------------

    def _draw(self, site: Met, law: Any) -> Any:
        if law.fixed:
            return _array(site, law.value)
        # A step's key is of this step alone, so that a site needs no more than its place in it.
        words = jax.random.key_data(jax.random.fold_in(jax_key(self.words), self.tag + len(self.latents)))
        drawn = draw(law.dist, words, self.slot)
        # The law makes of its distribution's draw what it must: an item of a list, say.
        law = copy.copy(law)
        law.dist = SimpleNamespace(sample=lambda key: drawn, batch_shape=law.dist.batch_shape, has_enumerate_support=1)
        return _array(site, law.draw(None))

    def _weigh(self, site: Met, weight: Any) -> None:
        self.weighs = True
        self._fault(~(weight < jnp.inf), f"{site.slot!r}: the log-weight is NaN or +inf; it must be below +inf")
        self.log_potential = self.log_potential + jnp.where(self.alive, weight, 0.0)
        self.alive = self.alive & (weight > -jnp.inf)

    def _kill(self, dead: Any) -> None:
        self.log_potential = jnp.where(self.alive & dead, -jnp.inf, self.log_potential)
        self.alive = self.alive & ~dead

    def _fault(self, wrong: Any, message: str, kind: type[Exception] = InvalidWeight) -> None:
        self.faults.append((kind, message))
        code = jnp.asarray(len(self.faults), jnp.int32)
        self.bad = jnp.where((self.bad == 0) & self.alive & wrong, code, self.bad)

    def _check_law(self, site: Met, law: Any) -> None:
        for name, ok in _soundness(law):
            kind = type(law.dist).__name__
            self._fault(~ok, f"{site.slot!r}: the parameter {name} of {kind} makes no distribution", ValueError)

    def _note(
        self,
        site: Met,
        value: Any,
        log_prob: Any = None,
        log_proposal: Any = None,
        latent: int | None = None,
        drawn: bool = False,
    ) -> None:
        spot = site.spot
        index = tuple(i if isinstance(i, int) else 0 for i in site.index)
        name, visit, _ = spot.at(index)
        stride = next((s for s, i in zip(spot.strides, site.index) if not isinstance(i, int)), 0)
        names = None
        if spot.names is not None:  # of a gather's branches, which are numbered through
            inner = tuple(slice(None) if not isinstance(i, int) else i for i in site.index)
            names = tuple(spot.names[inner].tolist()) if stride or slice(None) in inner else None
        number = latent is None and _is_array(value)
        fixed = None if number or latent is not None else value
        self.lines.append(Line(name, visit, stride, spot.kind, spot.hidden, latent, fixed, drawn, names))
        self.columns.append((jnp.asarray(value) if number else None, log_prob, log_proposal))

    def made(self, carry: Any, y: Any) -> dict[str, Any]:
        """Return all that it summed up, as a tree of arrays."""
        return {
            "carry": carry,
            "y": y,
            "level": self.level,
            "alive": self.alive,
            "log_prob": self.log_prob,
            "log_proposal": self.log_proposal,
            "log_potential": self.log_potential,
            "bad": self.bad,
            "latents": tuple(self.latents),
            "columns": tuple(self.columns),
        }


def stop() -> Any:
    """End a trace."""
    raise Stop


def _is_array(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.ndarray | np.generic | jax.Array)


def _array(site: Met, value: Any) -> Any:
    if not _is_array(value):
        raise NotTraceable(f"site {site.slot!r}: its value {value!r:.80} is no number, so that JAX cannot hold it")
    return jnp.asarray(value)


def _soundness(law: Any) -> list[tuple[str, Any]]:
    """Return for each parameter of a law whether it may be as it is."""
    dist = law.dist
    while type(dist).__name__ == "Independent":
        dist = dist.base_dist
    found = []
    for name, constraint in getattr(dist, "arg_constraints", {}).items():
        value = dist.__dict__.get(name)
        depends = type(constraint).__name__ == "_Dependent"  # on another parameter
        if value is not None and not depends and getattr(constraint, "event_dim", 2) <= 1:
            real = type(constraint).__name__ == "_Real"  # one comparison is quicker than its three
            found.append((name, jnp.all(jnp.abs(value) < jnp.inf if real else constraint(value))))
    if type(dist).__name__ == "Uniform":
        found.append(("high", jnp.all(dist.low < dist.high)))
    return found


def _covers(site: Met, source: Any, law: Any) -> Any:
    """Return whether a proposal reaches all that a law can. Raises NotTraceable where that cannot be told."""
    mine, theirs = source.dist, law.dist
    inner = [d.base_dist if type(d).__name__ == "Independent" else d for d in (mine, theirs)]
    names = [type(d.support).__name__.strip("_") for d in inner]
    if source.shape == law.shape and source.discrete is law.discrete:
        if names[0] == names[1] == "Boolean":
            p, q = inner[1].probs, inner[0].probs
            return jnp.all(((q > 0) | (p == 0)) & ((q < 1) | (p == 1)))
        if all(type(d).__name__.startswith("Categorical") for d in inner):
            q, p = (d.probs for d in inner)
            return jnp.all((q > 0) | (p == 0)) if jnp.shape(p) == jnp.shape(q) else jnp.asarray(False)
        if not law.discrete and (names[0].startswith("Real") or names[0] == "IndependentConstraint"):
            return jnp.asarray(True)
        if names[0] == names[1]:
            low = [getattr(d.support, "lower_bound", -jnp.inf) for d in inner]
            high = [getattr(d.support, "upper_bound", jnp.inf) for d in inner]
            return jnp.all((low[0] <= low[1]) & (high[0] >= high[1]))
    raise NotTraceable(f"site {site.slot!r}: whether its proposal reaches all that its law can cannot be told")

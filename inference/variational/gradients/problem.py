"""A model and its guide as functions of JAX: what objectives are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ....ppl.errors import NotTraceable, UnfitGuide
from ....ppl.program import Program
from ....ppl.traced.driver import trace
from ....ppl.traced.listeners import Record, Weigher
from ....ppl.transforms.params import Declared, Parameters
from .estimators import Drawn, Latent, Look, Ways, new, scored, slopes, ways
from .kinks import check_jumps


class Draw(NamedTuple):
    """A run of the guide, weighed by the model.

    Attributes:
        log_joint: log p of the draws, with the model's potentials.
        log_guide: log q of the draws.
        log_share: log q of the values of sites that are enumerated.
        score: log q of the sites whose score is taken.
        still: log q of all sites whose draws are constants to gradients: the score's and the measure-valued.
        moments: see `Drawn`.
    """

    log_joint: Any
    log_guide: Any
    log_share: Any
    score: Any
    still: Any
    moments: Any


class Problem:
    """A model, its guide, and what was found out about the two.

    Args:
        model: a bound program.
        guide: a bound program.
        chosen: estimators that are asked for, by address or name, over those that the guide asks for.
        auxiliary: a program of what the guide draws and the model does not, made from the latents by address.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        chosen: Mapping[str, str] | None = None,
        auxiliary: Callable[[Mapping[str, Any]], Program] | None = None,
    ) -> None:
        self.model = model
        self.guide = guide
        self.auxiliary = auxiliary
        self.declared: dict[str, Declared] = {}
        look, parameters = self.look(guide)
        self.latents = look.latents
        self.ways = ways(look.latents, {**parameters.estimators, **(chosen or {})})
        self.wanted = self.look(model)[0].latents
        left = _addresses(self.latents) - _addresses(self.wanted)
        if auxiliary is None and left:
            raise UnfitGuide(f"the guide {guide.name!r} draws {min(left)!r}, and the model {model.name!r} does not")
        if auxiliary is not None:  # its parameters are met where it has something to stand on
            self._meet(lambda key: self.draw({}, key, self.ways))

    def check(self, params: Mapping[str, Any]) -> None:
        """Raise NotDifferentiable for a site whose gradient would be wrong; see `kinks`."""
        if any(way.estimator == "reparam" for way in self.ways.of.values()):
            plan = self.ways

            def weight(key: Any) -> Any:
                return self.draw(params, key, plan)[:2]

            check_jumps(weight, jax.random.key(0))

    def look(self, program: Program) -> tuple[Look, Parameters]:
        """Run a program abstractly; return what it does, and what it says of its parameters."""
        parameters, seen = Parameters({}, self.declared), []

        def run(key: Any) -> None:
            seen.append(Look(key))
            trace(program.with_handler(parameters), seen[-1])

        self._meet(run)
        return seen[-1], parameters

    def _meet(self, run: Callable[[Any], Any]) -> None:
        """Run something abstractly; of parameters that it meets, make numbers of what they begin with."""
        key = jax.random.key(0)
        jax.eval_shape(lambda key: (run(key), None)[1], key)
        made = [name for name, found in self.declared.items() if _symbolic(found.init)]
        if made:  # by JAX, as the code ran
            known = {name: self.declared.pop(name).constraint for name in made}
            try:
                inits = jax.jit(lambda key: (run(key), {name: self.declared[name].init for name in made})[1])(key)
            except jax.errors.UnexpectedTracerError as error:
                raise NotTraceable(
                    f"param {made[0]!r}: what it begins with is made by JAX inside a scan; make it by NumPy, or outside"
                ) from error
            self.declared.update({name: Declared(inits[name], known[name]) for name in made})

    def draw(self, params: Mapping[str, Any], key: Any, plan: Ways, combination: Any = 0, mode: Any = 0) -> Draw:
        """Run the guide once, and the model on what it drew."""
        drawn = Drawn(key, plan, combination, mode)
        trace(self.guide.with_handler(Parameters(params, self.declared)), drawn)
        drew = [record for record in drawn.records if record.spot.kind == "sample"]
        values = {record.spot.slot: record.value for record in drew if record.spot.slot in self.latents}
        log_joint = self.log_joint(params, values)
        share, score, measured = (drawn.total(estimator) for estimator in ("enum", "score", "mvd"))
        return Draw(log_joint, drawn.log_prob, share, score, score + measured, drawn.moments)

    def log_joint(self, params: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
        """Return log p, with potentials, of values by the guide's slots; that of what is auxiliary is added."""
        weigher = _given(self.wanted, self.latents, values)
        trace(self.model.with_handler(Parameters(params)), weigher)
        total = weigher.log_prob + weigher.log_potential
        if self.auxiliary is None:
            return total
        names = {latent.spot.name for latent in self.wanted.values()}
        more = self.auxiliary({slot: value for slot, value in values.items() if self.latents[slot].spot.name in names})
        look = Look(jax.random.key(0))
        jax.eval_shape(lambda: (trace(more, look), None)[1])
        drawn = look.latents
        left = _addresses(self.latents) - _addresses(self.wanted) - _addresses(drawn)
        if left:
            raise UnfitGuide(f"the guide draws {min(left)!r}, which neither the model nor its reverse does")
        reverse = _given(drawn, self.latents, values)
        trace(more.with_handler(Parameters(params, self.declared)), reverse)
        return total + reverse.log_prob

    def log_guide(self, params: Mapping[str, Any], guide: Program, records: Sequence[Record]) -> Any:
        """Return log q, under the guide with other arguments, of what a run of the model drew."""
        drawn = [record for record in records if record.spot.kind == "sample"]
        had = {record.spot.slot: Latent(record.spot, (), None, False, False) for record in drawn}
        values = {record.spot.slot: record.value for record in drawn}
        weigher = _given(self.latents, had, values)
        trace(guide.with_handler(Parameters(params)), weigher)
        return weigher.log_prob

    @property
    def still(self) -> Ways:
        """The plan in which draws are constants."""
        return scored(self.ways)


def _symbolic(init: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(init))


def _addresses(latents: Mapping[str, Latent]) -> set[str]:
    return {address for latent in latents.values() for address in latent.addresses()}


def _given(wanted: Mapping[str, Latent], had: Mapping[str, Latent], values: Mapping[str, Any]) -> Weigher:
    """Return what weighs a program on what another drew; what has all its mass on one value needs no draw."""
    return Weigher(jax.random.key(0), _linked(wanted, had, values))


def _linked(wanted: Mapping[str, Latent], had: Mapping[str, Latent], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return by the slots of one program the values that another drew at the same addresses, in loops of its own.

    Raises UnfitGuide for an address that the other does not draw.
    """
    where = {address: (slot, at) for slot in values for address, at in had[slot].addresses().items()}
    found = {}
    for slot, latent in wanted.items():
        places = latent.addresses()
        missing = sorted(set(places) - set(where))
        if missing:
            raise UnfitGuide(f"{missing[0]!r} is drawn by one of guide and model alone")
        if all(where[address] == (slot, at) for address, at in places.items()):
            found[slot] = values[slot]
        else:
            parts = [values[where[address][0]][where[address][1]] for address in places]
            stacked = jnp.stack(parts)
            found[slot] = stacked.reshape(*latent.spot.lengths, *stacked.shape[1:])
    return found


def surrogate(
    problem: Problem,
    params: Mapping[str, Any],
    key: Any,
    particles: int,
    own: Callable[[Any, Any], Any],
    additive: bool,
) -> tuple[Any, Any]:
    """Return a number with the gradient of an objective of several draws, and the log-weights of the draws.

    Args:
        problem: model and guide.
        params: their parameters.
        key: of the draws.
        particles: K, how many are drawn.
        own: from log-weights of one draw (…) and those of the K − 1 others to the objective (…), less whatever depends
            on the others alone: a baseline.
        additive: whether the objective is a mean over draws. Then a log-weight may be the mean over enumerated values,
            and E[∂log q] = 0 is left out where draws are constants.
    """
    plan = problem.ways
    combinations = jnp.arange(plan.combinations)
    *keys, extra = jax.random.split(key, particles + 1)
    keys = jnp.stack(keys)

    def runs(key: Any, mode: Any) -> Draw:
        drawn: Draw = jax.vmap(lambda number: problem.draw(params, key, plan, number, mode))(combinations)
        return drawn

    drawn = jax.vmap(lambda key: runs(key, 0))(keys)  # (K, combinations)
    log_weights = drawn.log_joint - drawn.log_guide + (new(drawn.still) if additive else 0.0)
    single = _single(extra, log_weights, drawn.log_share, additive)
    others = jnp.stack([jnp.delete(single, k, assume_unique_indices=True) for k in range(particles)])

    def part(key: Any, mine: Draw, log_weights: Any, others: Any) -> Any:
        share, value = jnp.exp(mine.log_share), own(log_weights, others)
        total = jnp.sum(share * value + jax.lax.stop_gradient(share * value) * new(mine.score))
        if plan.modes:

            def moved(mode: Any) -> Any:
                there = runs(key, mode)
                return jnp.exp(there.log_share) * own(there.log_joint - there.log_guide, others)

            at = jax.vmap(moved)(1 + jnp.arange(plan.modes))  # (modes, combinations)
            total += jnp.sum(jax.vmap(lambda moments, f: slopes(plan, moments, f), (0, 1))(mine.moments, at))
        return total

    return jnp.sum(jax.vmap(part)(keys, drawn, log_weights, jax.lax.stop_gradient(others))), single


def _single(key: Any, log_weights: Any, log_share: Any, additive: bool) -> Any:
    """Return a log-weight for each draw (K,), where values are enumerated that of one drawn, or the mean."""
    if log_weights.shape[1] == 1:
        return log_weights[:, 0]
    if additive:
        return jnp.sum(jnp.exp(log_share) * log_weights, axis=1)
    chosen = jax.random.categorical(key, jax.lax.stop_gradient(log_share), axis=1)
    return jnp.take_along_axis(log_weights, chosen[:, None], axis=1)[:, 0]

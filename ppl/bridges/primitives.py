"""What answers a program's sites by NumPyro's primitives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as nd
from numpyro import handlers
from numpyro.contrib.control_flow import scan

from ..errors import NotTraceable
from ..program import Program
from ..sites import MISSING, Running, address
from ..traced.driver import trace
from ..traced.laws import Law, _Items
from ..traced.loops import Outputs
from ..traced.met import Listener, Met
from ..transforms.params import Parameters


class Primitives(Listener):
    """Makes each site a primitive of NumPyro, under the same address.

    A scan becomes NumPyro's, whose sites have a leading axis of iterations under the address of the first; a scan
    within a scan is unrolled, since NumPyro has none.
    """

    def __init__(self, inside: bool = False) -> None:
        self._inside = inside

    def sample(self, site: Met) -> Any:
        """Draw a latent; what a handler forces is scored, and not drawn."""
        law = site.law
        if site.forced is not MISSING:
            self._scored(site, site.forced)
            return site.forced
        if law.fixed:  # NumPyro's samplers would move it
            _record(site, law.value)
            return law.value
        _check(site, law)
        with handlers.scale(scale=site.terms.scale):
            return numpyro.sample(_label(site), law.dist.to_event())

    def observe(self, site: Met) -> None:
        """Score an observation, under its mask."""
        self._scored(site, site.value)

    def _scored(self, site: Met, value: Any) -> None:
        law, (mask, scale) = site.law, site.terms
        if law.fixed:
            numpyro.factor(_label(site), site.log_prob(value))
            return
        _check(site, law)
        value = jnp.asarray(value)
        law.terms(value)  # which refuses a shape that does not fit
        dist = law.dist.expand(value.shape[: value.ndim - law.dist.event_dim])
        if site.spot.kind == "observe" and mask is not True:
            dist = dist.mask(mask if mask is False else jnp.asarray(mask))
        with handlers.scale(scale=scale):
            numpyro.sample(_label(site), dist.to_event(), obs=value)

    def factor(self, site: Met) -> None:
        """Add a factor."""
        numpyro.factor(_label(site), site.value)

    def record(self, site: Met) -> None:
        """Record what is numeric."""
        with suppress(TypeError, ValueError):
            _record(site, site.value)

    def scan(self, plan: Any) -> tuple[Any, Any]:
        """Run a scan as NumPyro's, or unrolled where it is within another one."""
        if self._inside:
            return self._unrolled(plan)

        def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
            t, x = inputs
            carry, y, _ = plan.step(carry, x, t, Primitives(inside=True))
            return carry, y

        carry, ys = scan(step, plan.init, (jnp.arange(plan.length), plan.xs), length=plan.length)
        return carry, Outputs(ys, plan.length)

    def _unrolled(self, plan: Any) -> tuple[Any, Any]:
        carry, ys = plan.init, []
        for t in range(plan.length):
            carry, y, _ = plan.step(carry, jax.tree.map(lambda column: column[t], plan.xs), t, self)  # noqa: B023
            ys.append(y)
        return carry, Outputs(jax.tree.map(lambda *parts: jnp.stack(parts), *ys), plan.length)


class Params(Mapping[str, Any]):
    """The values of `param`: NumPyro's parameters of the same names."""

    def __init__(self) -> None:
        self.handler = Parameters(self)

    def __getitem__(self, name: str) -> Any:
        if Running.fiber.loops:
            raise NotTraceable(
                f"parameter {name!r} is looked up within fk.scan, where NumPyro would not fit it: look it up before"
            )
        init, constraint = self.handler.declared[name]
        if isinstance(constraint, str):
            constraint = getattr(nd.constraints, constraint)
        return numpyro.param(name, jnp.asarray(init, float), constraint=constraint or nd.constraints.real)

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self.handler.declared)

    def __len__(self) -> int:
        return len(self.handler.declared)


def _label(site: Met) -> str:
    """Return a site's address; in loops that are traced, that of the first iteration."""
    name, visit, _ = site.spot.at([0 if isinstance(i, jax.core.Tracer) else int(i) for i in site.index])
    return address(name, visit)


def _check(site: Met, law: Law) -> None:
    if isinstance(law, _Items):
        raise NotTraceable(
            f"site {site.slot!r} draws items of a list, and NumPyro's Categorical draws their places: draw the place, "
            "and take the item in the program"
        )


def _record(site: Met, value: Any) -> None:
    """Record a number, or an array. Raises NotTraceable, a TypeError, for anything else."""
    try:
        numpyro.deterministic(_label(site), jnp.asarray(value))
    except (TypeError, ValueError) as error:
        raise NotTraceable(f"site {site.slot!r} is a {type(value).__name__}, and no number") from error


def as_model(program: Program) -> Any:
    """Run a program within NumPyro, and return its value."""
    return trace(program.with_handler(Params().handler), Primitives()).value


def check(model: Any) -> None:
    """Look through a model without arguments, drawing nothing."""

    def run() -> None:
        with handlers.block(), handlers.seed(rng_seed=0):  # whatever handlers of NumPyro are around
            model()

    jax.eval_shape(run)

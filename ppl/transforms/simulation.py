"""One run of a program from its prior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import keys as _keys
from ..errors import ImpossibleChoice
from ..program import Program, check_bound
from ..running.handling import Given
from ..sites import Site
from ..values.guard import guard


@dataclass(frozen=True)
class Simulation:
    """One run of a program from its prior.

    Attributes:
        value: what it returned.
        sites: all that happened, in order.
        log_prob: log p of the choices.
        log_weight: log-weight of the run (potentials and proposal corrections).
    """

    value: Any
    sites: tuple[Site, ...]
    log_prob: float
    log_weight: float

    @property
    def trace(self) -> dict[str, Site]:
        """The sites by address, in order, without those hidden by a ``block``."""
        return {site.address: site for site in self.sites if not site.hidden}


def simulate(model: Program, *, seed: int | None = None, given: Mapping[str, Any] | None = None) -> Simulation:
    """Run a program once, without conditioning: factors are recorded and do not steer.

    Args:
        model: a bound program.
        seed: an integer; may be left out under a ``seed`` handler.
        given: values by address to be forced (others are drawn).

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin():
    ...     heads = await fk.sample("heads", fk.dist.Bernoulli(0.3))
    ...     await fk.factor("score", 1.5 * heads)
    ...     return heads
    >>> run = fk.simulate(coin(), seed=0, given={"heads": 1})
    >>> run.value, run.log_weight, list(run.trace)
    (1, 1.5, ['heads', 'score'])
    """
    check_bound("simulate", model)
    if seed is None:
        # Of several, the innermost: it is the last.
        seed = next((handler.rng_seed for handler in reversed(model.handlers) if hasattr(handler, "rng_seed")), None)
    if seed is None:
        raise TypeError("simulate needs a seed: simulate(model, seed=0), or wrap the model in handlers.seed")
    lineage = _keys.root(seed)
    forced = model.with_handler(Given(guard(dict(given)))) if given else model
    step = forced.start(_keys.fold(lineage, 0))
    sites, log_prob, log_weight = list(step.choices[0]), step.log_prob[0], step.log_increment[0]
    while not step.done[0]:
        step = forced.advance(step.state, _keys.fold(lineage, len(sites)))
        sites += step.choices[0]
        log_prob += step.log_prob[0]
        log_weight += step.log_increment[0]
    unmet = set(given or ()) - {site.address for site in sites}
    if unmet:
        raise ImpossibleChoice(f"the given values {sorted(unmet)} belong to no site that {model!r} visited")
    return Simulation(forced.values(step.state)[0], tuple(sites), float(log_prob), float(log_weight))

"""Fitting to simulations of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ....ppl.effects import Effect, Sample
from ....ppl.errors import Unsupported
from ....ppl.running.handling import Handler
from ....ppl.sites import MISSING
from ...base.checks import positive
from .checking import check, no_estimators

if TYPE_CHECKING:
    from ....ppl.program import Program
    from ..gradients.problem import Problem


@dataclass(frozen=True)
class ForwardKL:
    """Forward KL over simulations: minimise E[−log q(x|y)], of x and y drawn from the model, data and all.

    It makes the guide a posterior for any data that the model could have made (amortised inference, the sleep phase of
    a guide): it is E_y KL(p(x|y)‖q(x|y)) but for a constant. Its gradient passes through no draw, so that no site needs
    an estimator. The guide is shown what was simulated by its arguments; it may draw fewer sites than the model.

    Args:
        data: which argument of the guide is shown what the model draws or observes under a name (of several visits, in
            a scan or a loop, the series of values); None: none is. All that the model observes must be named.
        simulations: of each step.

    Source: Hinton et al. (1995), doi:10.1126/science.7761831; Papamakarios and Murray (2016), arXiv:1605.06376.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def model(y):
    ...     z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
    ...     await fk.observe("y", fk.dist.Normal(z, 0.5), y)
    >>> @fk.program
    ... async def guide(y):
    ...     await fk.sample("z", fk.dist.Normal(fk.param("slope", 0.0) * y, fk.param("scale", 1.0, "positive")))
    >>> fitted = fk.fit(model(1.5), guide(1.5), fk.ForwardKL({"y": "y"}), steps=300, optimizer=0.05)
    >>> bool(abs(fitted.params["slope"] - 0.8) < 0.1)
    True
    """

    data: Mapping[str, str | None] = field(default_factory=dict)
    simulations: int = 64

    def __post_init__(self) -> None:
        positive("simulations", self.simulations)

    def problem(self, model: Program, guide: Program, estimators: Mapping[str, str]) -> Problem:
        """See `Objective`."""
        from ..gradients.problem import Problem

        no_estimators("ForwardKL", estimators)
        check(model, guide, within=False, fewer=True)
        problem = Problem(model, guide)
        look = problem.look(model)[0]
        weighs = [spot for spot in look.others if spot.kind == "factor"]
        if weighs:
            raise Unsupported(
                f"ForwardKL simulates data, and the model weighs by {weighs[0].slot!r}, which says nothing of what "
                "data there are: observe them instead"
            )
        observed = {spot.name for spot in look.others if spot.kind == "observe"}
        unsaid, unknown = (
            sorted(names)
            for names in (
                observed - set(self.data),
                set(self.data)
                - observed
                - {record.spot.name for record in look.records if record.spot.kind == "sample"},
            )
        )
        if unsaid:
            raise ValueError(
                f"the model observes {unsaid[0]!r}: say which argument of the guide is shown it, "
                f"ForwardKL(data={{{unsaid[0]!r}: …}}), or None"
            )
        if unknown:
            raise ValueError(f"ForwardKL(data=…) names {unknown}, which the model {model.name!r} does not visit")
        guide.rebind(**{name: None for name in self.data.values() if name is not None})  # raises for what is none
        return problem

    def loss(self, problem: Problem, params: Mapping[str, Any], key: Any) -> tuple[Any, Any]:
        """See `Objective`."""
        import jax

        from ....ppl.traced.driver import trace
        from .simulated import Simulated, series

        def one(key: Any) -> Any:
            unseen = Unseen()
            run = Simulated(key, unseen.shapes)
            trace(problem.model.with_handler(unseen), run)
            shown = {
                argument: series([record for record in run.records if record.spot.name == name])
                for name, argument in self.data.items()
                if argument is not None
            }
            return -problem.log_guide(params, problem.guide.rebind(**shown), run.records)

        loss = jax.vmap(one)(jax.random.split(key, self.simulations)).mean()
        return loss, loss


class Unseen(Handler):
    """Makes latents of what is observed; ``shapes`` are those of the data, by address."""

    sees_hidden = True

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def touch(self, effect: Effect, address: str, length: int) -> bool:
        """Forget the observation."""
        if type(effect) is Sample and effect.obs is not MISSING:
            self.shapes[address] = np.shape(effect.obs)
            effect.obs = MISSING
        return False

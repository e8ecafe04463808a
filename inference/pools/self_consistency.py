"""Self-consistency: sample many runs, and let their answers vote."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats
from ..base.checks import function_or_none
from ..base.engine import Guarantee, Run
from ..base.selection import Ballot
from ..base.step import Step
from ..particles.importance import ImportanceSampling, reweighted


@dataclass(frozen=True)
class SelfConsistency:
    """Draw N runs from the model and let their answers vote, each with one vote or with its reward.

    Feynman–Kac mapping: each particle runs to its end under M, and ``key(value)`` is its answer. By majority the
    potentials do not count, but for a −inf, which has no vote: the share of an answer estimates its probability under
    M. With ``weighted=True`` a run votes with its Π_t G_t: the share is then that of importance sampling on the same
    draws. (Runs of a proposal q vote with p/q times as much, so that neither share depends on q.) Choosing the answer
    of the largest share is a heuristic. The evidence that it reports is that of importance sampling.

    ``posterior.vote()`` gives the shares by answer, of all chains together, and ``posterior.best()`` the heaviest run
    of the winning answer. A tie goes to the answer that was drawn first, which is as good as a coin. An interrupted
    run votes with the particles that finished; before any has, all share the weight and there is no vote.

    Args:
        particles: N, the number of runs.
        key: what is voted on, such as ``lambda text: str(text).rsplit("=")[-1]``; None is the value itself. It must
            return something hashable; a run of which it returns None has no answer, and abstains.
        weighted: whether a run votes with its reward instead of one vote.
        chains: independent batches of N.
        all_dead: "error" raises `AllParticlesDead` when all potentials are zero; "zero" keeps the dead.

    Cost: N runs of the model.
    When it pays: Where answers can be compared and no reward is at hand.

    Source: Wang et al. (2023), arXiv:2203.11171; weighted, Li et al. (2023), arXiv:2206.02336.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def sums():
    ...     slip = await fk.sample("slip", fk.dist.Bernoulli(0.3))
    ...     return f"so it is {12 + slip}"
    >>> posterior = fk.infer(sums(), fk.SelfConsistency(50, key=lambda text: text[-2:]), seed=0)
    >>> posterior.best(), round(posterior.vote()["12"], 2)
    ('so it is 12', 0.72)
    """

    particles: int
    key: Callable[[Any], Hashable] | None = field(default=None, repr=False)
    weighted: bool = False
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "heuristic"

    def __post_init__(self) -> None:
        self._runs()
        function_or_none("key", self.key)
        if not isinstance(self.weighted, bool):
            raise ValueError(f"weighted must be True or False, not {self.weighted!r}")

    def _runs(self) -> ImportanceSampling:
        return ImportanceSampling(self.particles, self.chains, self.all_dead)

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        ballot = Ballot(self.particles, self.key, "SelfConsistency")

        def count(state: Any, step: Step, log_potential: Floats) -> tuple[Floats, list[Any]]:
            alive = step.log_weights > -np.inf
            ballot.ask(lambda: model.values(state), step.done & alive)
            votes = np.zeros(self.particles)
            votes[alive] = step.log_weights[alive] - (0.0 if self.weighted else log_potential[alive])
            return np.where(ballot.cast if ballot.cast.any() else alive, votes, -np.inf), list(ballot.answers)

        return reweighted(model, key, self._runs(), count)

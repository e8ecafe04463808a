"""Search over paths: denoise, keep the best, add noise again, and go on from several places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.errors import Unsupported
from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac, Floats, Index
from ..base.checks import one_of, positive
from ..base.engine import Ask, Guarantee, Move, Report, Run, Start, check_alive, describe, without_evidence
from ..base.selection import best_first, choose
from ..base.step import Step
from ..base.weights import logmeanexp


@dataclass(frozen=True)
class PathSearch:
    """Search over paths: the best of N half-made samples are noised again, M times each, and denoised a bit further.

    Feynman–Kac mapping: N particles make ``first`` steps. Then, until they are done: the N of the largest Σ log G so
    far are taken, M copies of each go ``back`` so many steps by the forward process, which adds noise, and then
    ``forward`` so many by M. All weight is on the particle of the largest Σ log G. A heuristic, without evidence. It
    needs potentials that telescope (the reward of an estimate of the data, `Steering`'s "difference"), so that Σ log G
    is the reward now, and a model that can add noise again, with a method ``renoise(state, keys, depth)``.

    Args:
        paths: N.
        branches: M.
        first: steps before the first choice. The paper denoises to σ = 0.11 of a flow, that is nine tenths of the way.
        back: steps that noise takes back each time, at most ``first``.
        forward: steps made after that, more than ``back``. The paper's are 0.78 and 0.81 of the way.
        chains: independent searches; each selects its own best.
        all_dead: "error" raises `AllParticlesDead` when all particles are dead; "zero" keeps the dead.

    Raises:
        Unsupported: by name, for a model without ``renoise``.

    Cost: ``branches`` copies of each of the paths, a few steps back and forward, until they are done.
    When it pays: To better images that are nearly good, by going back part of the way.

    Source: Ma et al. (2025), arXiv:2501.09732.

    >>> import feynkac as fk
    >>> from feynkac.diffusion import Diffusion, Mixture, Schedule, Steering
    >>> data, flow = Mixture([0.3, 0.7], [[-2.0, 0.0], [1.0, 3.0]], [0.1, 0.1]), Schedule.flow(10)
    >>> model = Diffusion(data.denoiser(flow), flow, (2,), eta=0.0, steering=Steering(lambda x: x[:, 1]))
    >>> bool(fk.infer(model, fk.PathSearch(3, branches=4, first=8, back=6, forward=7), seed=0).best()[1] > 3.0)
    True
    """

    paths: int
    branches: int
    first: int
    back: int
    forward: int
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "heuristic"

    def __post_init__(self) -> None:
        for name in ("paths", "branches", "first", "back", "forward", "chains"):
            positive(name, getattr(self, name))
        if not self.back <= self.first or not self.back < self.forward:
            raise ValueError(f"back={self.back} must be at most first={self.first}, and less than {self.forward=}")
        one_of("all_dead", self.all_dead, ("error", "zero"))

    @property
    def particles(self) -> int:
        """Particles of a chain, once paths have branched."""
        return self.paths * self.branches

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        if getattr(model, "renoise", None) is None:
            raise Unsupported(f"PathSearch adds noise again, and {model!r:.200} has no method renoise: use TreeSearch")
        ancestors = np.arange(self.paths)
        lineage = _keys.fold(key, _keys.tag("particle"), ancestors)
        advance = yield Start(_keys.fold(lineage, 0))
        rewards, turn, left = np.asarray(advance.log_potential, float), 0, self.first
        while True:
            step = self._describe(turn, advance, rewards, ancestors)
            yield Report(advance.state, step.log_weights, step, step.log_evidence)
            check_alive(step, self.all_dead)
            if advance.done.all():
                return
            if left:
                ancestors, left = np.arange(len(rewards)), left - 1
                turn += 1
                advance = yield Move(advance.state, _keys.fold(lineage, turn))
            else:
                ancestors, left = np.repeat(best_first(rewards, self.paths), self.branches), self.forward
                lineage = _keys.inherit(lineage, ancestors, turn)
                depth = int(np.asarray(advance.state.depth)[0]) - self.back
                turn += 1
                state = model.select(advance.state, ancestors)
                advance = yield Ask("renoise", state, _keys.fold(lineage, turn), (depth,))
            rewards = rewards[ancestors] + advance.log_potential

    def _describe(self, turn: int, advance: Advance[Any], rewards: Floats, ancestors: Index) -> Step:
        logmeanexp(rewards)  # refuses NaN, which would be taken for dead
        chosen = "best" if len(np.unique(ancestors)) < len(ancestors) else None
        return without_evidence(describe(turn, advance, choose(rewards, advance.done), ancestors, chosen))

"""Engines chosen problem by problem, from what they have earned on the problems before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...ppl import keys as _keys
from ..base.checks import check_engine, positive
from ..base.engine import Engine
from ..infer import infer
from ..results.posterior import Posterior
from .bandits import UCB, Policy, Pull, means


@dataclass(frozen=True)
class Played:
    """What a bandit over engines has found.

    Attributes:
        engines: the arms.
        pulls: which engine each problem got, and what it earned, in the order of the problems.
        posteriors: of the problems.
        stopped: "interrupted" where Ctrl-C ended it before the last problem, else None.
    """

    engines: tuple[Engine, ...]
    pulls: tuple[Pull, ...]
    posteriors: tuple[Posterior, ...] = field(repr=False)
    stopped: str | None = None

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each engine was pulled, (arms,)."""
        return np.bincount([pull.arm for pull in self.pulls], minlength=len(self.engines))

    @property
    def means(self) -> NDArray[np.float64]:
        """What each engine earned on average, (arms,); NaN for one that was never pulled."""
        return means(self.pulls, len(self.engines))

    @property
    def best(self) -> Engine:
        """The engine that was pulled most often: means of few pulls are noise."""
        return self.engines[int(self.counts.argmax())]


def play(
    models: Sequence[Any],
    engines: Sequence[Engine],
    reward: Callable[[Posterior, Any], float],
    *,
    seed: int,
    problems: Sequence[Any] | None = None,
    policy: Policy | None = None,
    batch: int = 1,
) -> Played:
    """Give each problem an engine, chosen by a bandit from what engines have earned on the problems before.

    Args:
        models: a model for each problem, in the order in which they come.
        engines: the arms.
        reward: what an engine has earned on a problem, from its posterior; within [0, 1], and known at once: the
            verdict of a verifier, not a truth that one does not have.
        seed: an integer. Same seed and arguments, same choices.
        problems: what ``reward`` gets beside the posterior, one for each model; None gives the models.
        policy: None is UCB over the engines; or `TsallisINF`, or any `Policy` of as many arms.
        batch: problems whose engines are chosen together, before what they earn is known; they share batches.

    Ctrl-C ends it, and keeps the batches that were made whole.

    Raises ValueError for a policy of another number of arms, and for problems that are not as many as models.

    Source: PlanGEN (2025), arXiv:2502.16111, whose selection agent it is.
    Guarantee: that of the policy; each posterior has that of its engine.
    Engines: any, mixed.
    Measured: 200 Countdown problems of four numbers on a tape of the reasoner, 3 seeds, ± 1 standard error, solved:
        `SMC(8)` .597 ± .028, best of 8 .593, beam .462, one draw .187; UCB .533 ± .025 on average over 200 orders,
        uniform choice .460. So it gains half of what there is to gain, and loses to the best engine alone (−.064 ±
        .006): that is what learning costs here.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def die():
    ...     face = await fk.sample("face", fk.dist.DiscreteUniform(1, 6))
    ...     await fk.factor("high", float(face))
    ...     return face
    >>> found = play([die()] * 40, [fk.SMC(1), fk.BestOfN(20)], lambda p, _: p.best() == 6, seed=0)
    >>> found.best == fk.BestOfN(20)
    True
    """
    rule: Policy = UCB(len(engines)) if policy is None else policy
    asked = list(models if problems is None else problems)
    positive("batch", batch)
    for engine in engines:
        check_engine("play", engine)
    if rule.arms != len(engines):
        raise ValueError(f"the policy has {rule.arms} arms, and there are {len(engines)} engines")
    if len(asked) != len(models):
        raise ValueError(f"there are {len(models)} models and {len(asked)} problems: give one for each")
    key, pulls, posteriors = _keys.root(seed), list[Pull](), list[Posterior]()
    for first in range(0, len(models), batch):
        here = range(first, min(first + batch, len(models)))
        chosen = _choose(rule, pulls, [_keys.fold(key, i) for i in here])
        try:
            draw = _keys.as_seed(_keys.fold(key, _keys.tag("run"), first))
            mine = [engines[pull.arm] for pull in chosen]
            made = infer([models[i] for i in here], mine, seed=draw, progress=False)
            if any(posterior.stopped == "interrupted" for posterior in made):
                raise KeyboardInterrupt
            earned = [float(reward(posterior, asked[i])) for posterior, i in zip(made, here)]
        except KeyboardInterrupt:
            if not pulls:
                raise
            return Played(tuple(engines), tuple(pulls), tuple(posteriors), "interrupted")
        pulls += [pull._replace(reward=gain) for pull, gain in zip(chosen, earned)]
        posteriors += made
    return Played(tuple(engines), tuple(pulls), tuple(posteriors))


def _choose(policy: Policy, pulls: Sequence[Pull], keys: Sequence[_keys.Keys]) -> list[Pull]:
    """Return a pull for each key: those of the batch are known to those after them, their rewards are not."""
    chosen: list[Pull] = []
    for key in keys:
        chances = policy.chances([*pulls, *chosen])
        edges = np.cumsum(chances) / chances.sum()
        arm = int(np.searchsorted(edges, _keys.uniform(key)[0], side="right"))
        chosen.append(Pull(arm, float(chances[arm])))
    return chosen

"""What an engine is: a frozen dataclass of settings, and a ``run`` that asks for steps and reports populations.

An engine's ``run`` is a generator. It yields `Start` and `Move` when it wants particles made or moved, and gets an
`Advance` back; it yields a `Report` after each step of its own. So engines are written for one model and one
chain, and `infer` can run many of them in lockstep, with one batched call for all, count their cost, stop them at a
budget, and keep what they had.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from ...ppl.errors import AllParticlesDead
from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac, Floats, Index
from .search_tree import SearchTree
from .step import Step
from .weights import logmeanexp, spread

Guarantee = Literal["unbiased", "consistent", "discretised", "prefix", "heuristic"]
"""What an engine promises of its evidence and weighted particles, at any finite number of particles.

"prefix" is what is left where a run was cut short: evidence and weights are those of the steps that were made, and not
of the model.
"""

Ranking = Literal["weight", "reward"]
"""What the best of an engine's runs is told by; see `ranking_of`."""


def ranking_of(engine: Any) -> Ranking:
    """Return what the best run of an engine is told by: its attribute ``ranking``, or else "weight".

    It is "weight" where a weight is that of a whole run (importance sampling), or is how the engine says what it has
    chosen (by its own score, or a vote). It is "reward", ∏G of the whole run, where weights say less: after resampling
    they judge the steps since, and the draws of a Markov chain all weigh the same.

    >>> from ..pools.best_of_n import BestOfN
    >>> from ..particles.smc import SMC
    >>> ranking_of(BestOfN(8)), ranking_of(SMC(8))
    ('weight', 'reward')
    """
    found: Ranking = getattr(engine, "ranking", "weight")
    return found


def weaker(one: Guarantee, other: Guarantee) -> Guarantee:
    """Return the weaker of two promises: what is left of an engine's on a model that has steps of finite size.

    >>> weaker("unbiased", "discretised"), weaker("heuristic", "discretised")
    ('discretised', 'heuristic')
    """
    return max(one, other, key=get_args(Guarantee).index)


@dataclass(frozen=True)
class Start:
    """Ask for new particles, one per key."""

    keys: Keys
    given: Sequence[Any] | None = None


@dataclass(frozen=True)
class Move:
    """Ask for one step of each particle of a state."""

    state: Any
    keys: Keys
    given: Sequence[Any] | None = None


@dataclass(frozen=True)
class Ask:
    """Ask for what only some models can do: a method ``(state, keys, *args)`` of theirs that returns an `Advance`."""

    method: str
    state: Any
    keys: Keys
    args: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Report:
    """An engine's population after a step of its own. The last one is the result.

    Attributes:
        state: the particles.
        log_weights: (n,) unnormalised; their mean weight estimates Z where the engine gives evidence.
        step: what happened, or None where the population is only re-weighted.
        log_evidence: overrides the mean weight; NaN where the engine has none.
        answers: (n,) what each particle votes for (None while it is unfinished), of engines that hold a vote.
        tree: of engines that grow one; it is their history.
        info: numbers by name that say how the engine fares, such as the acceptance rate of a Markov chain.
        serial: whether the particles are draws of one Markov chain, in their order.
        stats: of the draws of a Markov chain: arrays (n,) that say how each came about, by ArviZ's names.
        stages: of engines that temper whole runs: a step for each stage so far.
        history: all steps, of engines that report them at once; None: those reported one by one.
    """

    state: Any
    log_weights: Floats
    step: Step | None
    log_evidence: float | None = None
    answers: Sequence[Any] | None = None
    tree: SearchTree | None = None
    info: Mapping[str, float] = field(default_factory=dict)
    serial: bool = False
    stats: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    stages: tuple[Step, ...] = ()
    history: Sequence[Step] | None = None


@dataclass(frozen=True)
class Growing:
    """A report that is made when somebody asks: of populations that grow, where each would cost as much as the last.

    Attributes:
        report: makes it, as of now, however far the engine has gone on.
        step: what happened.
        finished: how many of its particles have finished.
    """

    report: Callable[[], Report]
    step: Step | None
    finished: int


Run: TypeAlias = Generator[Start | Move | Ask | Report | Growing, Advance[Any], None]


class Engine(Protocol):
    """An inference algorithm: a frozen dataclass of settings, and a `run`. What `infer` and its kin take.

    ``run`` is a generator, written for one model and one chain. It yields `Start` and `Move` to have particles made or
    moved, and gets an `Advance` back; after each step of its own it yields a `Report` of its population. The last
    report is the result. `infer` batches many runs, counts their cost and stops them. Every key is folded from the one
    that it is given. (`Start`, `Move` and `Report` are in ``feynkac.inference.base.engine``.)
    """

    @property
    def particles(self) -> int:
        """Particles of a chain."""

    @property
    def chains(self) -> int:
        """Independent runs, pooled in proportion to their evidence."""

    @property
    def guarantee(self) -> Guarantee:
        """What it promises."""

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield requests and reports; ``key`` has shape (1,)."""


class Resumable(Engine, Protocol):
    """An engine each of whose reports is that of the model cut after as many steps, with all that it goes on from."""

    def resume(self, model: FeynmanKac[Any], key: Keys, since: Report) -> Run:
        """Go on from a report, whose ``step`` is that of its last step, by a key (1,) that was not used before."""


def is_resumable(engine: Any) -> bool:
    """Whether an engine is `Resumable`; what moves its particles needs their whole paths, which reports do not hold.

    Nor is one whose particles get fewer.
    """
    fixed = not getattr(engine, "reduce", None)
    return hasattr(engine, "resume") and getattr(engine, "move", None) is None and fixed


def describe(depth: int, advance: Advance[Any], log_weights: Floats, ancestors: Index, scheme: str | None) -> Step:
    """Sum up a step for the history; ``scheme`` is how its ancestors were drawn, None where they were not."""
    twisted = bool(advance.log_twist.any())
    guided = spread(log_weights + advance.log_twist if twisted else log_weights)
    return Step(
        depth=depth,
        ess=guided.ess,
        entropy=guided.entropy,
        log_evidence=logmeanexp(log_weights) if twisted else guided.log_mean,
        resampled=scheme is not None,
        ancestors=ancestors,
        log_weights=log_weights,
        log_potential=advance.log_potential,
        log_twist=advance.log_twist,
        done=advance.done,
        choices=advance.choices,
        scheme=scheme,
    )


def without_evidence(step: Step) -> Step:
    """Return a step of an engine that estimates no evidence: it is NaN, unless all weights are zero."""
    return step if step.log_evidence == -math.inf else replace(step, log_evidence=math.nan)


def check_alive(step: Step, policy: str) -> None:
    """Raise `AllParticlesDead` where every weight is zero, unless the policy is "zero"."""
    if policy == "zero" or step.log_evidence != -math.inf:
        return
    ends = [chosen for chosen, done in zip(step.choices, step.done) if done]
    raise AllParticlesDead(
        f"all {len(step.done)} particles have weight zero at step {step.depth} ({where(ends)}). Use more particles, "
        'soften the factor or guide it with fk.twist; or set all_dead="zero" to get log Z = -inf instead'
    )


def pick(model: FeynmanKac[Any], advance: Advance[Any], rows: Index) -> Advance[Any]:
    """Return some rows of what a batch did."""
    choices: Any = advance.choices
    chosen: Any = choices[rows] if isinstance(choices, np.ndarray) else [choices[i] for i in rows]
    return Advance(
        model.select(advance.state, rows),
        chosen,
        advance.log_prob[rows],
        advance.log_proposal[rows],
        advance.log_potential[rows],
        advance.log_twist[rows],
        advance.done[rows],
        advance.scored[rows],
    )


def where(choices: Sequence[Any]) -> str:
    """Say at which sites particles died, from their last choices."""
    made = [chosen for chosen in choices if isinstance(chosen, tuple) and chosen]
    last = Counter(getattr(chosen[-1], "address", "?") for chosen in made)
    return ", ".join(f"{count} at site {site!r}" for site, count in last.most_common(5)) or "earlier"

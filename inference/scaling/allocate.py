"""A budget shared out over problems: a cheap first look at all of them, and the rest where it gains most."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...ppl import keys as _keys
from ...ppl.cost import Budget
from ..base.checks import check_run, one_of
from ..base.engine import Engine, weaker
from ..base.selection import choose
from ..infer import infer
from ..particles.importance import ImportanceSampling
from ..pools.best_of_n import BestOfN
from ..results.posterior import Posterior
from .allocation import spend
from .foretelling import alike, gain
from .plan import Allocated, Plan, Share
from .policy import ComputeOptimal, Record, difficulty

Floats = NDArray[np.float64]
Pool: TypeAlias = BestOfN | ImportanceSampling
Objective = Literal["reward", "variance"]
LOOK = BestOfN(4)
_UNITS = {"tokens": "tokens_out", "nfe": "nfe", "reward_calls": "reward_calls"}


def allocate(
    models: Sequence[Any],
    engines: Sequence[Engine],
    budget: Budget,
    *,
    policy: ComputeOptimal | None = None,
    first_look: Pool = LOOK,
    objective: Objective = "reward",
    gradients: ArrayLike | None = None,
    seed: int,
) -> Allocated:
    """Share out a budget over problems: look at each, then spend where it is expected to gain most for its cost.

    Every problem gets ``first_look``. What is left of the budget is shared out by `fk.scaling.spend`:

        with a policy   a problem gets at most one engine: what success to expect of each is learned from other problems
                        whose first look was like its own
        without         by the verifier alone, in rounds. A problem has the best reward b of its n runs; of m more the
                        gain E max(b, G₁, …, G_m) − b is that of a Pólya urn, which holds its n runs and κ of the first
                        looks at all problems, κ being how much problems are alike. A problem that is to get more goes
                        up to the next size, and all are judged again: what is solved by then gets nothing more. So the
                        reward should be the probability of being right

    Engines of the kind of the first look (``BestOfN(16)`` after ``BestOfN(4)``) go on from its runs, and pay for 12.

    Runs are planned at what they are expected to cost, and limited by what is left of the budget as `infer` limits
    them: a run of a known cost never exceeds it, and another is cut after the wave that does. The first wave of the
    look is made whatever it costs.

    Args:
        models: a model for each problem.
        engines: the options; without a policy all of the kind of the first look.
        budget: of all problems together, with one limit: ``tokens`` (sampled), ``nfe`` or ``reward_calls``.
        policy: of `fk.scaling.ComputeOptimal.fit`, learned after the same first look, of the same engines.
        first_look: `BestOfN` or `ImportanceSampling`, of one chain. Runs that are all dead are kept.
        objective: "reward"; or "variance", by the verifier alone: the least Σ G_i²/(p_i·n_i), the variance of a
            training step that learns from accepted runs, with p the mean reward: see `fk.scaling.gvm`.
        gradients: (k,) norms G, for "variance"; None: all alike.
        seed: an integer. Same seed and arguments, same posteriors.

    Returns ``posteriors, plan``. Ctrl-C ends it, and keeps what there is.

    Raises:
        TypeError: for what is no model, engine, budget or policy.
        ValueError: for a budget without exactly one such limit; a first look that is no such pool; engines that are
            smaller than the look, given twice, not those of the policy, or of another kind where there is none.
            Once the look is made: where it cost nothing of what is limited, and where probabilities are needed and
            rewards are none.

    Source: Scaling LLM Test-Time Compute Optimally (2024), arXiv:2408.03314; by rewards alone as in Learning How Hard
        to Think (2024), arXiv:2410.04707; "variance": arXiv:2505.02391.
    Guarantee: heuristic, as the number of runs depends on what they found.
    Engines: those that are options.
    Not shown here: the figures are in ``docs/claims/allocation.md``.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def guess(p):
    ...     right = await fk.sample("right", fk.dist.Bernoulli(p))
    ...     await fk.call("pay", lambda: fk.charge(tokens_out=1))
    ...     await fk.factor("verifier", 0.0 if right else -5.0)
    ...     return right
    >>> models = [guess(p) for p in (0.9, 0.9, 0.9, 0.02)]
    >>> posteriors, plan = fk.allocate(models, [fk.BestOfN(n) for n in (4, 8, 16)], fk.Budget(tokens=28), seed=0)
    >>> [share.size for share in plan.shares], plan.used
    ([4, 4, 4, 16], 28)
    """
    asked = Options(models, engines, first_look, known=policy is not None)
    unit, limit = _limit(budget)
    norms = _norms(objective, gradients, len(asked.models), policy)
    if policy is not None:
        asked.check(policy, unit)
    run = Spending(asked, unit, limit, seed)
    run.give(range(len(asked.models)), [asked.first] * len(asked.models))
    looks, looked = list(run.posteriors), int(run.costs.sum())
    if not looked and run.stopped is None:
        raise ValueError(f"the first look cost no {unit}, so that a budget of {unit} says nothing: limit another unit")
    if run.stopped is None and policy is not None:
        _by_policy(run, policy, looks)
    elif run.stopped is None:
        _by_verifier(run, looks, norms)
    return Allocated(run.posteriors, Plan(run.shares(looks), unit, limit, looked, run.stopped))


def records(
    models: Sequence[Any],
    engines: Sequence[Engine],
    correct: Callable[[Any, int], float],
    *,
    first_look: Pool = LOOK,
    problems: Sequence[Hashable] | None = None,
    seed: int,
) -> list[Record]:
    """Try every engine after a first look at each problem: what `ComputeOptimal.fit` learns from.

    Args:
        models: a model for each problem, for training.
        engines: the options; the first look alone is always one.
        correct: says of an answer and its problem's number how good it is, such as whether it is right.
        first_look: as in `fk.allocate`.
        problems: a name for each model, so that records of several runs may be put together; None: their numbers.
        seed: an integer.

    Costs are in sampled tokens. Raises as `fk.allocate` does.

    Source: as `ComputeOptimal`, arXiv:2408.03314.
    Guarantee: each record is what one run came to.
    Engines: any.
    Not shown here: the figures are in ``docs/claims/allocation.md``.
    """
    asked = Options(models, engines, first_look, known=True)
    everyone = range(len(asked.models))
    names = list(everyone if problems is None else problems)
    if len(names) != len(everyone):
        raise ValueError(f"there are {len(everyone)} models and {len(names)} problems: give a name for each")
    run = Spending(asked, "tokens", None, seed)
    run.give(everyone, [asked.first] * len(everyone))
    features, looked = [difficulty(posterior) for posterior in run.posteriors], run.costs.copy()
    out = []
    for engine in asked.options:  # those of the kind of the look first, by size: each goes on from the one before
        before = looked if asked.pool(engine) else run.costs.copy()
        if engine != asked.first:
            run.give(everyone, [engine] * len(everyone))
        if run.stopped is not None:
            raise KeyboardInterrupt
        for i, (posterior, cost) in enumerate(zip(run.posteriors, (run.costs - before).tolist())):
            good = float(correct(posterior.best(), i))
            out.append(Record(names[i], features[i], repr(engine), engine.particles, cost, good))
    return out


class Options:
    """What may be done with a problem: engines, in front those that go on from the first look, by size."""

    def __init__(self, models: Sequence[Any], engines: Sequence[Any], look: Any, *, known: bool) -> None:
        if type(look) not in (BestOfN, ImportanceSampling) or look.chains != 1:
            raise ValueError(f"first_look is BestOfN or ImportanceSampling of one chain, not {look!r}")
        if isinstance(look, BestOfN) and (look.by is not None or look.temperature is not None):
            raise ValueError("first_look is for the best of its runs: leave out its by= and temperature=")
        self.models, self.first = list(models), replace(look, all_dead="zero")
        if not self.models:
            raise ValueError("there are no problems")
        for engine in engines:
            check_run("allocate", self.models, engine, None)
        if twice := {repr(engine) for engine in engines if list(map(repr, engines)).count(repr(engine)) > 1}:
            raise ValueError(f"{min(twice)} is given twice")
        own = {replace(engine, all_dead="zero") for engine in engines if self.pool(engine)}
        others = [engine for engine in engines if not self.pool(engine)]
        self.pools: list[Any] = sorted(own | {self.first}, key=lambda engine: engine.particles)
        self.options = [*self.pools, *others]
        if self.pools[0] != self.first:
            raise ValueError(f"{self.pools[0]!r} is smaller than the first look, of {look.particles} runs")
        if others and not known:
            raise ValueError(f"what {others[0]!r} would gain is not known: give a policy that has learned it")
        if not known and look.particles < 2:
            raise ValueError("without a policy the first look is of two runs or more, to see how problems differ")

    def pool(self, engine: Any) -> bool:
        """Whether an engine goes on from the runs of the first look."""
        settings = {"particles": self.first.particles, "all_dead": "zero"}
        return type(engine) is type(self.first) and replace(engine, **settings) == self.first

    def check(self, policy: Any, unit: str) -> None:
        """Raise unless a policy has learned these options, at costs in this unit."""
        if not isinstance(policy, ComputeOptimal):
            raise TypeError(f"policy is of fk.scaling.ComputeOptimal.fit, not a {type(policy).__name__}")
        if unit != "tokens":
            raise ValueError(f"a policy counts tokens, and the budget {unit}")
        if differ := set(map(repr, self.options)) ^ set(policy.engines):
            raise ValueError(f"the policy and the engines differ by {min(differ)}: let it learn from all that are used")


class Spending:
    """A budget on its way: the posterior of each problem, and what it has cost so far."""

    def __init__(self, asked: Options, unit: str, limit: int | None, seed: int) -> None:
        self.asked, self.unit, self.limit, self.seed = asked, unit, limit, seed
        n = len(asked.models)
        self.posteriors: list[Any] = [None] * n
        self.engines: list[Any] = [asked.first] * n
        self.costs, self.expected = np.zeros(n, np.int64), np.full(n, math.nan)
        self.rounds = 0
        self.stopped: str | None = None

    @property
    def left(self) -> int:
        """What is left of the budget."""
        assert self.limit is not None
        return self.limit - int(self.costs.sum())

    def give(self, which: Sequence[int], engines: Sequence[Any]) -> None:
        """Run engines on some problems, those of the kind of the look from where it stands."""
        on = [self.asked.pool(e) and self.posteriors[i] is not None for i, e in zip(which, engines)]
        todo = [
            replace(e, particles=e.particles - self.engines[i].particles) if more else e
            for i, e, more in zip(which, engines, on)
        ]
        draw = _keys.as_seed(_keys.fold(_keys.root(self.seed), _keys.tag("allocate"), self.rounds))
        budget = None if self.limit is None else Budget(**{self.unit: self.left})
        made = infer([self.asked.models[i] for i in which], todo, seed=draw, budget=budget, progress=False)
        for i, engine, more, found in zip(which, engines, on, made):
            self.costs[i] += getattr(found.cost, _UNITS[self.unit])
            found = replace(found, seed=self.seed)
            if self.asked.pool(engine):  # how many runs there are depends on what they found
                found = replace(found, guarantee=weaker(found.guarantee, "consistent"))
            self.posteriors[i] = joined(self.posteriors[i], found, engine) if more else found
            self.engines[i] = engine
            self.stopped = found.stopped
        self.rounds += 1

    def shares(self, looks: Sequence[Posterior]) -> tuple[Share, ...]:
        """Return what each problem was given, after some first looks."""
        found = zip(map(difficulty, looks), self.engines, self.expected.tolist(), self.costs.tolist())
        return tuple(
            Share(i, _exp(best), _exp(mean), type(engine).__name__, engine.particles, expected, cost)
            for i, ((best, mean), engine, expected, cost) in enumerate(found)
        )


def joined(one: Posterior, more: Posterior, engine: Pool) -> Posterior:
    """Return the posterior of two sets of independent runs of one model, as one of an engine of their size."""
    chains = [*one.chains, *more.chains]
    if isinstance(engine, BestOfN):
        scores = np.concatenate([one.log_potential, more.log_potential])
        chosen = choose(scores, np.concatenate([one.complete, more.complete]))
        ends = np.cumsum([len(chain.log_weights) for chain in chains])[:-1]
        chains = [replace(chain, log_weights=part) for chain, part in zip(chains, np.split(chosen, ends))]
    return replace(
        more,
        values=one.values + more.values,
        chains=tuple(chains),
        cost=one.cost + more.cost,
        guarantee=weaker(weaker(one.guarantee, more.guarantee), "consistent"),
        engine=repr(engine),
    )


def _by_policy(run: Spending, policy: ComputeOptimal, looks: Sequence[Posterior]) -> None:
    """Give each problem the engine that a policy chooses."""
    named = {repr(engine): engine for engine in run.asked.options}
    success, cost = policy.predict([difficulty(look) for look in looks])
    cost[:, policy.engines.index(repr(run.asked.first))] = 0.0
    if run.left <= 0:
        return
    chosen = spend(success, cost, run.left).tolist()
    engines = [named[policy.engines[j]] for j in chosen]
    which = [i for i, engine in enumerate(engines) if engine != run.asked.first]
    for i in which:
        run.expected[i] = success[i, chosen[i]]
    if which:
        run.give(which, [engines[i] for i in which])


def _by_verifier(run: Spending, looks: Sequence[Posterior], norms: Floats | None) -> None:
    """Give problems more runs by their rewards, a size at a time, until nothing that fits would gain."""
    sizes = np.array([engine.particles for engine in run.asked.pools])
    first = np.array([look.log_potential for look in looks])
    unit = max(float(first.max()), -700.0)  # rewards are told in it, so that none overflows
    law = np.exp(first - unit)
    kappa = alike(law)
    if norms is not None and unit > 1e-9:
        raise ValueError(f"the least variance needs rewards that are probabilities, and one is {_exp(unit):.3g}")
    at = np.zeros(len(looks), np.int64)
    while run.stopped is None and run.left > 0:
        rewards = [np.exp(np.minimum(posterior.log_potential - unit, 700.0)) for posterior in run.posteriors]
        if norms is None:
            worth = _rises(rewards, at, sizes, law, kappa)
        else:
            worth = _variances(rewards, norms, sizes, float(law.mean()) * kappa, kappa)
        price = run.costs / sizes[at]
        price = np.where(price > 0, price, price.mean())[:, None] * np.maximum(sizes - sizes[at][:, None], 0)
        worth[np.arange(len(sizes)) < at[:, None]] = -math.inf
        chosen = spend(worth, price, run.left)
        up = np.flatnonzero(chosen > at)
        if not len(up):
            return
        if norms is None:
            best = np.array([rewards[i].max() for i in up])
            run.expected[up] = (best + worth[up, chosen[up]]) * _exp(unit)
        at[up] += 1
        run.give(up.tolist(), [run.asked.pools[j] for j in at[up]])


def _rises(rewards: Sequence[Floats], at: NDArray[np.int64], sizes: Any, law: Floats, kappa: float) -> Floats:
    """Return how far the best reward of each problem is expected to rise up to each size."""
    best = np.array([reward.max() for reward in rewards])
    out = np.zeros((len(rewards), len(sizes)))
    for j in np.unique(at).tolist():
        some = at == j
        out[some] = gain(best[some], int(sizes[j]), np.maximum(sizes - sizes[j], 0), law.ravel(), kappa)
    return out


def _variances(rewards: Sequence[Floats], norms: Floats, sizes: Any, prior: float, kappa: float) -> Floats:
    """Return −G²/(p·n) at each size; 0 where p or G is."""
    p = np.array([(reward.sum() + prior) / (len(reward) + kappa) for reward in rewards])
    squares = np.divide(norms**2, p, out=np.zeros_like(p), where=p > 0)
    return np.asarray(-squares[:, None] / sizes)


def _limit(budget: Any) -> tuple[str, int]:
    if not isinstance(budget, Budget):
        raise TypeError(f"budget says what it limits, such as fk.Budget(tokens=1000), and is not {budget!r}")
    set_ = {one.name: getattr(budget, one.name) for one in fields(budget) if getattr(budget, one.name) is not None}
    if len(set_) != 1 or not set_.keys() <= _UNITS.keys():
        raise ValueError(f"a budget that is shared out has one limit, of {', '.join(_UNITS)}, not {budget!r}")
    ((unit, limit),) = set_.items()
    return unit, math.floor(limit)


def _norms(objective: str, gradients: Any, n: int, policy: Any) -> Floats | None:
    one_of("objective", objective, ("reward", "variance"))
    if objective == "reward":
        if gradients is not None:
            raise ValueError('gradients are for objective="variance"')
        return None
    if policy is not None:
        raise ValueError("a policy has learned what is right, not what varies: leave it out, or the objective")
    norms = np.ones(n) if gradients is None else np.asarray(gradients, float)
    if norms.shape != (n,) or not ((norms >= 0) & (norms < math.inf)).all():
        raise ValueError(f"gradients needs a norm for each of {n} problems, not {norms!r}")
    return norms


def _exp(log: float) -> float:
    return math.exp(log) if log < 700 else math.inf

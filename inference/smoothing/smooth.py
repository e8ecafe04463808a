"""Smoothing of a filter's posterior: `smooth`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...ppl import keys as _keys
from ...ppl.compiled.choices import Choices
from ...ppl.compiled.deciding import PAYS, prepare
from ...ppl.cost import Ledger, recording
from ...ppl.errors import Unsupported
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Index
from ..base.chain import Chain, detach, detach_choices
from ..base.checks import one_of, positive
from ..base.engine import Guarantee, weaker
from ..base.resampling import resample
from ..base.step import Step
from ..base.weights import logmeanexp
from ..results.posterior import Posterior
from .backward import Retraced, draw_backward, take
from .smoothed import Method, Smoothed


def smooth(
    posterior: Posterior,
    draws: int = 1000,
    *,
    seed: int,
    method: Method = "backward",
    model: FeynmanKac[Any] | None = None,
    order: int = 1,
    lag: int | None = None,
) -> Smoothed:
    """Draw trajectories given all observations, from the full history of a particle filter such as ``SMC``.

    A filter's own paths share few ancestors far in the past, since each resampling loses some. The methods:

    - "backward" (consistent) draws each trajectory from its end to its start, at each step anew among all particles
      that the filter had there: j ∝ W_t^j · p(x_{t+1} | x_t^j) · G_{t+1}. It scores draws × particles pairs at each
      step, in blocks, and needs the ``model``, whose choices it forces on other pasts. A model may offer
      ``log_transition(state, choices)``, the (particles, choices) table of log p + log G, to have that done at once.
    - "genealogy" (the posterior's own guarantee) draws final particles, with the paths that they came by. It is right
      and degenerate: look at ``distinct``.
    - "lag" (heuristic) draws each step by the genealogies of ``lag`` steps later. Single steps alone have a meaning.

    Args:
        posterior: of `infer`, not cut short of its history: no tree, no Markov chain, for "backward" and "lag".
        draws: m, how many trajectories; with several chains, from each in proportion to its evidence.
        seed: an integer. Same seed, same draws.
        method: "backward", "genealogy" or "lag".
        model: the one that the posterior was made with; "backward" needs it.
        order: of "backward": how many of the next steps depend on a particle, not on later ones alone. 1 for Markov
            models with one step end in an iteration. What does not hold is found when the trajectories are run again.
        lag: of "lag": how many steps later.

    Raises:
        TypeError: where "backward" has no model.
        ValueError: for other settings out of range, and where every weight is zero.
        Unsupported: for a history that is not full, and where more than ``order`` steps depend on a particle.
        CannotScore: where a choice has no log-probability.
        InconsistentDensity: where the model is not the one that made the history.

    Source: Godsill, Doucet and West (2004), doi:10.1198/016214504000000151; fixed lag: Kitagawa and Sato (2001),
    doi:10.1007/978-1-4757-3437-9_9.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def walk():
    ...     async def step(x, y):
    ...         x = await fk.sample("x", fk.dist.Normal(x, 1.0))
    ...         await fk.observe("y", fk.dist.Normal(x, 1.0), y)
    ...         return x, x
    ...     return (await fk.scan(step, 0.0, [0.5, -1.0, 2.0]))[1]
    >>> posterior = fk.infer(walk(), fk.SMC(50), seed=0)
    >>> smoothed = fk.smooth(posterior, 100, seed=1, model=walk())
    >>> smoothed.series("x").shape, smoothed.guarantee
    ((100, 3), 'consistent')
    """
    _check(posterior, draws, method, model, order, lag)
    if posterior.info.get("compiled") == "yes":
        model = prepare(model, PAYS).model  # whose steps are the iterations of the scan
    key = _keys.fold(_keys.root(seed), _keys.tag("smooth"))
    ledger = Ledger()
    with recording(ledger):
        if method == "lag":
            assert lag is not None
            chains, index = _by_lag(posterior.chains, draws, key, lag)
            made = _gathered(posterior, chains, index), [None] * draws
        else:
            made, chains, index = _by_ends(posterior, draws, key, model if method == "backward" else None, order)
    steps, values = made
    promise: Guarantee = posterior.guarantee
    if method != "genealogy":
        promise = weaker(promise, "consistent" if method == "backward" else "heuristic")
    settings = {"backward": f", order={order}", "genealogy": "", "lag": f", lag={lag}"}[method]
    return Smoothed(
        values=tuple(detach(value) for value in values),
        chains=(Chain(np.zeros(draws), steps[-1].done, posterior.log_evidence, steps),),
        cost=ledger.total(),
        guarantee=promise,
        engine=f'smooth({posterior.engine}, method="{method}"{settings})',
        model=posterior.model,
        seed=int(seed),
        stopped=posterior.stopped,
        ranking="reward",
        method=method,
        distinct=_distinct(chains, index),
    )


def _check(posterior: Any, draws: Any, method: Any, model: Any, order: Any, lag: Any) -> None:
    """Raise for what cannot be smoothed so."""
    if not isinstance(posterior, Posterior):
        raise TypeError(f"smooth takes a posterior, as fk.infer returns it, not {type(posterior).__name__}")
    positive("draws", draws)
    positive("order", order)
    one_of("method", method, ("backward", "genealogy", "lag"))
    if (lag is None) is (method == "lag") or (lag is not None and (not isinstance(lag, int) or lag < 0)):
        raise ValueError(f'lag is a number of steps from 0 up where method="lag", and None elsewhere, not {lag!r}')
    if method == "backward" and not hasattr(model, "advance"):
        raise TypeError(
            "backward sampling scores transitions, so it needs the model that the posterior was made with: "
            "fk.smooth(posterior, draws, seed=…, model=model)"
        )
    posterior.probabilities  # noqa: B018 - it raises where there are none
    if method == "genealogy":
        return
    for chain in posterior.chains:
        if not (isinstance(chain.steps, tuple) or chain.serial):
            continue  # a fused filter keeps all that it had
        sizes = {len(step.log_weights) for step in chain.steps}
        if chain.serial or chain.tree is not None or len(sizes) != 1:
            raise Unsupported(
                f"smoothing needs all particles of all steps, and {posterior.engine} keeps a tree or a chain of whole "
                'runs: use SMC without moves, or method="genealogy"'
            )
        if any(step.temperature != 1.0 for step in chain.steps):
            raise Unsupported(f'{posterior.engine} weighs by another temperature than 1: use method="genealogy"')


def _by_ends(
    posterior: Posterior, draws: int, key: Keys, model: Any, order: int
) -> tuple[tuple[tuple[Step, ...], list[Any]], Index, Index]:
    """Draw final particles and their pasts: backward with a model, else by genealogy."""
    chains = posterior.chains
    ends = resample(posterior.log_weights, draws, _keys.fold(key, _keys.tag("ends")), "multinomial")
    firsts = np.cumsum([0, *(len(chain.log_weights) for chain in chains)])
    owner = np.searchsorted(firsts, ends, side="right") - 1
    index = np.full((max(len(chain.steps) for chain in chains), draws), -1)
    if model is None:
        for i, (c, end) in enumerate(zip(owner.tolist(), (ends - firsts[owner]).tolist())):
            index[: len(chains[c].steps), i] = chains[c].lines[:, end]
        return (_gathered(posterior, owner, index), [posterior.values[i] for i in ends]), owner, index
    did: list[list[_Did]] = [[] for _ in index]
    values: list[Any] = [None] * draws
    for c in np.unique(owner).tolist():
        rows = np.flatnonzero(owner == c)
        steps = chains[c].steps
        lines, found = _drawn(model, steps, (ends - firsts[owner])[rows], _keys.fold(key, c), order)
        index[: len(steps), rows] = lines
        for here, made in zip(did, found.advances):
            here.append(_Did(rows, detach_choices(made.choices), made.log_potential, made.done))
        for i, value in zip(rows.tolist(), found.values):
            values[i] = value
    return (_steps(posterior, did, draws), values), owner, index


def _drawn(model: Any, steps: Sequence[Step], ends: Index, key: Keys, order: int) -> tuple[Index, Retraced]:
    """Draw backward; at once from what a fused filter found."""
    if not isinstance(steps, tuple):
        from .fused import draw_backward_at_once, goes_at_once

        if goes_at_once(model, steps, order):
            return draw_backward_at_once(model, steps, ends, key)  # type: ignore[arg-type]
    return draw_backward(model, steps, ends, key, order)


def _by_lag(chains: Sequence[Chain], draws: int, key: Keys, lag: int) -> tuple[Index, Index]:
    """Draw the particle of each step by the genealogies of some steps later; return chains and indices, (T, m)."""
    length = max(len(chain.steps) for chain in chains)
    owners, index = np.zeros((length, draws), np.intp), np.full((length, draws), -1)
    for t in range(length):
        lates = [min(t + lag, len(chain.steps) - 1) for chain in chains]
        weights = [chain.steps[late].log_weights for chain, late in zip(chains, lates)]
        ends = resample(np.concatenate(weights), draws, _keys.fold(key, t), "multinomial")
        firsts = np.cumsum([0, *map(len, weights)])
        owners[t] = np.searchsorted(firsts, ends, side="right") - 1
        for c in np.unique(owners[t]).tolist():
            mine = owners[t] == c
            line = (ends - firsts[c])[mine]
            for s in range(lates[c], t, -1):
                line = chains[c].steps[s].ancestors[line]
            index[t, mine] = line if t < len(chains[c].steps) else -1
    return owners, index


def _gathered(posterior: Posterior, owner: Index, index: Index) -> tuple[Step, ...]:
    """Return the recorded steps of draws, whose chains (m,) or (T, m) and particles (T, m) are given."""
    did: list[list[_Did]] = [[] for _ in index]
    for t, (owners, line) in enumerate(zip(np.broadcast_to(owner, index.shape), index)):
        for c in np.unique(owners[line >= 0]).tolist():
            rows = np.flatnonzero((owners == c) & (line >= 0))
            step, mine = posterior.chains[c].steps[t], line[rows]
            did[t].append(_Did(rows, take(step.choices, mine), step.log_potential[mine], step.done[mine]))
    return _steps(posterior, did, index.shape[1])


class _Did(NamedTuple):
    """What some of the draws, by their numbers, did in a step."""

    rows: Index
    choices: Any
    log_potential: Any
    done: Any


def _steps(posterior: Posterior, did: Sequence[Sequence[_Did]], m: int) -> tuple[Step, ...]:
    """Return a history in which each of m draws is its own ancestor, from what they did; the others were done."""
    themselves = np.arange(m)
    evidence = [
        [step.log_evidence for step in chain.steps] if isinstance(chain.steps, tuple) else chain.steps.log_evidence  # type: ignore[attr-defined]
        for chain in posterior.chains
    ]
    steps = []
    for t, here in enumerate(did):
        log_potential, done = np.zeros(m), np.ones(m, bool)
        for one in here:
            log_potential[one.rows], done[one.rows] = one.log_potential, one.done
        reached = [levels[t] for levels in evidence if t < len(levels)]
        steps.append(
            Step(
                depth=t,
                ess=float(m),
                entropy=math.log(m),
                log_evidence=math.nan if np.isnan(reached).any() else logmeanexp(reached),
                resampled=False,
                ancestors=themselves,
                log_weights=np.zeros(m),
                log_potential=log_potential,
                log_twist=np.zeros(m),
                done=done,
                choices=_joined(here, m),
            )
        )
    return tuple(steps)


def _joined(did: Sequence[_Did], m: int) -> Sequence[Any]:
    """Return the choices of all draws in a step; as arrays where they are arrays."""
    if did and all(isinstance(one.choices, Choices) for one in did):
        pieces = []
        for one in did:
            for piece in one.choices.pieces:
                at = np.full(m, -1)
                at[one.rows] = piece.rows
                pieces.append(piece._replace(rows=at))
        return Choices(m, pieces)
    found: list[Any] = [()] * m
    for one in did:
        for i, chosen in zip(one.rows.tolist(), one.choices):
            found[i] = chosen
    return found


def _distinct(owner: Index, index: Index) -> Any:
    """Return how many different particles there are at each step."""
    owners = np.broadcast_to(owner, index.shape)
    counts = [len(np.unique(np.stack([who, line]), axis=1).T) for who, line in zip(owners, index)]
    found = np.array(counts, np.int64)
    found.flags.writeable = False
    return found

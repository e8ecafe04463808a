"""Backward sampling: trajectories drawn from their ends to their starts, from all particles that a filter had.

Given x_{t+1}, the particle at step t is j with probability ∝ W_t^j · p(x_{t+1} | x_t^j) · G_{t+1}(x_t^j, x_{t+1}).
Nothing but the contract is used: the filter's particles are made again by their recorded choices, and each choice of a
step is forced on every particle of the step before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...ppl import keys as _keys
from ...ppl.compiled.choices import Choices
from ...ppl.errors import CannotScore, InconsistentDensity, Unsupported
from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac, Floats, Index, retry
from ..base.step import Step

PAIRS, FORCED = 1_000_000, 50_000
"""Pairs of a particle and what may follow it that are scored at once: by numbers alone, and by particles made."""
_CLOSE = 1e-5
"""Relative difference of log-densities that are the same, of laws that are scored in single precision, too."""


class Did(NamedTuple):
    """What trajectories did in a step: their choices, log G (m,), and which are done (m,)."""

    choices: Any
    log_potential: Any
    done: Any


class Retraced(NamedTuple):
    """Trajectories that were run again: what each step of all of them did, and their values at the end."""

    advances: Sequence[Advance[Any] | Did]
    values: list[Any]


def draw_backward(
    model: FeynmanKac[Any], steps: Sequence[Step], ends: Index, key: Keys, order: int
) -> tuple[Index, Retraced]:
    """Draw the past of particles of the last step.

    Args:
        model: that of the filter.
        steps: T of them, one chain's history.
        ends: (m,) the particle that each trajectory ends in.
        key: shape (1,).
        order: how many of the steps that follow a particle depend on it, rather than on later ones alone.

    Returns:
        The particle of each trajectory at each step, (T, m), and the trajectories, run again.

    Raises:
        CannotScore: where a choice has no log-probability.
        InconsistentDensity: where the model, forced to the choices of the history, does not weigh them as they were.
        Unsupported: where more than ``order`` steps depend on a particle.
    """
    states = _replay(model, steps, _keys.fold(key, _keys.tag("replay")))
    index = np.empty((len(steps), len(ends)), np.intp)
    index[-1] = ends
    farthest = np.full((len(steps), len(ends)), np.nan)
    for t in range(len(steps) - 2, -1, -1):
        ahead, of = np.unique(index[t + 1 : t + 1 + order].T, axis=0, return_inverse=True)
        below, uniforms = _keys.fold(key, _keys.tag("forced"), t), uniforms_at(key, t, len(ends))
        alive = np.flatnonzero(steps[t].log_weights > -np.inf)
        size = max(1, (PAIRS if hasattr(model, "log_transition") else FORCED) // len(alive))
        for first in range(0, len(ahead), size):
            rows = np.flatnonzero((of >= first) & (of < first + size))
            suffixes = ahead[first : first + size]
            scores, last = _scores(model, steps[t:], states[t], alive, suffixes, _keys.fold(below, first))
            found = _invert(steps[t].log_weights[alive] + scores, of[rows] - first, uniforms[rows], t)
            index[t, rows] = alive[found]
            if t + order < len(steps):
                farthest[t + order, rows] = last[of[rows] - first, found]
    made = _retrace(model, steps, index, _keys.fold(key, _keys.tag("retrace")))
    check_order(np.array([_density(one) for one in made.advances[order:]]), farthest[order:], order)
    return index, made


def uniforms_at(key: Keys, t: int, m: int) -> Floats:
    """Return the numbers (m,) by which the particles of m trajectories at a step are drawn."""
    return _keys.uniform(_keys.fold(key, _keys.tag("backward"), t, np.arange(m)))


def _replay(model: FeynmanKac[Any], steps: Sequence[Step], key: Keys) -> list[Any]:
    """Return the particles after each step, made again by their choices."""
    states: list[Any] = []
    for t, step in enumerate(steps):
        keys = _keys.fold(key, t, np.arange(len(step.ancestors)))
        if t == 0:
            made = model.start(keys, step.choices)
        else:
            made = model.advance(model.select(states[-1], step.ancestors), keys, step.choices)
        if not np.asarray(made.scored)[step.log_weights > -np.inf].all():
            raise CannotScore(
                f"backward sampling needs log p of every choice, and at step {t} some have none; "
                'use method="genealogy", which needs no model'
            )
        check_weights(made.log_potential, step.log_potential, t)
        states.append(made.state)
    return states


def _scores(
    model: FeynmanKac[Any], steps: Sequence[Step], state: Any, alive: Index, ahead: Index, key: Keys
) -> tuple[Floats, Floats]:
    """Return (k, n) log p + log G of k sequences of choices, each forced on each of n particles; and of the last step.

    Args:
        model: theirs.
        steps: the history from the particles' step on.
        state: all particles of this step.
        alive: (n,) those that are asked for.
        ahead: (k, order or fewer) the particles at the next steps whose choices are forced.
        key: shape (1,).
    """
    k, n = len(ahead), len(alive)
    direct = getattr(model, "log_transition", None)
    if direct is not None and ahead.shape[1] == 1 and not steps[0].done.any() and len(set(steps[1].done.tolist())) == 1:
        table: Floats = np.asarray(direct(model.select(state, alive), take(steps[1].choices, ahead[:, 0])), float).T
        return table, table
    rows, which = np.tile(alive, k), np.repeat(np.arange(k), n)
    own = steps[1].ancestors[ahead[:, 0]]
    fits = steps[0].done[rows] == steps[0].done[own][which]  # what has finished makes no choices, whatever it is given
    state, total, last = model.select(state, rows), np.zeros(k * n), np.zeros(k * n)
    for s, step in enumerate(steps[1 : 1 + ahead.shape[1]]):
        forced = [retry(chosen) for chosen in take(step.choices, ahead[:, s])]
        made = model.advance(state, _keys.fold(key, s, np.arange(k * n)), take(forced, which))
        last = _density(made)
        total += last
        fits &= made.done == step.done[ahead[:, s]][which]
        state = made.state
    return np.where(fits, total, -np.inf).reshape(k, n), last.reshape(k, n)


def _invert(logits: Floats, of: Index, uniforms: Floats, t: int) -> Index:
    """Draw a column of the row ``of`` each draw, by its uniform."""
    peaks = logits.max(1, keepdims=True)
    if not (peaks > -np.inf).all():
        raise impossible(t)
    ends = np.cumsum(np.exp(logits - peaks), axis=1)
    k, n = ends.shape
    places = (ends / ends[:, -1:] + np.arange(k)[:, None]).ravel()  # one row after the other, each of length 1
    found: Index = np.minimum(np.searchsorted(places, uniforms + of, side="right"), (of + 1) * n - 1) - of * n
    return found


def _retrace(model: FeynmanKac[Any], steps: Sequence[Step], index: Index, key: Keys) -> Retraced:
    """Run the trajectories from their starts, forced to their choices."""
    advances: list[Advance[Any]] = []
    for t, step in enumerate(steps):
        keys = _keys.fold(key, t, np.arange(index.shape[1]))
        chosen = take(step.choices, index[t])
        if t == 0:
            advances.append(model.start(keys, chosen))
        else:
            forced = chosen if isinstance(chosen, Choices) else [retry(one) for one in chosen]
            advances.append(model.advance(advances[-1].state, keys, forced))
    return Retraced(advances, model.values(advances[-1].state))


def check_weights(found: Floats, known: Floats, t: int) -> None:
    """Raise where a model weighs the choices of a step otherwise than its history says."""
    if not _same(found, known):
        raise InconsistentDensity(
            f"the model does not weigh the choices of step {t} as the history says: it must be the model that the "
            "posterior was made with, and take `given`"
        )


def impossible(t: int) -> InconsistentDensity:
    """Return the error for a particle at step t that nothing leads on from."""
    return InconsistentDensity(
        f"backward sampling: what followed a particle at step {t} has density zero after all of them, itself "
        "included; a call (fk.call) whose value changes when it is made again would do that"
    )


def check_order(densities: Floats, farthest: Floats, order: int) -> None:
    """Raise where a step's density is not the one by which the particle ``order`` steps before it was drawn.

    That was scored with another past before this particle: the step depends on more than it was said to. Both are of
    the steps from the ``order``-th on, (T − order, m).
    """
    for t, (density, scored) in enumerate(zip(densities, farthest), order):
        if not _same(density, scored):
            raise Unsupported(
                f"backward sampling: step {t} depends on more of the past than the last {order} "
                f"step{'s' * (order > 1)}. Say by order= how many of the next steps depend on a particle: 2 where an "
                "iteration has two step ends, or a state two lags; all of them for a parameter that is drawn first. Or "
                'use method="genealogy"'
            )


def _density(made: Any) -> Floats:
    """Return log p + log G of a step, (n,)."""
    total: Floats = np.asarray(made.log_prob, float) + np.asarray(made.log_potential, float)
    return total


def take(items: Any, rows: Index) -> Any:
    """Return some of an array, of choices, or of a list."""
    return items[rows] if isinstance(items, np.ndarray | Choices) else [items[i] for i in rows.tolist()]


def _same(a: Floats, b: Floats) -> bool:
    return bool(np.allclose(a, b, rtol=_CLOSE, atol=_CLOSE))

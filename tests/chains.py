"""A finite chain as a native model: exact by enumeration, its calls and keys on record."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

import feynkac as fk


@dataclass(frozen=True)
class Paths:
    """n paths of unequal length, one row each, filled up with −1."""

    x: np.ndarray
    depth: np.ndarray
    steps: int

    @property
    def done(self):
        return self.depth >= self.steps - 1

    def __len__(self):
        return len(self.x)


class FiniteChain:
    """x_0 ~ start, x_t ~ moves[x_{t−1}], log G_t(x_t) = log_g[t, x_t]; drawn from ``proposal`` where one is given."""

    def __init__(self, start, moves, log_g, proposal=None):
        self.start_law, self.moves, self.log_g = np.array(start), np.array(moves), np.array(log_g)
        self.proposal = None if proposal is None else np.array(proposal)
        self.keys, self.calls, self.depths = [], [], []

    def __repr__(self):
        return "FiniteChain"

    def start(self, keys, given=None):
        empty = np.full((len(keys), len(self.log_g)), -1)
        state = Paths(empty, np.full(len(keys), -1), len(self.log_g))
        return self._step(state, np.tile(self.start_law, (len(keys), 1)), keys)

    def advance(self, state, keys, given=None):
        assert not state.done.any()
        return self._step(state, self.moves[state.x[np.arange(len(state)), state.depth]], keys)

    def _step(self, state, law, keys):
        n = len(keys)
        self.keys += keys.tolist()
        self.calls.append(n)
        self.depths.append(set(state.depth.tolist()))
        fk.ppl.cost.charge(model_calls=1, nfe=np.ones(n, int))
        q = law if self.proposal is None else np.tile(self.proposal, (n, 1))
        drawn = (fk.keys.uniform(keys)[:, None] > np.cumsum(q, 1)).sum(1).clip(max=law.shape[1] - 1)
        depth = state.depth + 1
        x = state.x.copy()
        rows = np.arange(n)
        x[rows, depth] = drawn
        after = Paths(x, depth, state.steps)
        log_p, log_q = np.log(law[rows, drawn]), np.log(q[rows, drawn])
        log_g = self.log_g[depth, drawn]
        choices = [(int(value),) for value in drawn]
        return fk.Advance(after, choices, log_p, log_q, log_g, np.zeros(n), after.done, np.ones(n, bool))

    def select(self, state, index):
        return Paths(state.x[index], state.depth[index], state.steps)

    def concat(self, states):
        return Paths(np.concatenate([s.x for s in states]), np.concatenate([s.depth for s in states]), states[0].steps)

    def values(self, state):
        return [tuple(row.tolist()) for row in state.x]

    def exact(self):
        """Return Z and the law of whole paths."""
        law = {}
        steps, states = self.log_g.shape
        for path in itertools.product(range(states), repeat=steps):
            p = self.start_law[path[0]] * math.prod(self.moves[a][b] for a, b in itertools.pairwise(path))
            law[path] = p * math.exp(sum(self.log_g[t, x] for t, x in enumerate(path)))
        z = sum(law.values())
        return z, {path: w / z for path, w in law.items()}


def total_variation(posterior, law):
    """Distance of a posterior's law of values from an exact one."""
    found = {}
    for value, p in zip(posterior.values, posterior.probabilities.tolist()):
        found[value] = found.get(value, 0.0) + p
    return 0.5 * sum(abs(found.get(value, 0.0) - law.get(value, 0.0)) for value in {*found, *law})


# Nothing in it is symmetric.
START = (0.6, 0.3, 0.1)
MOVES = ((0.7, 0.2, 0.1), (0.1, 0.6, 0.3), (0.25, 0.05, 0.7))
LOG_G = np.log([[0.5, 0.1, 0.2], [0.05, 0.8, 0.3], [0.3, 0.1, 0.9]])


def chain(**options):
    return FiniteChain(START, MOVES, LOG_G, **options)


def late_chain():
    """The same, but the whole reward comes at the end."""
    log_g = np.zeros((3, 3))
    log_g[2] = (0.0, 1.0, 3.0)
    return FiniteChain(START, MOVES, log_g)

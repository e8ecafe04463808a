"""Models without chance: particles are paths of child numbers, and what they score is a function of the path."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

import feynkac as fk


@dataclass(frozen=True)
class Rows:
    """n paths, each a tuple: which start it was, then which child of its parent in the wave that made it."""

    paths: tuple[tuple[int, ...], ...]
    ended: tuple[bool, ...]

    @property
    def depth(self):
        return np.array([len(path) - 1 for path in self.paths])

    @property
    def done(self):
        return np.array(self.ended, bool)

    def __len__(self):
        return len(self.paths)


class Scripted:
    """``log_g(path)`` weighs a step and ``ends(path)`` says whether it is the last; calls and keys are on record."""

    def __init__(self, log_g, ends, twist=lambda path: 0.0, log_prob=lambda path: 0.0):
        self.log_g, self.ends, self.twist, self.log_prob = log_g, ends, twist, log_prob
        self.waves, self.keys = [], []

    def __repr__(self):
        return "Scripted"

    def start(self, keys, given=None):
        return self._made([(i,) for i in range(len(keys))], keys)

    def advance(self, state, keys, given=None):
        assert not state.done.any()
        seen = Counter()
        paths = []
        for path in state.paths:
            paths.append((*path, seen[path]))
            seen[path] += 1
        return self._made(paths, keys)

    def _made(self, paths, keys):
        n = len(paths)
        self.waves.append(paths)
        self.keys += keys.tolist()
        fk.ppl.cost.charge(model_calls=1, nfe=np.ones(n, int))
        log_g = np.array([self.log_g(path) for path in paths], float)
        state = Rows(tuple(paths), tuple(bool(self.ends(path)) or g == -math.inf for path, g in zip(paths, log_g)))
        level = np.array([0.0 if e else self.twist(path) for path, e in zip(paths, state.ended)])
        log_p = np.array([self.log_prob(path) for path in paths], float)
        return fk.Advance(state, [(p[-1],) for p in paths], log_p, log_p, log_g, level, state.done, np.ones(n, bool))

    def select(self, state, index):
        return Rows(tuple(state.paths[i] for i in index), tuple(state.ended[i] for i in index))

    def concat(self, states):
        return Rows(sum((s.paths for s in states), ()), sum((s.ended for s in states), ()))

    def values(self, state):
        return list(state.paths)


class Queue(Scripted):
    """Runs that are over at their start, in a given order: what each answers, and its probability."""

    def __init__(self, answers, rewards=None):
        self.answers, self.drawn = list(answers), 0
        rewards = [1.0] * len(self.answers) if rewards is None else rewards
        log_g = [math.log(r) if r > 0 else -math.inf for r in rewards]
        super().__init__(lambda path: log_g[path[0]], lambda path: True)

    def __repr__(self):
        return "Queue"

    def start(self, keys, given=None):
        first, self.drawn = self.drawn, self.drawn + len(keys)
        return self._made([(i,) for i in range(first, self.drawn)], keys)

    def values(self, state):
        return [self.answers[path[0]] for path in state.paths]


def paths_of(tree):
    """The path of child numbers to each node of a search tree of a `Scripted` model; () for the root."""
    paths = [()]
    for x in range(1, len(tree)):
        paths.append((*paths[tree.parent[x]], tree.choices[x][0]))
    return paths


def noise(path, seed=0):
    """A number in (0, 1) that belongs to a path."""
    return float(fk.keys.uniform(fk.keys.fold(fk.keys.root(seed), len(path), *path))[0])


def prm(path):
    return noise(path, 3)


def tree_of(posterior):
    return posterior.chains[0].tree

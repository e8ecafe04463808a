"""What the tests of tempering share: one-step toys with closed forms, as native models, and kernels for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

import feynkac as fk
from feynkac.inference.base.paths import extend


@dataclass(frozen=True)
class Points:
    """n points of d numbers."""

    x: np.ndarray

    @property
    def depth(self):
        return np.zeros(len(self.x), np.int64)

    @property
    def done(self):
        return np.ones(len(self.x), bool)

    def __len__(self):
        return len(self.x)


class Toy:
    """x drawn from a prior, and weighed once."""

    def __init__(self):
        self.starts = 0

    def start(self, keys, given=None):
        self.starts += 1
        x = self.draw(keys)
        if given is not None:
            for i, forced in enumerate(given):
                if forced is not None:
                    x[i] = forced
        log_p, log_g, n = self.log_prior(x), self.log_g(x), len(keys)
        return fk.Advance(Points(x), x, log_p, log_p, log_g, np.zeros(n), np.ones(n, bool), np.ones(n, bool))

    def advance(self, state, keys, given=None):
        raise AssertionError("all are done")

    def select(self, state, index):
        return Points(state.x[index])

    def concat(self, states):
        return Points(np.concatenate([state.x for state in states]))

    def values(self, state):
        return [row.copy() for row in state.x]


class G1(Toy):
    """z ~ N(0, 1), 1.5 ~ N(z, .5): the posterior is N(1.2, .2)."""

    log_z = -1.930510309

    def draw(self, keys):
        return fk.keys.normal(keys)[:, None]

    def log_prior(self, x):
        return -0.5 * x[:, 0] ** 2 - 0.5 * math.log(2 * math.pi)

    def log_g(self, x):
        return -2.0 * (1.5 - x[:, 0]) ** 2 - math.log(0.5 * math.sqrt(2 * math.pi))

    def tempered(self, keys, inverse):
        return 6 * inverse / (1 + 4 * inverse) + fk.keys.normal(keys)[:, None] / math.sqrt(1 + 4 * inverse)


class G2(Toy):
    """θ ~ Exponential(1), 3 ~ Poisson(θ): the posterior is Gamma(4, rate 2), Z = 1/16."""

    log_z = -math.log(16)

    def draw(self, keys):
        return -np.log(fk.keys.uniform(keys))[:, None]

    def log_prior(self, x):
        return np.where(x[:, 0] > 0, -x[:, 0], -np.inf)

    def log_g(self, x):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(x[:, 0] > 0, 3 * np.log(x[:, 0]) - x[:, 0] - math.log(6), -np.inf)

    def tempered(self, keys, inverse):
        return np.array([one.gamma(3 * inverse + 1, 1 / (1 + inverse)) for one in fk.keys.generators(keys)])[:, None]


class G3(Toy):
    """z ~ N(0, I₂), with a likelihood of two modes, that of the smaller posterior mass the farther from the prior."""

    log_z, mode = -4.458591485, 0.098772880
    mean = (-1.459008, -0.639710)

    def draw(self, keys):
        return fk.keys.normal(keys, 2)

    def log_prior(self, x):
        return -0.5 * (x**2).sum(1) - math.log(2 * math.pi)

    def log_g(self, x):
        parts = [
            math.log(w / (0.2 * math.pi)) - ((x - np.array(m)) ** 2).sum(1) / 0.2
            for w, m in ((0.3, (2.0, 2.0)), (0.7, (-2.0, -1.0)))
        ]
        return np.logaddexp(*parts)


@dataclass(frozen=True)
class Exact:
    """Draws a run anew from the tempered target."""

    def move(self, model, paths, keys, horizon, inverse):
        made = yield from extend(model, [None] * len(paths), keys, list(model.tempered(keys, float(inverse[0]))))
        return made, 1.0


@dataclass(frozen=True)
class Walk:
    """Metropolis with a normal step."""

    size: float

    def move(self, model, paths, keys, horizon, inverse):
        x = np.array([path.state.x[path.row] for path in paths])
        step = fk.keys.normal(fk.keys.fold(keys, 1), x.shape[1])
        made = yield from extend(model, [None] * len(paths), keys, list(x + self.size * step))
        worth = [
            [p.log_prob + b * p.log_potential if p.log_weight > -np.inf else -np.inf for p, b in zip(of, inverse)]
            for of in (paths, made)
        ]
        accept = np.log(fk.keys.uniform(fk.keys.fold(keys, 2))) < np.subtract(worth[1], worth[0])
        return [new if ok else old for old, new, ok in zip(paths, made, accept)], float(accept.mean())


@dataclass(frozen=True)
class Stuck:
    """Moves nothing."""

    def move(self, model, paths, keys, horizon, inverse):
        return list(paths), 0.0
        yield


class Mortal(G1):
    """G1, where half of the prior has no likelihood: z below 0 is dead, and the posterior is cut there."""

    log_z = G1.log_z + math.log(0.5 * math.erfc(-1.2 / math.sqrt(0.4)))

    def log_g(self, x):
        return np.where(x[:, 0] > 0, super().log_g(x), -np.inf)

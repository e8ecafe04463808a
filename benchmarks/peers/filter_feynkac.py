"""Bootstrap filter with feynkac: a native model, one array for the whole population, and `fk.SMC`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from worker import serve

import feynkac as fk


@dataclass(frozen=True)
class Population:
    """All n particles, which are always equally deep."""

    x: np.ndarray
    t: int
    steps: int

    @property
    def depth(self):
        return np.full(len(self.x), self.t)

    @property
    def done(self):
        return np.full(len(self.x), self.t == self.steps - 1)

    def __len__(self):
        return len(self.x)


class LinearGaussian:
    """x_t ~ N(ρ x_{t−1}, σ_x²) from its stationary law, y_t ~ N(x_t, σ_y²)."""

    def __init__(self, y, rho, sigma_x, sigma_y):
        self.y, self.rho, self.sigma_x, self.sigma_y = y, rho, sigma_x, sigma_y

    def start(self, keys, given=None):
        return self._weigh(self._noise(keys) * (self.sigma_x / math.sqrt(1 - self.rho**2)), 0)

    def advance(self, state, keys, given=None):
        return self._weigh(self.rho * state.x + self.sigma_x * self._noise(keys), state.t + 1)

    def _noise(self, keys):
        """One generator for the batch, as the peers have; ``fk.keys.normal`` would give each particle its own."""
        return fk.keys.generator(keys).standard_normal(len(keys))

    def _weigh(self, x, t):
        """The transition is its own proposal, so log p and log q cancel and are not worked out."""
        state, nothing = Population(x, t, len(self.y)), np.zeros(len(x))
        log_potential = -0.5 * ((self.y[t] - x) / self.sigma_y) ** 2 - math.log(self.sigma_y * math.sqrt(2 * math.pi))
        scored = np.zeros(len(x), bool)
        return fk.Advance(state, x, nothing, nothing, log_potential, nothing, state.done, scored)

    def select(self, state, index):
        return Population(state.x[index], state.t, state.steps)

    def concat(self, states):
        return Population(np.concatenate([state.x for state in states]), states[0].t, states[0].steps)

    def values(self, state):
        return state.x.tolist()


def prepare(*, y, n, rho, sigma_x, sigma_y):
    model, engine = LinearGaussian(y, rho, sigma_x, sigma_y), fk.SMC(n)
    return lambda seed: {"log_z": fk.infer(model, engine, seed=seed).log_evidence}


if __name__ == "__main__":
    serve(prepare)

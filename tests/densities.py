"""Toys with continuous sites: native models that offer `unconstrained`, in NumPy alone or with JAX's density too.

Each draws x of d numbers at its first step and weighs it at each of its T steps; its law in closed form stands beside
it. In unconstrained coordinates u, x = u or x = eᵘ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import feynkac as fk
from feynkac.ppl.density import Density, Evaluation


@dataclass(frozen=True)
class Batch:
    """Particles: what they drew, and how many steps they have made."""

    x: np.ndarray
    depth: np.ndarray
    steps: int

    @property
    def done(self):
        return self.depth == self.steps - 1

    def __len__(self):
        return len(self.x)


@dataclass(frozen=True, eq=False)
class Toy:
    """A native model of one draw and T factors.

    Attributes:
        d: numbers drawn.
        draw: (keys) -> x (n, d).
        log_prior: (xp, x (…, d)) -> (…), log p(x); ``xp`` is NumPy or jax.numpy.
        grad_prior: (x) -> (n, d), in NumPy.
        potentials: for each step the like of ``log_prior``; so is ``grad_potentials``.
        log_link: whether x = eᵘ.
        gaussian: see `Density`; of the prior in u.
        jax: whether there is a JAX density.
        twist: the guide's level is so many times x₀, until the last step.
    """

    d: int
    draw: Callable[..., Any]
    log_prior: Callable[..., Any]
    grad_prior: Callable[..., Any]
    potentials: tuple[Callable[..., Any], ...]
    grad_potentials: tuple[Callable[..., Any], ...]
    log_link: bool = False
    gaussian: Any = None
    jax: bool = False
    twist: float = 0.0
    calls: dict[str, int] = field(default_factory=lambda: {"evaluate": 0, "replayed": 0, "traced": 0})
    compiled: dict[int, Any] = field(default_factory=dict)

    # -- the contract

    def start(self, keys, given=None):
        x = np.array(self.draw(keys), float).reshape(len(keys), self.d)
        for row, choice in zip(x, given or ()):
            if choice is not None:
                row[:] = choice
                self.calls["replayed"] += 1
        return self._weigh(Batch(x, np.zeros(len(x), int), len(self.potentials)), self.log_prior(np, x))

    def advance(self, state, keys, given=None):
        return self._weigh(Batch(state.x, state.depth + 1, state.steps), np.zeros(len(state)))

    def _weigh(self, state, log_prob):
        with np.errstate(divide="ignore"):
            by_step = np.stack([log_g(np, state.x) for log_g in self.potentials])
        log_g = by_step[state.depth, np.arange(len(state))]
        first = state.depth == 0
        choices = [tuple(x) if at else () for x, at in zip(state.x.tolist(), first.tolist())]
        twist = np.where(state.done, 0.0, self.twist * state.x[:, 0])
        return fk.Advance(state, choices, log_prob, log_prob, log_g, twist, state.done, np.ones(len(state), bool))

    def select(self, state, index):
        return Batch(state.x[index], state.depth[index], state.steps)

    def concat(self, states):
        x, depth = (np.concatenate([getattr(s, name) for s in states]) for name in ("x", "depth"))
        return Batch(x, depth, len(self.potentials))

    def values(self, state):
        return [float(x[0]) if self.d == 1 else x for x in state.x]

    # -- the density

    def into(self, xp, u):
        """x, and dx/du."""
        return (xp.exp(u), xp.exp(u)) if self.log_link else (u, xp.ones_like(u))

    def log_parts(self, xp, u, steps):
        """log_prior and log_potential of (…, d)."""
        x, slope = self.into(xp, u)
        log_prior = self.log_prior(xp, x) + xp.log(slope).sum(-1)
        return log_prior, sum(log_g(xp, x) for log_g in self.potentials[:steps])

    def unconstrained(self, paths, horizon):
        lengths = {min(path.length, len(self.potentials)) for path in paths}
        return [self._density(paths, length) for length in sorted(lengths)]

    def _density(self, paths, steps):
        rows = np.array([i for i, path in enumerate(paths) if path.length == steps])
        x = np.array([paths[i].cut(1).choices for i in rows])

        def evaluate(u, gradients):
            self.calls["evaluate"] += 1
            log_prior, log_potential = self.log_parts(np, u, steps)
            if not gradients:
                return Evaluation(log_prior, log_potential)
            x, slope = self.into(np, u)
            of_slope = float(self.log_link)
            grad = sum(grad_g(x) for grad_g in self.grad_potentials[:steps])
            return Evaluation(log_prior, log_potential, self.grad_prior(x) * slope + of_slope, grad * slope)

        return Density(
            rows=rows,
            position=np.log(x) if self.log_link else x,
            evaluate=evaluate,
            choices=lambda u: [[tuple(row), *[None] * (steps - 1)] for row in self.into(np, u)[0].tolist()],
            log_jacobian=lambda u: np.log(self.into(np, u)[1]).sum(-1),
            logdensity=self._logdensity(steps) if self.jax else None,
            gaussian=self.gaussian,
            signature=("toy", steps),
            sites=("x",) * self.d,
        )

    def _logdensity(self, steps):
        if steps not in self.compiled:
            import jax.numpy as jnp

            def logdensity(u, fixed):
                self.calls["traced"] += 1
                return self.log_parts(jnp, u, steps)

            self.compiled[steps] = logdensity
        return self.compiled[steps]


HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def log_normal(xp, x, mean, sd):
    return (-0.5 * ((x - mean) / sd) ** 2 - xp.log(xp.asarray(sd)) - HALF_LOG_2PI).sum(-1)


def gaussian_toy(observed=(1.5,), sd=0.5, jax=False, **more):
    """z ~ N(0, 1), y_t ~ N(z, sd): G1 where there is one observation, 1.5.

    G1: posterior N(1.2, .2), log Z −1.930510309; at inverse temperature λ N(6λ/(1+4λ), 1/(1+4λ)).
    """
    return Toy(
        d=1,
        draw=fk.keys.normal,
        log_prior=lambda xp, x: log_normal(xp, x, 0.0, 1.0),
        grad_prior=lambda x: -x,
        potentials=tuple(lambda xp, x, y=y: log_normal(xp, x, y, sd) for y in observed),
        grad_potentials=tuple(lambda x, y=y: (y - x) / sd**2 for y in observed),
        gaussian=(np.zeros(1), np.ones(1)),
        jax=jax,
        **more,
    )


def poisson_toy(jax=False, **more):
    """θ ~ Exponential(1), 3 ~ Poisson(θ): G2. Posterior Gamma(4, rate 2), mean 2, variance 1; Z = 1/16."""
    return Toy(
        d=1,
        draw=lambda keys: -np.log(fk.keys.uniform(keys)),
        log_prior=lambda xp, x: -x.sum(-1),
        grad_prior=lambda x: -np.ones_like(x),
        potentials=(lambda xp, x: (3 * xp.log(x) - x).sum(-1) - math.log(6),),
        grad_potentials=(lambda x: 3 / x - 1,),
        log_link=True,
        jax=jax,
        **more,
    )


MODES, SHARES, SPREAD = np.array([[2.0, 2.0], [-2.0, -1.0]]), np.array([0.3, 0.7]), 0.1


def _modes(xp, x):
    """(…, 2): the log of each component's share of G."""
    square = ((x[..., None, :] - MODES) ** 2).sum(-1)
    return -0.5 * square / SPREAD + np.log(SHARES) - math.log(2 * math.pi * SPREAD)


def _log_modes(xp, x):
    logs = _modes(xp, x)
    peak = logs.max(-1)
    return peak + xp.log(xp.exp(logs - peak[..., None]).sum(-1))


def _grad_modes(x):
    logs = _modes(np, x)
    share = np.exp(logs - _log_modes(np, x)[..., None])
    return (share[..., None] * (MODES - x[..., None, :]) / SPREAD).sum(-2)


def modes_toy(jax=False, **more):
    """z ~ N(0, I₂), G = .3 N(z; (2, 2), .1 I) + .7 N(z; (−2, −1), .1 I): G3.

    log Z −4.458591485, P(mode 1) .098772880, E z = (−1.459008, −.639710).
    """
    return Toy(
        d=2,
        draw=lambda keys: fk.keys.normal(keys, 2),
        log_prior=lambda xp, x: log_normal(xp, x, 0.0, 1.0),
        grad_prior=lambda x: -x,
        potentials=(_log_modes,),
        grad_potentials=(_grad_modes,),
        gaussian=(np.zeros(2), np.ones(2)),
        jax=jax,
        **more,
    )


G1_LOG_Z, G2_LOG_Z, G3_LOG_Z = -1.930510309, math.log(1 / 16), -4.458591485
G3_MODE, G3_MEAN = 0.098772880, (-1.459008, -0.639710)


def g1_exact(keys, inverse=1.0):
    """Exact draws of G1 at an inverse temperature, (n, 1)."""
    precision = 1 + 4 * inverse
    return (6 * inverse / precision + fk.keys.normal(keys) / math.sqrt(precision))[:, None]


def g2_exact(keys):
    """Exact draws of G2, (n, 1): a sum of four exponentials of rate 2."""
    return -np.log(fk.keys.uniform(keys, 4)).sum(1, keepdims=True) / 2


def g3_exact(keys):
    """Exact draws of G3, (n, 2)."""
    u, z = fk.keys.uniform(fk.keys.fold(keys, 1)), fk.keys.normal(fk.keys.fold(keys, 2), 2)
    at = np.where(u < G3_MODE, 0, 1)
    return MODES[at] / (1 + SPREAD) + math.sqrt(SPREAD / (1 + SPREAD)) * z


def paths_at(model, x, steps=None):
    """Return paths of a toy at given values x (n, d), run to their ends or to so many steps."""
    from feynkac.inference.base.paths import extend

    keys = fk.keys.fold(fk.keys.root(1), np.arange(len(x)))
    steps = len(model.potentials) if steps is None else steps
    paths = [None] * len(x)
    for t in range(steps):
        given = [tuple(row) for row in x.tolist()] if t == 0 else None
        paths = serve(model, extend(model, paths, fk.keys.fold(keys, t), given))
    return paths


def serve(model, asking):
    """Run a part of an engine to its end, and return what it returns."""
    from feynkac.inference.base.engine import Start

    answer = None
    while True:
        try:
            request = asking.send(answer)
        except StopIteration as end:
            return end.value
        if isinstance(request, Start):
            answer = model.start(request.keys, request.given)
        else:
            answer = model.advance(request.state, request.keys, request.given)


def moved(model, kernel, x, inverse=1.0, seed=0, steps=None):
    """Move exact values x (n, d) once by a kernel: the values after it, and the rate that it returns."""
    paths = paths_at(model, x, steps)
    keys = fk.keys.fold(fk.keys.root(seed), np.arange(len(x)))
    out, rate = serve(model, kernel.move(model, paths, keys, steps, np.full(len(x), inverse)))
    return np.array([path.cut(1).choices for path in out]), rate

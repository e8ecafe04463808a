"""Generations as functions of their noise: densities that moves by gradient go by.

The coordinates are the standard normal increments of a generation: its first noise over its scale, and for each step
that draws noise (x_t − mean_t)/std_t. Their prior is N(0, I) exactly, whatever the network, and the data is a function
of them, through all its calls. Optimising the first noise is DITTO, Novack et al. (2024), arXiv:2401.12179; here it is
sampled as well.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.checkpoint import checkpoint

from ...ppl.density import Density, Evaluation
from ...ppl.errors import NotDifferentiable
from ...ppl.model import Floats
from ..latents import Latents
from ..rewards.base import as_reward
from .transitions import transition


def densities(model: Any, paths: Sequence[Any], horizon: int | None) -> list[Density]:
    """Return the density of generations over their noise; see `feynkac.ppl.density`.

    The first ``horizon`` steps are an initial noise and horizon − 1 steps of denoising. One evaluation runs the network
    once for each step, for all particles; a gradient once more, and back, since each step is computed anew on the way
    back (so that memory holds the particles of each step, and the inside of one call).

    Raises NotDifferentiable, where a gradient is asked for, for a reward through which torch has no way.
    """
    moves = model.steps if horizon is None else min(horizon - 1, model.steps)
    run = Increments(_unguided(model), moves)
    lines = [path.steps()[: moves + 1] for path in paths]
    beginnings = _rows([line[0] for line in lines])
    position = run.position(lines)
    log_jacobian = math.prod(model.shape) * run.log_scales

    def evaluate(u: Floats, gradients: bool) -> Evaluation:
        return run.evaluate(u, beginnings.condition, gradients)

    return [
        Density(
            rows=np.arange(len(paths)),
            position=position,
            evaluate=evaluate,
            choices=lambda u: run.choices(u, beginnings.condition),
            log_jacobian=lambda u: np.full(len(u), log_jacobian),
            gaussian=(np.zeros(position.shape[1]), np.ones(position.shape[1])),
            tolerance=1e-6 if model.dtype == torch.float64 else 1e-3,
        )
    ]


@dataclass(frozen=True, eq=False)
class Increments:
    """The first noise and so many moves of a model as a function of standard normal numbers."""

    model: Any
    moves: int

    @cached_property
    def stds(self) -> list[float]:
        """Standard deviation of the noise of each move."""
        step = np.arange(self.moves)
        nothing = self.model.tensor(np.zeros((self.moves, *self.model.shape)))
        level, following = self.model.levels(step), self.model.levels(step + 1)
        _, std = transition(nothing, nothing, level, following, self.model.eta)
        found: list[float] = std.reshape(self.moves).double().tolist()
        return found

    @cached_property
    def noisy(self) -> list[int]:
        """The moves that draw noise."""
        return [t for t, std in enumerate(self.stds) if std > 0]

    @property
    def log_scales(self) -> float:
        """Σ log of the standard deviations by which increments become particles."""
        return math.log(self.model.scale) + sum(math.log(std) for std in self.stds if std > 0)

    def position(self, lines: Sequence[Sequence[Any]]) -> Floats:
        """Return the increments (n, d) of paths, each a list of their steps, without a call of the network."""
        model, stds = self.model, self.stds
        found = [_rows([line[0] for line in lines]).x / model.scale]
        for t in self.noisy:
            before, after = _rows([line[t] for line in lines]), _rows([line[t + 1] for line in lines])
            level, following = model.levels(before.step), model.levels(before.step + 1)
            mean, _ = transition(before.x, before.fields["estimate"], level, following, model.eta)
            found.append((after.x - mean) / stds[t])
        flat: Floats = torch.stack(found, 1).reshape(len(lines), -1).double().cpu().numpy()
        return flat

    def run(self, u: Any, condition: Any) -> tuple[list[Any], Any]:
        """Return the particles after each step, and the log-potential (n,) of all, as functions of a tensor (n, d)."""
        model = self.model
        noises = self._noises(u)
        slots = {t: i + 1 for i, t in enumerate(self.noisy)}
        latents = Latents(noises[:, 0] * model.scale, np.zeros(len(u), np.int64), model.steps, condition)
        weighed, latents = model.begin(latents)
        total, made = torch.as_tensor(weighed), [latents.x]
        for t in range(self.moves):
            noise = noises[:, slots[t]] if t in slots else torch.zeros_like(noises[:, 0])
            if u.requires_grad:
                latents, weighed = checkpoint(self._move, latents, noise, use_reentrant=False, preserve_rng_state=False)
            else:
                latents, weighed = self._move(latents, noise)
            total = total + torch.as_tensor(weighed)
            made.append(latents.x)
        return made, total

    def _move(self, latents: Latents, noise: Any) -> tuple[Latents, Any]:
        moved = self.model.move(latents, noise, None)
        return Latents(moved.x, latents.step + 1, latents.steps, latents.condition, moved.fields), moved.log_potential

    def evaluate(self, u: Floats, condition: Any, gradients: bool) -> Evaluation:
        """Return the density at increments (n, d)."""
        model = self.model
        log_prior = -0.5 * (u**2).sum(1) - 0.5 * u.shape[1] * math.log(2.0 * math.pi)
        if not gradients:
            with torch.no_grad():
                _, total = self.run(self._tensor(u), condition)
            return Evaluation(log_prior, total.double().cpu().numpy())
        if model.steering is None:
            return Evaluation(log_prior, np.zeros(len(u)), -u, np.zeros_like(u))
        reward = as_reward(model.steering.reward)
        with torch.enable_grad():
            at = self._tensor(u).requires_grad_(True)
            _, total = self.run(at, condition)
            if not (reward.differentiable and total.requires_grad):
                raise NotDifferentiable(
                    f"reward {reward.name!r} has no gradient that torch can follow, and moves by gradient need it: make"
                    " it of the batch that it is given, by torch; or move by RandomWalk, PCN or EllipticalSlice"
                )
            (slope,) = torch.autograd.grad(total.sum(), at)
        return Evaluation(log_prior, total.detach().double().cpu().numpy(), -u, slope.double().cpu().numpy())

    def choices(self, u: Floats, condition: Any) -> list[list[Any]]:
        """Return what forces the increments (n, d) on a replay: the particles after each step that draws noise."""
        forced = {0, *(t + 1 for t in self.noisy)}
        with torch.no_grad():
            if self.noisy:
                made, _ = Increments(self.model, max(forced)).run(self._tensor(u), condition)
            else:  # the first noise says it all, and the network need not be asked
                made = [self._noises(self._tensor(u))[:, 0] * self.model.scale]
        made += [None] * (self.moves + 1 - len(made))
        arrays = [x.cpu().numpy() if t in forced else None for t, x in enumerate(made)]
        return [[None if array is None else array[i] for array in arrays] for i in range(len(u))]

    def _noises(self, u: Any) -> Any:
        return u.to(self.model.dtype).reshape(len(u), -1, *self.model.shape)

    def _tensor(self, u: NDArray[Any]) -> Any:
        return torch.as_tensor(u, dtype=torch.float64, device=self.model.device)


def _unguided(model: Any) -> Any:
    """Return the model with proposals of its own law: they change no density."""
    if not getattr(model.steering, "gradient", False):
        return model
    plain = copy.copy(model)
    plain.steering = replace(model.steering, gradient=False)
    return plain


def _rows(paths: Sequence[Any]) -> Latents:
    """Return the particles that n paths stand at, as one batch in their order."""
    batches: dict[int, tuple[Latents, list[int]]] = {}
    for i, path in enumerate(paths):
        batches.setdefault(id(path.state), (path.state, []))[1].append(i)
    parts = [state.select([paths[i].row for i in places]) for state, places in batches.values()]
    order = np.concatenate([places for _, places in batches.values()])
    return Latents.concat(parts).select(np.argsort(order))

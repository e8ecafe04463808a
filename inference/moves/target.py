"""What moves on continuous sites walk on: a tempered density, in coordinates in which the walk is isotropic."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ...ppl.density import Density
from ...ppl.errors import ImpossibleStart
from ...ppl.model import Floats
from ..base.weights import ess, normalize

FULL = 256
"""Numbers of a density up to which populations give it a full covariance; above it they give variances alone."""


class Point(NamedTuple):
    """Where n walkers stand, and what the density is there; of one walker, in JAX, without the axis n.

    Attributes:
        position: (n, d) in isotropic coordinates.
        log_prior: (n,), and ``log_potential`` (n,).
        grad_prior: (n, d), and ``grad_potential`` (n, d), in these coordinates; zeros where nobody asked.
    """

    position: Any
    log_prior: Any
    log_potential: Any
    grad_prior: Any
    grad_potential: Any


def log_density(point: Point, inverse: Any, xp: Any = np) -> Any:
    """Return log π_λ, (n,): −inf where a part of it is −inf, or no number. Of λ = 0 and G = 0, too."""
    fine = xp.isfinite(point.log_prior) & xp.isfinite(point.log_potential)
    potential = xp.where(fine, point.log_potential, 0.0)
    return xp.where(fine, point.log_prior + inverse * potential, -xp.inf)


def gradient(point: Point, inverse: Any) -> Any:
    """Return ∇log π_λ, (n, d)."""
    return point.grad_prior + inverse[..., None] * point.grad_potential


def stretch(scale: Any, vectors: Any) -> Any:
    """Return L·v of vectors (…, d), where L is a factor (d, d), or a diagonal (d,)."""
    return vectors * scale if scale.ndim == 1 else vectors @ scale.T


@dataclass(frozen=True, eq=False)
class Shape:
    """Coordinates z of a density, u = center + L·z: the center (d,), and ``scale``, L (d, d) or its diagonal (d,)."""

    center: Floats
    scale: Floats

    @staticmethod
    def plain(d: int) -> Shape:
        """The density's own coordinates."""
        return Shape(np.zeros(d), np.ones(d))

    def position(self, z: Floats) -> Floats:
        """Return u (n, d)."""
        out: Floats = self.center + stretch(self.scale, z)
        return out

    def coordinates(self, u: Floats) -> Floats:
        """Return z (n, d)."""
        gap = u - self.center
        out: Any = gap / self.scale if self.scale.ndim == 1 else np.linalg.solve(self.scale, gap.T).T
        return np.asarray(out, np.float64)


@dataclass(frozen=True, eq=False)
class Target:
    """A density at inverse temperatures (n,), in coordinates of some shape."""

    density: Density
    inverse: Floats
    shape: Shape

    def at(self, z: Floats, gradients: bool) -> Point:
        """Evaluate the density at z (n, d), in one batched call."""
        with np.errstate(all="ignore"):
            found = self.density.evaluate(self.shape.position(z), gradients)
        zero = np.zeros((1, z.shape[1]))
        back = self.shape.scale if self.shape.scale.ndim == 1 else self.shape.scale.T
        grads = [
            zero if grad is None or not gradients else stretch(back, np.asarray(grad, float))
            for grad in (found.grad_prior, found.grad_potential)
        ]
        return Point(z, np.asarray(found.log_prior, float), np.asarray(found.log_potential, float), *grads)


@dataclass(frozen=True, eq=False)
class Tuning:
    """What a kernel has learned: log of the factor on its step, and the shape of each density that it has met."""

    log_scale: float = 0.0
    shapes: Mapping[Hashable, Shape] = field(default_factory=dict)


UNTUNED = Tuning()


def key_of(density: Density) -> Hashable:
    """Return what densities of the same coordinates share."""
    return density.position.shape[1], density.signature


def shapes_of(densities: Sequence[Density], log_weights: Floats) -> dict[Hashable, Shape]:
    """Return the shape of each density that its weighted particles have: their mean and covariance, shrunk.

    The covariance is shrunk to its diagonal by d/(m + d), where m is the effective number of particles, so that it is
    positive definite for any number of them. A number that is the same in all of them has variance 1.
    """
    out = {}
    for density in densities:
        logs, x = log_weights[density.rows], density.position
        weights, d = normalize(logs), x.shape[1]
        mean = weights @ x
        gap = x - mean
        variance = weights @ gap**2
        variance = np.where(variance > 1e-300, variance, 1.0)
        if d > FULL:
            out[key_of(density)] = Shape(mean, np.sqrt(variance))
            continue
        shrink = d / (ess(logs) + d)
        covariance = (1 - shrink) * (gap * weights[:, None]).T @ gap
        covariance[np.diag_indices(d)] = variance
        out[key_of(density)] = Shape(mean, np.linalg.cholesky(covariance))
    return out


def check_start(name: str, density: Density, point: Point, gradients: bool) -> None:
    """Raise `ImpossibleStart` for a walker where the density is zero or no number, or has no finite gradient."""
    for what, found in (("log_prior", point.log_prior), ("log_potential", point.log_potential)):
        bad = np.flatnonzero(~np.isfinite(found))
        if len(bad):
            i = int(bad[0])
            raise ImpossibleStart(
                f"{name} starts particle {density.rows[i]} where its {what} is {found[i]}{density.named}: start where "
                "the density is positive, or soften what makes it zero"
            )
    if not gradients:
        return
    for what, found in (("log_prior", point.grad_prior), ("log_potential", point.grad_potential)):
        worse = np.argwhere(~np.isfinite(found))
        if len(worse):
            i, j = worse[0].tolist()
            site = f"site {density.sites[j]!r}" if density.sites else f"coordinate {j}"
            raise ImpossibleStart(
                f"{name}: the gradient of {what} at {site} is {found[i, j]} where particle {density.rows[i]} is; use a "
                "move without gradients, such as RandomWalk, or mend the density there"
            )

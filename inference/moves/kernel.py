"""What all moves on continuous sites share: densities in, paths out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ...ppl import keys as _keys
from ...ppl.density import Density
from ...ppl.errors import Unsupported
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats, Index
from ..base.checks import positive
from ..base.paths import Asking, Path
from .fared import Fared
from .replay import check_paths, densities_of, left_out, rebuild
from .target import UNTUNED, Point, Shape, Target, Tuning, check_start, key_of, shapes_of


class Moved(NamedTuple):
    """Walkers after their moves: their position in the density's own coordinates (n, d), and its parts there, (n,).

    ``changed`` (n,) says which are elsewhere than before, and ``fared`` has the mean of each over its moves.
    """

    position: Floats
    log_prior: Floats
    log_potential: Floats
    changed: NDArray[np.bool_]
    fared: Fared


@dataclass(frozen=True)
class Continuous:
    """A Markov kernel on the continuous sites of paths, which leaves p·G^inverse invariant and is reversible.

    ``walk`` makes a step of n walkers in NumPy, by a density's ``evaluate``. ``traced`` gives the same for one walker
    in JAX; it is compiled once for a density and the settings of the kernel.
    """

    moves: int = 1

    gradient: ClassVar[bool] = False
    """Whether it asks for gradients."""

    def __post_init__(self) -> None:
        positive("moves", self.moves)

    @property
    def adaptive(self) -> bool:
        """Whether it learns from the population that it moves."""
        return False

    @property
    def name(self) -> str:
        """What errors call it."""
        return type(self).__name__

    def size(self, d: int) -> float:
        """Return the step size in isotropic coordinates."""
        return 1.0

    def shape(self, density: Density) -> Shape:
        """Return the coordinates that it walks in."""
        return Shape.plain(density.position.shape[1])

    def settings(self) -> Continuous:
        """Return it without what is an argument of its compiled form: those that differ in that alone share one."""
        return self

    def walk(self, target: Target, now: Point, keys: Keys, size: float) -> tuple[Point, Fared]:
        """Make a step of n walkers."""
        raise NotImplementedError

    def traced(self, target: Any, size: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return JAX functions for one walker: z -> state, and (key, state) -> (state, `Fared`)."""
        raise NotImplementedError

    # -- a Markov kernel on paths

    def move(
        self, model: FeynmanKac[Any], paths: Sequence[Path], keys: Keys, horizon: int | None, inverse: Floats
    ) -> Asking[tuple[list[Path], float]]:
        """Make ``moves`` steps of each path; see `MarkovKernel`. The rate is the mean chance of acceptance."""
        out, rates = list(paths), np.zeros(len(paths))
        for density in densities_of(self.name, model, paths, horizon):
            rows = density.rows
            olds = [paths[i] for i in rows.tolist()]
            one = self._estimated if density.estimated is not None else self._decided
            news, rates[rows] = yield from one(model, density, olds, keys[rows], np.asarray(inverse, float)[rows])
            for i, new in zip(rows.tolist(), news):
                out[i] = new
        return out, float(rates.mean())

    def left(self, model: FeynmanKac[Any], path: Path) -> str | None:
        """Return the address of a choice of a path that it never moves, as far as that is known; see `check_reach`."""
        return left_out(self.name, model, path)

    def _decided(
        self, model: FeynmanKac[Any], density: Density, olds: list[Path], keys: Keys, inverse: Floats
    ) -> Asking[tuple[list[Path], Floats]]:
        """Move by the density alone; what moved is made again, and must agree."""
        moved = self.transition(density, keys, inverse)
        rows = np.flatnonzero(moved.changed)
        if not len(rows):
            return olds, moved.fared.chance
        made = yield from rebuild(model, density, olds, moved.position, rows, _keys.fold(keys, _keys.tag("replay")))
        check_paths(density, made, rows, moved.position, moved.log_prior, moved.log_potential)
        return _by_twist(olds, made, rows, keys), moved.fared.chance

    def _estimated(
        self, model: FeynmanKac[Any], density: Density, olds: list[Path], keys: Keys, inverse: Floats
    ) -> Asking[tuple[list[Path], Floats]]:
        """Refuse a density whose potential is a random estimate."""
        raise Unsupported(
            f"{self.name} needs the potential where it looks, and that of site {density.estimated!r} is a random "
            "estimate: move by RandomWalk, PCN or SuffixMH"
        )
        yield  # type: ignore[unreachable]  # a generator, as the others are

    def transition(self, density: Density, keys: Keys, inverse: Floats) -> Moved:
        """Make ``moves`` steps of n walkers from where a density's paths are; see `trajectory`."""
        begin, draws, fared = self.trajectory(density, keys, inverse, 1)
        last = Point(*(part[0] for part in draws))
        changed = (last.position != begin.position).any(1)
        position = np.where(changed[:, None], self.shape(density).position(last.position), density.position)
        return Moved(position, last.log_prior, last.log_potential, changed, Fared(*(part[0] for part in fared)))

    def trajectory(self, density: Density, keys: Keys, inverse: Floats, count: int) -> tuple[Point, Point, Fared]:
        """Make ``count`` times ``moves`` steps of n walkers from where a density's paths are, in its `shape`.

        Returns:
            Where they begin, (n, …); where they are after each ``moves`` steps, (count, n, …), without gradients; and
            how they fared in these, (count, n): the mean chance, whether any diverged, the last energy, and all
            evaluations.

        Raises:
            ImpossibleStart: where the density is not positive at the beginning, or has no finite gradient.
        """
        shape, size = self.shape(density), self.size(density.position.shape[1])
        z = shape.coordinates(density.position)
        if density.logdensity is not None:
            from .compiled import walk_compiled

            begin, draws, fared = walk_compiled(self, density, shape, z, size, keys, inverse, count)
            check_start(self.name, density, begin, self.gradient)
            return begin, draws, fared
        target = Target(density, inverse, shape)
        begin = now = target.at(z, self.gradient)
        check_start(self.name, density, begin, self.gradient)
        points, steps = [], []
        for k in range(count * self.moves):
            now, one = self.walk(target, now, _keys.fold(keys, _keys.tag("walk"), k), size)
            steps.append(one)
            if (k + 1) % self.moves == 0:
                points.append(now)
        zero = np.zeros((count, 1, 1))
        parts = [np.stack(part) for part in zip(*points)]
        draws = Point(parts[0], parts[1], parts[2], zero, zero)
        fared = Fared(*(np.stack(part).reshape(count, self.moves, -1) for part in zip(*steps)))
        return begin, draws, fared.summed()


@dataclass(frozen=True)
class Stepping(Continuous):
    """A kernel with a step size, which it learns where it is not given."""

    step: float | None = None
    _: KW_ONLY
    tuning: Tuning = field(default=UNTUNED, repr=False, compare=False)

    most: ClassVar[float] = math.inf
    """The largest step size that there is."""
    by_prior: ClassVar[bool] = False
    """Whether it walks in coordinates in which the prior is standard normal."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step is not None and not 0 < self.step <= self.most:
            raise ValueError(
                f"step must be a number above 0{'' if self.most == math.inf else f', up to {self.most:g}'}, or None to "
                f"learn it, not {self.step!r}"
            )

    @property
    def adaptive(self) -> bool:
        """Whether it learns from the population that it moves."""
        return self.step is None

    def goal(self, d: int) -> float:
        """Return the acceptance that its step size is tuned to."""
        raise NotImplementedError

    def first(self, d: int) -> float:
        """Return the step size to begin with, where it is not given."""
        raise NotImplementedError

    def size(self, d: int) -> float:
        """Return the step size in isotropic coordinates."""
        return self.step if self.step is not None else min(self.most, self.first(d) * math.exp(self.tuning.log_scale))

    def shape(self, density: Density) -> Shape:
        """Return the coordinates that it walks in: the prior's, those learned, or the density's own."""
        if self.by_prior:
            return gaussian_shape(self.name, density)
        if self.step is not None:
            return Shape.plain(density.position.shape[1])
        known = self.tuning.shapes.get(key_of(density))
        if known is None and density.gaussian is None:
            return Shape.plain(density.position.shape[1])
        return known or gaussian_shape(self.name, density)

    def settings(self) -> Continuous:
        """Return it as if it had another step, and had learned nothing; see `Continuous.settings`."""
        return replace(self, step=1.0, tuning=UNTUNED)

    def tuned(
        self,
        model: FeynmanKac[Any],
        paths: Sequence[Path],
        log_weights: Floats,
        horizon: int | None,
        inverse: Floats,
        acceptance: float | None,
    ) -> Self:
        """Return the kernel with what it learns from a weighted population of its target.

        The coordinates become those in which the population has unit covariance (shrunk to its diagonal), and log step
        moves by acceptance − goal. Evidence is then consistent, and no longer unbiased. With a step given, it stays.

        Args:
            model: a model.
            paths: n of its paths, as for `move`.
            log_weights: (n,)
            horizon: see `move`; so is ``inverse``.
            inverse: (n,)
            acceptance: of the last use; None before the first.
        """
        if not self.adaptive:
            return self
        alive = np.flatnonzero(log_weights > -np.inf)
        densities = densities_of(self.name, model, [paths[i] for i in alive.tolist()], horizon)
        d = max(density.position.shape[1] for density in densities)
        log_scale = self.tuning.log_scale
        if acceptance is not None:
            log_scale = min(log_scale + acceptance - self.goal(d), math.log(self.most / self.first(d)))
        shapes = {} if self.by_prior else shapes_of(densities, log_weights[alive])
        return replace(self, tuning=Tuning(log_scale, shapes))


def gaussian_shape(name: str, density: Density) -> Shape:
    """Return the coordinates in which a prior is standard normal. Raises `Unsupported` where it is not Gaussian."""
    if density.gaussian is None:
        raise Unsupported(
            f"{name} walks on a Gaussian prior, and that of these sites is not one normal law{density.named}: move by "
            "RandomWalk or HMC"
        )
    return Shape(*(np.asarray(part, float) for part in density.gaussian))


def _by_twist(olds: list[Path], made: Sequence[Path], rows: Index, keys: Keys) -> list[Path]:
    """Keep what moved by the ratio of its twists: SMC's target at a step is p·G·ψ, and the move was one of p·G.

    A kernel that is reversible for the one target is a symmetric proposal for the other.
    """
    out = list(olds)
    u = _keys.uniform(_keys.fold(keys, _keys.tag("twist")))
    for i, new in zip(rows.tolist(), made):
        gain = new.log_twist - olds[i].log_twist
        if gain >= 0.0 or np.log(u[i]) < gain:
            out[i] = new
    return out

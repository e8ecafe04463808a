"""Markov chains of any kernel on whole runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ...ppl import keys as _keys
from ...ppl.density import Density
from ...ppl.errors import ImpossibleStart
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats
from ..base.checks import positive
from ..base.engine import Growing, Guarantee, Ranking, Run, where
from ..base.paths import (
    Asking,
    MarkovKernel,
    Path,
    adapts,
    check_kernel,
    check_reach,
    describe_paths,
    growing,
    promise,
    tune,
)
from ..moves.fared import Fared
from ..moves.kernel import Continuous, Stepping
from ..moves.replay import check_paths, densities_of, rebuild
from ..moves.sweep import mean_rate
from ..moves.warmup import warm_up
from ..particles.path_filter import Filtering
from .chain import alive, from_prior

WAVES = 10
"""Reports of a chain whose draws are made in compiled batches."""
WINDOW = 25
"""Draws of a warm-up between which a kernel learns."""


@dataclass(frozen=True)
class MCMC:
    """Markov chain Monte Carlo with any kernel: ``MCMC(NUTS())``, ``MCMC(Sweep(SuffixMH(1), RandomWalk()))``.

    Feynman–Kac mapping: a chain walks over whole runs by a kernel that leaves the model's target p·∏G invariant, from a
    run of the model. Draws after the warm-up weigh the same; they are exact in the limit of many, and give no evidence.
    In the warm-up a kernel without a step size learns it, and its coordinates; then it stays as it is.

    On a density of JAX the walk of `NUTS`, `HMC` and their kin is compiled, a tenth of the draws at a time, and their
    warm-up is BlackJAX's (which is Stan's); the runs are then made again from the numbers. ``info`` has the
    "acceptance", "divergences" and "step" of the chains; each draw's own are in ``to_datatree().sample_stats``.

    Moves on numbers alone never change which sites a run meets, where that depends on the numbers: use a `Sweep` with
    `SuffixMH` there.

    Args:
        kernel: moves a run. One draw is one application, so that its ``moves`` thin the chain.
        draws: that are kept, of each chain.
        warmup: draws that are thrown away first.
        chains: independent chains, of equal weight.

    Raises:
        Unsupported: where the kernel moves numbers alone, and the program draws other things, too.
        ImpossibleStart: where no run of positive weight was found to start from.

    Cost: What its kernel costs, for each move and chain.
    When it pays: For numbers with gradients and one mode; see `TemperedSMC` where there are several.

    Source: Metropolis et al. (1953), doi:10.1063/1.1699114; the warm-up: Hoffman and Gelman (2014), arXiv:1111.4246,
    and Stan's reference manual.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coins():
    ...     a = await fk.sample("a", fk.dist.Bernoulli(0.5))
    ...     b = await fk.sample("b", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("G", 1.0 * (a == b))
    ...     return a + b
    >>> posterior = fk.infer(coins(), fk.MCMC(fk.SuffixMH(2), draws=500, warmup=10, chains=2), seed=0)
    >>> abs(posterior.expect(lambda x: x == 1) - 0.269) < 0.1, len(posterior)
    (True, 1000)
    """

    kernel: MarkovKernel
    draws: int = 1000
    warmup: int = 1000
    chains: int = 4
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        check_kernel("kernel", self.kernel)
        positive("draws", self.draws)
        positive("chains", self.chains)
        if not isinstance(self.warmup, int | np.integer) or self.warmup < 0:
            raise ValueError(f"warmup must be 0 or a positive integer, not {self.warmup!r}")

    @property
    def guarantee(self) -> Guarantee:
        """What it promises."""
        return promise(self.kernel, "consistent")

    @property
    def particles(self) -> int:
        """Draws of a chain."""
        return self.draws

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        path = yield from _begin(model, _keys.fold(key, _keys.tag("start")))
        check_reach("MCMC", self.kernel, model, path)
        if isinstance(self.kernel, Continuous):
            (density,) = densities_of(self.kernel.name, model, [path], None)
            if density.estimated is None:
                yield from self._by_numbers(model, key, path, self.kernel, density)
                return
        yield from self._by_paths(model, key, path)

    def _by_numbers(self, model: FeynmanKac[Any], key: Keys, path: Path, kernel: Continuous, density: Density) -> Run:
        """Walk by the density alone, and make the paths of the draws afterwards, many at a time."""
        kept = _Kept(model)
        for learned, there in warm_up(kernel, density, _keys.fold(key, _keys.tag("warmup")), self.warmup):
            kernel, density = learned, there
            yield kept.report([path])
        now, wave = None if self.warmup else path, -(-self.draws // WAVES)
        for k in range(-(-self.draws // wave)):
            count = min(wave, self.draws - k * wave)
            draw = _keys.fold(key, _keys.tag("draw"), k)
            # Waves are of one size, so that one program is compiled; what is over of the last is left out.
            begin, points, fared = kernel.trajectory(density, draw, np.ones(1), wave)
            z = points.position[:count, 0]
            u = kernel.shape(density).position(z)
            fresh = np.r_[now is None or (z[0] != begin.position[0]).any(), (z[1:] != z[:-1]).any(1)]
            log_prior, log_potential = points.log_prior[:count, 0], points.log_potential[:count, 0]
            made = yield from _paths_of(model, path, u[fresh], log_prior[fresh], log_potential[fresh], draw)
            line = iter(made)
            for new in fresh.tolist():
                now = next(line) if new else now
                assert now is not None
                kept.paths.append(now)
            density = replace(density, position=u[-1:])
            kept.add(Fared(*(part[:count, 0] for part in fared)), log_prior + log_potential)
            if isinstance(kernel, Stepping):
                kept.info["step"] = kernel.size(density.position.shape[1])
            yield kept.report(kept.paths[-1:])

    def _by_paths(self, model: FeynmanKac[Any], key: Keys, path: Path) -> Run:
        """Move a path by the kernel, draw after draw."""
        kept, kernel, ones = _Kept(model), self.kernel, np.ones(1)
        been: list[Path] = []
        rates: list[float] = []
        for s in range(self.warmup + self.draws):
            if adapts(kernel) and s <= self.warmup and been and s % WINDOW == 0:
                # From the last half of its way, as for any population of the target.
                past = been[len(been) // 2 :]
                kernel = tune(kernel, model, past, np.zeros(len(past)), None, np.ones(len(past)), mean_rate(rates))
                rates = []
            (path,), rate = yield from kernel.move(model, [path], _keys.fold(key, _keys.tag("sweep"), s), None, ones)
            if s < self.warmup:
                been, rates = [*been, path] if adapts(kernel) else [path], [*rates, rate]
                yield kept.report([path])
                continue
            kept.paths.append(path)
            kept.rate(rate)
            yield kept.report([path])


@dataclass(eq=False)
class _Kept:
    """The draws of a chain so far, and how they came about."""

    model: FeynmanKac[Any]
    paths: list[Path] = field(default_factory=list)
    stats: dict[str, list[Any]] = field(default_factory=dict)
    info: dict[str, float] = field(default_factory=dict)
    waves: int = 0

    def add(self, fared: Fared, log_density: Floats) -> None:
        """Take note of how some draws fared."""
        told = {"acceptance_rate": fared.chance, "n_steps": fared.evaluations, "lp": log_density}
        if np.isfinite(fared.energy).any():
            told |= {"diverging": fared.diverging, "energy": fared.energy}
        for name, numbers in told.items():
            self.stats.setdefault(name, []).extend(np.asarray(numbers).tolist())
        self.info["acceptance"] = float(np.mean(self.stats["acceptance_rate"]))
        if "diverging" in self.stats:
            self.info["divergences"] = float(np.sum(self.stats["diverging"]))

    def rate(self, rate: float) -> None:
        """Take note of the acceptance of one draw."""
        rates = self.stats.setdefault("acceptance_rate", [])
        rates.append(float(rate))
        before = self.info.get("acceptance", 0.0)
        self.info["acceptance"] = before + (float(rate) - before) / len(rates)

    def report(self, now: Sequence[Path]) -> Growing:
        """Report the draws so far; before there are any, where the chain stands."""
        self.waves += 1
        step = describe_paths(self.waves, now)
        return growing(self.model, step, self.paths or list(now), None, np.nan, dict(self.info), True, self.stats)


def _begin(model: FeynmanKac[Any], key: Keys) -> Filtering[Path]:
    """Return a run of positive weight to start from: the first of 1, of 10, or of 100 more."""
    for attempt, n in enumerate((1, 10, 100)):
        paths = yield from from_prior(model, _keys.fold(key, attempt), n)
        found = [path for path in paths if alive(path)]
        if found:
            return found[0]
    raise ImpossibleStart(
        f"none of 111 runs of {model!r:.200} has positive weight ({where([path.choices for path in paths])}), so that "
        "a chain has nowhere to start: soften the factor there, or find runs by SMC"
    )


def _paths_of(
    model: FeynmanKac[Any], path: Path, u: Floats, log_prior: Floats, log_potential: Floats, keys: Keys
) -> Asking[list[Path]]:
    """Make the paths of draws u (m, d) of the density of a path, in shared batches."""
    m = len(u)
    if not m:
        return []
    olds = [path] * m
    (density,) = model.unconstrained(olds, None)  # type: ignore[attr-defined]
    draws = _keys.fold(keys, _keys.tag("replay"), np.arange(m))
    made = yield from rebuild(model, density, olds, u, np.arange(m), draws)
    check_paths(density, made, np.arange(m), u, log_prior, log_potential)
    return made

"""Parallel tempering: chains at several temperatures that exchange their runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac
from ..base.checks import positive
from ..base.engine import Guarantee, Ranking, Run
from ..base.paths import Asking, MarkovKernel, Path, check_kernel, check_reach, promise
from .chain import alive, check_schedule, draw_chain, from_prior, kept
from .suffix_mh import SuffixMH


@dataclass(frozen=True)
class ParallelTempering:
    """Parallel tempering: chains at several temperatures, which share their batches and exchange their runs.

    Feynman–Kac mapping: the chain at temperature T walks over whole runs y with the target p(y)·∏G(y)^(1/T); that at
    T = 1 is the model's own. In a sweep each chain is moved by ``kernel``, and then neighbours i and j are exchanged
    with probability min(1, exp((1/T_i − 1/T_j)·(log G(y_j) − log G(y_i)))), pairs (0, 1), (2, 3), … and
    (1, 2), (3, 4), … in turn. Both leave the product of the targets invariant. Hot chains cross between modes, and
    hand what they find down. The draws are those at T = 1, of equal weight after ``burn_in``; exact in the limit of
    many sweeps, and without evidence. ``info["acceptance"]`` and ``info["exchanged"]`` are the shares of each.

    Args:
        temperatures: from 1 up; the last may be infinite, which is the model without its potentials.
        sweeps: how often all move and exchange.
        kernel: moves a run, tempered: `SuffixMH` of power 1, or a move on continuous sites such as `HMC`. One without a
            step size does not learn it here: give it one.
        burn_in: sweeps thrown away first; None: a fifth.
        thin: every so many of the rest is kept.
        chains: independent ladders, of equal weight.
        all_dead: "error" raises `AllParticlesDead` when no draw has positive weight; "zero" keeps them.

    Cost: A run for each temperature and move.
    When it pays: Where a single chain is stuck in one mode, and hotter ones are not.

    Source: Geyer (1991), "Markov chain Monte Carlo maximum likelihood", Interface Foundation, hdl:11299/58440; Syed et
    al. (2022), doi:10.1111/rssb.12464, arXiv:1905.02939; for reasoning: Puri et al. (2025), arXiv:2502.01618, whose
    form is not published.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def modes():
    ...     x = await fk.sample("x", fk.dist.DiscreteUniform(0, 9))
    ...     await fk.factor("G", 6.0 * (x in (2, 7)))
    ...     return x
    >>> posterior = fk.infer(modes(), fk.ParallelTempering((1, 3, 9), sweeps=800), seed=0)
    >>> abs(posterior.expect(lambda x: x == 7) - 0.495) < 0.1
    True
    """

    temperatures: tuple[float, ...]
    sweeps: int
    kernel: MarkovKernel = field(default_factory=lambda: SuffixMH(1))
    burn_in: int | None = None
    thin: int = 1
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        positive("sweeps", self.sweeps)
        heat = np.asarray(self.temperatures, np.float64)
        if heat.ndim != 1 or len(heat) < 2 or heat[0] != 1.0 or not (heat[1:] > heat[:-1]).all():
            raise ValueError(f"temperatures must be at least two that rise from 1, not {self.temperatures!r}")
        object.__setattr__(self, "temperatures", tuple(heat.tolist()))
        check_kernel("kernel", self.kernel)
        check_schedule(self)

    @property
    def guarantee(self) -> Guarantee:
        """What it promises."""
        return promise(self.kernel, "consistent")

    @property
    def particles(self) -> int:
        """Draws of a chain."""
        return kept(self)

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        inverse, turn = 1.0 / np.array(self.temperatures), [0]

        def sweep(paths: list[Path], key: Keys) -> Asking[tuple[list[Path], dict[str, float]]]:
            if not turn[0]:
                check_reach("ParallelTempering", self.kernel, model, paths[0])
            keys = _keys.fold(key, _keys.tag("rung"), np.arange(len(paths)))
            paths, accepted = yield from self.kernel.move(model, paths, keys, None, inverse)
            paths, exchanged = exchange(paths, inverse, turn[0] % 2, _keys.fold(key, _keys.tag("exchange")))
            turn[0] += 1
            return paths, {"acceptance": accepted, **exchanged}

        return draw_chain(model, key, self, from_prior(model, key, len(inverse)), sweep)


def exchange(paths: Sequence[Path], inverse: Any, first: int, key: Keys) -> tuple[list[Path], dict[str, float]]:
    """Exchange neighbours (first, first + 1), (first + 2, first + 3), …, by Metropolis; ``inverse`` is 1/T (n,)."""
    out, exchanged = list(paths), []
    u = _keys.uniform(key, len(paths))[0]
    for i in range(first, len(paths) - 1, 2):
        cold, hot = out[i], out[i + 1]
        if alive(hot) and alive(cold):
            log_ratio = (inverse[i] - inverse[i + 1]) * (hot.log_potential - cold.log_potential)
        else:
            log_ratio = np.inf if alive(hot) else -np.inf
        exchanged.append(float(np.log(u[i]) < log_ratio))
        if exchanged[-1]:
            out[i], out[i + 1] = hot, cold
    return out, {"exchanged": float(np.mean(exchanged))} if exchanged else {}

"""Several kernels in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats
from ..base.engine import Guarantee, weaker
from ..base.paths import Asking, MarkovKernel, Path, adapts, check_kernel, tune


@dataclass(frozen=True, init=False)
class Sweep:
    """Several kernels in turn, as one: Gibbs over the parts of a program that each of them moves.

    Feynman–Kac mapping: a kernel on whole paths. Each of its kernels leaves the target invariant, and so does one after
    the other. ``Sweep(SuffixMH(1), HMC())`` writes texts and discrete choices anew, and moves numbers by their
    gradient, in one program. Kernels that learn do so each by its own acceptance.

    Args:
        kernels: one or more.

    Source: Tierney (1994), doi:10.1214/aos/1176325750, on cycles of kernels.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coins():
    ...     a = await fk.sample("a", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("Ga", 1.0 * a)
    ...     b = await fk.sample("b", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("Gb", 1.0 * (a == b))
    ...     return a + b
    >>> sweep = fk.Sweep(fk.SuffixMH(1), fk.SuffixMH(1, block=1))
    >>> posterior = fk.infer(coins(), fk.MCMC(sweep, draws=1000, warmup=10, chains=1), seed=0)
    >>> abs(posterior.expect(float) - fk.enumerate_program(coins()).expect(float)) < 0.1
    True
    """

    kernels: tuple[MarkovKernel, ...]

    def __init__(self, *kernels: MarkovKernel) -> None:
        if not kernels:
            raise ValueError("Sweep takes one or more kernels, such as Sweep(SuffixMH(1), RandomWalk())")
        for i, kernel in enumerate(kernels):
            check_kernel(f"kernel {i} of Sweep", kernel)
        object.__setattr__(self, "kernels", kernels)

    @property
    def adaptive(self) -> bool:
        """Whether one of them learns."""
        return any(map(adapts, self.kernels))

    @property
    def limit(self) -> Guarantee:
        """The most that an engine can promise that moves by them; see `promise`."""
        return reduce(weaker, [getattr(kernel, "limit", "unbiased") for kernel in self.kernels])

    def left(self, model: FeynmanKac[Any], path: Path) -> str | None:
        """Return the address of a choice that none of them moves; see `check_reach`."""
        found = [left(model, path) if (left := getattr(kernel, "left", None)) else None for kernel in self.kernels]
        return None if None in found else found[0]

    def move(
        self, model: FeynmanKac[Any], paths: Sequence[Path], keys: Keys, horizon: int | None, inverse: Floats
    ) -> Asking[tuple[list[Path], float]]:
        """Move each path by each kernel in turn; see `MarkovKernel`. The rate is their mean, and knows its parts."""
        out, rates = list(paths), []
        for k, kernel in enumerate(self.kernels):
            out, rate = yield from kernel.move(model, out, _keys.fold(keys, _keys.tag("sweep"), k), horizon, inverse)
            rates.append(rate)
        return out, Rates(rates)

    def tuned(
        self,
        model: FeynmanKac[Any],
        paths: Sequence[Path],
        log_weights: Floats,
        horizon: int | None,
        inverse: Floats,
        acceptance: float | None,
    ) -> Self:
        """Return the sweep with what its kernels learn; see `tune`."""
        parts = getattr(acceptance, "parts", [acceptance] * len(self.kernels))
        return type(self)(
            *(tune(one, model, paths, log_weights, horizon, inverse, part) for one, part in zip(self.kernels, parts))
        )


class Rates(float):
    """The mean of the acceptance rates of several kernels, which remembers each."""

    parts: tuple[float, ...]

    def __new__(cls, parts: Sequence[float]) -> Self:
        """Make it of the rates."""
        self = super().__new__(cls, np.mean([float(part) for part in parts]))
        self.parts = tuple(parts)
        return self


def mean_rate(rates: Sequence[float]) -> float:
    """Return the mean of what several moves of one kernel returned, part by part where they have parts."""
    if all(isinstance(rate, Rates) for rate in rates):
        return Rates([mean_rate(parts) for parts in zip(*(rate.parts for rate in rates))])  # type: ignore[attr-defined]
    return float(np.mean(rates))

"""What the tempered engines share: whole runs from the program, kernels that move them, and stages that are reported.

A stage at inverse temperature λ has the target p(y)·∏G(y)^λ over whole runs y. At λ = 0 that is the program's law, with
the runs of weight zero left out: they have weight zero at any λ above.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac, Floats, Index
from ..base.checks import is_real, one_of, positive
from ..base.engine import Growing, Guarantee, Move, Start, check_alive
from ..base.paths import (
    Asking,
    MarkovKernel,
    Path,
    check_kernel,
    describe_paths,
    extend,
    growing,
    origins,
    promise,
    tune,
)
from ..base.resampling import SCHEMES, Scheme
from ..base.step import Step
from ..base.thermodynamic import thermodynamic
from .ladder import checked_ladder

T = TypeVar("T")
Staging: TypeAlias = Generator[Start | Move | Growing, Advance[Any], T]


class Settings(Protocol):
    """What tempered engines have in common."""

    @property
    def particles(self) -> int:
        """Runs from the program."""

    @property
    def kernel(self) -> MarkovKernel:
        """What moves them."""

    @property
    def ess(self) -> float:
        """The effective sample size to keep from one rung to the next."""

    @property
    def ladder(self) -> tuple[float, ...] | None:
        """Inverse temperatures that are given."""

    @property
    def resampling(self) -> Scheme:
        """How to resample."""

    @property
    def all_dead(self) -> str:
        """What to do where no run has positive weight."""


def check_settings(settings: Any, *counts: str) -> None:
    """Raise ValueError for a setting that is out of range; a ladder becomes a tuple."""
    for name in ("particles", "chains", *counts):
        positive(name, getattr(settings, name))
    check_kernel("kernel", settings.kernel)
    if not is_real(settings.ess) or not 0.0 < settings.ess < 1.0:
        raise ValueError(f"ess is a fraction of the particles, between 0 and 1, not {settings.ess!r}")
    object.__setattr__(settings, "ladder", checked_ladder(settings.ladder))
    one_of("resampling", settings.resampling, SCHEMES)
    one_of("all_dead", settings.all_dead, ("error", "zero"))


def promised(settings: Settings) -> Guarantee:
    """Return what a tempered engine promises: less where it adapts its ladder or its kernel to the particles."""
    return promise(settings.kernel, "consistent" if settings.ladder is None else "unbiased")


class Tempered:
    """The runs of a chain between two stages, and the stages that it has been through.

    Attributes:
        paths: the runs.
        log_weights: of each, (n,), for the target at ``inverse``.
        log_potential: log G of each, (n,).
        inverse: λ.
        stages: so far.
    """

    def __init__(
        self,
        model: FeynmanKac[Any],
        key: Keys,
        settings: Settings,
        info: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.model, self.key, self.settings, self.info = model, key, settings, info
        self.kernel = settings.kernel
        self.inverse = 0.0
        self.stages: list[Step] = []
        self._rates: list[float] = []
        self._last: float | None = None

    def begin(self) -> Staging[None]:
        """Run the particles to their ends, with a report of what there is after each step, and report the first stage.

        Raises AllParticlesDead where none has positive weight, unless that is allowed.
        """
        keys = _keys.fold(self.key, _keys.tag("particle"), np.arange(self.settings.particles))
        runs: Sequence[Path | None] = [None] * len(keys)
        wave = 0
        while not all(path is not None and path.done for path in runs):
            self.paths = yield from extend(self.model, runs, _keys.fold(keys, wave))
            runs = self.paths
            weights = prior_weights(self.paths)
            report = growing(self.model, describe_paths(wave, self.paths, weights), self.paths, weights, None)
            yield replace(report, step=None)  # a stage has one step
            wave += 1
        deepest = max(path.length for path in self.paths) - 1
        check_alive(describe_paths(deepest, self.paths, weights), self.settings.all_dead)
        self.log_weights, self.log_potential = weights, potentials(self.paths)
        yield self.report(np.arange(len(weights)))

    def move(self, paths: list[Path], keys: Keys) -> Asking[list[Path]]:
        """Move paths once at the present temperature."""
        at = np.full(len(paths), self.inverse)
        moved, accepted = yield from self.kernel.move(self.model, paths, keys, None, at)
        self._rates.append(accepted)
        self._last = accepted
        return moved

    def tune(self) -> None:
        """Let the kernel learn, where it does, from the weighted runs and from how its last moves fared."""
        at = np.full(len(self.paths), self.inverse)
        self.kernel = tune(self.kernel, self.model, self.paths, self.log_weights, None, at, self._last)

    def report(self, ancestors: Index, scheme: str | None = None) -> Growing:
        """Add the present population to the stages, and report it."""
        rates, self._rates = self._rates, []
        step = replace(
            describe_paths(len(self.stages), self.paths, self.log_weights),
            ancestors=ancestors,
            resampled=scheme is not None,
            scheme=scheme,
            log_potential=self.log_potential,
            choices=((),) * len(self.paths),  # the tree has them
            temperature=1.0 / self.inverse if self.inverse else np.inf,
            acceptance=float(np.mean(rates)) if rates else np.nan,
        )
        self.stages.append(step)
        stages = tuple(self.stages)
        return growing(self.model, step, self.paths, self.log_weights, None, self._info(), stages=stages)

    def _info(self) -> dict[str, float]:
        rates = [step.acceptance for step in self.stages if not np.isnan(step.acceptance)]
        found = thermodynamic(self.stages)
        return {
            **self.info,
            "inverse": self.inverse,
            "stages": float(len({step.temperature for step in self.stages})),
            **({"acceptance": float(np.mean(rates))} if rates else {}),
            "distinct": float(len(set(origins(self.paths)))),
            "thermodynamic": found.log_evidence,
            "difference": found.difference,
        }


def prior_weights(paths: Sequence[Path]) -> Floats:
    """Return log p/q of each path, (n,); −inf for those of weight zero."""
    pairs = [(path.log_weight, path.log_potential) for path in paths]
    return np.array([weight - log_g if weight > -np.inf else -np.inf for weight, log_g in pairs])


def potentials(paths: Sequence[Path]) -> Floats:
    """Return log G of each path, (n,); −inf for those of weight zero."""
    return np.array([path.log_potential if path.log_weight > -np.inf else -np.inf for path in paths])

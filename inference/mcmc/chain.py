"""What the engines of Markov chains share: to begin, to keep draws, and to report them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ...ppl import keys as _keys
from ...ppl.errors import AllParticlesDead
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac
from ..base.checks import one_of, positive
from ..base.engine import Growing, Run
from ..base.paths import Asking, Path, describe_paths, extend, growing
from ..particles.path_filter import Filtering

Sweep = Callable[[list[Path], Keys], Asking[tuple[list[Path], dict[str, float]]]]
"""One sweep from paths, by a key (1,): the paths after it, and rates by name ("acceptance")."""


class Schedule(Protocol):
    """The settings of a chain: what is kept of its sweeps."""

    @property
    def sweeps(self) -> int:
        """How many there are."""

    @property
    def burn_in(self) -> int | None:
        """How many are thrown away first; None: a fifth."""

    @property
    def thin(self) -> int:
        """Every so many of the others is kept."""

    @property
    def all_dead(self) -> str:
        """What to do where no draw has positive weight."""


def burnt(settings: Schedule) -> int:
    """Return how many sweeps are thrown away."""
    return settings.sweeps // 5 if settings.burn_in is None else settings.burn_in


def kept(settings: Schedule) -> int:
    """Return how many draws are kept."""
    return -(-(settings.sweeps - burnt(settings)) // settings.thin)


def check_schedule(settings: Any) -> None:
    """Raise ValueError for a setting of a chain that is out of range."""
    for name in ("thin", "chains"):
        positive(name, getattr(settings, name))
    burn_in = burnt(settings)
    if not isinstance(burn_in, int | np.integer) or not 0 <= burn_in < settings.sweeps:
        raise ValueError(f"burn_in must leave some of the {settings.sweeps} sweeps, and be at least 0, not {burn_in!r}")
    one_of("all_dead", settings.all_dead, ("error", "zero"))


def draw_chain(
    model: FeynmanKac[Any], key: Keys, settings: Schedule, begin: Filtering[list[Path]], sweep: Sweep
) -> Run:
    """Run a chain: each draw is the first of the paths after a sweep, and all draws weigh the same."""
    paths = yield from begin
    draws: list[Path] = []
    sums: dict[str, tuple[float, int]] = {}
    burn_in = burnt(settings)
    for s in range(settings.sweeps):
        paths, found = yield from sweep(paths, _keys.fold(key, _keys.tag("sweep"), s))
        for name, rate in found.items():
            total, count = sums.get(name, (0.0, 0))
            sums[name] = total + rate, count + 1
        if s >= burn_in and (s - burn_in) % settings.thin == 0:
            draws.append(paths[0])
        info = {name: total / count for name, (total, count) in sums.items()}
        yield report(model, s, paths, draws or paths[:1], info)
    if settings.all_dead == "error" and not any(alive(path) for path in draws):
        raise AllParticlesDead(
            f"the chain found no path of positive weight in {settings.sweeps} sweeps. Use more sweeps, start from SMC "
            '(ParticleGibbs does) or soften the factor; or set all_dead="zero"'
        )


def report(
    model: FeynmanKac[Any], number: int, now: Sequence[Path], draws: Sequence[Path], info: dict[str, float]
) -> Growing:
    """Report draws of equal weight, without evidence, and in the step the paths as they are."""
    return growing(model, describe_paths(number, now), draws, None, np.nan, info, serial=True)


def alive(path: Path) -> bool:
    """Whether a path has positive weight."""
    return path.log_weight > -np.inf


def from_prior(model: FeynmanKac[Any], key: Keys, n: int) -> Filtering[list[Path]]:
    """Run n paths of the model to their ends, with a report of the first after each step."""
    keys = _keys.fold(key, _keys.tag("particle"), np.arange(n))
    paths: list[Any] = [None] * n
    wave = 0
    while not all(path is not None and path.done for path in paths):
        paths = yield from extend(model, paths, _keys.fold(keys, wave))
        yield report(model, wave, paths, paths[:1], {})
        wave += 1
    return paths

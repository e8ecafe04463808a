"""Conditional SMC from a run that is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...ppl import keys as _keys
from ...ppl.errors import ImpossibleChoice
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats
from ..base.checks import one_of
from ..base.engine import Growing, Guarantee, Run
from ..base.paths import Asking, Path, describe_paths, extend, growing
from ..base.resampling import CONDITIONAL
from ..particles.path_filter import path_filter
from ..particles.smc import SMC


@dataclass(frozen=True)
class ConditionalSMC:
    """SMC in which particle 0 repeats a run that is given, and the others are drawn by the law of SMC given that.

    Where the run is a draw from the target, the mean weight Ẑ has the law of SMC weighed by Ẑ/Z; so 1/Ẑ is an
    unbiased estimate of 1/Z, and E[log Ẑ] an upper bound on log Z. See `bounds`, which uses it.

    Args:
        smc: particles, threshold and scheme ("multinomial", "stratified", "systematic" or "residual").
        given: the choices of each step of the run.
    """

    smc: SMC
    given: Sequence[Any]
    guarantee: ClassVar[Guarantee] = "heuristic"

    def __post_init__(self) -> None:
        one_of("resampling of conditional SMC", self.smc.resampling, CONDITIONAL)
        if self.smc.move is not None:
            raise ValueError("conditional SMC moves no particles: leave move out")
        if self.smc.reduce:
            raise ValueError("conditional SMC keeps as many particles as it has: leave reduce out")

    @property
    def particles(self) -> int:
        """Particles of a chain, the given one included."""
        return self.smc.particles

    @property
    def chains(self) -> int:
        """Independent runs."""
        return self.smc.chains

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""

        def watch(depth: int, paths: list[Path], log_weights: Floats, *_: Any) -> Growing:
            return growing(model, describe_paths(depth, paths, log_weights), paths, log_weights, None)

        reference = yield from given_path(model, self.given, _keys.fold(key, _keys.tag("given")))
        yield from path_filter(model, key, self.smc, watch, reference)


def given_path(model: FeynmanKac[Any], given: Sequence[Any], key: Keys) -> Asking[Path]:
    """Force the choices of each step, and return the path. Raises ImpossibleChoice unless it ends with them, alive."""
    paths: list[Path | None] = [None]
    for t, choices in enumerate(given):
        if paths[0] is not None and paths[0].done:
            break
        paths = [*(yield from extend(model, paths, _keys.fold(key, t), [choices]))]
    path = paths[0]
    if path is None or not path.done or path.length < len(given) or path.log_weight == -float("inf"):
        made = 0 if path is None else path.length
        raise ImpossibleChoice(
            f"the given run of {len(given)} steps is not a whole run of {model!r:.200} (it made {made})"
        )
    return path

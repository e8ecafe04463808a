"""Sequential Monte Carlo on whole paths: with a path that is given, and with moves after resampling."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np

from ...ppl import keys as _keys
from ...ppl.errors import CollapseWarning, Unsupported
from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac, Floats, retry
from ..base.engine import Growing, Move, Run, Start, check_alive
from ..base.paths import Asking, MarkovKernel, Path, describe_paths, extend, growing, origins, tune
from ..base.resampling import Scheme, conditional, resample
from ..base.weights import logmeanexp, normalize, spread

_FEW_OF, _FEW = 20, 0.05
"""Of so many particles or more, this share of different ones is too few."""

T = TypeVar("T")
Filtering: TypeAlias = Generator[Start | Move | Growing, Advance[Any], T]
Watch: TypeAlias = Callable[[int, list[Path], Floats, bool, dict[str, float]], Growing]
"""Makes a report of a step: its number, the paths, their log-weights, whether they were resampled before it, and how
moves have fared so far ("acceptance")."""


class Settings(Protocol):
    """What a filter needs to know, as in `SMC`."""

    @property
    def particles(self) -> int:
        """How many there are."""

    @property
    def ess_threshold(self) -> float:
        """When to resample."""

    @property
    def resampling(self) -> Scheme:
        """And how."""


def path_filter(
    model: FeynmanKac[Any],
    key: Keys,
    settings: Settings,
    watch: Watch | None = None,
    reference: Path | None = None,
    ancestor_sampling: bool = False,
    move: MarkovKernel | None = None,
) -> Filtering[tuple[list[Path], Floats]]:
    """Run SMC as `SMC` does, and return the n paths with their log-weights (n,).

    Args:
        model: a Feynman–Kac model.
        key: (1,)
        settings: particles, and when and how to resample.
        watch: makes a report of each step, which is yielded.
        reference: a finished path that particle 0 repeats: conditional SMC.
        ancestor_sampling: whether the reference's past is drawn anew at each resampling.
        move: a kernel that moves the paths after each resampling, and may learn from them before it.
    """
    n, line = settings.particles, [] if reference is None else reference.steps()
    pinned = int(bool(line))
    lineage = _keys.fold(key, _keys.tag("particle"), np.arange(n))
    paths: Sequence[Path | None] = [None] * n
    log_weights, depth, resampled = np.zeros(n), 0, False
    rates: list[float] = []
    while True:
        made = yield from extend(model, paths[pinned:], _keys.fold(lineage[pinned:], depth))
        made = [*([line[min(depth, len(line) - 1)]] if line else []), *made]
        gained = [0.0 if new is old else new.log_increment for old, new in zip(paths, made)]
        log_weights, paths = log_weights + gained, made
        if watch is not None:
            yield watch(depth, made, log_weights, resampled, {"acceptance": float(np.mean(rates))} if rates else {})
        if all(path.done for path in made):
            return made, log_weights
        twist = np.array([path.log_twist for path in made])
        guided = log_weights + twist
        size = spread(guided).ess
        resampled = 0.0 < size <= settings.ess_threshold * n * (1 + 1e-12)
        if resampled:
            draw = _keys.fold(key, _keys.tag("resample"), depth)
            if line:
                # The reference's ancestor comes first: the law of the others depends on it.
                kept = 0
                if ancestor_sampling and len(line) > depth + 1:
                    kept, line = yield from _ancestor(model, made, log_weights, line, draw)
                ancestors = conditional(normalize(guided), n, draw, settings.resampling, kept)
            else:
                ancestors = resample(guided, n, draw, settings.resampling)
            before, made = made, [made[a] for a in ancestors.tolist()]
            lineage = _keys.inherit(lineage, ancestors, depth)
            if move is not None:
                move = tune(move, model, before, guided, depth + 1, np.ones(n), rates[-1] if rates else None)
                kicks = _keys.fold(lineage, _keys.tag("move"), depth)
                made, accepted = yield from move.move(model, made, kicks, depth + 1, np.ones(n))
                rates.append(accepted)
            log_weights = logmeanexp(guided) - np.array([path.log_twist for path in made])
            paths = made
        depth += 1


def _ancestor(
    model: FeynmanKac[Any], paths: Sequence[Path], log_weights: Floats, line: list[Path], key: Keys
) -> Asking[tuple[int, list[Path]]]:
    """Draw a new past for the reference from the particles, ∝ w·p·G of its future given that past.

    Returns the particle, and the steps of the reference with it as its past. The future is forced on each particle,
    one step after the other; where it does not fit, or does not end as the reference does, the chance is zero.
    """
    own = paths[0]
    future = [step.choices for step in line[own.length :]]
    rivals = [i for i, path in enumerate(paths) if i and not path.done and log_weights[i] > -np.inf]
    ends: list[Path] = [paths[i] for i in rivals]
    fits = [True] * len(rivals)
    for t, choices in enumerate(future):
        before = ends
        if rivals:
            keys = _keys.fold(key, _keys.tag("ancestor"), t, np.array(rivals))
            ends = yield from extend(model, ends, keys, [retry(choices)] * len(rivals))
        fits = [ok and new is not old for ok, old, new in zip(fits, before, ends)]
    if not all(path.scored for path in (line[-1], *ends)):
        raise Unsupported(f"ancestor sampling scores the choices of a path, and {model!r:.200} gives no log-probs")
    scores = np.full(len(paths), -np.inf)
    scores[0] = log_weights[0] + _worth(line[-1]) - _worth(own)
    for i, end, ok in zip(rivals, ends, fits):
        if ok and end.done and end.log_weight > -np.inf:
            scores[i] = log_weights[i] + _worth(end) - _worth(paths[i])
    chosen = int(resample(scores, 1, _keys.fold(key, _keys.tag("ancestor")), "multinomial")[0])
    return chosen, line if chosen == 0 else ends[rivals.index(chosen)].steps()


def _worth(path: Path) -> float:
    return path.log_prob + path.log_potential


def resample_move(
    model: FeynmanKac[Any], key: Keys, settings: Settings, move: MarkovKernel, all_dead: Literal["error", "zero"]
) -> Run:
    """Run SMC whose particles are moved after each resampling, with a report of each step; see `SMC`."""

    def watch(depth: int, paths: list[Path], log_weights: Floats, resampled: bool, info: dict[str, float]) -> Growing:
        step = describe_paths(depth, paths, log_weights)
        check_alive(step, all_dead)
        scheme = settings.resampling if resampled else None
        return growing(model, replace(step, resampled=resampled, scheme=scheme), paths, log_weights, None, info)

    paths, log_weights = yield from path_filter(model, key, settings, watch, move=move)
    _warn_of_copies(paths, log_weights)


def _warn_of_copies(paths: list[Path], log_weights: Floats) -> None:
    """Warn where all was drawn in the first step, and moves have left few of the draws that resampling copied."""
    n, first = len(paths), [path.cut(1) for path in paths]
    static = all(path.length > 1 and one is not None and one.draws == path.draws for path, one in zip(paths, first))
    if not static or n < _FEW_OF:
        return
    _, place = np.unique(origins(paths), return_inverse=True)
    shares = np.bincount(place, normalize(log_weights))
    effective = 1.0 / float(shares @ shares)
    if effective < n * _FEW:
        warnings.warn(
            f"the {n} particles are worth {effective:.1f} different draws: all is drawn in the first step of the "
            "program, resampling copies it, and the moves are seldom accepted. Evidence and values are not to be "
            "trusted: use TemperedSMC(n, kernel), which turns the factors on by and by",
            CollapseWarning,
            stacklevel=2,
        )

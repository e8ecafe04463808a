"""Slice sampling along random directions, within a constraint: the inner step of nested sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ppl import keys as _keys
from ...ppl.density import Density
from ...ppl.errors import Unsupported
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats, Index
from ..base.checks import positive
from ..base.paths import Asking, Path
from ..moves.compiled import apart
from ..moves.fared import library
from ..moves.replay import check_paths, densities_of, left_out, rebuild
from ..moves.target import key_of, shapes_of

if TYPE_CHECKING:
    from .nested_sampling import Above

_MARGIN = 1e-4
"""Of a density's tolerance: how far from a threshold its potential is told from it."""


@dataclass(frozen=True)
class HitAndRunSlice:
    """Hit-and-run slice sampling on the continuous sites of a program, for `NestedSampling`.

    A direction is drawn with the covariance of the live runs (shrunk to its diagonal). Along it, the new point is
    uniform on the part of the line where the prior density is above a uniform share of the old point's and the
    potential above the threshold: the bracket steps out, and shrinks to what it finds. So hardly a move is rejected. It
    is BlackJAX's, compiled once for a density; runs are made again by forced replay after the last move.

    Args:
        expansions: of the bracket, at most.
        shrinkage: evaluations until a move is given up, at most.

    Raises:
        Unsupported: for a model whose density is none of JAX's: use another kernel there, such as ``RandomWalk()``.
        InconsistentDensity: where the model's density is not that of its paths.

    Source: Neal (2003), doi:10.1214/aos/1056562461; Handley, Hobson and Lasenby (2015), doi:10.1093/mnras/stv1911;
    as in Yallup, Kroupa and Handley (2026), arXiv:2601.23252.
    """

    expansions: int = 10
    shrinkage: int = 100

    def __post_init__(self) -> None:
        positive("expansions", self.expansions)
        positive("shrinkage", self.shrinkage)

    def left(self, model: FeynmanKac[Any], path: Path) -> str | None:
        """Raise `Unsupported` where a path has a choice that it never moves, as far as is known; see `check_reach`."""
        site = left_out("HitAndRunSlice", model, path)
        if site is not None:
            raise Unsupported(
                f"HitAndRunSlice moves continuous sites alone, and would never change site {site!r}: use "
                "Sweep(SuffixMH(1), RandomWalk())"
            )
        return None

    def move_above(
        self, model: FeynmanKac[Any], live: Sequence[Path], start: Index, keys: Keys, above: Above, moves: int
    ) -> Asking[tuple[list[Path], float]]:
        """See `Constrained`."""
        out = [live[i] for i in start.tolist()]
        rates = np.zeros(len(out))
        shapes = shapes_of(densities_of("HitAndRunSlice", model, live, None), np.zeros(len(live)))
        for density in densities_of("HitAndRunSlice", model, out, None):
            olds = [out[i] for i in density.rows.tolist()]
            mine, ties = keys[density.rows], above.ties[density.rows]
            scale = shapes[key_of(density)].scale
            floors = _floors(density, above.log_potential, ties)
            end = self._walk(density, scale if scale.ndim == 2 else np.diag(scale), floors, mine, moves)
            position, log_prior, log_potential, rates[density.rows] = end
            rows = np.flatnonzero((position != density.position).any(1))
            if not len(rows):
                continue
            made = yield from rebuild(model, density, olds, position, rows, _keys.fold(mine, _keys.tag("replay")))
            check_paths(density, made, rows, position, log_prior, log_potential)
            fine = above._replace(ties=ties[rows]).holds(made)
            for i, new in zip(density.rows[rows[fine]].tolist(), [path for path, ok in zip(made, fine) if ok]):
                out[i] = new
        return out, float(rates.mean())

    def _walk(self, density: Density, factor: Floats, floors: Floats, keys: Keys, moves: int) -> tuple[Floats, ...]:
        """Return positions (n, d), their log_prior and log_potential (n,), and the share of moves that were made."""
        if density.logdensity is None or density.estimated is not None:
            raise Unsupported(
                f"HitAndRunSlice needs a density of JAX{density.named}, and this one is "
                f"{'an estimate' if density.estimated else 'none'}: use RandomWalk or SuffixMH"
            )
        library()
        import jax

        words = np.ascontiguousarray(_keys.fold(keys, _keys.tag("jax"))).view(np.uint32).reshape(-1, 2)
        with jax.enable_x64(True):
            logdensity, numbers = apart(density)
            run = _compiled(logdensity, self, moves)
            found = run(numbers, density.position, density.fixed, floors, words, factor)
            ended: tuple[Floats, ...] = jax.device_get(found)
        return ended


def _floors(density: Density, threshold: float, ties: Any) -> Floats:
    """Return what the potential must exceed (n,): a little less than the threshold where it may be equal, else more.

    The potential of a path and of its density may differ by rounding.
    """
    if threshold == -np.inf:
        return np.full(len(ties), threshold)
    margin = _MARGIN * density.tolerance * max(1.0, abs(threshold))
    return np.where(ties, threshold - margin, threshold + margin)


@lru_cache(maxsize=128)
def _compiled(logdensity: Callable[..., Any], settings: HitAndRunSlice, moves: int) -> Callable[..., Any]:
    import jax
    from blackjax.mcmc.slice import build_kernel, stepping_out
    from blackjax.ns.base import StateWithLogLikelihood
    from blackjax.ns.nss import covariance_proposal

    slide = build_kernel(stepping_out, settings.expansions, settings.shrinkage)

    def one(numbers: Any, u: Any, fixed: Any, floor: Any, word: Any, factor: Any) -> tuple[Any, ...]:
        def at(x: Any, loglikelihood_birth: Any) -> Any:
            return StateWithLogLikelihood(x, *logdensity(*numbers, x, fixed), loglikelihood_birth)

        def step(state: Any, key: Any) -> tuple[Any, Any]:
            state, info = slide(key, state, None, covariance_proposal(at, floor, covariance_factor=factor))
            return state, info.is_accepted

        keys = jax.random.split(jax.random.wrap_key_data(word, impl="threefry2x32"), moves)
        end, accepted = jax.lax.scan(step, at(u, floor), keys)
        return end.position, end.logdensity, end.loglikelihood, accepted.mean()

    compiled: Callable[..., Any] = jax.jit(jax.vmap(one, in_axes=(None, 0, 0, 0, 0, None)))
    return compiled

"""Zero-order search of the noise that a generation begins with."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.errors import Unsupported
from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac, Floats
from ..base.checks import is_real, one_of, positive
from ..base.engine import Growing, Guarantee, Move, Report, Run, Start
from ..base.search_tree import SearchTree
from ..base.selection import choose
from .growth import Growth


@dataclass(frozen=True)
class NoiseSearch:
    """Zero-order noise search: look for better initial noise near the best so far, again and again.

    Feynman–Kac mapping: a candidate is a start x_0 that is given, run to its end under M and ranked by Σ log G. A
    pivot is drawn from M_0. In each round ``neighbours`` candidates are made from it by turning it,
    y = ‖n‖·(τ·n/‖n‖ + √(1 − τ²)·w) with w a random unit vector at a right angle to n, so that y is as likely under
    a normal M_0 as n; the best of them becomes the pivot if it beats it, and if none does a new pivot is drawn. The
    particles are all candidates; all weight is on the best. A heuristic, without evidence.

    The steps after the start should be deterministic (``eta=0`` of a diffusion): otherwise they draw their own noise,
    and the start says only part of what comes. Random search, of independent starts, is `BestOfN`.

    Args:
        rounds: how often neighbours are tried.
        neighbours: candidates of a round, which share their calls.
        cosine: τ, of the angle between a pivot and its neighbours, in (−1, 1).
        chains: independent searches; each selects its own best.
        all_dead: "error" raises `AllParticlesDead` when all candidates have weight zero; "zero" keeps the dead.

    Raises:
        Unsupported: by name, for a model that does not begin with an array of at least two numbers that can be given.

    Cost: A whole run for each candidate.
    When it pays: For images from a deterministic sampler, where only the initial noise can be chosen.

    Source: Ma et al. (2025), arXiv:2501.09732.

    >>> import feynkac as fk
    >>> from feynkac.diffusion import Diffusion, Mixture, Schedule, Steering
    >>> data, flow = Mixture([0.3, 0.7], [[-2.0, 0.0], [1.0, 3.0]], [0.1, 0.1]), Schedule.flow(10)
    >>> model = Diffusion(data.denoiser(flow), flow, (2,), eta=0.0, steering=Steering(lambda x: x[:, 1]))
    >>> bool(fk.infer(model, fk.NoiseSearch(10), seed=0).best()[1] > 3.0)
    True
    """

    rounds: int
    neighbours: int = 4
    cosine: float = 0.95
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "heuristic"

    def __post_init__(self) -> None:
        for name in ("rounds", "neighbours", "chains"):
            positive(name, getattr(self, name))
        if not is_real(self.cosine) or not -1.0 < self.cosine < 1.0:
            raise ValueError(f"cosine must be between -1 and 1, not {self.cosine!r}")
        one_of("all_dead", self.all_dead, ("error", "zero"))

    @property
    def particles(self) -> int:
        """Candidates of a chain, but for the pivots."""
        return self.rounds * self.neighbours

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        tree = Growth(key, record=False)
        pivot: tuple[float, Floats] | None = None
        for turn in range(self.rounds):
            if pivot is None:
                scores, starts = yield from self._try(model, tree, [None])
                pivot = scores[0], noise_of(model, starts[0])
            around = turned(pivot[1], self.cosine, _keys.fold(key, _keys.tag("turn"), turn, np.arange(self.neighbours)))
            scores, starts = yield from self._try(model, tree, list(around))
            if not np.allclose(np.stack(starts), around, rtol=1e-4, atol=1e-4):
                raise Unsupported(f"NoiseSearch gives {model!r} the noise to begin with, and it began with another")
            best = int(np.argmax(scores))
            pivot = (scores[best], around[best]) if scores[best] > pivot[0] else None
        tree.check_alive(self.all_dead)

    def _try(
        self, model: FeynmanKac[Any], tree: Growth, given: list[Any]
    ) -> Generator[Start | Move | Growing, Advance[Any], tuple[Floats, list[Any]]]:
        """Run candidates to their end; return their rewards and starts."""
        number = tree.rollouts
        points = [(0, number + i) for i in range(len(given))]
        tree.rollouts += len(given)
        step = yield from tree.wave(model, points, given)
        yield tree.growing(model, replace(step, depth=number), self._weigh)
        return tree.lines(len(given))

    def _weigh(self, tree: SearchTree) -> Report:
        return Report(None, choose(tree.rewards, tree.done[tree.particles]), None, math.nan, tree=tree)


def noise_of(model: Any, choice: Any) -> Floats:
    """Return the choice that a model began with as an array of floats, or raise Unsupported."""
    if isinstance(choice, np.ndarray) and choice.dtype.kind == "f" and choice.size > 1:
        return np.asarray(choice, float)
    kind = f"an array of {choice.size} {choice.dtype}" if isinstance(choice, np.ndarray) else type(choice).__name__
    raise Unsupported(
        f"NoiseSearch turns the noise that a model begins with, an array of at least two floats; {model!r:.200} begins "
        f"with {kind}. Use BestOfN"
    )


def turned(noise: Floats, cosine: float, keys: Keys) -> Floats:
    """Return neighbours of a noise (…), one per key: (k, …), of its norm and at the given cosine to it.

    >>> n = np.array([3.0, 0.0, 4.0])
    >>> y = turned(n, 0.95, _keys.fold(_keys.root(0), np.arange(2)))
    >>> np.linalg.norm(y, axis=1).round(6).tolist(), (y @ n / 25).round(6).tolist()
    ([5.0, 5.0], [0.95, 0.95])
    """
    norm = float(np.linalg.norm(noise))
    unit = noise.ravel() / norm
    other = _keys.normal(keys, noise.size)
    other = other - np.outer(other @ unit, unit)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    return (norm * (cosine * unit + math.sqrt(1.0 - cosine**2) * other)).reshape(len(keys), *noise.shape)

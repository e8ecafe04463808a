"""Reward-balanced search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac
from ..base.checks import is_real
from ..base.engine import Guarantee, Run
from .beam_search import in_waves
from .expansion import Expanding, Expansion, Scoring, check_search


@dataclass(frozen=True)
class Rebase:
    """Reward-balanced search (REBASE): share the children of each step out in proportion to exp(reward / τ).

    Feynman–Kac mapping: n particles make a step by M; those that finish leave with their places. The places that are
    left are shared out by `shares` of the rewards r̂ = exp(score), so that good nodes get many children and most others
    still one: between beam search (τ → 0 gives all to the best) and independent runs (τ → ∞). It is like resampling
    by softmax(r̂/τ), but rounded up from the best down, and without a weight that would make good for it: a
    heuristic, without evidence. All weight goes to the best that finished.

    Args:
        particles: n, the width of the tree.
        balance: τ; the paper has 0.2, for rewards that are probabilities (the score a log-probability).
        score: "last", "product" or "min"; see `expansion.Scoring`.
        temperature: None puts all weight on the best; T gives weights ∝ exp(score / T) among those that finished: with
            1 ``posterior.vote(key)`` is the paper's weighted majority.
        chains: independent searches.
        all_dead: "error" raises `AllParticlesDead` when all nodes have weight zero; "zero" keeps the dead.

    Cost: That of `BeamSearch`, its children shared out by score.
    When it pays: Where scores are soft: several good beams go on rather than the best alone.

    Source: Wu et al. (2024), arXiv:2408.00724. Raises ValueError for settings out of range.

    >>> import math, feynkac as fk
    >>> @fk.program
    ... async def coins():
    ...     heads = 0
    ...     for t in range(1, 5):
    ...         heads += await fk.sample("heads", fk.dist.Bernoulli(0.5))
    ...         await fk.factor("prm", math.log((heads + 0.5) / (t + 1)))
    ...     return heads
    >>> fk.infer(coins(), fk.Rebase(16), seed=0).best()
    4
    """

    particles: int
    balance: float = 0.2
    score: Scoring = "last"
    temperature: float | None = None
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "heuristic"

    def __post_init__(self) -> None:
        check_search(self, "particles")
        if not is_real(self.balance) or not 0 < self.balance < np.inf:
            raise ValueError(f"balance must be positive and finite, not {self.balance!r}")

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        return in_waves(model, key, self, self._allot)

    def _allot(self, tree: Expansion, made: list[int], going: list[int]) -> Expanding:
        yield from ()
        places = self.particles - len(tree.results)
        if not going or places <= 0:
            return []
        rewards = np.exp(np.minimum(tree.scores(going), 700.0))
        return np.repeat(going, shares(rewards, places, self.balance)).tolist()


def shares(rewards: Sequence[float] | NDArray[np.float64], places: int, balance: float = 0.2) -> NDArray[np.int64]:
    """Return how many of some places each of n rewards gets, (n,): they add up to ``places``.

    From the best down, each gets ⌈W·e^{r/τ} / S⌉ of the W places left, where S is the sum of e^{r/τ} over itself and
    all below it. (To round each share for itself would give (4, 2, 1) here, one place too few.)

    >>> shares([0.6, 0.5, 0.4], 8).tolist()
    [5, 2, 1]
    """
    r = np.asarray(rewards, float)
    order = np.argsort(-r, kind="stable")
    mass = np.exp((r[order] - r.max()) / balance)
    below = np.cumsum(mass[::-1])[::-1]
    out, left = np.zeros(len(r), np.int64), places
    for i, share in zip(order, mass / np.maximum(below, np.finfo(float).tiny)):
        out[i] = min(left, int(np.ceil(left * share - 1e-9)))  # the rounding of floats buys no place
        left -= int(out[i])
    return out

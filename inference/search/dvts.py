"""Diverse verifier tree search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac
from ..base.engine import Guarantee, Run
from .beam_search import check_beams, in_waves, look
from .expansion import Expanding, Expansion, Scoring


@dataclass(frozen=True)
class DVTS:
    """Diverse verifier tree search: n/M beams that never compete, so that one early favourite cannot take all.

    Feynman–Kac mapping: the particles are split into n/M subtrees. At each step a subtree makes M candidates by M_t and
    goes on from the best of its own by score (see `BeamSearch`), until that one has finished or none is alive. All
    candidates that finish are kept, and all weight goes to the best. A heuristic, without evidence.

    Args:
        particles: n, a multiple of the width.
        width: M, candidates of a subtree; 1 runs n particles to their end, as `BestOfN` does.
        score: "last", "product" or "min"; see `expansion.Scoring`.
        lookahead: k: candidates are scored where k more steps of M come to, which are thrown away.
        temperature: None puts all weight on the best; T gives weights ∝ exp(score / T) among those that finished.
        chains: independent searches.
        all_dead: "error" raises `AllParticlesDead` when every subtree ends with weight zero; "zero" keeps the dead.

    Cost: That of `BeamSearch` with as many beams.
    When it pays: Where the best-looking first step is often wrong: parts of the beam never compete.

    Source: Beeching, Tunstall and Rush (2024), "Scaling test-time compute with open models", huggingface.co/blog;
    look-ahead, Snell et al. (2024), arXiv:2408.03314. Raises ValueError for settings out of range.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def dice():
    ...     total = 0
    ...     for _ in range(3):
    ...         total += await fk.sample("face", fk.dist.DiscreteUniform(1, 6))
    ...         await fk.factor("high", float(total))
    ...     return total
    >>> posterior = fk.infer(dice(), fk.DVTS(64, width=16), seed=0)
    >>> posterior.best(), len(posterior)
    (18, 64)
    """

    particles: int
    width: int = 4
    score: Scoring = "last"
    lookahead: int = 0
    temperature: float | None = None
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "heuristic"

    def __post_init__(self) -> None:
        check_beams(self)
        if self.particles % self.width:
            raise ValueError(f"particles must be a multiple of the width {self.width}, not {self.particles!r}")

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        return in_waves(model, key, self, self._allot)

    def _allot(self, tree: Expansion, made: list[int], going: list[int]) -> Expanding:
        ahead = yield from look(tree, going, self.lookahead)
        worth = dict(zip(made, tree.scores(made))) | dict(zip(going, ahead))
        best: dict[int, int] = {}
        for x in made:
            subtree = (tree.founder[x] - 1) // self.width  # founders are the nodes 1…n
            if subtree not in best or worth[x] > worth[best[subtree]]:
                best[subtree] = x
        return [x for x in best.values() if not tree.nodes[x].done for _ in range(self.width)]

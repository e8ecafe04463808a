"""Tree-of-Frames: search over clips, frame by frame, with judges at some of the frames."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats, Index
from ..base.checks import depths_or_none, one_of, positive
from ..base.engine import Guarantee, Move, Report, Run, Start, check_alive, describe, without_evidence
from ..base.selection import best_first, choose


@dataclass(frozen=True)
class TreeOfFrames:
    """Grow a tree breadth first, prune it to the most promising where it is judged, and take the best of the leaves.

    Feynman–Kac mapping: at depth d every unfinished particle gets ``branching[d]`` children by M_d. At a judged depth
    the ``keep`` particles of largest Σ log G + log ψ so far stay (ψ is the twist's level), at the others all do. When
    all have finished, all weight goes to the largest Σ log G, as in `BestOfN`. It is a heuristic for finding good
    samples and gives no evidence (NaN). Judges of different stages (of the first frames, the middle, the whole clip)
    are potentials of the model: see the rewards of `feynkac.diffusion.Frames`. A step should be a frame:
    ``fk.Blocks(video, video.unit)``; it works for any other model as well.

    Args:
        branching: how many children, by depth; the first is the number of roots, and what is not said is 1.
        keep: how many survive a judgement.
        judged: the depths that are judged, from 0; None for all. When all have finished, nobody is pruned.
        chains: independent trees; each takes its own best.
        all_dead: "error" raises `AllParticlesDead` when all potentials are zero; "zero" keeps the dead.

    Cost: ``branching`` children of each clip that is kept, at each stage.
    When it pays: For video and other long runs that can be judged part by part.

    Source: Liu et al. (2025), Video-T1, arXiv:2503.18942. Raises ValueError for settings out of range.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def dice():
    ...     total = 0
    ...     for _ in range(4):
    ...         face = await fk.sample("face", fk.dist.DiscreteUniform(1, 6))
    ...         await fk.factor("high", float(face))
    ...         total += face
    ...     return total
    >>> fk.infer(dice(), fk.TreeOfFrames((20, 20, 20, 20), keep=2), seed=0).best()
    24
    """

    branching: Sequence[int]
    keep: int
    judged: Collection[int] | None = None
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "heuristic"

    def __post_init__(self) -> None:
        if not isinstance(self.branching, Collection) or not len(self.branching):
            raise ValueError(
                "branching is how many children nodes get, by depth from the number of roots, such as (8, 2), not "
                f"{self.branching!r}"
            )
        object.__setattr__(self, "branching", tuple(self.branching))
        for count in self.branching:
            positive("every entry of branching", count)
        positive("keep", self.keep)
        positive("chains", self.chains)
        depths_or_none("judged", self.judged)
        if self.judged is not None:
            object.__setattr__(self, "judged", tuple(sorted(set(self.judged))))
        one_of("all_dead", self.all_dead, ("error", "zero"))

    @property
    def particles(self) -> int:
        """The most leaves that it can have at a time."""
        width, widest = 1, 1
        for depth, children in enumerate(self.branching):
            width *= children
            widest = max(widest, width)
            width = min(width, self.keep) if self._judges(depth) else width
        return widest

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        roots = self.branching[0]
        ancestors: Index = np.arange(roots)
        lineage = _keys.fold(key, _keys.tag("particle"), ancestors)
        advance = yield Start(_keys.fold(lineage, 0))
        score, depth = advance.log_potential, 0
        while True:
            step = without_evidence(describe(depth, advance, score, ancestors, None))
            yield Report(advance.state, choose(score, advance.done), step, math.nan)
            check_alive(step, self.all_dead)
            if advance.done.all():
                return
            kept = self._survivors(score + advance.log_twist, depth)
            depth += 1
            children = np.where(advance.done[kept], 1, self.branching[depth] if depth < len(self.branching) else 1)
            ancestors = np.repeat(kept, children)
            lineage = _keys.inherit(lineage, ancestors, depth)
            advance = yield Move(model.select(advance.state, ancestors), _keys.fold(lineage, depth))
            score = score[ancestors] + advance.log_potential

    def _judges(self, depth: int) -> bool:
        return self.judged is None or depth in self.judged

    def _survivors(self, promise: Floats, depth: int) -> Index:
        """Return which particles stay, in order; the first of equals."""
        if not self._judges(depth):
            return np.arange(len(promise))
        return np.sort(best_first(promise, self.keep))

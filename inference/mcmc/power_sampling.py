"""Power sampling: a sharpened model, by Metropolis–Hastings on a run that grows block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac
from ..base.checks import finite, one_of, positive
from ..base.engine import Growing, Guarantee, Ranking, Run, check_alive
from ..base.paths import Path, describe_paths, growing, run_on
from .suffix_mh import SuffixMH


@dataclass(frozen=True)
class PowerSampling:
    """Power sampling: draw runs ∝ p^α, with no reward but the model's own likelihood.

    Feynman–Kac mapping: the target is p(y)^α·∏G(y) over whole runs y. Each line is extended by ``block`` steps, and
    then moved ``moves`` times by `SuffixMH` of power α on what it has so far; and so on until all have ended, and are
    moved as whole runs. These last moves leave the target invariant, and the blocks before bring the line near it; so
    the law of a line is exact in the limit of many moves, at any number of lines. Lines are independent but for when
    the last moves are made, and weigh the same; there is no evidence.
    ``info["acceptance"]`` is the share of moves accepted.

    It is not sampling at a low temperature, which sharpens each step by itself. A proposal at temperature 1/α is a
    good one, and is said by the program:

        text = await fk.sample("step", lm.tokens(text, 192), proposal=lm.tokens(text, 192, temperature=0.25))

    Args:
        particles: n, the number of lines.
        power: α. The paper's is 4.
        block: steps by which a line grows between moves. The paper's is 192 tokens of at most 3072.
        moves: after each block. The paper's are 10.
        chains: independent batches of n.
        all_dead: "error" raises `AllParticlesDead` when no line has positive weight; "zero" keeps them.

    Raises:
        Unsupported: for a model without log-probabilities.

    Cost: As `SuffixMH`, by blocks: several runs of the model for each block.
    When it pays: For sharper answers without a reward, where `PowerSMC` degenerates.

    Source: Karan and Du (2025), arXiv:2510.14901. Their code leaves out the factor |y|/|y'| of the proposal, and cuts
    the present run to the length of the new one where that ends early; this does neither.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coins():
    ...     a = await fk.sample("a", fk.dist.Bernoulli(0.6))
    ...     await fk.factor("step", 0.0)
    ...     return a, await fk.sample("b", fk.dist.Bernoulli(0.5 + 0.4 * a))
    >>> posterior = fk.infer(coins(), fk.PowerSampling(400, power=4.0, moves=8), seed=0)
    >>> abs(posterior.expect(lambda v: v == (1, 1)) - 0.54**4 / (2 * 0.2**4 + 0.54**4 + 0.06**4)) < 0.06
    True
    """

    particles: int
    power: float = 4.0
    block: int = 1
    moves: int = 10
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "consistent"
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        for name in ("particles", "block", "moves", "chains"):
            positive(name, getattr(self, name))
        finite("power", self.power)
        one_of("all_dead", self.all_dead, ("error", "zero"))

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        keys = _keys.fold(key, _keys.tag("particle"), np.arange(self.particles))
        kernel, length = SuffixMH(1, power=self.power), 0
        lines: list[Path] = []
        rates: list[float] = []
        horizon: int | None = 0
        while horizon is not None:  # the last moves are those of whole runs, also where moves ended the lines
            length += self.block
            grown = _keys.fold(keys, _keys.tag("grow"), length)
            lines = yield from run_on(model, lines or [None] * self.particles, grown, length)
            yield self._report(model, length, lines, rates)
            # Once all have ended, the target is that of whole runs, however long.
            horizon = None if all(path.done for path in lines) else length
            for k in range(self.moves):
                moved = _keys.fold(keys, _keys.tag("move"), length, k)
                lines, accepted = yield from kernel.move(model, lines, moved, horizon, np.ones(self.particles))
                rates.append(accepted)
                yield self._report(model, length, lines, rates)

    def _report(self, model: FeynmanKac[Any], length: int, lines: list[Path], rates: list[float]) -> Growing:
        step = describe_paths(length - 1, lines)
        check_alive(step, self.all_dead)
        info = {"acceptance": float(np.mean(rates))} if rates else {}
        return growing(model, step, lines, None, math.nan, info)

"""Metropolis–Hastings that takes a run up again somewhere and writes the rest anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.errors import Unsupported
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats, retry
from ..base.checks import check_power, positive
from ..base.engine import Guarantee, Ranking, Run
from ..base.paths import Asking, Path, extend, run_on
from .chain import alive, check_schedule, draw_chain, from_prior, kept


@dataclass(frozen=True)
class SuffixMH:
    """Suffix Metropolis–Hastings: keep a run up to a random step, write the rest anew, and accept or stay.

    Feynman–Kac mapping: the chain walks over whole runs y, |y| steps of which draw something, with the target
    p(y)^power·∏G(y). One of these is drawn uniformly, the steps before it are kept and the others drawn from M (or its
    proposal, with density q). The new run y' is accepted with probability

        min(1, [p(y')^power·∏G(y')] / [p(y)^power·∏G(y)] · q(y from i) / q(y' from i) · |y| / |y'|),

    in which the last factor is that of choosing the step i. With power 1, G = exp(r/β) and no proposal it is QAlign,
    and leaves the model's own target invariant; with power 0 it is QUEST, whose target is exp(r/β) alone; with other
    powers and no reward it sharpens (α > 1) or flattens the model (see `PowerSampling`). Draws after ``burn_in`` weigh
    the same. The chain is exact in the limit of many moves, and gives no evidence; ``info["acceptance"]`` is the share
    accepted.

    With ``block`` every other move, by a coin, writes only so many steps anew, and forces the choices of those after
    on them (calls are made anew). So the model must be able to score forced choices, and they must fit another past:
    tokens do, texts that hold their whole past do not, nor do choices of which the program asks for others there (the
    run stays as it is).

    As a kernel it moves the particles of an SMC: ``SMC(n, move=SuffixMH(3))``. It is blind: what it writes anew comes
    from the model, whatever the reward, and is seldom accepted where that is sharp. So on a static prior with a
    likelihood (all is drawn first, and weighed then) it serves best under `TemperedSMC`, which begins where all is
    accepted; on continuous sites `RandomWalk`, `HMC` and their kin take small steps.

    Args:
        moves: of the chain, or of one application as a kernel.
        power: of p in the target. Other than 1 needs a model that gives log-probabilities.
        block: steps of a block; None: none.
        burn_in: moves thrown away first; None: a fifth.
        thin: every so many of the rest is kept.
        chains: independent chains, of equal weight.
        all_dead: "error" raises `AllParticlesDead` when no draw has positive weight; "zero" keeps them.

    Raises:
        Unsupported: for a power other than 1, on a model without log-probabilities.

    Cost: Half a run for each move, on the average.
    When it pays: For whole texts with a reward of the whole, from a good start; chains are cheap to hold, so long
    runs fit.

    Source: QUEST, Faria et al. (2024), arXiv:2406.00049; QAlign, Faria and Smith (2025), arXiv:2504.03790. Their code
    takes the mean of log-probabilities where the sum belongs, and clips the ratio; this does not.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coins():
    ...     a = await fk.sample("a", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("Ga", 1.0 * a)
    ...     b = await fk.sample("b", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("Gb", 1.0 * (a == b))
    ...     return a + b
    >>> posterior = fk.infer(coins(), fk.SuffixMH(1000), seed=0)
    >>> abs(posterior.expect(float) - fk.enumerate_program(coins()).expect(float)) < 0.1
    True
    >>> 0.3 < posterior.info["acceptance"] < 0.9
    True
    """

    moves: int
    power: float = 1.0
    block: int | None = None
    burn_in: int | None = None
    thin: int = 1
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    by_density: ClassVar[bool] = False
    guarantee: ClassVar[Guarantee] = "consistent"
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        positive("moves", self.moves)
        if self.block is not None:
            positive("block", self.block)
        if not np.isfinite(self.power):
            raise ValueError(f"power must be a finite number, not {self.power!r}")
        check_schedule(self)

    @property
    def sweeps(self) -> int:
        """Sweeps of the chain, each of one move."""
        return self.moves

    @property
    def particles(self) -> int:
        """Draws of a chain."""
        return kept(self)

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""

        def sweep(paths: list[Path], key: Keys) -> Asking[tuple[list[Path], dict[str, float]]]:
            moved, accepted = yield from self._once(model, paths, key, None, np.ones(1))
            return moved, {"acceptance": accepted}

        return draw_chain(model, key, self, from_prior(model, key, 1), sweep)

    def move(
        self,
        model: FeynmanKac[Any],
        paths: Sequence[Path],
        keys: Keys,
        horizon: int | None,
        inverse: Floats,
    ) -> Asking[tuple[list[Path], float]]:
        """Make ``moves`` moves of each path; see `MarkovKernel`."""
        out, rates = list(paths), []
        for k in range(self.moves):
            out, accepted = yield from self._once(model, out, _keys.fold(keys, k), horizon, inverse)
            rates.append(accepted)
        return out, float(np.mean(rates))

    def _once(
        self, model: FeynmanKac[Any], paths: list[Path], keys: Keys, horizon: int | None, inverse: Floats
    ) -> Asking[tuple[list[Path], float]]:
        u = _keys.uniform(_keys.fold(keys, _keys.tag("accept")), 3)
        start = (u[:, 0] * [path.draws for path in paths]).astype(int)
        pasts = [path.until_draw(i) for path, i in zip(paths, start.tolist())]
        fresh = _keys.fold(keys, _keys.tag("suffix"))
        in_block = u[:, 2] < 0.5 * (self.block is not None)
        news: list[Path | None] = [None] * len(paths)
        for blocks in (False, True):
            rows = np.flatnonzero(in_block == blocks)
            if not len(rows):
                continue
            those, olds = [pasts[i] for i in rows], [paths[i] for i in rows]
            if blocks:
                made: Sequence[Path | None] = yield from self._block(model, olds, those, fresh[rows])
            else:
                made = yield from run_on(model, those, fresh[rows], horizon)
            for i, new in zip(rows.tolist(), made):
                news[i] = new
        out, accepted = list(paths), 0
        for i, (old, new) in enumerate(zip(paths, news)):
            if new is not None and alive(new):
                past = pasts[i]
                stop = (past.length if past else 0) + self.block if in_block[i] and self.block is not None else None
                log_ratio = self._log_ratio(model, old, new, past, stop, float(inverse[i]))
                if np.log(u[i, 1]) < log_ratio:
                    out[i], accepted = new, accepted + 1
        return out, accepted / len(paths)

    def _block(
        self, model: FeynmanKac[Any], olds: list[Path], pasts: list[Path | None], keys: Keys
    ) -> Asking[list[Path | None]]:
        """Write the block that comes after each past anew, and force the rest; None where it ends otherwise."""
        assert self.block is not None
        out: list[Path | None] = list(pasts)
        steps = [old.steps() for old in olds]
        begin = [0 if past is None else past.length for past in pasts]
        going = list(range(len(olds)))
        for t in range(max(map(len, steps))):
            given = [None if t < self.block else retry(steps[i][begin[i] + t].choices) for i in going]
            made = yield from extend(model, [out[i] for i in going], _keys.fold(keys[going], t), given)
            for i, new in zip(going, made):
                out[i] = new
            going = [i for i, new in zip(going, made) if not new.done and new.length < olds[i].length]
            if not going:
                break
        same = [new is not None and (new.length, new.done) == (old.length, old.done) for new, old in zip(out, olds)]
        return [new if ok else None for new, ok in zip(out, same)]

    def _log_ratio(
        self, model: FeynmanKac[Any], old: Path, new: Path, past: Path | None, stop: int | None, inverse: float
    ) -> float:
        if not alive(old):
            return np.inf
        if self.power != 1.0:
            check_power(f"SuffixMH(power={self.power})", model)
        if self.power != 1.0 and not (old.scored and new.scored):
            raise Unsupported(
                f"SuffixMH with power={self.power} needs log-probabilities, and {model!r:.200} gives none"
            )
        drawn = np.array([_log_drawn(path, past, stop) for path in (old, new)])
        goal = [self.power * path.log_prob + inverse * path.log_potential + path.log_twist for path in (old, new)]
        chance = np.log([max(path.draws, 1) for path in (old, new)])
        return float(goal[1] - goal[0] + drawn[0] - drawn[1] + chance[0] - chance[1])


def _log_drawn(path: Path, past: Path | None, stop: int | None) -> float:
    """Return log q of the steps after ``past``, up to step ``stop`` where it is given."""
    end = path if stop is None else path.cut(stop)
    assert end is not None
    return end.log_proposal - (0.0 if past is None else past.log_proposal)

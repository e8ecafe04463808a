"""Sequential Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac
from ..base.checks import fraction, one_of, positive
from ..base.engine import Guarantee, Move, Ranking, Report, Run, Start, check_alive, describe, without_evidence
from ..base.paths import MarkovKernel, check_kernel, promise
from ..base.resampling import SCHEMES, Scheme, chosen
from .path_filter import resample_move
from .reducing import Reduce, check_reductions


@dataclass(frozen=True)
class SMC:
    """Sequential Monte Carlo, alias particle filter: move, weigh, and resample where the weights degenerate.

    Feynman–Kac mapping: at step t each particle is moved by M_t (or a proposal q_t) and its weight multiplied by
    G_t·p/q. Where the effective sample size of w·ψ (ψ is the twist's level) falls to ``ess_threshold`` of the
    particles, ancestors are drawn ∝ w·ψ and each copy gets the weight mean(wψ)/ψ. So twists, proposals and
    resampling change the variance and never the target, and mean(w) is an unbiased estimate of Z at any number of
    particles. Finished particles keep their weight and take part in resampling; there is none after the last step.

    Args:
        particles: n, the number of particles.
        ess_threshold: resample when ESS ≤ this fraction of n; 1.0 does so at every step, 0.0 never.
        resampling: "systematic", "stratified", "residual", "ssp" or "multinomial".
        chains: independent runs, pooled in proportion to their evidence; several give a standard error.
        all_dead: "error" raises `AllParticlesDead` when all weights are zero; "zero" returns log Z = −inf.
        move: a Markov kernel such as ``SuffixMH(3)`` or ``RandomWalk(5)``, which moves the particles after each
            resampling and leaves their target as it is (resample–move): it brings back what resampling lost. The
            history is then a tree, ``info["acceptance"]`` the share of moves accepted, and standard errors need several
            chains. With a kernel that learns from the particles (a step size that is not given), Ẑ is consistent
            and no longer unbiased, and ``guarantee`` says so. A program that draws all in its first step, and then
            weighs it, is better off with `TemperedSMC`; where its particles collapse, a `CollapseWarning` says so.
        reduce: after which steps fewer particles go on, as early steps decide most and cost least: for instance
            ``{2: Reduce(6, "cluster"), 6: Reduce(2)}``; see `Reduce`. The steps there do not resample otherwise.
            With ``by="centre"`` the run is heuristic and has no evidence. Not with ``move``.

    Cost: N runs of the model, one batched call a step; with ``move`` as many more as it proposes.
    When it pays: Where a partial run can be judged, or its evidence is wanted. Not where only the end tells: then
    all particles are copies of a few when it is told.

    Source: Gordon, Salmond and Smith (1993), doi:10.1049/ip-f-2.1993.0015; twists as in Whiteley and Lee (2014),
    doi:10.1214/13-AOS1167; moves: Gilks and Berzuini (2001), doi:10.1111/1467-9868.00280.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coins():
    ...     a = await fk.sample("a", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("Ga", 1.0 * a)
    ...     b = await fk.sample("b", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("Gb", 1.0 * (a == b))
    ...     return a, b
    >>> posterior = fk.infer(coins(), fk.SMC(500), seed=0)
    >>> abs(posterior.log_evidence - fk.enumerate_program(coins()).log_evidence) < 0.1
    True
    """

    particles: int
    ess_threshold: float = 0.5
    resampling: Scheme = "systematic"
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    move: MarkovKernel | None = None
    reduce: Mapping[int, Reduce] = field(default_factory=dict, hash=False)
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        positive("particles", self.particles)
        positive("chains", self.chains)
        fraction("ess_threshold", self.ess_threshold, "the particles")
        one_of("resampling", self.resampling, SCHEMES)
        one_of("all_dead", self.all_dead, ("error", "zero"))
        if self.move is not None:
            check_kernel("move", self.move)
            if self.reduce:
                raise ValueError("particles that are moved stay as many: leave out reduce or move")
        check_reductions(self.reduce, self.particles)

    @property
    def guarantee(self) -> Guarantee:
        """What it promises: less, where its kernel learns from the particles, or is not exact."""
        return "heuristic" if self._picks(math.inf) else promise(self.move)

    def _picks(self, depth: float) -> bool:
        """Whether particles were picked before a depth by what is no draw, so that weights tell no evidence."""
        return any(one.by == "centre" and at < depth for at, one in self.reduce.items())

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        if self.move is not None:
            return resample_move(model, key, self, self.move, self.all_dead)
        return self._plain(model, key, None)

    def at_once(self, model: Any, key: Keys) -> Run | None:
        """Return the run of a compiled scan as one program of XLA, with one report; None with moves or reductions."""
        if self.move is not None or self.reduce:
            return None
        from .fused import fused_smc

        return fused_smc(self, model, key)

    def resume(self, model: FeynmanKac[Any], key: Keys, since: Report) -> Run:
        """Go on from a report of its own, with a new key; see `Resumable`."""
        return self._plain(model, key, since)

    def _plain(self, model: FeynmanKac[Any], key: Keys, since: Report | None) -> Run:
        lineage = _keys.fold(key, _keys.tag("particle"), np.arange(self.particles))
        if since is None:
            advance = yield Start(_keys.fold(lineage, 0))
            state, log_weights = advance.state, advance.log_increment
            step = describe(0, advance, log_weights, np.arange(self.particles), None)
            yield Report(state, log_weights, step)
            check_alive(step, self.all_dead)
        else:
            assert since.step is not None
            state, log_weights, step = since.state, since.log_weights, since.step
        while not step.done.all():
            n, reduction = len(log_weights), self.reduce.get(step.depth)
            ancestors, scheme = np.arange(n), None
            draw = _keys.fold(key, _keys.tag("resample"), step.depth)
            if reduction is not None and step.ess > 0.0:
                values, scheme = partial(model.values, state), f"fewer by {reduction.by}"
                ancestors, log_weights = reduction.draw(values, log_weights, step.log_twist, draw, self.resampling)
            elif 0.0 < step.ess <= self.ess_threshold * n * (1 + 1e-12):
                scheme = self.resampling
                ancestors, log_weights = chosen(log_weights, step.log_twist, n, draw, self.resampling)
            if scheme is not None:
                state = model.select(state, ancestors)
                lineage = _keys.inherit(lineage, ancestors, step.depth)
            depth = step.depth + 1
            advance = yield Move(state, _keys.fold(lineage, depth))
            state, log_weights = advance.state, log_weights + advance.log_increment
            step = describe(depth, advance, log_weights, ancestors, scheme)
            if self._picks(depth):
                yield Report(state, log_weights, without_evidence(step), math.nan)
            else:
                yield Report(state, log_weights, step)
            check_alive(step, self.all_dead)

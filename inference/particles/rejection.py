"""Sequential Monte Carlo whose steps are tried until they are as good as the one before."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.errors import InvalidWeight
from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac, Floats, Index
from ..base.checks import is_real, positive
from ..base.engine import Guarantee, Move, Ranking, Report, Run, Start, check_alive, describe, pick, without_evidence
from ..base.resampling import Scheme, chosen
from .smc import SMC

Ask = Callable[[Index, Keys], Start | Move]


@dataclass(frozen=True)
class RejectionSMC:
    """SMC with one-step rejection: a child that is worse than its parent, by the twist, is likely to be tried again.

    Feynman–Kac mapping: let w = G_t·ψ_t/ψ_{t−1}·p/q of a child be its advantage, ψ being the twist's level (a
    verifier's value). A child of M_t is accepted with probability min(1, w/c). The first that is accepted has the law
    M_t·min(1, w/c)/a, where a = E[min(1, w/c)], and its twisted weight is multiplied by max(w, c)·â. Trials go on until
    the second acceptance, at the k-th, and â = 1/(k − 1); if there are not two in m trials, â is the share of those
    accepted, and with none the particle dies. So E[â] = a, whatever the child, and Ẑ stays unbiased.

    With an exact value ψ and c ≥ w, the accepted child has the law of the target's own next step, so that one particle
    is a draw of the target for 2c children a step, however many steps there are; the draws of `SMC` with n particles
    differ from it by about √T/n. It pays there: *one answer*, many steps, a value that is nearly exact. With more
    particles the noise of â multiplies up, and `SMC` is better at equal cost where there are few steps.

    Args:
        particles: n.
        ceiling: c, the advantage from which on a child is always accepted. What is above is not clipped: its weight
            keeps the rest.
        trust: take the value to be exact, so that E[w] = 1 and nothing need be estimated: half the children, and no
            evidence. Then ``guarantee`` is "heuristic": the law is wrong by Π_t E[w | s_t], which `diagnose` estimates,
            and a child above the ceiling raises InvalidWeight.
        start: the value before the first step, by which that is judged; 1 where nothing is known of it.
        trials: m, most children of a particle in a step; with none accepted it dies, so let it be many times c.
        ess_threshold: resample when ESS ≤ this fraction of n, as in `SMC`.
        resampling: "systematic", "stratified", "residual", "ssp" or "multinomial".
        chains: independent runs, pooled in proportion to their evidence; several give a standard error.
        all_dead: "error" raises `AllParticlesDead` when all weights are zero; "zero" returns log Z = −inf.

    ``info["trials"]`` is the mean number of children of a particle in a step.

    Cost: Several tries for each particle and step, the more the lower the verifier puts them.
    When it pays: For one answer, with a verifier that knows from the first step; for expectations `SMC` is better.

    Source: Golowich et al. (2026), arXiv:2603.07887; Girshick, Mosteller and Savage (1946),
    doi:10.1214/aoms/1177730976, for the stopped estimate.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def heads(n):
    ...     for left in reversed(range(n)):
    ...         head = await fk.sample("head", fk.dist.Bernoulli(0.5))
    ...         level = left * math.log(0.5) if head else -math.inf  # the chance that the rest are heads
    ...         await (fk.twist("value", level) if left and head else fk.factor("G", level))
    ...     return n
    >>> posterior = fk.infer(heads(10), fk.RejectionSMC(1, ceiling=2.0, trust=True, start=0.5**10), seed=0)
    >>> posterior.complete.tolist(), 1.0 < posterior.info["trials"] < 3.0
    ([True], True)
    """

    particles: int
    ceiling: float = 1.0
    trust: bool = False
    start: float = 1.0
    trials: int = 64
    ess_threshold: float = 0.5
    resampling: Scheme = "systematic"
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        positive("trials", self.trials)
        SMC(self.particles, self.ess_threshold, self.resampling, self.chains, self.all_dead)  # which checks these
        if self.trials < self._wanted:
            raise ValueError(f"trials must be 2 or more, not {self.trials}: two acceptances are waited for")
        for name in ("ceiling", "start"):
            if not is_real(getattr(self, name)) or not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a positive number, not {getattr(self, name)!r}")

    @property
    def guarantee(self) -> Guarantee:
        """What it promises: nothing, where the twist is trusted."""
        return "heuristic" if self.trust else "unbiased"

    @property
    def _wanted(self) -> int:
        """Acceptances that are waited for: the first is what goes on, the second makes the estimate unbiased."""
        return 1 if self.trust else 2

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        n, depth, scheme = self.particles, 0, None
        ancestors = going = np.arange(n)
        lineage = _keys.fold(key, _keys.tag("particle"), ancestors)
        log_weights, level = np.zeros(n), np.full(n, math.log(self.start))
        state: Any = None
        tried = asked = 0
        while True:

            def ask(rows: Index, keys: Keys, state: Any = state) -> Start | Move:
                return Start(keys) if state is None else Move(model.select(state, rows), keys)

            parts = [] if len(going) == n else [_resting(model, state, np.setdiff1d(np.arange(n), going))]
            if len(going):
                coins = _keys.fold(key, _keys.tag("accept"), depth, going)
                lines = _keys.fold(lineage[going], depth)
                made, gained, count = yield from self._try(model, ask, going, level[going], lines, coins)
                log_weights[going] += gained
                parts, tried, asked = [*parts, made], tried + count, asked + len(going)
            advance = _joined(model, parts, np.argsort(np.concatenate([np.setdiff1d(np.arange(n), going), going])))
            state = advance.state
            step = describe(depth, advance, log_weights, ancestors, scheme)
            step = without_evidence(step) if self.trust else step
            yield Report(state, log_weights, step, step.log_evidence, info={"trials": tried / asked})
            check_alive(step, self.all_dead)
            if step.done.all():
                return
            level, ancestors, scheme, log_weights = step.log_twist, np.arange(n), None, log_weights.copy()
            if 0.0 < step.ess <= self.ess_threshold * n * (1 + 1e-12):
                scheme, draw = self.resampling, _keys.fold(key, _keys.tag("resample"), depth)
                ancestors, log_weights = chosen(log_weights, level, n, draw, scheme)
                level = level[ancestors]
                state = model.select(state, ancestors)
                lineage = _keys.inherit(lineage, ancestors, depth)
            depth += 1
            going = np.flatnonzero(~step.done[ancestors])

    def _try(
        self, model: FeynmanKac[Any], ask: Ask, going: Index, level: Floats, keys: Keys, coins: Keys
    ) -> Generator[Start | Move, Advance[Any], tuple[Advance[Any], Floats, int]]:
        """Try children of the particles ``going``, all together, until each has what it waits for.

        Returns the step that each of them made, what its log-weight gains by it, and how many children there were.
        """
        log_c, m = math.log(self.ceiling), len(going)
        accepted, tried, gained = np.zeros(m, int), np.zeros(m, int), np.full(m, -np.inf)
        kept: list[tuple[Index, Advance[Any]]] = []
        for k in range(self.trials):
            open_ = np.flatnonzero(accepted < self._wanted)
            if not len(open_):
                break
            made = yield ask(going[open_], _keys.fold(keys[open_], k))
            log_w = made.log_increment + made.log_twist - level[open_]
            self._check(log_w)
            good = np.log(_keys.uniform(_keys.fold(coins[open_], k))) < log_w - log_c
            # A particle with none by the last trial dies with that child, which it needs as a state.
            rows = np.flatnonzero((accepted[open_] == 0) & (good | (k == self.trials - 1)))
            kept.append((open_[rows], pick(model, made, rows)))
            excess = np.maximum(log_w, log_c) - made.log_twist + level[open_]
            gained[open_[rows]] = np.where(good, excess, -np.inf)[rows]
            accepted[open_] += good
            tried[open_] += 1
        advance = _joined(model, [part for _, part in kept], np.argsort(np.concatenate([own for own, _ in kept])))
        advance.done[gained == -np.inf] = True
        if self.trust:
            return advance, gained - log_c, int(tried.sum())
        shares = np.where(accepted == self._wanted, 1.0 / np.maximum(tried - 1, 1), accepted / tried)
        with np.errstate(divide="ignore"):
            return advance, gained + np.log(shares), int(tried.sum())

    def _check(self, log_w: Floats) -> None:
        if self.trust and log_w.max() > math.log(self.ceiling) + 1e-9:
            raise InvalidWeight(
                f"a step makes the weight and the twist {math.exp(log_w.max()):.4g} times what they were, above the "
                f"ceiling {self.ceiling}, on which RejectionSMC(trust=True) relies: raise it, or do not trust the twist"
            )


def _joined(model: FeynmanKac[Any], parts: Sequence[Advance[Any]], order: Index) -> Advance[Any]:
    """Return the rows of several steps as one, in an order."""
    arrays = ("log_prob", "log_proposal", "log_potential", "log_twist", "done", "scored")
    choices = [chosen for part in parts for chosen in part.choices]
    return Advance(
        model.select(model.concat([part.state for part in parts]), order),
        [choices[i] for i in order.tolist()],
        *(np.concatenate([getattr(part, name) for part in parts])[order] for name in arrays),
    )


def _resting(model: FeynmanKac[Any], state: Any, rows: Index) -> Advance[Any]:
    """Return the step of particles that stay as they are: they are done, or dead."""
    zeros, yes = np.zeros(len(rows)), np.ones(len(rows), bool)
    return Advance(model.select(state, rows), [()] * len(rows), zeros, zeros, zeros, zeros, yes, yes)

"""SMC that looks ahead: rollouts say which particles are worth keeping."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac, Floats
from ..base.checks import fraction, one_of, positive
from ..base.engine import Guarantee, Move, Ranking, Report, Run, Start, check_alive, describe
from ..base.resampling import SCHEMES, Scheme
from ..base.weights import logmeanexp, normalize


@dataclass(frozen=True)
class LookAheadSMC:
    """SMC that looks ahead: before each resampling every particle makes trial runs, which are then forgotten.

    Feynman–Kac mapping: as `SMC` with resampling after every step, but ancestors are drawn by a mixture: a share of
    ``floor`` ∝ w·ψ, as there, and the others ∝ w·ψ̂, where ψ̂ is the mean weight of ``rollouts`` trial runs of up to
    ``ahead`` steps from the particle (with the twist's level where they stop). A copy of particle a, which is drawn
    with probability p_a, gets the weight w_a/(n·p_a). So trials change the variance and never the target, and the
    evidence is unbiased; and however little a trial found where others would find much, no copy weighs more than
    1/floor times what it would weigh in `SMC`. Trial runs cost as much as real ones; they pay where a potential that
    comes late decides, and no twist is known. They are noise where one says little of the next:
    ``info["fruitless"]`` is the share of the weight whose trials found less than a tenth of the mean.

    Args:
        particles: n.
        rollouts: trial runs from each particle.
        ahead: steps of each; None: to its end.
        resampling: "systematic", "stratified", "residual", "ssp" or "multinomial".
        chains: independent runs, pooled in proportion to their evidence; several give a standard error.
        all_dead: "error" raises `AllParticlesDead` when all weights are zero; "zero" returns log Z = −inf.
        floor: the share of ancestors that is drawn without looking ahead, in (0, 1].

    Cost: Of each particle as many trial runs as ``rollouts``, for each resampling.
    When it pays: Where the reward is only told at the end, and one trial says much of the rest; elsewhere it is
    worse than `SMC` at equal cost.

    Source: Lin, Chen and Liu (2013), doi:10.1214/12-STS401, arXiv:1302.5206; defensive mixtures: Hesterberg (1995),
    doi:10.1080/00401706.1995.10484303.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def late():
    ...     a = await fk.sample("a", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("nothing yet", 0.0)
    ...     b = await fk.sample("b", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("G", 3.0 * (a and b))
    ...     return a, b
    >>> posterior = fk.infer(late(), fk.LookAheadSMC(200, rollouts=4), seed=0)
    >>> abs(posterior.log_evidence - fk.enumerate_program(late()).log_evidence) < 0.2
    True
    """

    particles: int
    rollouts: int = 1
    ahead: int | None = None
    resampling: Scheme = "systematic"
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    floor: float = 0.5
    guarantee: ClassVar[Guarantee] = "unbiased"
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        for name in ("particles", "rollouts", "chains"):
            positive(name, getattr(self, name))
        if self.ahead is not None:
            positive("ahead", self.ahead)
        one_of("resampling", self.resampling, SCHEMES)
        one_of("all_dead", self.all_dead, ("error", "zero"))
        check_floor(self.floor)

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        n, depth, scheme = self.particles, 0, None
        lost: list[float] = []
        ancestors = np.arange(n)
        lineage = _keys.fold(key, _keys.tag("particle"), ancestors)
        advance = yield Start(_keys.fold(lineage, 0))
        log_weights = advance.log_increment
        while True:
            step = describe(depth, advance, log_weights, ancestors, scheme)
            yield Report(advance.state, log_weights, step, info=told(lost))
            check_alive(step, self.all_dead)
            if advance.done.all() or step.ess == 0.0:
                return
            looks = _keys.fold(lineage, _keys.tag("look"), depth)
            found = yield from look_ahead(model, advance, looks, self.rollouts, self.ahead)
            plain, ahead = normalize(log_weights + advance.log_twist), normalize(log_weights + found)
            lost.append(fruitless(plain, ahead))
            chances = mixed(plain, ahead, self.floor)
            scheme = self.resampling
            ancestors = SCHEMES[scheme](chances, n, _keys.fold(key, _keys.tag("resample"), depth))
            log_weights = log_weights[ancestors] - np.log(n * chances[ancestors])
            lineage = _keys.inherit(lineage, ancestors, depth)
            depth += 1
            advance = yield Move(model.select(advance.state, ancestors), _keys.fold(lineage, depth))
            log_weights = log_weights + advance.log_increment


def look_ahead(
    model: FeynmanKac[Any], advance: Advance[Any], keys: Keys, rollouts: int, ahead: int | None
) -> Generator[Move, Advance[Any], Floats]:
    """Return the log of the mean weight of trial runs from each of n particles, (n,); −inf where all of them died."""
    n = len(keys)
    state, lines = advance.state, keys
    if rollouts > 1:
        state = model.select(state, np.repeat(np.arange(n), rollouts))
        lines = _keys.fold(np.repeat(keys, rollouts), np.tile(np.arange(rollouts), n))
    total, made = np.zeros(n * rollouts), 0
    while True:
        trial = yield Move(state, _keys.fold(lines, made))
        total, made = total + trial.log_increment, made + 1
        if trial.done.all() or made == ahead:
            break
        state = trial.state
    return np.array([logmeanexp(row) for row in (total + trial.log_twist).reshape(n, rollouts)])


def mixed(plain: Floats, ahead: Floats, floor: float) -> Floats:
    """Return the chances of ancestors (n,): a share of ``floor`` from the plain ones, the rest by what trials found.

    Trials are noise, and one may find nothing from a particle whose children are good: by its finding alone it would be
    drawn too seldom by any factor, and weigh as much more. So it has at least ``floor`` of its plain chance.

    >>> mixed(np.array([0.5, 0.5]), np.array([0.0, 1.0]), 0.5).tolist()
    [0.25, 0.75]
    """
    return floor * plain + (1.0 - floor) * ahead if ahead.any() else plain


def fruitless(plain: Floats, ahead: Floats) -> float:
    """Return the share of the plain chances (n,) whose trials found less than a tenth of the mean.

    >>> fruitless(np.array([0.25, 0.75]), np.array([0.99, 0.01]))
    0.75
    """
    return float(plain[ahead < 0.1 * plain].sum()) if ahead.any() else 1.0


def told(lost: list[float]) -> dict[str, float]:
    """Return what a report says of trials: the mean share that was fruitless."""
    return {"fruitless": float(np.mean(lost))} if lost else {}


def check_floor(floor: Any) -> None:
    """Raise ValueError unless the share of ancestors that no trial decides is in (0, 1]."""
    fraction("floor", floor, "the ancestors")
    if not floor > 0:
        raise ValueError("floor must be above 0: a trial that finds nothing would give weights without bound")

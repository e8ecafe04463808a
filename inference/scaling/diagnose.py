"""`diagnose`: what the scores of a program are worth, step by step, before an engine is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats
from ..base.checks import positive
from ..base.engine import Guarantee, Move, Report, Run, Start, describe, without_evidence
from ..infer import infer
from ..results.posterior import Posterior
from .diagnosis import Diagnosis, Row
from .measures import auc, auc_within, bellman, calibration_error, predicted_ess, slope

_NONE = 1e-12


@dataclass(frozen=True)
class Probe:
    """n runs that are never resampled, each of whose steps is made k times; the first of the k goes on.

    Feynman–Kac mapping: importance sampling, with k − 1 siblings at every step that say what else might have come. The
    n·k particles of a step are children of the first n of the step before, row j·n + i being the j-th of the i-th.
    """

    answers: int
    children: int
    chains: ClassVar[int] = 1
    guarantee: ClassVar[Guarantee] = "heuristic"

    @property
    def particles(self) -> int:
        """All children of a step."""
        return self.answers * self.children

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        n, depth = self.answers, 0
        parents = np.tile(np.arange(n), self.children)
        lineage = _keys.fold(key, _keys.tag("probe"), np.arange(n * self.children))
        advance = yield Start(_keys.fold(lineage, 0))
        log_weights = advance.log_increment
        while True:
            step = without_evidence(describe(depth, advance, log_weights, parents, None))
            yield Report(advance.state, log_weights, step, math.nan)
            if step.done[:n].all():
                return
            depth += 1
            advance = yield Move(model.select(advance.state, parents), _keys.fold(lineage, depth))
            log_weights = log_weights[parents] + advance.log_increment


class _Scored(NamedTuple):
    """The steps of one problem's runs, each array (steps, k, n).

    ``level`` is the log of all weights so far times the twist, by which engines go, and ``score`` that without the
    weights of proposals; a run is ``live`` in a step that it made.
    """

    level: Floats
    score: Floats
    live: NDArray[np.bool_]
    right: NDArray[np.bool_]


def diagnose(
    models: Sequence[Any],
    solved: Callable[[Any], bool] | Sequence[Callable[[Any], bool]],
    *,
    answers: int = 32,
    children: int = 2,
    seed: int = 0,
) -> Diagnosis:
    """Say what a verifier is worth, step by step, and which engine and size to try with it.

    The score of a run so far is what engines go by: the product of its factors times its twist. In
    ``fk.tasks.solve(lm, prm, problem)`` it is the score ``prm`` gives, by line. Of each problem ``answers`` runs
    are drawn from the model, and each step ``children`` times, so that E[V(s′) | s] has an estimate without bias.

    Args:
        models: a bound program for each problem, whose factors or twists say more than the end.
        solved: whether what a program returns is right: a function for all, or one for each problem.
        answers: runs of each problem.
        children: times that a step is made, 2 or more.
        seed: same seed, same numbers.

    Raises:
        ValueError: where no answer, or each, is right; where there is no score before the end; for settings out of
            range, and verdicts that are neither True nor False.
        InvalidWeight: for scores that are NaN.

    Source: Zhu and Lu (2026), arXiv:2602.01381, for the Bellman error as what says how many particles SMC needs.
    Guarantee: Bellman errors are unbiased; the predicted ESS is consistent; the advice is a rule of thumb.
    Engines: none; what it says is of use to all that go by scores: `SMC`, `ParticleFilter`, `RejectionSMC`, `AStar`.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coins(p):
    ...     heads = 0
    ...     for left in (2, 1, 0):
    ...         heads += await fk.sample("head", fk.dist.Bernoulli(p))
    ...         level = left * math.log(p) if heads == 3 - left else -math.inf
    ...         await (fk.twist("value", level) if left and level > -math.inf else fk.factor("G", level))
    ...     return heads
    >>> found = fk.diagnose([coins(0.6), coins(0.7)], lambda heads: heads == 3, answers=200)
    >>> max(abs(row.bellman) for row in found.rows[1:]) < 0.05, found.rows[-1].auc
    (True, 1.0)
    """
    positive("answers", answers)
    positive("children", children)
    models, n = list(models), answers
    if children < 2:
        raise ValueError(f"children must be 2 or more, not {children}: one child says nothing of the mean of all")
    if not models:
        raise ValueError("there is no model to diagnose: give a bound program for each problem")
    verdicts = [solved] * len(models) if callable(solved) else list(solved)
    if len(verdicts) != len(models):
        raise ValueError(f"there are {len(models)} models and {len(verdicts)} functions that say what is right")
    posteriors = infer(models, Probe(n, children), seed=seed)
    runs = [_scored(p, verdict, n, children, i) for i, (p, verdict) in enumerate(zip(posteriors, verdicts))]
    _check(runs)
    # Siblings are no part of what an answer costs.
    used = [p.cost for p in posteriors]
    tokens, calls = (sum(getattr(c, name) for c in used) / (n * len(models)) for name in ("tokens_out", "reward_calls"))
    rows = tuple(_row(runs, t) for t in range(max(len(run.level) for run in runs)))
    return Diagnosis(
        rows=rows,
        scores=np.array([_last(run.score[:, 0], run.live[:, 0]) for run in runs]),
        right=np.array([run.right for run in runs]),
        tokens=tokens / children,
        reward_calls=calls / children,
        program=posteriors[0].model,
    )


def _scored(posterior: Posterior, verdict: Callable[[Any], bool], n: int, k: int, problem: int) -> _Scored:
    levels, scores, lives = [], [], []
    total, done = np.zeros(n), np.zeros(n, bool)
    for step in posterior.steps:
        score = np.tile(total, k) + step.log_potential
        levels.append((step.log_weights + step.log_twist).reshape(k, n))
        scores.append((score + step.log_twist).reshape(k, n))
        lives.append(np.tile(~done, k).reshape(k, n))
        total, done = score[:n], step.done[:n]
    right = [_told(verdict(value), problem) for value in posterior.values[:n]]
    return _Scored(np.array(levels), np.array(scores), np.array(lives), np.array(right, bool))


def _told(verdict: Any, problem: int) -> bool:
    if verdict not in (True, False):
        raise ValueError(f"whether an answer to problem {problem} is right must be True or False, not {verdict!r}")
    return bool(verdict)


def _last(score: Floats, live: NDArray[np.bool_]) -> Floats:
    """Return each run's score after the last step that it made, (n,)."""
    made = live.sum(0) - 1
    found: Floats = score[made, np.arange(score.shape[1])]
    return found


def _check(runs: list[_Scored]) -> None:
    right = np.concatenate([run.right for run in runs])
    if right.all() or not right.any():
        raise ValueError(
            f"{'all' if right.all() else 'none'} of the {len(right)} answers are right, so that nothing can be said of "
            "what tells right from wrong: give other problems, or more answers"
        )
    # A run is live in a step before its end if it is so in the next one too: runs have different lengths.
    if all(np.abs(run.score[:-1, 0][run.live[1:, 0]]).max(initial=0.0) < _NONE for run in runs):
        raise ValueError(
            "no run has a score before its end: the program needs a factor or a twist at each step (such as "
            "solve(…, weigh='telescope')), else there is nothing to diagnose"
        )


def _row(runs: list[_Scored], t: int) -> Row:
    """Return the numbers of a step, over the runs that made it."""
    made = [run for run in runs if t < len(run.level)]
    lines = [(run.score[t, 0][run.live[t, 0]], run.right[run.live[t, 0]]) for run in made]
    scores, right = (np.concatenate(part) for part in zip(*lines))
    values, share = np.exp(scores), float(right.mean()) if len(right) else math.nan
    with np.errstate(over="ignore"):
        before = [np.ones(run.level.shape[2]) if t == 0 else np.exp(run.level[t - 1, 0]) for run in made]
        after = [np.exp(run.level[t]) for run in made]
    ess = [x for x in (predicted_ess(v, c) for v, c in zip(before, after)) if not math.isnan(x)]
    row = Row(
        step=t + 1,
        runs=len(right),
        auc=auc(scores, right),
        auc_within=auc_within(lines),
        score=math.nan,
        share=share,
        ece=math.nan,
        slope=math.nan,
        bellman=math.nan,
        relative=math.nan,
        drift=math.nan,
        ess=float(np.mean(ess)) if ess else math.nan,
    )
    if len(scores) and scores.max() <= _NONE:  # they may be probabilities
        fit = slope(values, right)
        row = row._replace(score=float(values.mean()), ece=calibration_error(values, right), slope=fit)
    if t == 0:
        return row
    lives = [run.live[t, 0] for run in made]
    found = bellman(
        np.concatenate([v[live] for v, live in zip(before, lives)]),
        np.concatenate([c[:, live] for c, live in zip(after, lives)], 1),
    )
    return row._replace(bellman=found.error, relative=found.relative, drift=found.drift)

"""The records of a comparison: a trial, a run of all problems, and a row of the table."""

from __future__ import annotations

from dataclasses import dataclass

from ...ppl.cost import Cost
from ..base.student import Interval


@dataclass(frozen=True)
class Trial:
    """One engine on one problem with one seed.

    Attributes:
        engine: its label.
        model: number of the problem.
        seed: the seed of the run.
        quality: what the metric said; NaN where it failed (or what a failure counts as).
        log_evidence: log Ẑ; NaN where the engine gives none, or was cut short: it would be that of a prefix.
        ess: effective sample size of the final weights.
        particles: of all chains.
        cost: what this problem used; ``model_calls`` are those it took part in, ``seconds`` the run's.
        stopped: why the run was cut short, or None.
        error: what failed, or None.
        prefix: whether it was cut short with particles that had not finished.
    """

    engine: str
    model: int
    seed: int
    quality: float
    log_evidence: float
    ess: float
    particles: int
    cost: Cost
    stopped: str | None = None
    error: str | None = None
    prefix: bool = False


@dataclass(frozen=True)
class TrialRun:
    """One call of an engine on all problems together.

    Attributes:
        engine: its label.
        seed: the seed.
        cost: of the whole call.
        cpu_seconds: processor time of this process.
        stopped: why it was cut short, or None.
    """

    engine: str
    seed: int
    cost: Cost
    cpu_seconds: float
    stopped: str | None = None


@dataclass(frozen=True)
class Row:
    """An engine in the table of a `Comparison`. Costs are means of one run over all problems.

    Attributes:
        engine: its label.
        quality: mean of the metric, with its 95% interval.
        difference: mean of its difference to the reference on the same problems and seeds; None for the reference.
        log_evidence: mean log Ẑ of the trials that were not cut short.
        ess: mean ESS.
        tokens_in: see `Cost`, as the next six.
        tokens_recomputed: …
        tokens_out: …
        model_calls: …
        reward_calls: …
        requests: …
        nfe: …
        seconds: wall time.
        cpu_seconds: processor time.
        trials: how many there were.
        failures: how many failed.
        stopped: how many runs were cut short.
    """

    engine: str
    quality: Interval
    difference: Interval | None
    log_evidence: float
    ess: float
    tokens_in: float
    tokens_recomputed: float
    tokens_out: float
    model_calls: float
    reward_calls: float
    requests: float
    nfe: float
    seconds: float
    cpu_seconds: float
    trials: int
    failures: int
    stopped: int

"""Importance sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats
from ..base.engine import Guarantee, Report, Run
from ..base.step import Step
from .smc import SMC


@dataclass(frozen=True)
class ImportanceSampling:
    """Run every particle to its end and weigh it; never resample.

    Feynman–Kac mapping: a particle's weight is Π_t G_t·p/q along its path; the mean weight is an unbiased
    estimate of Z, and the self-normalised particles are consistent for π. It is SMC that never resamples: good
    for few steps, hopeless for many.

    Args:
        particles: n, the number of independent runs.
        chains: independent runs of n particles, pooled; several give a standard error.
        all_dead: "error" raises `AllParticlesDead` when all weights are zero; "zero" returns log Z = −inf.

    Cost: N runs of the model.
    When it pays: Where runs are cheap and weights even; the baseline of every other engine.

    Source: Kloek and van Dijk (1978), doi:10.2307/1913641.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin():
    ...     heads = await fk.sample("heads", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("G", 1.0 * heads)
    ...     return heads
    >>> posterior = fk.infer(coin(), fk.ImportanceSampling(2000), seed=0)
    >>> abs(posterior.expect(float) - 0.731) < 0.05
    True
    """

    particles: int
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    guarantee: ClassVar[Guarantee] = "unbiased"

    def __post_init__(self) -> None:
        self._as_smc()

    def _as_smc(self) -> SMC:
        return SMC(self.particles, ess_threshold=0.0, chains=self.chains, all_dead=self.all_dead)

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        return self._as_smc().run(model, key)

    def resume(self, model: FeynmanKac[Any], key: Keys, since: Report) -> Run:
        """Go on from a report of its own, with a new key; see `Resumable`."""
        return self._as_smc().resume(model, key, since)


def reweighted(
    model: FeynmanKac[Any],
    key: Keys,
    settings: ImportanceSampling,
    weigh: Callable[[Any, Step, Floats], tuple[Floats, Sequence[Any] | None]],
) -> Run:
    """Run importance sampling, with other weights in its reports: how engines that choose among whole runs are made.

    ``weigh`` takes the state, the step with its importance weights, and each run's Σ_t log G_t (n,); it returns
    log-weights (n,) and the answers that the runs vote for, or None.
    """
    log_potential: Floats = np.zeros(settings.particles)
    run = settings.run(model, key)
    request = next(run, None)
    while request is not None:
        if not isinstance(request, Report):
            request = run.send((yield request))  # the run goes on: it ends after a report
            continue
        assert request.step is not None
        log_potential = log_potential + request.step.log_potential
        log_weights, answers = weigh(request.state, request.step, log_potential)
        yield Report(request.state, log_weights, request.step, request.step.log_evidence, answers)
        request = next(run, None)

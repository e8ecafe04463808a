"""Bounds on the evidence from both sides, by SMC and by conditional SMC from exact draws of the posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ...ppl import keys as _keys
from ...ppl.model import FeynmanKac
from ...ppl.running.handling import Given
from ...ppl.values.guard import guard
from ..infer import infer
from ..mcmc.conditional_smc import ConditionalSMC
from ..particles.smc import SMC


class Bounds(NamedTuple):
    """Bounds on log Z in expectation, with the standard errors of both.

    ``upper_se`` is NaN for a single exact draw: all its runs share that draw, and their spread says nothing of it.
    """

    lower: float
    upper: float
    lower_se: float
    upper_se: float


def bounds(
    model: FeynmanKac[Any],
    engine: SMC,
    *,
    exact_sample: Mapping[str, Any] | Sequence[Mapping[str, Any] | Sequence[Any]],
    seed: int,
    runs: int = 32,
) -> Bounds:
    """Bound log Z from below by the mean log Ẑ of SMC, and from above by that of conditional SMC.

    E[log Ẑ] ≤ log Z by Jensen's inequality, since Ẑ is unbiased. Conditional SMC, in which one particle repeats an
    exact draw from the posterior, gives a Ẑ with E[1/Ẑ] = 1/Z, so that E[log Ẑ] ≥ log Z. The gap between the two
    bounds the Kullback–Leibler divergence of the engine's draws from the posterior, in both directions together.

    An exact draw is known where the data were simulated from the model, or where one can enumerate, or reject.

    Args:
        model: a Feynman–Kac model that scores forced choices.
        engine: an SMC with multinomial, stratified, systematic or residual resampling.
        exact_sample: an exact draw from the posterior, or a list of them, used in turn: values by address (programs
            only), or the choices of each step. Runs that share a draw depend on each other, so that ``upper_se`` is
            that of draws: give as many as there are runs, or nearly.
        seed: of the runs.
        runs: how many of either kind.

    Raises:
        ValueError: for another scheme of resampling, or for no runs.
        ImpossibleChoice: where a draw is not a whole run of the model.

    Source: Grosse, Ghahramani and Adams (2015), arXiv:1511.02543; Zhao et al. (2024), arXiv:2404.17546.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin():
    ...     heads = await fk.sample("heads", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("G", 2.0 * heads)
    ...     return heads
    >>> draws = [{"heads": 1}] * 88 + [{"heads": 0}] * 12  # as the posterior has them
    >>> found = fk.bounds(coin(), fk.SMC(4), exact_sample=draws, seed=0, runs=100)
    >>> found.lower < fk.enumerate_program(coin()).log_evidence < found.upper
    True
    """
    if runs < 1:
        raise ValueError(f"runs must be positive, not {runs}")
    one = replace(engine, chains=1)
    samples = [exact_sample] if isinstance(exact_sample, Mapping) else list(exact_sample)
    if not samples:
        raise ValueError("exact_sample holds no draw")
    made = [by_step(model, sample) if isinstance(sample, Mapping) else sample for sample in samples]
    below = [posterior.log_evidence for posterior in infer([model] * runs, one, seed=seed)]
    above: list[list[float]] = []
    for i, sample in enumerate(made[:runs]):
        count = len(range(i, runs, len(made)))
        start = int(_keys.as_seed(_keys.fold(_keys.root(seed), _keys.tag("upper"), i)))
        above.append([p.log_evidence for p in infer([model] * count, ConditionalSMC(one, sample), seed=start)])
    lower, lower_se = _mean([[x] for x in below])
    upper, upper_se = _mean(above)
    return Bounds(lower, upper, lower_se, upper_se)


def by_step(model: Any, values: Mapping[str, Any]) -> list[Any]:
    """Run a program with all its values given by address, and return the choices of each step."""
    if not hasattr(model, "with_handler"):
        raise TypeError(
            f"values by address are for programs; give the choices of each step of a {type(model).__name__}"
        )
    whole = model.with_handler(Given(guard(dict(values))))
    key = _keys.root(0)
    step = whole.start(key)
    choices = [step.choices[0]]
    while not step.done[0]:
        step = whole.advance(step.state, _keys.fold(key, len(choices)))
        choices.append(step.choices[0])
    drawn = {site.address for sites in choices for site in sites if site.kind == "sample"}
    if not drawn <= set(values):
        raise ValueError(
            f"exact_sample must give every value that the program draws, and lacks {sorted(drawn - set(values))}"
        )
    return choices


def _mean(clusters: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the mean of all numbers and its standard error, where those of a cluster depend on each other."""
    sizes = np.array([len(cluster) for cluster in clusters])
    sums = np.array([sum(cluster) for cluster in clusters])
    k, mean = len(clusters), float(sums.sum() / sizes.sum())
    if k == 1:
        return mean, math.nan
    residuals = sums - mean * sizes
    return mean, math.sqrt(k / (k - 1) * float((residuals**2).sum())) / float(sizes.sum())

"""The charts of a posterior as SVG: the same as in `plots`, without a library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import views
from .palette import BLUE, ORANGE
from .svg import Chart, span

SIZE = (405, 185)
_MARKS = 200
"""With more steps, resamplings are not marked one by one."""
_POINTS = 300
"""Points of a line that can be told apart."""


def ess_chart(posterior: Any, size: tuple[int, int] = SIZE) -> str:
    """Draw the ESS of each step as a share of the particles, one line per chain; a dot where it led to resampling."""
    longest = max(len(chain.history) for chain in posterior.chains)
    chart = Chart("Effective sample size", _across(longest), (0.0, 1.0), percent=True, size=size)
    for chain in posterior.chains:
        share = [step.ess / len(step.log_weights) for step in chain.history]
        chart.line(*_thinned(share), opacity=1.0 if len(posterior.chains) == 1 else 0.65)
        for t in np.flatnonzero(views.resampled_after(chain.history)).tolist() if longest <= _MARKS else ():
            step = chain.history[t]
            told = f"step {t}: ESS {step.ess:.1f} of {len(step.log_weights)}, then resampled"
            chart.dot(t, share[t], told, ORANGE)
    marked = longest <= _MARKS and any(step.resampled for chain in posterior.chains for step in chain.history[1:])
    chart.note("● then resampled" if marked else "", ORANGE)
    return str(chart)


def evidence_chart(posterior: Any, size: tuple[int, int] = SIZE) -> str:
    """Draw log Ẑ after each step, of every chain (faint) and of all together."""
    pooled = views.pooled_evidence(posterior.chains)
    each = [np.array([step.log_evidence for step in chain.history]) for chain in posterior.chains]
    chart = Chart(
        "Evidence: log Ẑ, nats", (0, max(len(pooled) - 1, 1)), span(np.concatenate([pooled, *each])), size=size
    )
    several = len(each) > 1
    for logs in each if several else []:
        chart.line(*_thinned(logs), opacity=0.45, width=1.0)
    chart.line(*_thinned(pooled), colour=ORANGE if several else BLUE, width=2.0)
    chart.note(
        f"{views.number(posterior.log_evidence)}" + (f", {len(each)} chains (faint) together" if several else "")
    )
    return str(chart)


def tempering_chart(posterior: Any, size: tuple[int, int] = SIZE) -> str:
    """Draw E_λ[log G] against λ, whose integral is log Z, one line per chain."""
    found = posterior.thermodynamic
    heights = np.concatenate([one.mean for one in found])
    chart = Chart("Tempering: E[log G]", (0.0, 1.0), span(heights), xlabel="inverse temperature λ", size=size)
    for one in found:
        chart.line(one.inverse.tolist(), one.mean.tolist(), opacity=1.0 if len(found) == 1 else 0.65)
        for x, y in zip(one.inverse.tolist(), one.mean.tolist()):
            chart.dot(x, y, f"λ = {x:.4g}: {views.number(y)} nats", radius=2.0)
    chart.note(views.integral(posterior))
    return str(chart)


def rewards_chart(posterior: Any, size: tuple[int, int] = SIZE) -> str:
    """Draw log G by step: median, middle 50% and 80%, or its few values; particles killed are counted at the foot."""
    seen = views.rewards(posterior.chains)
    longest = max(len(chain.steps) for chain in posterior.chains)
    low, high = span(seen.quantiles.ravel())
    if seen.dead.any():
        low -= 0.15 * (high - low)
    chart = Chart("Rewards: log G, nats", (-0.5, longest - 0.5), (low, high), size=size)
    told = _dots(chart, seen) if len(views.values_of(seen)) else _boxes(chart, seen)
    crowded = longest > 30
    for t, dead in zip(seen.step.tolist(), seen.dead.tolist()):
        if dead and not crowded:
            chart.text(t, low + 0.02 * (high - low), str(dead), "middle", ORANGE)
    killed = int(seen.dead.sum())
    where = "" if crowded else " (at the foot)"
    chart.note(f"{told}; {killed:,} killed{where}" if killed else told, ORANGE if killed else "")
    return str(chart)


def _dots(chart: Chart, seen: views.Rewards) -> str:
    """Draw the few values of each step as dots, and return what they are."""
    for t, points in zip(seen.step.tolist(), seen.points):
        values, counts = np.unique(points, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist()):
            share = count / len(points)
            chart.dot(t, value, f"step {t}: log G {views.number(value)} of {share:.0%}", radius=1.2 + 4 * share**0.5)
    return "dots: share of the particles"


def _boxes(chart: Chart, seen: views.Rewards) -> str:
    """Draw quantiles: boxes by step, of many steps bands; and return what they are."""
    finite = [k for k in range(len(seen.step)) if len(seen.points[k])]
    at, q = seen.step[finite].tolist(), seen.quantiles[:, finite]
    if not at:
        return "no factor"
    if len(at) > views.BOXES:
        chart.band(at, q[0].tolist(), q[4].tolist())
        chart.band(at, q[1].tolist(), q[3].tolist())
        chart.line(at, q[2].tolist())
        return "median, 50%, 80%"
    for t, (lowest, low, median, high, highest) in zip(at, q.T.tolist()):
        for bottom, top in ((lowest, highest), (low, high)):
            chart.band((t - 0.35, t + 0.35), (bottom, bottom), (top, top))
        chart.line((t - 0.35, t + 0.35), (median, median))
    return "median, 50%, 80%"


def weights_chart(posterior: Any, size: tuple[int, int] = SIZE) -> str:
    """Draw the mass that the k heaviest particles hold, of every chain (faint) and of all."""
    curve = views.mass_curve(posterior.log_weights)
    n, few = len(curve), views.holding(curve)
    chart = Chart(
        "Weights", (1, max(n, 2)), (0.0, 1.0), xlabel="heaviest particles", percent=True, logarithmic=n > 200, size=size
    )
    several = len(posterior.chains) > 1
    for chain in posterior.chains if several else []:
        chart.line(*_ranked(views.mass_curve(chain.log_weights)), opacity=0.45, width=1.0)
    chart.line(*_ranked(curve), colour=ORANGE if several else BLUE, width=2.0)
    if few:
        chart.rule(few)
        chart.note(f"{few:,} of {n:,} hold {min(float(curve[few - 1]), 1.0):.0%}")
    else:
        chart.note("every particle has weight zero")
    return str(chart)


def charts_of(posterior: Any) -> list[Callable[..., str]]:
    """Return the charts that have something to say: no evidence where there is none, no weights of Markov chains."""
    charts = [] if posterior.serial else [ess_chart]
    charts += [] if np.isnan(posterior.log_evidence) else [evidence_chart]
    charts += [tempering_chart] if all(chain.stages for chain in posterior.chains) else []
    return [*charts, rewards_chart, *([] if posterior.serial else [weights_chart])]


def _across(steps: int) -> tuple[float, float]:
    """Return the range of an axis of steps; one step alone stands in the middle."""
    return (0.0, steps - 1.0) if steps > 1 else (-0.5, 0.5)


def _thinned(ys: Any) -> tuple[list[int], list[float]]:
    """Return the points of a line by step, as many as can be told apart."""
    index = np.unique(np.linspace(0, len(ys) - 1, min(len(ys), _POINTS)).round().astype(int))
    return index.tolist(), np.asarray(ys, float)[index].tolist()


def _ranked(curve: Any) -> tuple[list[int], list[float]]:
    """Return the points of a curve by rank, from 1."""
    index = np.unique(np.geomspace(1, len(curve), _POINTS).round().astype(int))
    return index.tolist(), curve[index - 1].tolist()

"""A posterior in a few lines of text, and the parts of them that its pages share."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from .pixels import identity, written
from .views import number, plain, short_line, verdict


def summary(posterior: Any, top: int) -> str:
    """Return engine, evidence, ESS, cost, warnings, the best value and those of largest weight."""
    stopped = f"; stopped: {posterior.stopped}" if posterior.stopped else ""
    lines = [
        f"{posterior.engine} on {short_line(posterior.model, 70)}",
        "; ".join([*facts(posterior), f"{int(posterior.complete.sum())} complete{stopped}"]),
        "cost: " + ", ".join(f"{amount} {unit}" for unit, amount in spent(posterior)),
        *(f"note: {warning}" for warning in posterior.warnings),
    ]
    found = leading(posterior, top)
    if found:
        lines.append(f"best by {ranked(posterior)}: {short_line(written(posterior.best()), 80)}")
    lines += [f"  {weight:6.3f}  {short_line(written(value), 90)}" for weight, value in found]
    return "\n".join(map(plain, lines))


def named(posterior: Any) -> str:
    """Return engine and model without their settings, for titles.

    >>> from types import SimpleNamespace
    >>> named(SimpleNamespace(engine="SMC(particles=32, ess_threshold=0.5)", model="haiku(lm, topic='rivers')"))
    'SMC on haiku'
    """
    return " on ".join(short_line(text.partition("(")[0], 60) for text in (posterior.engine, posterior.model))


def facts(posterior: Any) -> list[str]:
    """Return what the engine found of the evidence, where it gives any, and how good the sample is."""
    evidence = f"no evidence ({posterior.guarantee})"
    if not math.isnan(posterior.log_evidence):
        se = "" if math.isnan(posterior.log_evidence_se) else f" ± {posterior.log_evidence_se:.2g}"
        evidence = f"log evidence {posterior.log_evidence:.4g}{se} ({posterior.guarantee})"
    size = f"ESS {posterior.ess:.1f} of {len(posterior):,}{tail(posterior)}"
    return [evidence, size, *(moves(posterior) if posterior.serial and posterior.drawn else [])]


def moves(posterior: Any) -> list[str]:
    """Return how Markov chains moved."""
    found, rate = posterior.mixing, posterior.info.get("acceptance")
    told = [] if math.isnan(found.rhat) else [f"R-hat {found.rhat:.2f}"]
    told += [] if rate is None else [f"acceptance {rate:.2f}"]
    return [*told, f"{found.distinct:,} distinct"]


def tail(posterior: Any) -> str:
    """Return k̂, where it speaks of this posterior, is known, and costs nothing: where arviz-stats is loaded already."""
    if posterior.guarantee == "heuristic" or posterior.serial or "arviz_stats" not in sys.modules:
        return ""
    return "" if math.isnan(posterior.khat) else f", k-hat {posterior.khat:.2f} ({verdict(posterior.khat)})"


def ranked(posterior: Any) -> str:
    """Return what the best value is told by, and its number."""
    if posterior._answers is not None:
        return "vote"
    reward = float(posterior.log_potential[posterior._best()])
    return f"reward, log G {number(reward)}" if posterior.ranking == "reward" else "weight"


def spent(posterior: Any) -> list[tuple[str, str]]:
    """Return the units of the cost that are not 0, and how much of each."""
    cost = posterior.cost
    counts = [("model calls", cost.model_calls), ("tokens in", cost.tokens_in)]
    counts += [("tokens recomputed", cost.tokens_recomputed), ("tokens out", cost.tokens_out)]
    counts += [("denoiser evaluations", cost.nfe), ("reward calls", cost.reward_calls)]
    counts += [("requests", cost.requests)]
    return [(unit, f"{n:,}") for unit, n in counts if n] + [("s", f"{cost.seconds:.2f}")]


def leading(posterior: Any, top: int) -> list[tuple[float, Any]]:
    """Return the distinct values with their total weight, largest first; none where every weight is zero."""
    if np.isneginf(posterior.log_weights).all():
        return []
    totals: dict[Any, tuple[float, Any]] = {}
    for value, weight in zip(posterior.values, posterior.probabilities.tolist()):
        key = identity(value)
        totals[key] = (totals.get(key, (0.0, None))[0] + weight, value)
    return sorted(totals.values(), key=lambda item: -item[0])[:top]

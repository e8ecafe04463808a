"""The notebook view of a posterior: plain HTML that follows the notebook's light or dark colours."""

from __future__ import annotations

import math
from html import escape
from typing import Any

_STYLE = (
    "<style>.fk{font:13px/1.45 system-ui,sans-serif;max-width:60em}.fk .fk-facts{opacity:.8;margin:.2em 0 .6em}"
    ".fk table{border-collapse:collapse;width:100%}.fk td{text-align:left!important;padding:.25em .6em;"
    "vertical-align:top;white-space:pre-wrap}.fk td:first-child{white-space:nowrap;width:9em}"
    ".fk .fk-bar{display:inline-block;height:.7em;background:#4c78a8;border-radius:2px;margin-right:.5em}</style>"
)


def posterior_html(posterior: Any, top: int = 8) -> str:
    """Return a table of the values of largest weight, under a line of facts and the ESS of each step."""
    se = "" if math.isnan(posterior.log_evidence_se) else f" ± {posterior.log_evidence_se:.2g}"
    facts = [
        f"log evidence <b>{posterior.log_evidence:.4g}</b>{se} ({posterior.guarantee})",
        f"ESS <b>{posterior.ess:.1f}</b> of {len(posterior)}",
        f"{int(posterior.complete.sum())} complete",
        *(f"{amount} {unit}" for unit, amount in posterior._spent()),
    ]
    if posterior.stopped:
        facts.append(f"<b>stopped: {escape(posterior.stopped)}</b>")
    rows = "".join(
        f"<tr><td><span class=fk-bar style='width:{4 * weight:.2f}em'></span>{weight:.3f}</td>"
        f"<td>{escape(str(value))}</td></tr>"
        for weight, value in posterior._top(top)
    )
    return (
        f"<div class=fk>{_STYLE}<b>{escape(posterior.engine)}</b> on {escape(posterior.model[:120])}"
        f"<div class=fk-facts>{' · '.join(facts)}<br>ESS by step {_sparkline(posterior)}</div>"
        f"<table>{rows}</table></div>"
    )


def _sparkline(posterior: Any, width: int = 160, height: int = 24) -> str:
    """Draw the first chain's ESS by step; a dot marks a resampling."""
    steps = posterior.steps
    if len(steps) < 2:
        return "(one step)"
    n = len(steps[0].log_weights)
    xs = [2 + (width - 4) * i / (len(steps) - 1) for i in range(len(steps))]
    ys = [height - 2 - (height - 4) * step.ess / n for step in steps]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys))
    dots = "".join(
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='2' fill='#e45756'/>"
        for x, y, after in zip(xs, ys, steps[1:])
        if after.resampled
    )
    return (
        f"<svg width='{width}' height='{height}' style='vertical-align:middle'>"
        f"<polyline points='{line}' fill='none' stroke='currentColor'/>{dots}</svg>"
    )

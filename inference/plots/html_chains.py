"""Markov chains as HTML: how they moved, what they say of each number, and the course of each."""

from __future__ import annotations

import math
from html import escape
from typing import Any, NamedTuple

import numpy as np

from ...ppl.model import Floats
from ..drawing.palette import BRANCHES
from ..drawing.svg import Chart, span
from ..drawing.views import number
from ..results.posterior import Posterior
from ..results.table import entries
from ..results.trust.autocorrelation import chain_ess, rhat
from ..results.trust.markov import layout, scalars

_MOST, _POINTS = 6, 300
_ROWS = 24


class Course(NamedTuple):
    """One number in the order of its draws.

    Attributes:
        name: of the number.
        series: (chains, draws).
    """

    name: str
    series: Floats

    def told(self) -> str:
        """Return its R̂, of several chains, and its effective sample size."""
        gap, size = rhat(self.series), chain_ess(self.series)
        told = [] if math.isnan(gap) else [f"R-hat {gap:.2f}"]
        return ", ".join([*told, *([] if math.isnan(size) else [f"ESS {number(size, 3)}"])]) or "it never moved"


def courses(posterior: Posterior, most: int = _MOST) -> list[Course]:
    """Return the numbers of the values, or where there are none of the sites, up to so many; and the reward last.

    Numbers that are the same in every draw have no course. Raises ValueError where no draw is complete.
    """
    rows = layout(posterior)
    found: list[Course] = []
    for sites in (False, True):
        for entry in entries(posterior, sites) if not found else ():
            if entry.column.dtype.kind in "biuf" and len(found) < most - 1:
                (series,) = scalars(entry.column, rows)
                if np.ptp(series) > 0:
                    found.append(Course(entry.name, series))
    return [*found, Course("log G", posterior.log_potential[rows])]


def chains_html(posterior: Posterior) -> str:
    """Show how the chains of a serial posterior moved: acceptance, a table of numbers, and their courses."""
    moved = posterior.mixing
    rates = [number(rate, 2) for rate in moved.acceptance if not math.isnan(rate)]
    told = [f"{len(moved.changes)} chain{'s' * (len(moved.changes) != 1)} of {moved.draws:,} draws"]
    told += [f"{moved.distinct:,} distinct values", f"changes {', '.join(f'{n:,}' for n in moved.changes)}"]
    told += [f"acceptance {', '.join(rates)}"] if rates else []
    told += [] if math.isnan(moved.rhat) else [f"R-hat {moved.rhat:.2f} (the largest)"]
    charts = "".join(_chart(course) for course in courses(posterior))
    return f'<p>{escape(" · ".join(told))}</p>{_numbers(posterior)}<div class="charts">{charts}</div>'


def _numbers(posterior: Posterior) -> str:
    table: Any = posterior.table(sites=False)
    table = table if len(table) else posterior.table()
    return table._repr_html_() if 0 < len(table) <= _ROWS else ""


def _chart(course: Course) -> str:
    """Draw the course of a number, a line for each chain."""
    draws = course.series.shape[1]
    finite = course.series[np.isfinite(course.series)]
    chart = Chart(course.name, (0.0, max(draws - 1.0, 1.0)), span(finite.tolist()), xlabel="draw")
    kept = np.unique(np.linspace(0, draws - 1, min(draws, _POINTS)).round().astype(int))
    for c, series in enumerate(course.series):
        colour = BRANCHES[c % len(BRANCHES)]
        chart.line(kept.tolist(), series[kept].tolist(), colour=colour, width=1.1, opacity=0.8)
    chart.note(course.told())
    return str(chart)

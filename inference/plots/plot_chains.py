"""The courses of Markov chains as a matplotlib figure."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..drawing.palette import BRANCHES, INK
from ..results.posterior import Posterior
from .html_chains import Course, courses


def traces(posterior: Posterior, *, most: int = 6, figsize: tuple[float, float] | None = None) -> Any:
    """Draw the course of each number of a Markov chain, draw by draw, a line for each chain, and the reward below.

    The numbers are those of the values, or of the sites where the values hold none; ones that never change are left
    out. The title has R̂ and the effective sample size. Chains that cover the same ground agree; one that stays put has
    few draws in effect.

    Args:
        posterior: of an engine that runs Markov chains.
        most: rows of the figure.
        figsize: of the figure, in inches.

    Raises ValueError for other posteriors, and where no draw is complete.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def walk():
    ...     x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
    ...     await fk.factor("G", -((x - 1.0) ** 2))
    ...     return x
    >>> figure = fk.plots.traces(fk.infer(walk(), fk.SuffixMH(100, chains=2), seed=0))
    >>> [ax.get_title(loc="left") for ax in figure.axes]
    ['value', 'log G']
    """
    if not posterior.serial:
        raise ValueError(f"{posterior.engine} runs no Markov chains, so there are no traces; see genealogy")
    from ..drawing.figure import picture

    found = courses(posterior, most)
    figure = picture(figsize or (9.5, 1.7 * len(found)))
    for ax, course in zip(np.ravel(figure.subplots(len(found), 1, squeeze=False)), found):
        draw_course(course, ax, last=course is found[-1])
    return figure


def draw_course(course: Course, ax: Any, last: bool = True) -> None:
    """Draw one number; the last one says what its lines are."""
    from ..drawing.figure import SMALL, axes, key, label, sign

    axes(ax, None, (0.0, 0.0))
    chains, draws = course.series.shape
    for c, series in enumerate(course.series):
        ax.plot(series, color=BRANCHES[c % len(BRANCHES)], linewidth=1.0, alpha=0.8)
    ax.set_xlim(0, max(draws - 1, 1))
    label(ax, course.name, "draw" if last else "")
    ax.set_title(course.told(), loc="right", fontsize=SMALL, color=INK)
    if last and chains > 1:
        key(ax, [sign(f"chain {c}", color=BRANCHES[c % len(BRANCHES)]) for c in range(min(chains, len(BRANCHES)))])

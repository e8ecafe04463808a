"""Plots of a posterior, with matplotlib (``pip install feynkac[plots]``), for light and dark pages.

Each function takes a posterior, draws into ``ax`` or a new figure, and returns the matplotlib ``Figure``. A new
figure shows itself as the last line of a notebook cell, and is written with ``figure.savefig(path)``; it is not
registered with pyplot, so there is nothing to close. `genealogy_html`, `tree_html` and `tokens_html` need no
matplotlib, and tell more where the mouse points.

>>> import feynkac as fk
>>> @fk.program
... async def walk():
...     x = 0.0
...     for _ in range(5):
...         x = await fk.sample("x", fk.dist.Normal(x, 1.0))
...         await fk.factor("G", -((x - 2.0) ** 2))
...     return x
>>> posterior = fk.infer(walk(), fk.SMC(16), seed=0)
>>> figure = fk.plots.overview(posterior)
>>> [ax.get_title(loc="left") for ax in figure.axes][:2]
['Genealogy', 'Effective sample size']
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..drawing import views
from ..drawing.html_charts import charts_of
from ..drawing.palette import BLUE, INK, ORANGE
from ..results.posterior import Posterior
from .html_chains import courses
from .html_genealogy import genealogy_html
from .html_tokens import tokens_html
from .html_tree import tree_html
from .plot_chains import draw_course, traces
from .plot_genealogy import genealogy
from .plot_images import film, images
from .plot_rewards import rewards
from .plot_tokens import tokens
from .plot_tree import tree
from .video import Video, video

__all__ = [
    "Video",
    "ess",
    "evidence",
    "film",
    "genealogy",
    "genealogy_html",
    "images",
    "overview",
    "rewards",
    "tempering",
    "tokens",
    "tokens_html",
    "traces",
    "tree",
    "tree_html",
    "video",
    "weights",
]

Size = tuple[float, float] | None


def ess(posterior: Posterior, *, ax: Any = None, figsize: Size = None) -> Any:
    """Draw the effective sample size after each step, as a share of the particles; a dot where it led to resampling.

    One line per chain. A share that falls near zero says that one particle carries the weight: use more particles,
    softer factors, or a twist. Raises ValueError for Markov chains, whose draws all weigh the same.
    """
    from ..drawing.figure import axes, key, label, sign, steps_axis

    _weighted(posterior, "effective sample size by step")
    ax = axes(ax, figsize, (5.6, 2.4))
    for chain in posterior.chains:
        share = np.array([step.ess / len(step.log_weights) for step in chain.history])
        _line(ax, share, alpha=1.0 if len(posterior.chains) == 1 else 0.65)
        (marks,) = np.nonzero(views.resampled_after(chain.history))
        ax.plot(marks, share[marks], "o", color=ORANGE, markersize=4, zorder=3)
    steps_axis(ax, max(len(chain.history) for chain in posterior.chains))
    _share_axis(ax)
    n, chains = len(posterior.chains[0].log_weights), len(posterior.chains)
    label(ax, "Effective sample size", "step", f"share of {n:,} particles" + (" of a chain" if chains > 1 else ""))
    marked = any(views.resampled_after(chain.history).any() for chain in posterior.chains)
    key(ax, _lines_of(posterior) + [sign("then resampled", "o", color=ORANGE, markersize=4)] * marked)
    return ax.figure


def evidence(posterior: Posterior, *, ax: Any = None, figsize: Size = None) -> Any:
    """Draw log Ẑ after each step: of every chain, and of all together. The title has the final one.

    Chains that end far apart say that the evidence is not to be trusted yet; steps where it falls are those that
    the model finds hard to meet. Raises ValueError for an engine that gives none.
    """
    from ..drawing.figure import axes, key, label, steps_axis

    if np.isnan(posterior.log_evidence):
        raise ValueError(f"{posterior.engine} gives no evidence, so there is none to draw")
    ax = axes(ax, figsize, (5.6, 2.4))
    if len(posterior.chains) > 1:
        for chain in posterior.chains:
            _line(ax, _finite([step.log_evidence for step in chain.history]), alpha=0.6, linewidth=1.0)
    pooled = _finite(views.pooled_evidence(posterior.chains))
    _line(ax, pooled, color=ORANGE if len(posterior.chains) > 1 else BLUE, linewidth=2.0)
    steps_axis(ax, len(pooled))
    label(ax, "Evidence", "step", "log Ẑ, nats")
    _note(ax, f"log Ẑ = {views.number(posterior.log_evidence)}")
    key(ax, _lines_of(posterior, together=True))
    return ax.figure


def weights(posterior: Posterior, *, ax: Any = None, figsize: Size = None) -> Any:
    """Draw how the weight is spread: the mass that the k heaviest particles hold, of each chain and of all.

    The mark tells how many particles hold 90% of it. Few of many means that the values rest on those few. Raises
    ValueError for Markov chains, whose draws all weigh the same.
    """
    posterior._some()
    from ..drawing.figure import axes, key, label, write

    _weighted(posterior, "spread of the weight")
    ax = axes(ax, figsize, (5.6, 2.4))
    chains = [chain.log_weights for chain in posterior.chains]
    for logs in chains if len(chains) > 1 else []:
        _curve(ax, views.mass_curve(logs), alpha=0.6, linewidth=1.0)
    whole = views.mass_curve(posterior.log_weights)
    _curve(ax, whole, color=ORANGE if len(chains) > 1 else BLUE, linewidth=2.0)
    n, few = len(whole), views.holding(whole)
    if n > 200:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:,.0f}")
    else:
        ax.set_xlim(0.5, n + 0.5)
    _share_axis(ax)
    if few:
        ax.plot([few, few], [0, whole[few - 1]], color=INK, linewidth=1, linestyle=":")
        left = few > (np.sqrt(n) if n > 200 else n / 2)
        text = f"{few:,} of {n:,} hold {min(float(whole[few - 1]), 1.0):.0%}"
        write(ax, few, 0.12, text, xytext=(-5 if left else 5, 0), ha="right" if left else "left")
    label(ax, "Weights", "heaviest particles", "share of the weight")
    if not few:
        _note(ax, "every particle has weight zero")
    key(ax, _lines_of(posterior, together=True))
    return ax.figure


def tempering(posterior: Posterior, *, ax: Any = None, figsize: Size = None) -> Any:
    """Draw E_λ[log G] against the inverse temperature λ, with one standard deviation: the area below it is log Z.

    One line per chain, with a point at each rung. The title compares log Ẑ with the integral: where they are far apart,
    the rungs are too few for a curve so steep, or the particles do not follow their targets. Raises ValueError for
    engines that do not temper.
    """
    from ..drawing.figure import axes, key, label, sign

    found = posterior.thermodynamic
    ax = axes(ax, figsize, (5.6, 2.4))
    for one in found:
        _line(ax, one.mean, alpha=1.0 if len(found) == 1 else 0.65, x=one.inverse, marker=".")
        sd = np.sqrt(one.variance)
        ax.fill_between(one.inverse, one.mean - sd, one.mean + sd, color=BLUE, alpha=0.2 / len(found), linewidth=0)
    ax.set_xlim(0.0, 1.0)
    label(ax, "Tempering", "inverse temperature λ", "E[log G], nats")
    _note(ax, views.integral(posterior))
    key(ax, [*_lines_of(posterior), sign("one standard deviation", color=BLUE, alpha=0.3, linewidth=7)])
    return ax.figure


def overview(posterior: Posterior, *, figsize: Size = None) -> Any:
    """Draw genealogy, ESS, evidence, rewards and weights in one figure, what the engine has of them: the first look.

    Of Markov chains it is the course of two numbers and of the reward, in place of the genealogy; see `traces`.
    """
    posterior._some()
    from ..drawing.figure import picture

    draws = {"ess": ess, "evidence": evidence, "tempering": tempering, "rewards": rewards, "weights": weights}
    names = [chart.__name__.removesuffix("_chart") for chart in charts_of(posterior)]
    rows = [names[i : i + 2] for i in range(0, len(names), 2)]
    tops: dict[str, float] = {"tree": min(max(2.6, 1.0 + 0.2 * len(posterior.chains[0].log_weights)), 5.0)}
    found = courses(posterior, 3) if posterior.serial and posterior.drawn else []
    if found:
        tops = {f"course {i}": 1.8 for i in range(len(found))}
    layout = [*([name, name] for name in tops), *(row if len(row) == 2 else row * 2 for row in rows)]
    heights = [*tops.values(), *(2.0 for _ in rows)]
    figure = picture(figsize or (9.5, sum(heights)))
    panels: Any = figure.subplot_mosaic(layout, height_ratios=heights)
    if found:
        for name, course in zip(tops, found):
            draw_course(course, panels[name], last=course is found[-1])
    else:
        genealogy(posterior, ax=panels["tree"])
    for name in names:
        draws[name](posterior, ax=panels[name])
    return figure


# -- small parts ------------------------------------------------------------------------------------------------


def _weighted(posterior: Posterior, what: str) -> None:
    if posterior.serial:
        raise ValueError(
            f"the draws of {posterior.engine}, a Markov chain, all weigh the same: they have no {what}; see mixing"
        )


def _lines_of(posterior: Posterior, together: bool = False) -> list[Any]:
    """Return what the lines of several chains are; nothing for one, which the title names."""
    from ..drawing.figure import sign

    several = len(posterior.chains) > 1
    each = [sign(f"each of {len(posterior.chains)} chains", color=BLUE, alpha=0.65)] if several else []
    return each + ([sign("all together", color=ORANGE, linewidth=2.0)] if several and together else [])


def _finite(logs: Any) -> Any:
    """Return the numbers with −∞ as NaN, which matplotlib leaves out."""
    logs = np.asarray(logs, float)
    return np.where(np.isfinite(logs), logs, np.nan)


def _line(ax: Any, ys: Any, color: str = BLUE, x: Any = None, **options: Any) -> None:
    """Draw values by step, or by x; a single one as a dot."""
    places = np.arange(len(ys)) if x is None else x
    ax.plot(places, ys, **{"color": color, "linewidth": 1.5, "marker": "o" if len(ys) == 1 else None, **options})


def _curve(ax: Any, mass: Any, color: str = BLUE, **options: Any) -> None:
    """Draw a mass curve, with as many points as can be seen."""
    index = np.unique(np.geomspace(1, len(mass), 400).astype(int)) - 1
    ax.plot(index + 1, mass[index], color=color, marker="o" if len(mass) == 1 else None, **options)


def _share_axis(ax: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    ax.set_ylim(0, 1.05)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _note(ax: Any, text: str, color: str = INK) -> None:
    """Write a remark at the end of the title's line."""
    from ..drawing.figure import SMALL

    ax.set_title(text, loc="right", fontsize=SMALL, color=color)

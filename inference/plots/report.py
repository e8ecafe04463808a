"""A report of a posterior that stands alone in one HTML file."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from html import escape
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..drawing.html import _STYLE, facts_html, values_html, warnings_html
from ..drawing.html_charts import charts_of
from ..drawing.html_images import grid_html, thumbnail_html
from ..drawing.summary import named, spent
from ..drawing.views import cut, number, verdict
from ..results.posterior import Posterior
from .faces import Faces
from .html_chains import chains_html
from .html_genealogy import genealogy_html
from .html_tokens import tokens_html
from .html_tree import tree_html
from .plot_images import reel

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>{style}
<style>
:root {{ color-scheme: light dark; --ground: #fff; --ink: #24292f; --line: #d0d7de; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ground: #16191d; --ink: #d5dae0; --line: #3a4149; }} }}
body {{ background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
       max-width: 58em; margin: 2em auto; padding: 0 1.2em; }}
h1 {{ font-size: 1.35em; margin: 0; }}
h2 {{ font-size: 1.05em; margin: 2em 0 .5em; border-top: 1px solid var(--line); padding-top: .8em; }}
p, .why {{ margin: .3em 0 .8em; }}
.why {{ opacity: .85; font-size: .9em; }}
.charts {{ display: flex; flex-wrap: wrap; gap: 1em; }}
.fk {{ font-size: 14px; max-width: none; }}
td, th {{ border-bottom: 1px solid var(--line); }}
th {{ text-align: left; font-weight: normal; opacity: .85; padding: .25em 1em .25em .6em; vertical-align: top; }}
</style></head>
<body><div class="fk"><h1>{heading}</h1>{body}</div></body></html>
"""


_LINES = (
    "Steps go down. Coloured lines survive, as wide as the weight of their descendants; grey ones died. Dots (or dark "
    "frames) and the text on the right follow the best particle; a bold number is a step that began with resampling, "
    "and a bold text is where copies part. Below, what a line shares with the one above is pale. Point at a node for "
    "more."
)
_GROWN = (
    "Steps go to the right. Lines are as wide as the share of the rollouts that went through them, and faint where the "
    "search gave up. Dots are coloured by worth, dark for the least and yellow for the most, and a ring marks the "
    "heaviest leaf. Point at a node for more."
)
_COURSES = "Chains that cover the same ground agree, and R-hat is near 1. One that stays put has few draws in effect."


def report(posterior: Posterior, path: str | os.PathLike[str]) -> Path:
    """Write a report of a posterior as one HTML file, and return its path.

    It holds the facts, the warnings and the cost, the values of largest weight, charts of ESS, evidence, rewards and
    weights (what the engine has of them), the genealogy of the chain that the best particle is in, with the text of
    each step, and what that particle did. For engines that grow a tree it shows the tree, and for Markov chains how
    they moved, their numbers and the course of each, in place of a genealogy. It needs no other file, no network, no
    script and no matplotlib; it follows the reader's light or dark colours, and stays small for many particles and
    steps. It is written whole or not at all.

    Raises:
        OSError: where the file cannot be written.

    >>> import feynkac as fk, tempfile
    >>> @fk.program
    ... async def coin():
    ...     heads = await fk.sample("heads", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("G", 1.0 * heads)
    ...     return heads
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = fk.report(fk.infer(coin(), fk.SMC(8), seed=0), f"{folder}/coin.html")
    ...     path.read_text(encoding="utf-8")[:15]
    '<!DOCTYPE html>'
    """
    posterior._some()
    target = Path(path)
    page = _page(posterior)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        temporary.write_text(page, encoding="utf-8", errors="replace")
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target


def _page(posterior: Posterior) -> str:
    charts = f'<div class="charts">{"".join(chart(posterior) for chart in charts_of(posterior))}</div>'
    best = posterior._best()
    run = "The steps of the draws" if posterior.serial else "The run, step by step"
    moved = posterior.serial and posterior.drawn
    body = [
        f'<p class="fk-facts">{facts_html(posterior)}</p>{warnings_html(posterior)}',
        _section("Values", values_html(posterior, 10, 2000), "Distinct values of largest weight, with their total."),
        _section("The chains, draw by draw", chains_html(posterior), _COURSES) if moved else "",
        _section(run, charts),
        _origin(posterior, best),
        _past(posterior, best),
        _section("How it was made", _facts(posterior)),
    ]
    heading = escape(named(posterior))
    return _PAGE.format(title=heading, heading=heading, style=_STYLE, body="".join(body))


def _origin(posterior: Posterior, best: int) -> str:
    """Show the tree of a search, or the genealogy; nothing of Markov chains, whose draws have no lines that part."""
    if posterior.serial:
        return ""
    ends = np.cumsum([len(chain.log_weights) for chain in posterior.chains])
    chain = int(np.searchsorted(ends, best, side="right"))
    which = f" of chain {chain} of {len(ends)}, which has the best particle" if len(ends) > 1 else ""
    if posterior.chains[chain].tree is not None:
        return _section(f"Search tree{which}", str(tree_html(posterior, chain=chain)), _GROWN)
    return _section(f"Genealogy{which}", str(genealogy_html(posterior, chain=chain)), _LINES)


def _past(posterior: Posterior, best: int) -> str:
    """Show the past of a particle: as a film where values are pictures and the history has them, else as text."""
    title = f"What the best particle did (number {best})"
    chain = next(c for c, one in enumerate(posterior.chains) if one is posterior._locate(best)[0])
    shown = []
    if Faces(posterior, chain):
        with suppress(ValueError):  # this particle and its past may hold none
            shown = reel(posterior, best, 10)
    if len(shown) > 1:
        film = grid_html([(thumbnail_html(pixels, f"step {t}", 72), f"step {t}") for t, _, pixels in shown])
        return _section(title, film, "What it and its ancestors chose, at evenly spaced steps, and the value.")
    return _section(title, str(tokens_html(posterior, best)), "Each step's text; point at it for its numbers.")


def _section(title: str, body: str, why: str = "") -> str:
    told = f'<p class="why">{escape(why)}</p>' if why else ""
    return f"<h2>{escape(title)}</h2>{told}{body}"


def _facts(posterior: Posterior) -> str:
    """Return a table of what one needs to run it again, and what it cost."""
    particles = sorted({len(chain.log_weights) for chain in posterior.chains})
    facts = [
        ("engine", posterior.engine),
        ("model", cut(posterior.model, 2000)),
        ("seed", str(posterior.seed)),
        ("guarantee", posterior.guarantee),
        ("chains", f"{len(posterior.chains)} of {', '.join(map(str, particles))} particles"),
        ("steps", str(max(len(chain.steps) for chain in posterior.chains))),
        ("stopped", posterior.stopped or "no: ran to its end"),
        *_khat(posterior),
        *spent(posterior),
        ("feynkac", _version()),
    ]
    return "<table>" + "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts) + "</table>"


def _khat(posterior: Posterior) -> list[tuple[str, str]]:
    """Return k̂, where the weights are of the posterior and have a tail, and arviz-stats is there to fit it."""
    if posterior.serial or posterior.guarantee == "heuristic" or find_spec("arviz_stats") is None:
        return []
    if math.isnan(posterior.khat):
        return []
    return [("k-hat of the final weights", f"{number(posterior.khat, 2)} ({verdict(posterior.khat)})")]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("feynkac")
    except PackageNotFoundError:  # run from its folder, without an installation
        return "unknown"

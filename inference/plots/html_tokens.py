"""The trace of one particle as running text, coloured by what the factors said of it."""

from __future__ import annotations

import math
from html import escape

from ..drawing.palette import BLUE, INK, ORANGE
from ..drawing.svg import Html
from ..drawing.views import Row, number, rows
from ..results.posterior import Posterior

_MOST = 500


def tokens_html(posterior: Posterior, particle: int | None = None) -> Html:
    """Show what one particle drew as running text, without matplotlib; a notebook shows it.

    The background of each step is log G, blue where a factor was in favour and orange where it was against; the line
    below it is −log p, the darker the more surprising. The mouse tells the numbers. Above 500 steps, neighbouring
    ones are joined.

    Args:
        posterior: of any engine.
        particle: its number among all chains; None is the best.

    Raises IndexError for a particle that is not there.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def letter():
    ...     await fk.sample("letter", fk.dist.Categorical([0.5, 0.5], values=["<", ">"]))
    ...     await fk.factor("G", -1.0)
    >>> "log p −0.69, log G −1" in fk.plots.tokens_html(fk.infer(letter(), fk.SMC(2), seed=0))
    True
    """
    chain, i = posterior._locate(posterior._best() if particle is None else particle)
    made = rows(chain, i, _MOST)
    prob = max((-row.log_prob for row in made if math.isfinite(row.log_prob)), default=0.0) or 1.0
    potential = max((abs(row.log_potential) for row in made if math.isfinite(row.log_potential)), default=0.0) or 1.0
    spans = "".join(_span(row, prob, potential) for row in made)
    key = (
        f'<span style="background:{BLUE}66">log G &gt; 0</span> '
        f'<span style="background:{ORANGE}66">log G &lt; 0</span> '
        f'<span style="border-bottom:3px solid {INK}">surprising</span>'
    )
    return Html(
        f'<div style="font:14px/2 system-ui,sans-serif;white-space:pre-wrap;overflow-wrap:anywhere">{spans}</div>'
        f'<div style="font:11px system-ui,sans-serif;opacity:.8;margin-top:.4em">{key}</div>'
    )


def _span(row: Row, prob: float, potential: float) -> str:
    """Show one step; a line end that it drew ends the line here too."""
    g = row.log_potential
    strength = 0.0 if g == 0 else 0.12 + 0.5 * min(abs(g) / potential, 1.0)
    back = f"background:{ORANGE if g < 0 else BLUE}{int(255 * strength):02x}"
    surprise = min(-row.log_prob / prob, 1.0) if math.isfinite(row.log_prob) else 0.0
    under = f"border-bottom:3px solid {INK}{int(255 * max(surprise, 0.0)):02x}"
    step = f"step {row.first}" if row.first == row.last else f"steps {row.first}–{row.last}"
    log_p = "" if math.isnan(row.log_prob) else f", log p {number(row.log_prob, 2)}"
    text = row.text if row.text else "·"
    return f'<span style="{back};{under}" title="{step}{log_p}, log G {number(g, 2)}">{escape(text)}</span>'

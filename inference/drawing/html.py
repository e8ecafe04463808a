"""The notebook view of a posterior: plain HTML that follows the notebook's light or dark colours."""

from __future__ import annotations

from html import escape
from typing import Any

from .html_charts import charts_of
from .html_images import grid_html, image_html
from .pixels import Range, is_picture, pictures_in, range_of, written
from .summary import facts, leading, named, spent

_SMALL = (340, 150)
_STYLE = (
    "<style>.fk{font:13px/1.45 system-ui,sans-serif;max-width:60em}.fk .fk-facts{opacity:.9;margin:.2em 0 .6em}"
    ".fk table{border-collapse:collapse;width:100%}.fk td{text-align:left!important;padding:.25em .6em;"
    "vertical-align:top;white-space:pre-wrap;overflow-wrap:anywhere}"
    ".fk td:first-child{white-space:nowrap;width:9em}"
    ".fk .fk-bar{display:inline-block;height:.7em;background:#2f86c4;border-radius:2px;margin-right:.5em}"
    ".fk .fk-warn{border-left:3px solid #dd7a1c;padding:.1em .7em;margin:.3em 0}"
    ".fk .fk-grid{display:flex;flex-wrap:wrap;gap:.9em;margin:.5em 0}.fk figure{margin:0}"
    ".fk figcaption{font-size:.85em;opacity:.85;color:inherit;text-align:center}"
    ".fk img{display:block;max-width:100%}</style>"
)


def posterior_html(posterior: Any, top: int = 8) -> str:
    """Return the facts, the ESS and evidence of each step, and a table of the values of largest weight."""
    charts = '<div class="fk-facts">(one step)</div>'
    if len(posterior.steps) > 1:
        charts = f"<div>{' '.join(chart(posterior, _SMALL) for chart in charts_of(posterior)[:2])}</div>"
    return (
        f'<div class="fk">{_STYLE}<b title="{escape(posterior.engine)}">{escape(named(posterior))}</b>'
        f'<div class="fk-facts">{facts_html(posterior)}</div>{warnings_html(posterior)}{charts}'
        f"{values_html(posterior, top)}</div>"
    )


def facts_html(posterior: Any) -> str:
    """Return a line of facts."""
    told = [*facts(posterior), f"{int(posterior.complete.sum()):,} complete"]
    told += [f"{amount} {unit}" for unit, amount in spent(posterior)]
    if posterior.stopped:
        return " · ".join([*map(escape, told), f"<b>stopped: {escape(posterior.stopped)}</b>"])
    return " · ".join(map(escape, told))


def warnings_html(posterior: Any) -> str:
    """Return a line for each reason not to trust the posterior."""
    return "".join(f'<div class="fk-warn">{escape(warning)}</div>' for warning in posterior.warnings)


def values_html(posterior: Any, top: int, width: int = 4000) -> str:
    """Return a table of the distinct values of largest weight, texts cut to a width; a grid where all are pictures."""
    found = leading(posterior, top)
    shades = range_of(picture for value in posterior.values for picture in pictures_in(value))
    if found and all(is_picture(value) for _, value in found):
        return grid_html([(image_html(value, shades), f"{weight:.3f}") for weight, value in found])
    rows = "".join(
        f'<tr><td><span class="fk-bar" style="width:{4 * weight:.2f}em"></span>{weight:.3f}</td>'
        f"<td>{_whole(value, width, shades)}</td></tr>"
        for weight, value in found
    )
    return f"<table>{rows}</table>"


def _whole(value: Any, width: int, shades: Range) -> str:
    """Show a value with its line ends, and the pictures in it."""
    text = written(value)
    images = "".join(image_html(picture, shades) for picture in pictures_in(value))
    if images and is_picture(value):
        return images
    return images + escape(text if len(text) <= width else text[: width - 1] + "…")

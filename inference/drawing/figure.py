"""Matplotlib figures that read on light and dark pages: no background, ink of a middle tone.

A figure is not registered with pyplot, so nothing is left open, and no global setting is touched.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("plots need matplotlib: pip install feynkac[plots]") from error

from .palette import INK

SMALL, NORMAL = 8.0, 9.0
"""Sizes of type, in points."""


class Picture(Figure):
    """A figure that shows itself in a notebook, whether or not pyplot is in use."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return the picture at twice the resolution of the page, with its size there."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=200)
        width, height = (round(100 * float(inches)) for inches in self.get_size_inches())
        return buffer.getvalue(), {"width": width, "height": height}


def picture(figsize: tuple[float, float]) -> Picture:
    """Return an empty figure without a background."""
    made = Picture(figsize=figsize, layout="constrained", facecolor="none", edgecolor="none")
    FigureCanvasAgg(made)
    return made


def axes(ax: Any, figsize: tuple[float, float] | None, default: tuple[float, float]) -> Any:
    """Return the axes to draw in, in the house's style: those given, or those of a new figure."""
    if ax is None:
        ax = picture(figsize or default).add_subplot()
    elif figsize is not None:
        raise ValueError("figsize is that of a new figure, so it goes without ax")
    ax.set_facecolor("none")
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    ax.tick_params(colors=INK, labelsize=SMALL, length=3)
    return ax


def label(ax: Any, title: str, x: str = "", y: str = "") -> None:
    """Write the title (upper left) and the axes' names; that of x on the left, for the right is the `key`'s."""
    ax.set_title(title, loc="left", fontsize=NORMAL, color=INK, fontweight="bold")
    ax.set_xlabel(x, fontsize=SMALL, color=INK, loc="left")
    ax.set_ylabel(y, fontsize=SMALL, color=INK)


def sign(text: str, marker: str = "", **options: Any) -> Any:
    """Return an entry of a `key`: a marker, or a line where there is none."""
    from matplotlib.lines import Line2D

    options = {"color": INK, "linestyle": "" if marker else "-", "marker": marker or None, **options}
    return Line2D([], [], label=text, **options)


def key(ax: Any, signs: Sequence[Any]) -> None:
    """Say what the marks of a picture are, in a line below the axes on the right."""
    from matplotlib.transforms import ScaledTranslation

    if not signs:
        return
    below = ax.transAxes + ScaledTranslation(0.0, -0.21, ax.figure.dpi_scale_trans)
    ax.legend(
        handles=list(signs),
        loc="upper right",
        bbox_to_anchor=(1.0, 0.0),
        bbox_transform=below,
        ncols=len(signs),
        frameon=False,
        fontsize=7.5,
        labelcolor=INK,
        borderpad=0.0,
        borderaxespad=0.0,
        handlelength=1.3,
        handletextpad=0.4,
        columnspacing=1.0,
    )


def write(ax: Any, x: float, y: float, text: str, **options: Any) -> Any:
    """Write a text; dollars are dollars, and not mathematics."""
    options = {"fontsize": SMALL, "color": INK, "parse_math": False, **options}
    return ax.annotate(text, (x, y), **{"xytext": (0, 0), "textcoords": "offset points", **options})


def steps_axis(ax: Any, count: int) -> None:
    """Number the steps of an axis by whole numbers, with room for one step."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    ax.set_xlim(-0.5, max(count - 0.5, 0.5))

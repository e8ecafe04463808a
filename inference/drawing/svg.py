"""Small charts as SVG, for pages that need no library: they take the colour of the text around them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from .palette import BLUE, INK

Points = Sequence[float] | Iterable[float]


class Html(str):
    """HTML that a notebook shows as such; ``str(html)`` is its source."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(self)


class Chart:
    """A chart with two axes. Points that are not finite are left out.

    Args:
        title: written above it.
        x: range of the horizontal axis.
        y: range of the vertical axis.
        xlabel: name of the horizontal axis.
        percent: whether y is a share.
        logarithmic: whether x has a logarithmic axis.
        size: width and height in pixels.
    """

    def __init__(
        self,
        title: str,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        xlabel: str = "step",
        percent: bool = False,
        logarithmic: bool = False,
        size: tuple[int, int] = (405, 185),
    ) -> None:
        self._title, self._xlabel, self._percent, self._log = title, xlabel, percent, logarithmic
        self._x = (math.log10(x[0]), math.log10(x[1])) if logarithmic else x
        self._y = y
        self._width, self._height = size
        self._left, self._right, self._top, self._bottom = 48, self._width - 12, 26, self._height - 34
        self._parts: list[str] = []

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a point."""
        x = math.log10(x) if self._log else x
        across = (x - self._x[0]) / ((self._x[1] - self._x[0]) or 1.0)
        up = (y - self._y[0]) / ((self._y[1] - self._y[0]) or 1.0)
        return self._left + (self._right - self._left) * across, self._bottom - (self._bottom - self._top) * up

    def _places(self, xs: Points, ys: Points) -> list[str]:
        return [
            "{:.1f},{:.1f}".format(*self.place(float(x), float(y)))
            for x, y in zip(xs, ys)
            if math.isfinite(x) and math.isfinite(y)
        ]

    def line(self, xs: Points, ys: Points, colour: str = BLUE, width: float = 1.6, opacity: float = 1.0) -> None:
        """Draw a line through the points; a dot where there is only one."""
        places = self._places(xs, ys)
        if len(places) == 1:
            x, y = places[0].split(",")
            self._parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}" opacity="{opacity}"/>')
        elif places:
            self._parts.append(
                f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="{width}" '
                f'stroke-linejoin="round" opacity="{opacity}"/>'
            )

    def band(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], opacity: float = 0.25) -> None:
        """Fill between two lines."""
        places = self._places(xs, low) + self._places(xs, high)[::-1]
        self._parts.append(f'<polygon points="{" ".join(places)}" fill="{BLUE}" opacity="{opacity}"/>')

    def dot(self, x: float, y: float, title: str, colour: str = BLUE, radius: float = 3.0) -> None:
        """Draw a point that says something where the mouse is on it."""
        for place in self._places([x], [y]):
            cx, cy = place.split(",")
            self._parts.append(
                f'<circle cx="{cx}" cy="{cy}" r="{radius}" fill="{colour}"><title>{escape(title)}</title></circle>'
            )

    def rule(self, x: float) -> None:
        """Draw a light vertical line."""
        at, _ = self.place(x, self._y[0])
        self._parts.append(
            f'<path d="M{at:.1f} {self._top}V{self._bottom}" stroke="{INK}" stroke-width="0.8" opacity="0.4"/>'
        )

    def text(self, x: float, y: float, text: str, anchor: str = "start", colour: str = "currentColor") -> None:
        """Write at a point."""
        px, py = self.place(x, y)
        self._parts.append(
            f'<text x="{px:.1f}" y="{py:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
        )

    def note(self, text: str, colour: str = "") -> None:
        """Write a remark in the upper right corner."""
        tone = f'fill="{colour}"' if colour else 'fill="currentColor" opacity="0.85"'
        self._parts.append(f'<text x="{self._right}" y="14" text-anchor="end" {tone}>{escape(text)}</text>')

    def __str__(self) -> str:
        frame = [f'<path d="M{self._left} {self._top}V{self._bottom}H{self._right}" fill="none" stroke="{INK}"/>']
        for tick in ticks(*self._y, 4):
            _, y = self.place(10.0 ** self._x[0] if self._log else self._x[0], tick)
            shown = f"{tick:.0%}" if self._percent else f"{tick:g}".replace("-", "−")
            frame.append(
                f'<text x="{self._left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="currentColor">{shown}</text>'
            )
        for tick in self._across():
            x, _ = self.place(tick, self._y[0])
            frame.append(
                f'<text x="{x:.1f}" y="{self._bottom + 15}" text-anchor="middle" fill="currentColor">{tick:g}</text>'
            )
        middle = (self._left + self._right) / 2
        frame.append(
            f'<text x="{middle}" y="{self._height - 4}" text-anchor="middle" fill="currentColor" opacity="0.85">'
            f"{escape(self._xlabel)}</text>"
            f'<text x="4" y="14" font-weight="bold" fill="currentColor">{escape(self._title)}</text>'
        )
        return drawing(self._width, self._height, "".join(frame + self._parts), self._title)

    def _across(self) -> list[float]:
        if self._log:
            return [10.0**k for k in range(math.ceil(self._x[0]), math.floor(self._x[1]) + 1)]
        return [tick for tick in ticks(*self._x, 7) if tick == int(tick)]


def drawing(width: float, height: float, inside: str, name: str) -> str:
    """Return an SVG element that shrinks with the page; ``name`` is for readers who cannot see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'role="img" aria-label="{escape(name)}" '
        f'style="max-width:100%;height:auto;font:11px system-ui,sans-serif">{inside}</svg>'
    )


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return round numbers within a range, about ``count`` of them.

    >>> ticks(0.0, 1.0, 4), ticks(-7.0, -1.0, 3)
    ([0.0, 0.25, 0.5, 0.75, 1.0], [-6.0, -4.0, -2.0])
    """
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low] if math.isfinite(low) else []
    rough = span / count
    unit = 10.0 ** math.floor(math.log10(rough))
    gap = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
    first = math.ceil(low / gap - 1e-9)
    return [round(k * gap, 12) for k in range(first, math.floor(high / gap + 1e-9) + 1)]


def span(values: Iterable[float], margin: float = 0.08) -> tuple[float, float]:
    """Return a range around the finite values, with a margin; (0, 1) where there is none."""
    finite = [float(v) for v in values if math.isfinite(v)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = margin * (high - low) or max(abs(high) * 0.1, 0.5)
    return low - room, high + room

"""Images in a page: as data in the page itself, so that it asks for nothing."""

from __future__ import annotations

from html import escape
from typing import Any

from .pixels import Pixels, Range, data_uri, described, frames, png, shrunk, strip


def grid_html(figures: list[tuple[str, str]]) -> str:
    """Return images (HTML) in rows, each with a caption (text) below."""
    cells = "".join(f"<figure>{image}<figcaption>{escape(text)}</figcaption></figure>" for image, text in figures)
    return f'<div class="fk-grid">{cells}</div>'


def image_html(value: Any, shades: Range | None = None, height: int = 84) -> str:
    """Return an image, or a lower strip of the frames of a clip, in the page itself; ``height`` in pixels."""
    pixels = frames(value, value_range=shades)
    return thumbnail_html(strip(pixels), described(value) or "", height if len(pixels) == 1 else height * 2 // 3)


def thumbnail_html(image: Pixels, name: str, height: int = 84) -> str:
    """Return pixels (h, w, c) as an image in the page itself. ``name`` is for the mouse, and who cannot see it."""
    small = shrunk(image, 2 * height)
    zoom = max(1, round(height / len(small))) if len(small) <= height else height / len(small)
    size = f"width:{zoom * small.shape[1]:.0f}px;height:auto;image-rendering:{'pixelated' if zoom >= 1 else 'auto'}"
    told = escape(name)
    return f'<img src="{data_uri(png(small))}" alt="{told}" title="{told}" style="{size}">'


def svg_image(image: Pixels, x: float, y: float, height: float, colour: str, edge: float, name: str) -> str:
    """Return pixels (h, w, c) as an SVG element around a point, in a frame, that tells its name to the mouse."""
    width = height * image.shape[1] / image.shape[0]
    place = f'x="{x - width / 2:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return (
        f'<g><title>{escape(name)}</title><image {place} href="{data_uri(png(shrunk(image, 64)))}" '
        f'style="image-rendering:pixelated" preserveAspectRatio="none"/>'
        f'<rect {place} fill="none" stroke="{colour}" stroke-width="{edge}"/></g>'
    )

"""Which values are images and clips, and what they look like: pixels, thumbnails, PNG.

A value is an array of NumPy, torch or JAX. Its shape says what it is, T frames, C = 1, 3 or 4 channels, and at least 8
pixels each way:

    image   (H, W), (C, H, W), (H, W, C)
    clip    (T, C, H, W), (T, H, W, C), and (T, H, W) for another T than 1, 3 or 4

Its numbers are bytes, or floats in [−1, 1] or [0, 1] (with half as much room beyond, for estimates on the way). Where
that goes wrong, a layout such as "THW" and a range from black to white say it.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Layout = Literal["HW", "CHW", "HWC", "THW", "TCHW", "THWC", "CTHW"]
Pixels: TypeAlias = NDArray[np.uint8]
"""(h, w, c), or (t, h, w, c) for frames; c is 1 (grey), 3 or 4."""
Range: TypeAlias = tuple[float, float]

_LEAST = 8
"""Pixels each way: smaller arrays are numbers."""
_FRAMES = 8
"""Frames of a clip that stand side by side."""


def array_of(value: Any) -> NDArray[Any] | None:
    """Return a value as a NumPy array, if it is an array of NumPy, torch or JAX."""
    if isinstance(value, np.ndarray):
        return value
    if _is_tensor(value):
        value = value.detach().cpu()
        return np.asarray(value.float().numpy() if value.is_floating_point() else value.numpy())
    return np.asarray(value) if hasattr(value, "__array__") and hasattr(value, "dtype") else None


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "is_floating_point")


def layout_of(value: Any, least: int = _LEAST) -> Layout | None:
    """Return the layout of an image or a clip, by shape and type, of so many pixels each way; None for what is neither.

    >>> layout_of(np.zeros((3, 32, 32))), layout_of(np.zeros((16, 24, 24))), layout_of(np.zeros(5))
    ('CHW', 'THW', None)
    """
    array = array_of(value)
    if array is None or not (np.issubdtype(array.dtype, np.floating) or array.dtype == np.uint8):
        return None
    candidates: dict[int, tuple[Layout, ...]] = {2: ("HW",), 3: ("CHW", "HWC", "THW"), 4: ("TCHW", "THWC")}
    for layout in candidates.get(array.ndim, ()):
        size = dict(zip(layout, array.shape))
        if size.get("C", 1) in (1, 3, 4) and min(size["H"], size["W"]) >= least and size.get("T", 1) > 0:
            return layout
    return None


def is_picture(value: Any) -> bool:
    """Return whether a value is an image or a clip, by its shape and its numbers."""
    array = array_of(value)
    if array is None or layout_of(array) is None:
        return False
    return array.dtype == np.uint8 or bool((np.abs(array) <= 1.5).all())


def pictures_in(value: Any) -> Iterator[Any]:
    """Yield the images and clips in a value: itself, or those in a tuple, a list or a dictionary."""
    if is_picture(value):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from pictures_in(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from pictures_in(part)


def range_of(values: Iterable[Any]) -> Range:
    """Return what black and white are in images that belong together: (−1, 1) where one goes below 0, else (0, 1).

    It is that of floats; bytes go from 0 to 255.
    """
    floats = [array for array in map(array_of, values) if array is not None and array.dtype != np.uint8 and array.size]
    return (-1.0, 1.0) if any(float(array.min()) < -0.05 for array in floats) else (0.0, 1.0)


def frames(value: Any, layout: Layout | None = None, value_range: Range | None = None, fit: bool = False) -> Pixels:
    """Return the pixels (t, h, w, c) of an image (t = 1) or a clip.

    Args:
        value: an array, of any size.
        layout: its axes; None reads them from its shape.
        value_range: of floats, from black to white; None reads it from them (`range_of`). What lies beyond is clipped.
        fit: whether noise that goes beyond the range is scaled to fit it, about its middle.

    Raises ValueError for what is no picture, or does not have this layout.
    """
    array = array_of(value)
    axes = layout or layout_of(value, least=1)
    if array is None or axes is None:
        what = f"an array {_times(array.shape)} of {array.dtype}" if array is not None else type(value).__name__
        raise ValueError(f"{what} is no image and no clip: say its axes, such as layout='THW', or make one of it")
    if array.ndim != len(axes):
        raise ValueError(f"an array {_times(array.shape)} does not have the layout {axes}")
    for position, axis in ((0, "T"), (len(axes), "C")):
        if axis not in axes:
            array, axes = np.expand_dims(array, position), axes[:position] + axis + axes[position:]  # type: ignore[assignment]
    array = array.transpose([axes.index(axis) for axis in "THWC"])
    if array.shape[-1] not in (1, 3, 4):
        raise ValueError(f"an image has 1, 3 or 4 channels, not {array.shape[-1]} (layout {layout or axes})")
    if array.dtype == np.uint8:
        return array
    low, high = value_range or range_of([array])
    if not low < high:
        raise ValueError(f"value_range goes from black to white, low < high, not {value_range}")
    share = (array.astype(float) - low) / (high - low)
    if fit and (width := float(np.quantile(np.abs(share - 0.5), 0.98))) > 0.6:
        share = 0.5 + 0.5 * (share - 0.5) / width
    return (np.nan_to_num(share, nan=0.5).clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def strip(clip: Pixels) -> Pixels:
    """Return frames (t, h, w, c) side by side as one image, up to eight of them, evenly spaced."""
    kept = clip[np.linspace(0, len(clip) - 1, min(len(clip), _FRAMES)).round().astype(int)]
    gap = np.full((len(kept[0]), max(1, kept.shape[2] // 24), kept.shape[3]), 128, np.uint8)
    parts = [part for frame in kept for part in (frame, gap)]
    return np.concatenate(parts[:-1], axis=1)


def shrunk(image: Pixels, most: int) -> Pixels:
    """Return an image (h, w, c) made smaller by a whole factor, so that its height is at most ``most`` (means)."""
    factor = -(-len(image) // most)
    if factor == 1 or image.shape[1] < factor:
        return image
    height, width = len(image) // factor, image.shape[1] // factor
    blocks = image[: height * factor, : width * factor].reshape(height, factor, width, factor, -1)
    means: Pixels = (blocks.mean((1, 3)) + 0.5).astype(np.uint8)
    return means


def png(image: Pixels) -> bytes:
    """Return an image (h, w, c) as a PNG file.

    >>> png(np.zeros((2, 2, 3), np.uint8))[:4]
    b'\\x89PNG'
    """
    height, width, channels = image.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """Return the address of a file that is in the page itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def described(value: Any) -> str | None:
    """Say what an array is that is too large to be written; None for one that is not, and for no array.

    >>> described(np.zeros((1, 28, 28))), described(np.full((4, 64, 64), 3.0)), described(np.zeros(2))
    ('image 1×28×28', 'array 4×64×64', None)
    """
    array = array_of(value)
    if array is None or (array.ndim < 2 and array.size <= 8) or array.size <= 4:
        return None
    layout = layout_of(array) if is_picture(array) else None
    kind = "array" if layout is None else "clip" if "T" in layout else "image"
    return f"{kind} {_times(array.shape)}"


def identity(value: Any) -> Any:
    """Return what tells values apart: their text, and of arrays all their numbers."""
    array = array_of(value)
    if array is not None and array.ndim and array.dtype != object:
        return array.shape, str(array.dtype), array.tobytes()
    if _holds_array(value):
        parts = value.items() if isinstance(value, Mapping) else value
        return type(value).__name__, tuple(identity(part) for part in parts)
    return str(value)


def written(value: Any) -> str:
    """Write a value as text: numbers in six digits, large arrays by their size, also inside containers.

    >>> written("river"), written((np.zeros((1, 28, 28)), "river")), written({"x": [0.1 + 0.2]})
    ('river', "(image 1×28×28, 'river')", "{'x': [0.3]}")
    """
    return value if isinstance(value, str) else _inner(value)


def _inner(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    if type(value) is dict:
        return "{" + ", ".join(f"{key!r}: {_inner(part)}" for key, part in value.items()) + "}"
    if type(value) is list:
        return "[" + ", ".join(map(_inner, value)) + "]"
    if type(value) is tuple:
        return "(" + ", ".join(map(_inner, value)) + ("," if len(value) == 1 else "") + ")"
    return described(value) or (repr(value) if isinstance(value, str) else str(value))


def _holds_array(value: Any) -> bool:
    """Return whether a tuple, list or dictionary has an array in it."""
    if not isinstance(value, tuple | list | Mapping):
        return False
    parts = value.values() if isinstance(value, Mapping) else value
    return any(isinstance(part, np.ndarray) or _is_tensor(part) or _holds_array(part) for part in parts)


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))

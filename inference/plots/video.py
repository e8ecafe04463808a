"""Clips that play: in a notebook as GIFs, in files as GIF or MP4."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..drawing.html_images import grid_html
from ..drawing.pixels import Layout, Pixels, Range, data_uri, frames, layout_of, range_of
from ..drawing.views import number
from ..results.posterior import Posterior
from .faces import Show
from .plot_images import heaviest, pictured

_HEIGHT = 120
"""Pixels of a clip on a page and in a file, at least about so many."""


@dataclass(frozen=True, eq=False)
class Video:
    """Clips that play side by side. Made by `video`; shows itself in a notebook.

    Attributes:
        clips: each (t, h, w, c) bytes, c = 1, 3 or 4. A shorter one holds its last frame.
        captions: of each.
        rate: frames per second.
    """

    clips: tuple[Pixels, ...] = field(repr=False)
    captions: tuple[str, ...]
    rate: float

    def save(self, path: str | os.PathLike[str], *, columns: int | None = None) -> Path:
        """Write all clips, in a grid, as one file, ``.gif`` or ``.mp4`` (H.264), and return its path.

        Small clips are made larger by a whole factor. GIFs count time in hundredths of a second.

        Raises ValueError for another ending, ImportError where Pillow (GIF) or PyAV (MP4) is missing (``pip install
        'feynkac[video]'``), and OSError where the file cannot be written. It is written whole or not at all.
        """
        target = Path(path)
        write = {".gif": gif, ".mp4": _mp4}.get(target.suffix.lower())
        if write is None:
            raise ValueError(f"a video is written as .gif or .mp4, not {target.name!r}")
        data = write(_mosaic(self.clips, columns), self.rate)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def _repr_html_(self) -> str:
        """Return each clip as a GIF in the page itself, with its caption."""
        style = (
            "<style>.fk-clips{font:13px/1.45 system-ui,sans-serif}"
            ".fk-clips figure{margin:0;min-width:10.5em;text-align:center}"
            ".fk-clips .fk-grid{display:flex;flex-wrap:wrap;gap:.9em}.fk-clips img{display:block;margin:auto}"
            ".fk-clips figcaption{font-size:.85em;opacity:.85;color:inherit}</style>"
        )
        cells = []
        for clip, caption in zip(self.clips, self.captions):
            width = clip.shape[2] * max(1, round(_HEIGHT / clip.shape[1]))
            source = data_uri(gif(clip, self.rate), "image/gif")
            image = f'<img src="{source}" alt="clip" style="width:{width}px;image-rendering:pixelated">'
            cells.append((image, caption))
        return f'<div class="fk-clips">{style}{grid_html(cells)}</div>'


def video(
    posterior: Posterior,
    n: int = 6,
    *,
    rate: float = 8.0,
    show: Show | None = None,
    layout: Layout | None = None,
    value_range: Range | None = None,
) -> Video:
    """Return the clips of largest weight as a `Video`, which plays in a notebook; ``.save("clips.mp4")`` writes it.

    Args:
        posterior: whose values are clips: (T, H, W), (T, C, H, W) or (T, H, W, C), bytes or floats.
        n: most clips; equal ones are one.
        rate: frames per second, at most 50.
        show: from a value to its clip, where values are more than clips.
        layout: as in `feynkac.plots.images`; give "THW" for clips of 1, 3 or 4 grey frames, and "CTHW" where channels
            come first.
        value_range: as in `feynkac.plots.images`.

    Raises ValueError for values that are no clips, and for a rate out of range.

    >>> import feynkac as fk
    >>> model = fk.Blocks(fk.diffusion.bouncing(frames=2, steps=2), 3)
    >>> posterior = fk.infer(model, fk.ImportanceSampling(2), seed=0)
    >>> fk.plots.video(posterior, rate=4)
    Video(captions=('0.500 · log G 0', '0.500 · log G 0'), rate=4)
    """
    if not 0 < rate <= 50:
        raise ValueError(f"rate is in frames per second, above 0 and at most 50, not {rate}")
    chosen = heaviest(posterior, n)
    found = [pictured(posterior.values[i], show, layout) for i, _ in chosen]
    for one in found:
        if "T" not in (layout or layout_of(one) or "T"):
            raise ValueError(
                f"the values are images {np.shape(one)} and no clips: draw them by `images` or `film`, or say "
                "layout='THW'"
            )
    shades = value_range or range_of(found)
    clips = tuple(frames(one, layout, shades) for one in found)
    captions = tuple(f"{weight:.3f} · log G {number(float(posterior.log_potential[i]), 3)}" for i, weight in chosen)
    return Video(clips, captions, rate)


def gif(clip: Pixels, rate: float) -> bytes:
    """Return a clip (t, h, w, c) as a GIF that plays for ever. Raises ImportError without Pillow."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("GIFs need Pillow: pip install 'feynkac[video]'") from error
    made = [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one[..., :3]) for one in clip]
    file = io.BytesIO()
    ends = np.round(np.arange(len(made) + 1) * 100 / rate).astype(int)  # whole hundredths, without drift
    durations = (10 * np.diff(ends)).tolist()
    made[0].save(file, "GIF", save_all=True, append_images=made[1:], duration=durations, loop=0, disposal=1)
    return file.getvalue()


def _mp4(clip: Pixels, rate: float) -> bytes:
    """Return a clip (t, h, w, c) as an MP4. Raises ImportError without PyAV."""
    try:
        import av
    except ImportError as error:
        raise ImportError("MP4 needs PyAV: pip install 'feynkac[video]'") from error
    from fractions import Fraction

    even = clip[:, : clip.shape[1] // 2 * 2, : clip.shape[2] // 2 * 2]  # as the format asks
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000), options={"crf": "16"})
        stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        for one in even:
            colours = np.ascontiguousarray(np.broadcast_to(one[..., :3], (*one.shape[:2], 3)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(colours, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def _mosaic(clips: tuple[Pixels, ...], columns: int | None) -> Pixels:
    """Return clips in a grid, as one clip (t, h, w, c), on middle grey."""
    channels = max(min(clip.shape[-1], 3) for clip in clips)
    length, height, width = (max(clip.shape[k] for clip in clips) for k in range(3))
    across = columns or math.ceil(math.sqrt(len(clips)))
    down = -(-len(clips) // across)
    gap, zoom = max(1, height // 24), max(1, round(_HEIGHT / height))
    ground = np.full((length, down * (height + gap) + gap, across * (width + gap) + gap, channels), 128, np.uint8)
    for k, clip in enumerate(clips):
        top, left = (gap + place * (size + gap) for place, size in zip(divmod(k, across), (height, width)))
        held = clip[np.minimum(np.arange(length), len(clip) - 1)][..., :3]
        ground[:, top : top + clip.shape[1], left : left + clip.shape[2]] = held
    return ground.repeat(zoom, 1).repeat(zoom, 2)

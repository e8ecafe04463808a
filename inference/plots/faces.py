"""The pictures of the particles of one chain: what they came to, and what their steps chose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...ppl.sites import Site
from ..drawing.pixels import (
    Layout,
    Pixels,
    Range,
    array_of,
    frames,
    is_picture,
    layout_of,
    pictures_in,
    range_of,
    strip,
)
from ..results.posterior import Posterior

Show = Callable[[Any], Any]


class Faces:
    """Pictures of the particles of a chain, where its values are images or clips.

    A finished particle shows its value. Another step shows what it chose, where that is an array of the shape of a
    value, or of a frame of it; the last of several steps (`Blocks`); or a picture drawn at a site. Clips are shown as
    frames side by side.

    Args:
        posterior: of any engine.
        chain: number of the chain.
        show: from the choices of a step to a picture, or None for none; it takes the place of all this.
        layout: the axes of values and of what ``show`` returns.
        value_range: from black to white.
    """

    def __init__(
        self,
        posterior: Posterior,
        chain: int = 0,
        show: Show | None = None,
        layout: Layout | None = None,
        value_range: Range | None = None,
    ) -> None:
        run = posterior.chains[chain]
        first = sum(len(before.log_weights) for before in posterior.chains[:chain])
        self._values = posterior.values[first : first + len(run.log_weights)]
        self._steps, self._show, self._layout = run.steps, show, layout
        found = [picture for value in self._values for picture in self._pictures(value)]
        self._shapes = {np.shape(found[0]), np.shape(found[0])[1:]} if found else set()
        self._range = value_range or (range_of(found) if found else None)
        self._axes = layout or (layout_of(found[0]) if found else None)

    def __bool__(self) -> bool:
        """Whether there is anything to show."""
        return self._show is not None or self._axes is not None

    def value(self, particle: int) -> Pixels | None:
        """Return the picture (h, w, c) of what a particle came to."""
        if self._show is not None:
            return self.step(len(self._steps) - 1, particle)
        found = next(iter(self._pictures(self._values[particle])), None)
        return None if found is None else strip(frames(found, self._layout, self._range))

    def step(self, t: int, particle: int) -> Pixels | None:
        """Return the picture (h, w, c) of a particle of step t; at the last step of its value, or the last frame."""
        choices = self._steps[t].choices[particle]
        if t == len(self._steps) - 1 and self._show is None:
            frame = self._chosen(choices)
            if frame is None or np.ndim(frame) == len(self._axes or ""):
                return self.value(particle)
        return self.choices(choices)

    def choices(self, choices: Any) -> Pixels | None:
        """Return the picture (h, w, c) of what one particle chose in one step."""
        if self._show is not None:
            made = self._show(choices) if len(choices) else None
            return None if made is None else strip(frames(made, self._layout, self._range, fit=True))
        found = self._chosen(choices)
        if found is None:
            return None
        axes = self._axes if np.ndim(found) == len(self._axes or "") else None
        return strip(frames(found, axes, self._range, fit=True))

    def _chosen(self, choices: Any) -> Any:
        if isinstance(choices, tuple):
            if any(isinstance(part, Site) for part in choices):
                drawn = [site.value for site in choices if isinstance(site, Site) and is_picture(site.value)]
                return drawn[-1] if drawn else None
            choices = choices[-1] if choices else None
        array = array_of(choices)
        return array if array is not None and array.shape in self._shapes and array.ndim >= 2 else None

    def _pictures(self, value: Any) -> list[Any]:
        """Return the pictures in a value; where a layout is given, the arrays that have it."""
        if self._layout is None:
            return list(pictures_in(value))
        array = array_of(value)
        return [array] if array is not None and array.ndim == len(self._layout) else []

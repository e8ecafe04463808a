"""Rows and scales as kernels, for programs: an image that is drawn beside texts and numbers."""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...ppl import keys as _keys
from ...ppl.cost import rows
from ...ppl.keys import Keys
from ...ppl.model import Advance, Draws, Floats
from .generator import Canvas, ImageTokens


def begin(model: ImageTokens) -> Drawing:
    """Return an image of a model of which nothing is drawn; no chance is in it, so that there is nothing to sample.

    Args:
        model: without a reward of its own: the program's factors weigh. Make it outside of the program, so that all
            particles share it: one for each condition where there are several.

    Raises ValueError where the model has a reward, and TypeError for what is no model of image tokens.

    >>> import feynkac as fk
    >>> model = fk.models.digit_tokens(3)
    >>> @fk.program
    ... async def dark():
    ...     drawing = begin(model)
    ...     while not drawing.done:
    ...         drawing = await fk.sample("row", draw(drawing))
    ...     await fk.factor("dark", -0.1 * float(drawing.image.sum()))
    ...     return drawing.image
    >>> fk.infer(dark(), fk.SMC(4), seed=0).values[0].shape
    (14, 14)
    """
    if not isinstance(model, ImageTokens):
        raise TypeError(f"begin takes a model of image tokens, not {model!r:.100}; for diffusion see diffusion.begin")
    if model.reward is not None:
        raise ValueError("a model with a reward weighs images itself: give one without, and use fk.factor")
    return Drawing(model, model.start(_keys.fold(_keys.root(0), np.arange(1))).state)


def draw(drawing: Drawing) -> Stroke:
    """Return the kernel of the next row or scale of an image; a whole one gives itself, with probability 1.

    With guidance of ``way="exact"`` its p is p_c^(1+s)·p_u^(−s), as it is: what the sum of a step is not 1 by is
    weighed, so that the program's target has the product of whole images as a factor.

    Raises ValueError for an image from a file, which has no model.
    """
    model = drawing.model
    if model is None:
        raise ValueError("an image from a file has no model to go on with: begin again")
    return Product(model, drawing) if model.guidance and model.way == "exact" else Stroke(model, drawing)


@dataclass(frozen=True, eq=False)
class Drawing:
    """One image on its way, immutable.

    Attributes:
        model: that draws it; None for one that was read from a file (a saved posterior's).
        canvas: a batch of one.
    """

    model: ImageTokens | None
    canvas: Canvas

    @property
    def step(self) -> int:
        """Rows or scales drawn so far."""
        return int(self.canvas.depth[0])

    @property
    def done(self) -> bool:
        """Whether it is whole."""
        return bool(self.canvas.done[0])

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """The tokens drawn so far, a read-only array."""
        row = self.canvas.tokens[0]
        tokens: NDArray[np.int64] = row[row >= 0]
        tokens.flags.writeable = False
        return tokens

    @cached_property
    def image(self) -> Any:
        """The image, decoded as far as it is drawn, read-only. Raises ValueError for one from a file."""
        if self.model is None:
            raise ValueError("an image from a file has no model to decode it: see its tokens")
        image = self.model.values(self.canvas)[0]
        image.flags.writeable = False
        return image

    def __repr__(self) -> str:
        return f"<image of {'a file' if self.model is None else repr(self.model)} after {self.step} steps>"

    def to_json(self) -> dict[str, Any]:
        """Return the tokens as plain data for JSON, and how far they go."""
        return {"tokens": self.canvas.tokens[0].tolist(), "step": self.step, "steps": self.canvas.steps}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Drawing:
        """Return the image that `to_json` described, without its model."""
        tokens, nowhere = np.array([data["tokens"]], np.int64), np.empty((1, 0), object)
        return cls(None, Canvas(tokens, np.array([data["step"]]), data["steps"], nowhere, np.zeros(1)))


@dataclass(frozen=True, eq=False)
class Stroke:
    """A request for the next row or scale of an image, made by `draw`. All requests of one model share calls."""

    model: ImageTokens
    drawing: Drawing
    expensive: ClassVar[bool] = True

    @property
    def batch_key(self) -> Hashable:
        """All strokes of a model share a call."""
        return (Stroke, id(self.model))

    @property
    def fingerprint(self) -> Hashable:
        """How far the image is, and a checksum of what is drawn."""
        return (self.drawing.step, zlib.crc32(self.drawing.tokens.tobytes()))

    def __repr__(self) -> str:
        return f"<step of {self.drawing!r}>"

    def sample_batch(self, requests: Sequence[Stroke], keys: Keys) -> Draws:
        """Draw the next step for each request, from its own key alone."""
        moved = self._move([request.drawing for request in requests], keys)
        drawn = [
            request.drawing if request.drawing.done else Drawing(self.model, moved.state.select(np.array([i])))
            for i, request in enumerate(requests)
        ]
        return Draws(drawn, moved.log_prob + moved.log_potential, moved.log_proposal)

    def log_prob_batch(self, requests: Sequence[Stroke], values: Sequence[Drawing]) -> Floats:
        """Return log p of each image under its request, (n,): −inf for one that is not a step further."""
        return self._forced(requests, values, True)

    def fits(self, value: Any) -> bool:
        """Whether a value is an image of the same model."""
        return isinstance(value, Drawing) and value.model is self.model

    def _forced(self, requests: Sequence[Stroke], values: Sequence[Drawing], weighed: bool) -> Floats:
        """Return the log-probabilities of the steps that lead to some images, with or without log S."""
        found, going, given = np.full(len(values), -math.inf), [], []
        for i, (before, after) in enumerate(zip((request.drawing for request in requests), values)):
            old, further = before.tokens, min(before.step + 1, self.model.steps)
            if after.step != further or not np.array_equal(after.tokens[: len(old)], old):
                continue
            going.append(i)
            given.append(after.tokens[len(old) :])
        if going:
            with rows(going):
                moved = self._move([requests[i].drawing for i in going], np.zeros(len(going), np.uint64), given)
            found[going] = moved.log_prob + moved.log_potential if weighed else moved.log_prob
        return found

    def _move(self, drawings: Sequence[Drawing], keys: Keys, given: Sequence[Any] | None = None) -> Advance[Canvas]:
        return self.model.advance(self.model.concat([drawing.canvas for drawing in drawings]), keys, given)


class Product(Stroke):
    """A stroke under exact guidance: p sums to S, and what is drawn is p / S."""

    def log_proposal_batch(self, requests: Sequence[Stroke], values: Sequence[Drawing]) -> Floats:
        """Return log p/S of each image under its request, (n,)."""
        return self._forced(requests, values, False)

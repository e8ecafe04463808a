"""What handlers make of a site's log-terms: masked, component by component, and scaled."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import CannotScore
from ..model import Floats, Kernel
from ..values.reals import real
from . import batching as _b
from .batching import Ragged


class Terms(NamedTuple):
    """How a site's log-weight counts: under a mask (False, or an array that says it of components), times a scale."""

    mask: Any = True
    scale: float = 1.0

    def weigh(self, log_weight: float) -> float:
        """Return what a log-weight comes to; an array's part is taken by `Masked`."""
        return 0.0 if self.mask is False else self.scale * log_weight

    def under(self, mask: Any) -> Terms:
        """Return these under one more mask: what any leaves out is out."""
        if self.mask is False or mask is False:
            return Terms(False, self.scale)
        both = mask if self.mask is True else self.mask if mask is True else self.mask & mask
        return Terms(both, self.scale)


@dataclass(frozen=True, eq=False)
class Masked:
    """A law of independent components, of which only those under the mask are scored. Never drawn from."""

    kernel: Kernel
    mask: NDArray[np.bool_]

    @property
    def batch_key(self) -> Hashable:
        """That of the law."""
        return (Masked, self.kernel.batch_key)

    @property
    def fingerprint(self) -> Hashable:
        """That of the law, and the mask."""
        return ("masked", self.kernel.fingerprint, _b.digest(self.mask))

    def log_prob_batch(self, requests: Sequence[Masked], values: Sequence[Any]) -> Floats:
        """Return log p of the components under the mask, (n,).

        Raises CannotScore for a law whose components have no weights of their own, ValueError for a mask of another
        shape.
        """
        score = getattr(self.kernel, "log_prob_terms", None)
        if score is None:
            raise CannotScore(f"{self.kernel!r} has no log_prob_terms, which an array mask needs")
        try:
            terms = score([request.kernel for request in requests], values)
        except Ragged:
            parts = [self.log_prob_batch([request], [value]) for request, value in zip(requests, values)]
            return np.concatenate(parts)
        masks = np.stack([request.mask for request in requests])
        if masks.shape != terms.shape:
            raise ValueError(f"a mask of shape {masks.shape[1:]} for components of shape {terms.shape[1:]}")
        found: Floats = _b.total(np.where(masks, terms, 0.0))
        return found


def as_mask(mask: Any) -> Any:
    """Return a mask as a bool or a read-only array of bools; raises TypeError for anything else."""
    array = np.asarray(mask)
    if array.dtype != np.bool_:
        raise TypeError(f"a mask is a bool or an array of bools, not {mask!r:.80}")
    if array.ndim == 0:
        return bool(array)
    array = array.copy()
    array.flags.writeable = False
    return array


def as_scale(scale: Any) -> float:
    """Return a scale as a float; raises ValueError unless it is a positive, finite number."""
    try:
        factor = real(scale)
    except TypeError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise ValueError(f"a scale is a positive number, not {scale!r}")
    return factor

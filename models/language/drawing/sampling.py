"""How tokens are drawn: temperature, top-k, top-p and min-p, and the tokens that a mask allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool | str | bytes) or not hasattr(type(value), "__float__"):
        raise TypeError(f"{name} must be a number, not {value!r}")


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn from a language model.

    Attributes:
        temperature: divides the logits; 0 takes the most probable token, with log-probability 0.
        top_k: keep only the k most probable tokens (and those tied with the last).
        top_p: keep the most probable tokens until their mass reaches p.
        min_p: keep the tokens at least this fraction as probable as the most probable one.

    Raises TypeError for a setting that is no number, ValueError for one outside its range.

    >>> Sampling(temperature=0.7, top_p=0.95).truncates
    True
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature)
        for name in ("top_k", "top_p", "min_p"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name))
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be a finite number ≥ 0, not {self.temperature}")
        if self.top_k is not None and (self.top_k != int(self.top_k) or self.top_k < 1):
            raise ValueError(f"top_k must be a whole number ≥ 1 or None, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1] or None, not {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1] or None, not {self.min_p}")

    @property
    def truncates(self) -> bool:
        """Whether the law gives some tokens probability zero."""
        return (
            self.temperature == 0
            or self.top_k is not None
            or (self.top_p is not None and self.top_p < 1)
            or bool(self.min_p)
        )


class Mask:
    """A set of tokens: a boolean per token of the vocabulary. Equal masks allow the same tokens.

    Attributes:
        allowed: the booleans, (V,).
        tensor: a copy on some device, kept by `feynkac.models.language.drawing.laws.on`.
    """

    __slots__ = ("_digest", "allowed", "tensor")

    def __init__(self, allowed: NDArray[np.bool_]) -> None:
        self.allowed = allowed
        self.tensor: Any = None
        self._digest = hash(np.packbits(allowed).tobytes())

    def __hash__(self) -> int:
        return self._digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self._digest == other._digest and np.array_equal(self.allowed, other.allowed)

    @property
    def journal_key(self) -> bytes:
        """The booleans."""
        return np.packbits(self.allowed).tobytes()

    def __repr__(self) -> str:
        return f"<mask of {int(self.allowed.sum())} tokens>"


Law: TypeAlias = tuple[Sampling, Mask | None]
"""How a token is drawn, and the tokens that it is drawn from, if not from all."""


_OWN = Sampling()


def canonical(law: Law, size: int) -> Law:
    """Return a law over so many tokens without settings that change nothing, so that equal laws are equal."""
    sampling, mask = law
    if sampling == _OWN:
        return law
    if sampling.temperature == 0:
        return Sampling(temperature=0), mask
    top_k = sampling.top_k if sampling.top_k is not None and sampling.top_k < size else None
    top_p = sampling.top_p if sampling.top_p is not None and sampling.top_p < 1 else None
    return Sampling(sampling.temperature, top_k, top_p, sampling.min_p or None), mask


def as_mask(mask: Any, size: int) -> Mask:
    """Return a mask of a boolean array or tensor (V,). A shorter one is false beyond its end.

    Raises ValueError for another shape or type.
    """
    if isinstance(mask, Mask):
        return mask
    given = np.asarray(mask.detach().cpu() if hasattr(mask, "detach") else mask)
    if given.dtype != np.bool_ or given.ndim != 1 or len(given) > size:
        raise ValueError(f"a mask must be booleans of shape ({size},), not {given.dtype} of shape {given.shape}")
    return Mask(np.pad(given, (0, size - len(given))))

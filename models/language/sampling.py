"""How tokens are drawn: temperature, top-k, top-p and min-p."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


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

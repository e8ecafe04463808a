"""The laws of tokens as a network's logits give them, normalised only where somebody looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Laws:
    """Log-laws (n, L, V) of tokens, by their logits: of a large vocabulary most positions of a step are not asked for.

    Indexed as the tensor that they stand for, by particles or by positions: ``laws[rows]``, ``laws[where]`` for
    ``where`` (n, L). ``laws[...]`` is all of it, which is kept in place of the logits.

    Args:
        logits: (n, L, V), which are not written to.
        likeliest: (n, L) the likeliest tokens.
        temperature: of the laws.
        mask: the token that is never drawn.
    """

    def __init__(self, logits: Any, likeliest: Any, temperature: float, mask: int, *, normal: bool = False) -> None:
        self._table, self._normal = logits, normal
        self.likeliest = likeliest
        self._temperature, self._mask = temperature, mask

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> Any:
        if index is Ellipsis and not self._normal:
            self._table, self._normal = self._normalised(self._table), True
        return self._table[index] if self._normal else self._normalised(self._table[index])

    def _normalised(self, logits: Any) -> Any:
        law = logits / self._temperature
        law[..., self._mask] = -torch.inf
        return law.log_softmax(-1)

    def _like(self, table: Any, likeliest: Any) -> Laws:
        return Laws(table, likeliest, self._temperature, self._mask, normal=self._normal)

    def detach(self) -> Laws:
        """Return the laws without their gradient."""
        return self._like(self._table.detach(), self.likeliest)

    def select(self, index: Any) -> Laws:
        """Return the laws of particles by index, a tensor."""
        return self._like(self._table[index], self.likeliest[index])

    @staticmethod
    def join(parts: Sequence[Laws]) -> Laws:
        """Return the laws of batches of particles as one."""
        normal = any(part._normal for part in parts)
        tables = [part[...] if normal else part._table for part in parts]
        return parts[0]._like(torch.cat(tables), torch.cat([part.likeliest for part in parts]))

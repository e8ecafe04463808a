"""Recurrent states as transformers returns them: nested structures of tensors, taken apart and put together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

FIELDS = ("past_key_values", "cache_params", "state")
"""What models of transformers call the state that they return and take back."""


def rebuild(structure: Any, change: Callable[[Any], Any]) -> Any:
    """Return a copy of a nested structure with ``change`` applied to its tensors, from first to last."""
    if isinstance(structure, torch.Tensor):
        return change(structure)
    if isinstance(structure, dict):
        return {key: rebuild(value, change) for key, value in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(rebuild(value, change) for value in structure)
    if _holds_tensors(structure):
        twin = copy.copy(structure)
        twin.__dict__ = {name: rebuild(value, change) for name, value in vars(structure).items()}
        return twin
    return structure


def _holds_tensors(thing: Any) -> bool:
    """Whether a thing may be a cache or a layer of one, rather than a setting."""
    return type(thing).__module__.startswith("transformers.") and "onfig" not in type(thing).__name__


def tensors(structure: Any) -> list[Any]:
    """Return the tensors of a nested structure in order."""
    found: list[Any] = []

    def note(tensor: Any) -> Any:
        found.append(tensor)
        return tensor

    rebuild(structure, note)
    return found


@dataclass(frozen=True)
class States:
    """The states of n histories after one pass.

    Attributes:
        structure: as the model returned it.
        tensors: its tensors; those that ``by_row`` says have one row per history.
        by_row: whether each tensor has.
    """

    structure: Any
    tensors: Sequence[Any]
    by_row: Sequence[bool]

    @property
    def bytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def row_bytes(self) -> float:
        """Bytes held for one history; what all share is counted in each."""
        sizes = (t.nbytes / len(t) if by_row else t.nbytes for t, by_row in zip(self.tensors, self.by_row))
        return float(sum(sizes))


def select(places: Sequence[tuple[States, int]]) -> Any:
    """Return a new structure that holds the states of some histories, each a row of some states.

    Raises ValueError where the states differ in shape, as those of histories of unequal length may.
    """
    sources: list[States] = []
    rows: list[list[int]] = []
    where: list[tuple[int, int]] = []
    for states, row in places:
        at = next((k for k, source in enumerate(sources) if source is states), len(sources))
        if at == len(sources):
            sources.append(states)
            rows.append([])
        where.append((at, len(rows[at])))
        rows[at].append(row)
    offsets = [sum(len(part) for part in rows[:k]) for k in range(len(rows))]
    order = [offsets[at] + position for at, position in where]
    lead = sources[0]
    if any(len(source.tensors) != len(lead.tensors) for source in sources):
        raise ValueError("states of different kinds cannot share a pass")
    merged = []
    for k, (tensor, by_row) in enumerate(zip(lead.tensors, lead.by_row)):
        if not by_row:
            merged.append(tensor.clone())
            continue
        if any(source.tensors[k].shape[1:] != tensor.shape[1:] for source in sources):
            raise ValueError("states of different shapes cannot share a pass")
        parts = [
            source.tensors[k].index_select(0, torch.tensor(part, device=tensor.device))
            for source, part in zip(sources, rows)
        ]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        merged.append(
            whole if order == sorted(order) else whole.index_select(0, torch.tensor(order, device=whole.device))
        )
    fresh = iter(merged)
    return rebuild(lead.structure, lambda _: next(fresh))

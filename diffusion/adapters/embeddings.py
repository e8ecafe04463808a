"""Embeddings of prompts: which parts of what a pipeline encodes belong to a prompt, and follow its particle."""

from __future__ import annotations

from typing import Any

import torch


class Row:
    """Stands in a template for the part of an embedding that belongs to a prompt."""

    def __init__(self, place: int) -> None:
        self.place = place


def template(once: Any, twice: Any, kept: list[Any], name: str) -> Any:
    """Return what encode_prompt gave with a `Row` wherever there is one row per prompt; those go to ``kept``."""
    if isinstance(once, torch.Tensor):
        if once.shape == twice.shape:
            return once
        if once.shape[1:] != twice.shape[1:] or 2 * len(once) != len(twice):
            raise ValueError(f"{name} cannot be used: its embeddings have no row per prompt")
        kept.append(once)
        return Row(len(kept) - 1)
    if isinstance(once, tuple | list):
        if len(once) != len(twice):
            raise ValueError(f"{name} cannot be used: its embeddings are lists, of which each may have its own length")
        return type(once)(template(a, b, kept, name) for a, b in zip(once, twice))
    return once


def fill(known: Any, condition: Any) -> Any:
    """Return what encode_prompt would give for a batch of conditions, from its template."""
    if isinstance(known, Row):
        return condition[known.place]
    if isinstance(known, tuple | list):
        return type(known)(fill(part, condition) for part in known)
    return known

"""How the layers of a model turn queries and keys by their positions, learned from what they do to one token.

Rotary embeddings (Su et al. 2021, arXiv:2104.09864) compose: a query that was turned to position p, turned on by d, is
what it is at p + d. So keys can be kept as they stand in a block of text, and the block be seen at any place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, Cache

from ....ppl.errors import Unsupported
from ..passes.attending import attending_by
from ..passes.trial import most_by_rounding
from ..weights.wrappers import core

_NAME = "feynkac_together"
_FAR = 4096
"""Farthest position to learn at."""


@dataclass(frozen=True, eq=False)
class Turn:
    """A rotation of pairs of numbers in a vector, pair i by its position times ``frequencies[i]``."""

    frequencies: Any
    first: slice
    second: slice

    def angles(self, positions: Any) -> tuple[Any, Any]:
        """Return the cosines and sines at some positions, (…, pairs)."""
        angles = positions[..., None].double() * self.frequencies.to(positions.device).double()
        return angles.cos().float(), angles.sin().float()

    def __call__(self, vectors: Any, angles: tuple[Any, Any]) -> Any:
        """Return vectors (…, dim), turned on."""
        cos, sin = angles
        a, b = vectors[..., self.first], vectors[..., self.second]
        whole = vectors.new_empty((*torch.broadcast_shapes(vectors.shape[:-1], cos.shape[:-1]), vectors.shape[-1]))
        whole[...] = vectors
        whole[..., self.first] = a * cos - b * sin
        whole[..., self.second] = b * cos + a * sin
        return whole


class Pass(Cache):  # type: ignore[misc]
    """One forward pass as the layers see it: their cache, and what attends in their stead.

    Attributes:
        attends: whether it does so; else the layers attend as ever.
        layer: the layer that is at work.
    """

    attends = True

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.layer = -1

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Take the keys and values of a layer."""
        self.layer = layer_idx
        self.write(key_states, value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: all queries say their positions."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return how many columns a mask has, where one is made."""
        return query_length, 0

    def write(self, keys: Any, values: Any) -> None:
        """Keep the new keys and values (n, heads, q, dim) of ``self.layer``."""
        raise NotImplementedError

    def attend(self, query: Any, scaling: float, window: int | None, softcap: float | None, sinks: Any) -> Any:
        """Return what queries (n, heads, q, dim) of ``self.layer`` get, (n, q, heads, dim)."""
        raise NotImplementedError


_passing: ContextVar[Pass | None] = ContextVar("feynkac_passing", default=None)


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, dropout: float = 0.0,
    scaling: float | None = None, sliding_window: int | None = None, softcap: float | None = None, s_aux: Any = None,
    **kwargs: Any,
) -> tuple[Any, None]:  # fmt: skip
    now = _passing.get()
    assert now is not None
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return now.attend(query, scaling, sliding_window, softcap, s_aux).contiguous(), None


AttentionInterface.register(_NAME, _attend)


@contextmanager
def passing(configs: Sequence[Any], now: Pass) -> Iterator[None]:
    """Within the block the layers of a model with some configs attend as a pass says."""
    if not now.attends:
        yield
        return
    token = _passing.set(now)
    try:
        with attending_by(_NAME, configs):
            yield
    finally:
        _passing.reset(token)


class _Note(Pass):
    """Notes the queries and keys of a pass over one token, which attends to itself alone wherever it is said to be."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[Any, Any]] = {}

    def write(self, keys: Any, values: Any) -> None:
        """Note the keys."""
        self.seen[self.layer] = values, keys

    def attend(self, query: Any, scaling: float, window: int | None, softcap: float | None, sinks: Any) -> Any:
        """Note the queries, and give the value of the one key."""
        values, keys = self.seen[self.layer]
        self.seen[self.layer] = query, keys
        return values.repeat_interleave(query.shape[1] // values.shape[1], 1).transpose(1, 2)


def learn(model: Any, say: Any, longest: int | None) -> dict[int, Turn | None]:
    """Return how each layer turns queries and keys; None where it does not.

    ``say(now, position)`` passes a token, said to be at a position, through the model.

    Raises `Unsupported` for a model in which a layer does anything else to them.
    """
    name = type(core(model)).__name__
    far = min(_FAR, longest or _FAR) - 1
    near, there = _Note(), _Note()
    say(near, 0)
    say(there, far)
    if not there.seen:
        raise Unsupported(f"the attention of {name} does not go through transformers' attention interface")
    candidates = list(_candidates(model, {query.shape[-1] for query, _ in near.seen.values()}))
    turns = {}
    for layer, before in near.seen.items():
        gaps = [max(map(_gap, _turned(turn, before, far), there.seen[layer])) for turn in candidates]
        best = min(range(len(gaps)), key=gaps.__getitem__)
        if not gaps[best] <= max(1e-2, most_by_rounding(model)):
            raise Unsupported(
                f"layer {layer} of {name} does something else to queries and keys by their positions than to turn them "
                "(RoPE), so that what was written at one place cannot be seen at another"
            )
        turns[layer] = candidates[best]
    if not any(turns.values()):
        raise Unsupported(f"{name} does not turn queries and keys by their positions (RoPE)")
    return turns


def _candidates(model: Any, dims: set[int]) -> Iterator[Turn | None]:
    """Yield the ways in which models turn vectors: halves or neighbours, all of a vector, its beginning or its end."""
    yield None
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and "original" not in name:
                n = len(buffer)
                for start in sorted({start for dim in dims for start in (0, dim - 2 * n) if start >= 0}):
                    end = start + 2 * n
                    yield Turn(buffer.clone(), slice(start, start + n), slice(start + n, end))
                    yield Turn(buffer.clone(), slice(start, end, 2), slice(start + 1, end, 2))


def _turned(turn: Turn | None, vectors: Sequence[Any], far: int) -> Sequence[Any]:
    return vectors if turn is None else [turn(x, turn.angles(torch.tensor(far, device=x.device))) for x in vectors]


def _gap(one: Any, other: Any) -> float:
    return float((one - other).float().norm() / other.float().norm())


def angles_of(turns: Mapping[int, Turn | None], positions: Any) -> dict[Any, tuple[Any, Any]]:
    """Return the cosines and sines that each turn needs at some positions."""
    return {turn: turn.angles(positions) for turn in set(turns.values()) if turn is not None}

"""Attention to trunks: what is shared is read once for all who stand on it, in one softmax with the rest.

As Juravsky et al. (2024), arXiv:2402.05099, do, the queries of all rows that stand on a trunk meet its keys in one
product of matrices. Their scores and those of a row's own keys are put side by side before the softmax, so that nothing
has to be merged. transformers is told of the function by its attention interface, and of one for masks beside it; both
do as usual in passes without trunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    chunked_overlay,
    sliding_window_overlay,
)

from ..memory.cache import Row, Trunk, chain
from .attending import attending_by
from .masking import known_mask

_NAME = "feynkac_trunks"
_SCORES = {"cpu": 4 << 20, "cuda": 64 << 20}
"""Most bytes of scores at once: on a CPU, what stays in its cache."""
_TENSORS = ("position_ids", "cache_position")
"""Tensors that models give to their attention, and that say nothing new."""


class Unshared(RuntimeError):
    """A model attends in a way that trunks do not serve."""


@dataclass(frozen=True)
class Part:
    """Rows that stand on the first ``length`` positions of a trunk, and the first of the columns of their scores."""

    trunk: Trunk
    length: int
    members: list[int]
    column: int

    @property
    def columns(self) -> slice:
        """The columns of the scores."""
        return slice(self.column, self.column + self.length)


class Seen:
    """What one pass attends to: columns ``low`` to ``end`` of the rows of a batch, and the trunks that they stand on.

    The queries are written from column ``at``.
    """

    def __init__(self, rows: Sequence[Row], low: int, at: int, end: int, device: Any) -> None:
        self._rows = rows
        self._low, self._at, self._end = low, at, end
        self._device = device
        self.own = end - low
        self.parts, self.width, self._full = _parts(rows, self.own)
        self._inside: dict[tuple[int, int], list[tuple[Part, Any, int]]] = {}
        self._layers: dict[int, tuple[Any, int]] = {}
        self._masks: dict[int, tuple[Any, Any]] = {}

    def note(self, keys: Any, layer: int) -> None:
        """Remember what keys a layer was given."""
        self._layers[id(keys)] = keys, layer

    def layer(self, keys: Any) -> int | None:
        """Return which layer was given some keys, if any was."""
        found = self._layers.get(id(keys))
        return None if found is None else found[1]

    def mask(self, function: Any, window: int | None, shape: tuple[int, ...]) -> Any:
        """Return a mask that `hidden` knows: by a function of the numbers of batch, head, query and key."""
        if not _by_position(function):
            raise Unshared("its mask depends on more than positions")
        longest = self._end - min(row.origin for row in self._rows)
        plain = function is causal_mask_function or (window is not None and longest <= window)
        hidden = self._own_hidden if plain else self._all_hidden(function)
        mask = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=self._device).expand(shape)
        self._masks[id(mask)] = mask, hidden
        return mask

    def hidden(self, mask: Any) -> Any:
        """Return what a mask hides of a row's own columns, or of all, (n, 1, q, columns); None: nothing."""
        found = self._masks.get(id(mask))
        if found is None:
            raise Unshared("it makes a mask of its own, or changes the one that it was given")
        return found[1]

    @cached_property
    def _own_hidden(self) -> Any:
        start = np.array([row.start for row in self._rows])[:, None, None]
        columns, queries = np.arange(self._low, self._end), np.arange(self._at, self._end)[:, None]
        if len(queries) == 1 and (start <= self._low).all():
            return None
        return torch.from_numpy(((columns < start) | (columns > queries))[:, None]).to(self._device)

    @cached_property
    def _positions(self) -> tuple[Any, Any]:
        """The positions of all columns (n, 1, 1, width), −1 where there is nothing, and of the queries (n, 1, q, 1)."""
        start = np.array([row.start for row in self._rows])[:, None]
        origin = np.array([row.origin for row in self._rows])[:, None]
        keys = np.full((len(self._rows), self.width), -1)
        columns = np.arange(self._low, self._end)
        keys[:, : self.own] = np.where(columns < start, -1, columns - origin)
        for part in self.parts:
            base = part.trunk.base
            keys[part.members, part.columns] = np.arange(base, base + part.length)
        queries = (np.arange(self._at, self._end) - origin).clip(min=0)
        given = (torch.from_numpy(array).to(self._device) for array in (keys, queries))
        return next(given)[:, None, None, :], next(given)[:, None, :, None]

    def _all_hidden(self, function: Any) -> Any:
        keys, queries = self._positions
        batch = torch.arange(len(self._rows), device=self._device)[:, None, None, None]
        seen = function(batch, torch.zeros_like(batch[:1]), queries, keys.clamp(min=0)) & (keys >= 0)
        return ~seen.expand(len(self._rows), 1, self._end - self._at, self.width)

    def attend(self, layer: int, query: Any, key: Any, value: Any, hidden: Any, softcap: Any, sinks: Any) -> Any:
        """Return what queries (n, h, q, d), scaled, get: (n, q, h, d). In pieces, where there are too many scores."""
        n, heads, queries, _ = query.shape
        most = max(1, _SCORES.get(query.device.type, 16 << 20) // (4 * heads * (self.width + 1)))
        if n * queries <= most:
            return self._block(layer, query, key, value, hidden, softcap, sinks, 0)
        step = max(1, most // n)
        few = max(1, most // step)
        out = query.new_empty((n, queries, heads, value.shape[-1]))
        for i in range(0, n, few):
            for j in range(0, queries, step):
                rows, some = slice(i, i + few), slice(j, j + step)
                cut = None if hidden is None else hidden[rows, :, some]
                piece = layer, query[rows, :, some], key[rows], value[rows], cut
                out[rows, some] = self._block(*piece, softcap, sinks, i)
        return out

    def _among(self, first: int, end: int) -> list[tuple[Part, Any, int]]:
        """Return the parts that some rows stand on: an index to those that do, counted from ``first``, and how many."""
        found = self._inside.get((first, end))
        if found is None:
            found = self._inside[first, end] = []
            for part in self.parts:
                rows = [row - first for row in part.members if first <= row < end]
                if rows:
                    near = rows[-1] - rows[0] == len(rows) - 1
                    where = slice(rows[0], rows[-1] + 1) if near else torch.tensor(rows, device=self._device)
                    found.append((part, where, len(rows)))
        return found

    def _block(
        self, layer: int, query: Any, key: Any, value: Any, hidden: Any, softcap: Any, sinks: Any, first: int
    ) -> Any:
        n, heads, queries, size = query.shape
        few, own, width = key.shape[1], self.own, self.width
        each = heads // few * queries
        query = query.reshape(n, few, each, size)
        turned = query.transpose(0, 1)
        exact = torch.promote_types(query.dtype, torch.float32)
        lowest = torch.finfo(exact).min
        blank = (few, n, each, width + (sinks is not None))
        scores = torch.empty(blank, dtype=exact, device=query.device)
        if not self._full:
            scores.fill_(lowest)
        scores[..., :own] = _capped(query @ key.transpose(2, 3), softcap).transpose(0, 1)
        inside = self._among(first, first + n)
        for part, where, count in inside:
            keys = part.trunk.layers[layer][0][0, :, : part.length]
            new = torch.bmm(turned[:, where].reshape(few, count * each, size), keys.transpose(1, 2))
            scores[:, where, :, part.columns] = _capped(new, softcap).view(few, count, each, part.length).to(exact)
        if hidden is not None:
            shown = scores.view(few, n, heads // few, queries, -1)[..., : hidden.shape[-1]]
            shown.masked_fill_(hidden.transpose(0, 1).unsqueeze(2), lowest)
        if sinks is not None:
            scores.view(few, n, heads // few, queries, -1)[..., width] = sinks.reshape(few, 1, heads // few, 1)
        weights = scores.softmax(-1).to(value.dtype)
        out = (weights[..., :own].transpose(0, 1) @ value).transpose(0, 1).contiguous()
        for part, where, count in inside:
            values = part.trunk.layers[layer][1][0, :, : part.length]
            some = weights[:, where, :, part.columns]
            new = torch.bmm(some.reshape(few, count * each, part.length), values)
            out[:, where] += new.view(few, count, each, -1)
        out = out.view(few, n, heads // few, queries, -1)
        return out.permute(1, 3, 0, 2, 4).reshape(n, queries, heads, -1).contiguous()


_OVERLAYS = [function.__code__ for function in (sliding_window_overlay(1), chunked_overlay(1, torch.zeros(1)))]
_BOTH = and_masks().__code__


def _by_position(function: Any) -> bool:
    """Return whether a mask is one of positions alone, causal, by windows or chunks: others look things up by them."""
    if getattr(function, "__code__", None) is _BOTH:
        return all(_by_position(part) for part in function.__closure__[0].cell_contents)
    return function is causal_mask_function or getattr(function, "__code__", None) in _OVERLAYS


def _capped(scores: Any, cap: float | None) -> Any:
    return scores if cap is None else cap * torch.tanh(scores / cap)


_seen: ContextVar[Seen | None] = ContextVar("what the pass of this thread attends to", default=None)


def _parts(rows: Sequence[Row], own: int) -> tuple[list[Part], int, bool]:
    """Return what rows stand on, the columns of all scores, and whether every row has scores in all of them."""
    levels: list[dict[tuple[int, int], tuple[Trunk, list[int]]]] = []
    for i, row in enumerate(rows):
        for level, (trunk, end) in enumerate(reversed(list(chain(row.trunk, row.base)))):
            if level == len(levels):
                levels.append({})
            levels[level].setdefault((id(trunk), end), (trunk, []))[1].append(i)
    parts: list[Part] = []
    column, full = own, True
    for held in levels:
        here = [Part(trunk, end - trunk.base, members, column) for (_, end), (trunk, members) in held.items()]
        full &= len({part.length for part in here}) == 1 and sum(len(part.members) for part in here) == len(rows)
        parts += here
        column += max(part.length for part in here)
    return parts, column, full


@contextmanager
def attending(configs: Sequence[Any], seen: Seen) -> Iterator[None]:
    """Within the block this thread's passes of a model with some configs attend to trunks."""
    token = _seen.set(seen)
    try:
        with attending_by(_NAME, configs):
            yield
    finally:
        _seen.reset(token)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None,
    softcap: float | None = None, s_aux: Any = None, **kwargs: Any,
) -> tuple[Any, None]:  # fmt: skip
    seen = _seen.get()
    layer = None if seen is None else seen.layer(key)
    if seen is None or layer is None:  # another thread's pass, or attention to what an encoder read
        if s_aux is not None:
            kwargs["s_aux"] = s_aux
        if softcap is not None:
            kwargs["softcap"] = softcap
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # type: ignore[no-any-return]
    strange = [name for name, given in kwargs.items() if isinstance(given, torch.Tensor) and name not in _TENSORS]
    if strange:
        raise Unshared(f"its attention is given {' and '.join(strange)}")
    hidden = seen.hidden(attention_mask)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return seen.attend(layer, query * scale, key, value, hidden, softcap, s_aux), None


def _mask(*args: Any, mask_function: Any = causal_mask_function, **kwargs: Any) -> Any:
    seen = _seen.get()
    if seen is None or kwargs.get("allow_is_bidirectional_skip"):
        return known_mask(*args, mask_function=mask_function, **kwargs)
    shape = kwargs["batch_size"], 1, kwargs["q_length"], kwargs["kv_length"]
    return seen.mask(mask_function, kwargs.get("local_size"), shape)


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _mask)

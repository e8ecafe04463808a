"""Keys and values of texts that are written side by side, and the attention of each to all of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray

from ..memory.kept import Wave
from .turning import Pass, Turn, angles_of

NEVER = 2**62
"""The tick of a place in which nothing was written."""
Layers = Mapping[int, tuple[Any, Any]]


class Seat:
    """A row of blocks, while they are kept: those boards hold it whose written tokens stand there.

    Attributes:
        wave: the blocks.
        row: which row.
        memory: in which of the model's memories they were made.
    """

    __slots__ = ("__weakref__", "memory", "row", "wave")

    def __init__(self, wave: Wave, row: int, memory: int) -> None:
        self.wave = wave
        self.row = row
        self.memory = memory
        wave.state.seats[row] = ref(self)

    @property
    def blocks(self) -> Any:
        """The blocks; None once they were dropped."""
        return self.wave.state


class Blocks:
    """Blocks of n caches with W texts each: per layer keys and values (n, W, heads, cap, dim), as if each began at 0.

    Attributes:
        seats: who sits in each row.
        times: the tick at which each token was written, (n, W, cap), on the model's device.
        filled: tokens written in each block, (n, W).
    """

    def __init__(self, shape: tuple[int, int, int], like: Layers) -> None:
        n, workers, cap = shape
        self.shape = shape
        self.layers = {
            layer: tuple(x.new_zeros((n, workers, x.shape[0], cap, x.shape[2])) for x in pair)
            for layer, pair in like.items()
        }
        self.seats: list[ref[Seat] | None] = [None] * n
        self.times = torch.full(shape, NEVER, device=next(iter(self.layers.values()))[0].device)
        self.filled = np.zeros((n, workers), np.int64)

    @property
    def free(self) -> list[int]:
        """The rows in which nobody sits."""
        return [row for row, seat in enumerate(self.seats) if seat is None or seat() is None]

    def copy(self, sources: Sequence[Seat], rows: Sequence[int], lengths: NDArray[np.int64]) -> None:
        """Copy the first ``lengths`` (k, W) tokens of what sits elsewhere into rows (k,), beyond which is nothing."""
        groups: dict[Blocks, list[int]] = defaultdict(list)
        for i, seat in enumerate(sources):
            groups[seat.blocks].append(i)
        device = self.times.device
        for blocks, index in groups.items():
            most = int(lengths[index].max())
            read = torch.tensor([sources[i].row for i in index], device=device)
            write = torch.tensor([rows[i] for i in index], device=device)
            for layer, pair in blocks.layers.items():
                for old, new in zip(pair, self.layers[layer]):
                    new[:, :, :, :most].index_copy_(0, write, old[:, :, :, :most].index_select(0, read))
            beyond = torch.from_numpy(np.arange(most) >= lengths[index][..., None]).to(device)
            self.times[write] = NEVER
            self.times[:, :, :most].index_copy_(
                0, write, blocks.times[:, :, :most].index_select(0, read).masked_fill(beyond, NEVER)
            )
        self.filled[list(rows)] = lengths


def size(shape: tuple[int, int, int], like: Layers) -> int:
    """Return the bytes of blocks of a shape."""
    one: int = sum(x.shape[0] * x.shape[2] * x.element_size() for pair in like.values() for x in pair)
    return shape[0] * shape[1] * shape[2] * (one + 8)


class Prompt(Pass):
    """A pass over a prompt alone, by the model's own attention; keeps (heads, length, dim) of each layer."""

    attends = False

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, tuple[Any, Any]] = {}

    def write(self, keys: Any, values: Any) -> None:
        """Keep the keys and values of a layer."""
        self.kept[self.layer] = keys[0], values[0]


class Writing(Pass):
    """A pass that writes tokens into blocks: rows (n, W, q), the tokens of each at the right of its row.

    A token that is written at tick t attends to the prompt, to its own block up to itself, and to all that the others
    have written up to t. It stands after the prompt, the others' blocks in order, and its own.

    Args:
        blocks: where they are written.
        counts: how many in each block, (n, W).
        times: when, (n, W, q); −1 where there is none.
        prompts: keys and values of the prompts, and the rows that go on from each.
        turns: how each layer turns its queries.
    """

    def __init__(
        self, blocks: Blocks, counts: NDArray[np.int64], times: NDArray[np.int64],
        prompts: Sequence[tuple[Layers, Sequence[int]]], turns: Mapping[int, Turn | None],
    ) -> None:  # fmt: skip
        super().__init__()
        device = blocks.times.device
        self.blocks = blocks
        self._turns = turns
        n, workers, q = times.shape
        own = blocks.filled[..., None] + np.arange(q) - (q - counts[..., None])
        self.positions = np.where(times >= 0, own, 0).reshape(n * workers, q)
        """Where each token stands in its block."""
        source = np.nonzero(times >= 0)
        places = (*source[:2], own[source])
        self._from, self._to = ([torch.from_numpy(x).to(device) for x in index] for index in (source, places))
        self._after = blocks.filled + counts
        self._end = int(self._after.max())
        now = torch.from_numpy(times).to(device)
        blocks.times[*self._to] = now[*self._from]
        self._prompts = [(layers, torch.tensor(rows, device=device)) for layers, rows in prompts]
        self._see(now, torch.from_numpy(own).to(device))

    def _see(self, now: Any, own: Any) -> None:
        """Find out what each token sees, and how far on from its place in its own block it stands to that."""
        n, workers, q = now.shape
        device = now.device
        columns = torch.arange(self._end, device=device)
        mine = torch.eye(workers, dtype=torch.bool, device=device)[:, None, :, None]
        others = self.blocks.times[:, None, None, :, : self._end] <= now[..., None, None]
        self._seen = torch.where(mine, columns <= own[..., None, None], others)  # (n, W, q, W, end)
        counts = self._seen.sum(-1).masked_fill(mine[..., 0], 0)
        self._beyond = counts.flip(-1).cumsum(-1).flip(-1).masked_fill(mine[..., 0], 0)  # (n, W, q, W)
        lengths = torch.zeros(n, dtype=torch.long, device=device)
        for layers, rows in self._prompts:
            lengths[rows] = next(iter(layers.values()))[0].shape[1]
        self._behind = lengths[:, None, None] + counts.sum(-1)  # (n, W, q)
        ahead = torch.arange(int(lengths.max()), device=device)
        self._known = (ahead < lengths[:, None])[:, None, None].expand(n, workers, q, -1)
        # What stands for no token may see the whole prompt: it must be finite.
        self._far = (
            ((own + self._behind)[..., None] - ahead).masked_fill((now < 0)[..., None], 0),
            (own[..., None] + self._beyond)[..., None] - columns,
        )
        self._front, self._sides = angles_of(self._turns, self._behind), angles_of(self._turns, self._beyond)

    def write(self, keys: Any, values: Any) -> None:
        """Write the keys and values of a layer where they belong."""
        n, workers, _ = self.blocks.shape
        row, worker, column = self._to
        for new, place in zip((keys, values), self.blocks.layers[self.layer]):
            rows = new.unflatten(0, (n, workers)).transpose(2, 3)
            place[row, worker, :, column] = rows[*self._from]

    def attend(self, query: Any, scaling: float, window: int | None, softcap: float | None, sinks: Any) -> Any:
        """Attend to the prompt and to the blocks, each with the query turned to where it is seen from."""
        n, workers, _ = self.blocks.shape
        keys, values = (x[:, :, :, : self._end] for x in self.blocks.layers[self.layer])
        heads, end, ahead = keys.shape[2], self._end, self._known.shape[-1]
        query = query.view(n, workers, heads, -1, *query.shape[2:])  # (n, W, heads, group, q, dim)
        turn = self._turns[self.layer]
        front, sides = query, query[:, :, None]
        if turn is not None:
            front = turn(front, tuple(x[:, :, None, None] for x in self._front[turn]))
            sides = turn(sides, tuple(x.transpose(2, 3)[:, :, :, None, None] for x in self._sides[turn]))
        scores = query.new_zeros((*query.shape[:-1], ahead + workers * end))
        for layers, rows in self._prompts:
            first = layers[self.layer][0]
            scores[rows, ..., : first.shape[1]] = torch.einsum("nwhgqd,hpd->nwhgqp", front[rows], first)
        scores[..., ahead:] = torch.einsum("nwbhgqd,nbhcd->nwhgqbc", sides, keys).flatten(-2)
        scores = scores.float() * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        seen = torch.cat([self._known, self._seen.flatten(-2)], -1)
        if window is not None:
            seen = seen & (torch.cat([self._far[0], self._far[1].flatten(-2)], -1) < window)
        scores = scores.masked_fill(~seen[:, :, None, None], -math.inf)
        if sinks is not None:
            drain = sinks.float().view(heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, drain], -1)
        weights = scores.softmax(-1).to(values.dtype)
        beside = weights[..., ahead : ahead + workers * end].unflatten(-1, (workers, end))
        out = torch.einsum("nwhgqbc,nbhcd->nwhgqd", beside, values)
        for layers, rows in self._prompts:
            second = layers[self.layer][1]
            out[rows] += torch.einsum("nwhgqp,hpd->nwhgqd", weights[rows, ..., : second.shape[1]], second)
        return out.permute(0, 1, 4, 2, 3, 5).flatten(3, 4).flatten(0, 1)

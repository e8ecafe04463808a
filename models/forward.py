"""Forward passes: which histories go through the model together, and what comes out."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray

from ..ppl.errors import Unsupported
from .cache import SlabCache
from .store import Job, Placement, Store, locate
from .tree import Node

_POSITIONS = 8192
"""Most positions, padding included, in one pass of several rows."""
_LOGITS = 2**26
"""Most logits in one pass of several rows that keeps them at all positions."""


class Tally:
    """What a call used: forward passes, and positions forwarded for each of its ``n`` requests."""

    def __init__(self, n: int) -> None:
        self.calls = 0
        self.tokens_in: NDArray[np.int64] = np.zeros(n, np.int64)
        self.tokens_out: NDArray[np.int64] = np.zeros(n, np.int64)

    @property
    def amounts(self) -> dict[str, Any]:
        """The amounts to be charged."""
        return {"model_calls": self.calls, "tokens_in": self.tokens_in, "tokens_out": self.tokens_out}


class Forwarder:
    """Runs a causal model over the token tree."""

    def __init__(self, model: Any, store: Store, max_batch: int, vocab_size: int) -> None:
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._keeps_logits = "logits_to_keep" in accepted
        self.model = model
        self.store = store
        self.max_batch = max_batch
        self.vocab_size = vocab_size
        self.forwarded = 0
        self._kept: OrderedDict[int, ref[_Wave]] = OrderedDict()
        self._kept_limit = store.limit // 16

    def next_logits(self, nodes: Sequence[Node], owners: NDArray[np.intp], tally: Tally) -> Any:
        """Return the next-token logits after each history, a float32 tensor (n, V).

        Repeats are forwarded once; what is forwarded is charged to ``owners[i]`` of the first that needs it.
        """
        found: dict[Node, tuple[Any, int]] = {}
        missing: dict[Node, int] = {}
        for i, node in enumerate(nodes):
            if node not in found and node not in missing:
                kept = self._recall(node)
                if kept is None:
                    missing[node] = i
                else:
                    found[node] = kept
        if missing:
            fresh = list(missing)

            def keep(jobs: Sequence[Job], logits: Any) -> None:
                wave = _Wave(logits[:, -1])
                for row, job in enumerate(jobs):
                    tally.tokens_in[owners[missing[job.node]]] += job.pending
                    job.node.logits = wave, row
                    found[job.node] = wave.logits, row
                self._remember(wave)

            tally.calls += self.run(fresh, [node.length - 1 for node in fresh], keep, len(nodes))
        return _gather([found[node] for node in nodes])

    def all_logits(
        self, nodes: Sequence[Node], first: Sequence[int], sink: Callable[[Sequence[Job], Any], None]
    ) -> int:
        """Forward histories; ``sink`` gets the logits at positions ``first[i]`` on. Returns the passes made.

        ``sink(jobs, logits)`` gets a tensor (n, k, V) whose last ``job.pending`` positions belong to job i;
        these begin at ``first[i]`` or before.
        """
        return self.run(nodes, first, sink, 1, every=True)

    def run(
        self,
        nodes: Sequence[Node],
        first: Sequence[int],
        sink: Callable[[Sequence[Job], Any], None],
        width: int,
        every: bool = False,
    ) -> int:
        """Forward distinct histories from position ``first[i]``, or before, on. Returns the passes made."""
        jobs = [locate(node, start) for node, start in zip(nodes, first)]
        starts = dict(zip(nodes, first))
        passes = 0
        for group in self._groups(jobs, every):
            # An earlier group may have moved or dropped what this one was to start from.
            group = [locate(job.node, starts[job.node]) for job in group] if passes else group
            spare = width if len(group) == len(jobs) else len(group)
            sink(group, self._pass(group, min(spare, self.max_batch), every))
            passes += 1
        return passes

    def _groups(self, jobs: Sequence[Job], every: bool) -> Iterator[list[Job]]:
        """Cut jobs into passes of similar shape, so that padding at most about doubles the work."""
        limit = min(_POSITIONS, _LOGITS // self.vocab_size) if every else _POSITIONS
        group: list[Job] = []
        pending = length = 0
        for job in sorted(jobs, key=_shape):
            n = len(group) + 1
            wide = n * job.pending > max(2 * (pending + job.pending), 64)
            longest = max(job.node.length, max((other.node.length for other in group[-1:]), default=0))
            long = n * longest > 2 * (length + job.node.length) + 512
            if group and (n > self.max_batch or n * job.pending > limit or wide or long):
                yield group
                group, pending, length = [], 0, 0
            group.append(job)
            pending += job.pending
            length += job.node.length
        if group:
            yield group

    def _pass(self, jobs: Sequence[Job], width: int, every: bool) -> Any:
        queries = max(job.pending for job in jobs)
        placement = self.store.place(jobs, max(width, len(jobs)))
        try:
            logits = self._forward(jobs, placement, queries, queries if every else 1)
        except BaseException:
            placement.slab.drop()  # half-written rows must not be read
            raise
        self.store.settle(jobs, placement)
        self.forwarded += sum(job.pending for job in jobs)
        return logits

    def _forward(self, jobs: Sequence[Job], placement: Placement, queries: int, keep: int) -> Any:
        rows, end = placement.rows, placement.end
        top = min(row.index for row in rows)
        window = slice(top, top + len(rows))
        low = min(row.start for row in rows)
        ids = np.zeros((len(jobs), queries), np.int64)
        start = np.zeros((len(jobs), 1), np.int64)
        base = np.zeros((len(jobs), 1), np.int64)
        for job, row in zip(jobs, rows):
            i = row.index - top
            ids[i, queries - job.pending :] = job.node.tokens(job.base)
            start[i], base[i] = row.start, job.base
        positions = np.arange(end - queries, end) - start
        written = positions >= base
        inputs: dict[str, Any] = {"input_ids": self._tensor(ids)}
        if self._takes_positions:
            inputs["position_ids"] = self._tensor(positions.clip(min=0))
        if (start > low).any():
            inputs["attention_mask"] = self._tensor((np.arange(low, end) >= start).astype(np.int64))
        if self._keeps_logits:
            inputs["logits_to_keep"] = keep
        valid = None if written.all() else self._tensor(written[:, None, :, None])
        cache = SlabCache(placement.slab, window, low, end - queries, valid)
        logits = self.model(**inputs, past_key_values=cache, use_cache=True).logits
        if not placement.slab.layers:
            raise Unsupported(f"{type(self.model).__name__} did not use its attention cache")
        order = [row.index - top for row in rows]
        logits = logits[:, -keep:].float()
        return logits if order == sorted(order) else logits[torch.tensor(order, device=logits.device)]

    def _tensor(self, array: NDArray[Any]) -> Any:
        return torch.from_numpy(array).to(self.model.device)

    def _recall(self, node: Node) -> tuple[Any, int] | None:
        if node.logits is None:
            return None
        wave, row = node.logits
        if wave.logits is None:
            node.logits = None
            return None
        self._kept.move_to_end(id(wave))
        return wave.logits, row

    def _remember(self, wave: _Wave) -> None:
        """Keep a wave while a node needs it, and the least recently used no longer than the limit allows."""
        key, size = id(wave), wave.logits.nbytes

        def gone(_: ref[_Wave]) -> None:
            if self._kept.pop(key, None) is not None:
                self.store.other_bytes -= size

        self._kept[key] = ref(wave, gone)
        self.store.other_bytes += size
        while self.store.other_bytes > self._kept_limit:
            oldest = self._kept.popitem(last=False)[1]()
            if oldest is not None:
                self.store.other_bytes -= oldest.logits.nbytes
                oldest.logits = None


class _Wave:
    """The next-token logits of one pass (n, V), until they are dropped."""

    def __init__(self, logits: Any) -> None:
        self.logits = logits


def _shape(job: Job) -> tuple[int, int, int, int]:
    """Sort key: like shapes together, and the rows of a slab together and in order."""
    row = job.row
    return (job.pending, job.node.length, *((0, 0) if row is None else (id(row.slab), row.index)))


def _gather(places: Sequence[tuple[Any, int]]) -> Any:
    """Stack rows of waves, (n, V), with one copy at most."""
    first = places[0][0]
    if all(wave is first for wave, _ in places):
        rows = [row for _, row in places]
        if rows == list(range(len(first))):
            return first
        return first[torch.tensor(rows, device=first.device)]
    return torch.stack([wave[row] for wave, row in places])

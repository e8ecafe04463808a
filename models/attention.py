"""Forward passes over keys and values that are kept in slabs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..ppl.errors import Unsupported
from .cache import SlabCache
from .forward import CacheInfo, Forwarder
from .kept import Kept
from .store import Job, Placement, Store, locate
from .tree import Node, Tree


class AttentionForwarder(Forwarder):
    """Runs a causal model that attends over a cache of keys and values.

    Of ``limit`` bytes a sixteenth is for logits, the rest for keys and values. A history that does not fit
    is forwarded whole each time, and kept nowhere.

    Raises `Unsupported` for a model that keeps something else in its cache.
    """

    def __init__(self, model: Any, tree: Tree, limit: int, max_batch: int, vocab_size: int) -> None:
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._keeps_logits = "logits_to_keep" in accepted
        self.store = Store(limit - limit // 16)
        super().__init__(model, tree, Kept(limit // 16), max_batch, vocab_size)
        with torch.inference_mode():
            self._measure()

    def _measure(self) -> None:
        """Forward a token, to learn what a position takes."""
        self.attempt([Job(Node(None, -1, (0,)), 0, None, None)], 1, False)
        self.forget()

    def info(self) -> CacheInfo:
        """Return what is held in memory."""
        store, kept = self.store, self.kept
        return CacheInfo(
            store.bytes + kept.bytes, store.peak + kept.peak, store.limit + kept.limit,
            len(store.slabs), store.evictions + kept.evictions, self.forwarded, self.recomputed,
        )  # fmt: skip

    def forget(self) -> None:
        """Count from zero."""
        super().forget()
        self.store.peak = self.kept.peak = 0

    def clear(self) -> None:
        """Drop all that is held in memory."""
        super().clear()
        self.store.clear()

    def locate(self, node: Node, first: int) -> Job:
        """Find the longest kept beginning of a history, of at most ``first`` positions."""
        return locate(node, first)

    def order(self, job: Job) -> tuple[int, ...]:
        """Like shapes together, and the rows of a slab together and in order."""
        row = job.row
        return (job.pending, job.node.length, *((0, 0) if row is None else (id(row.slab), row.index)))

    def keeps(self, length: int) -> bool:
        """Return whether a history of some length can be kept while another is forwarded from it."""
        return 2 * length * self.store.position_bytes <= self.store.limit

    def attempt(self, jobs: Sequence[Job], width: int, every: bool) -> Any:
        """Forward jobs together, in a slab; logits (n, k, V), or None where the slab does not fit."""
        placement = self.store.place(jobs, max(width, len(jobs)))
        if placement is None:
            return None
        queries = max(job.pending for job in jobs)
        try:
            logits = self._forward(jobs, placement, queries, queries if every else 1)
        except BaseException:
            placement.slab.drop()  # half-written rows must not be read
            raise
        self.store.settle(jobs, placement)
        return logits

    def bare(self, job: Job, every: bool) -> Any:
        """Forward one whole history and keep nothing; logits (1, k, V)."""
        inputs = {"logits_to_keep": 0 if every else 1} if self._keeps_logits else {}
        ids = self.tensor(np.array([job.node.tokens()], np.int64))
        logits = self.invoke(input_ids=ids, use_cache=False, **inputs).logits
        return (logits if every else logits[:, -1:]).float()

    def _forward(self, jobs: Sequence[Job], placement: Placement, queries: int, keep: int) -> Any:
        rows, end = placement.rows, placement.end
        top = min(row.index for row in rows)
        window = slice(top, top + len(rows))
        low = min(row.start for row in rows)
        order = [row.index - top for row in rows]
        ids = np.zeros((len(jobs), queries), np.int64)
        start = np.zeros((len(jobs), 1), np.int64)
        base = np.zeros((len(jobs), 1), np.int64)
        for i, job, row in zip(order, jobs, rows):
            ids[i, queries - job.pending :] = job.node.tokens(job.base)
            start[i], base[i] = row.start, job.base
        positions = np.arange(end - queries, end) - start
        written = positions >= base
        inputs: dict[str, Any] = {}
        if self._takes_positions:
            inputs["position_ids"] = self.tensor(positions.clip(min=0))
        mask = self.tensor((np.arange(low, end) >= start).astype(np.int64)) if (start > low).any() else None
        if self._keeps_logits:
            inputs["logits_to_keep"] = keep
        valid = None if written.all() else self.tensor(written[:, None, :, None])
        cache = SlabCache(placement.slab, window, low, end - queries, valid)
        in_order = [jobs[k] for k in np.argsort(order)]
        logits = self._call(in_order, self.tensor(ids), mask, cache, inputs)
        if not placement.slab.layers:
            raise Unsupported(f"{type(self.model).__name__} did not use its attention cache")
        logits = logits[:, -keep:].float()
        return logits if order == sorted(order) else logits[torch.tensor(order, device=logits.device)]

    def _call(self, jobs: Sequence[Job], ids: Any, mask: Any, cache: Any, inputs: dict[str, Any]) -> Any:
        """Run the model on the jobs in the order of the batch; logits (n, k or more, V)."""
        if mask is not None:
            inputs["attention_mask"] = mask
        return self.invoke(input_ids=ids, past_key_values=cache, use_cache=True, **inputs).logits

"""Forward passes over keys and values that are kept in slabs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ppl.errors import Unsupported
from ..memory.cache import Row, SlabCache
from ..memory.histories import Histories, History
from ..memory.jobs import Job
from ..memory.kept import CacheInfo, Kept
from ..memory.store import Placement, Store
from ..weights.staging import send
from ..weights.wrappers import accepted, core, first_position
from .attending import attention_configs
from .forward import Forwarder
from .masking import maskable, masking
from .trial import Trial, trying
from .trunked import Seen, Unshared, attending


class AttentionForwarder(Forwarder):
    """Runs a causal model that attends over a cache of keys and values.

    Of ``limit`` bytes a sixteenth is for logits, the rest for keys and values. A history that does not fit
    is forwarded whole each time, and kept nowhere.

    Histories of unequal lengths share a pass, padded on the left, where the model takes the numbers of their
    positions or needs none; else those of one length do. The model is tried on a few tokens: what it gives piece by
    piece must be what it gives at once. A model that turns keys by the length of the whole text (LongRoPE) does so
    here by the length of each: past the length where it changes, what was kept is computed again.

    What several histories begin with is held once, in trunks, where the model attends by transformers' attention
    interface and what it gives is exact so; else each has a copy.

    Raises `Unsupported` for a model whose steps give other logits than a pass over the whole.
    """

    positions_name = "position_ids"

    def __init__(
        self, model: Any, tree: Histories, limit: int | None, max_batch: int, vocab_size: int,
        longest: int | None = None,
    ) -> None:  # fmt: skip
        self._takes_positions = False
        self._keeps_logits = "logits_to_keep" in accepted(model)
        self._first = first_position(core(model))
        self.ragged = True
        """Whether histories of unequal lengths can share a pass."""
        self._padding: int | None = None
        """The padding token, if the model takes it for padding even within a text."""
        self.blocks: Kept | None = None
        """What texts have that are written side by side, once any are (see `LocalWorkers`)."""
        self._turn = turn(core(model).config.to_dict())
        self.store = Store(0, self._turn)
        self.configs: list[Any] = []
        """What tells the parts of the model by what function they attend."""
        self._masks = False
        """Whether masks of the model are made here, so that nobody waits for the device."""
        self.longest = min((n for n in (longest, self._turn) if n is not None), default=None)
        """The longest history to try the model on."""
        super().__init__(model, tree, limit, max_batch, vocab_size)
        self.measure()

    def allot(self, limit: int) -> None:
        """Share a number of bytes out among what is held, and drop what is beyond."""
        self.kept.limit, self.store.limit = limit // 16, limit - limit // 16
        if self.blocks is not None:
            self.blocks.limit = self.store.limit // 2
            self.store.limit -= self.blocks.limit
            self.blocks.make_room(0)
        self.kept.make_room(0)
        self.store.fit()

    def measure(self) -> None:
        """Try the model on a few tokens: how can it be run exactly, and what does a position take?"""
        self.store.reset()
        self.configs = attention_configs(core(self.model))
        batch, self.max_batch = self.max_batch, max(self.max_batch, 4)
        try:  # unlimited, or histories that should meet in a pass might not
            with self.live.hold(), self.unlimited(), trying(self.model):
                self._settle()
        finally:
            self.max_batch = batch
            self.forget()

    def _settle(self) -> None:
        """Run the model as it serves best and passes; without padding tokens within texts, if not with them."""
        self._padding = None
        self.store.shares = False
        padding = getattr(core(self.model).config.get_text_config(), "pad_token_id", None)
        known = padding is not None and 0 <= padding < self.vocab_size
        fault: Exception | None = None
        for tried in (padding, None) if known else (None,):
            trial = Trial(self, self.roots, self.longest, tried)
            for numbered, ragged, masks in self._ways():
                self.clear()
                self._takes_positions, self.ragged, self._masks = numbered, ragged, masks
                fault = trial.fault()
                if fault is None:
                    self._padding = padding if known and tried is None else None
                    self._try_trunks(trial)
                    return
        assert fault is not None
        raise fault

    def _try_trunks(self, trial: Trial) -> None:
        """Find out whether the model is exact where what its histories begin with is held in trunks."""
        self.clear()
        with self.store.eager():
            fault = trial.fault()
            self.store.shares = self.store.shares and fault is None and self.store.sealed > 0

    def _ways(self) -> list[tuple[bool, bool, bool]]:
        """Whether to number positions, to pad, and to make the masks: from what serves best to what asks least.

        Models that look by themselves at the name of the function by which they attend make their own masks.
        """
        numbered = [True, False] if self.positions_name in accepted(self.model) else [False]
        masked = [True, False] if maskable(self.configs) else [False]
        ways = [*((number, True) for number in numbered), (False, False)]
        return [(*way, masks) for way in ways for masks in masked]

    def info(self) -> CacheInfo:
        """Return what is held in memory."""
        store, kept = self.store, self.kept
        info = CacheInfo(
            store.bytes + kept.bytes, store.peak + kept.peak, store.limit + kept.limit,
            len(store.slabs), store.evictions + kept.evictions, self.forwarded, self.recomputed, self.shortages,
            len(store.trunks), store.shares,
        )  # fmt: skip
        return info if self.blocks is None else info.beside(self.blocks)

    def forget(self) -> None:
        """Count from zero."""
        super().forget()
        self.store.peak = self.kept.peak = self.store.evictions = self.kept.evictions = 0

    def clear(self) -> None:
        """Drop all that is held in memory."""
        super().clear()
        self.store.clear()
        if self.blocks is not None:
            self.blocks.clear()

    def locate(self, node: History, first: int) -> Job:
        """Find the longest kept beginning of a history, of at most ``first`` positions."""
        return self.store.locate(node, first)

    def stretch(self, first: int, end: int) -> int:
        """Return how far, at most to ``end``, one pass over a whole serves its positions from ``first`` on."""
        return end if self._turn is None or first >= self._turn else min(end, self._turn)

    def together(self, one: Job, other: Job) -> bool:
        """Return whether two jobs can share a pass."""
        if self._turn is not None and (one.node.length > self._turn) != (other.node.length > self._turn):
            return False
        return self.ragged or (one.node.length == other.node.length and one.pending == other.pending)

    def mark(self, job: Job) -> int:
        """Return what marks the positions of a job: those marked so were forwarded before, and should be known."""
        if job.base == 0 and self._padding is not None and self._padding in job.node.tokens():
            return -1  # it is never kept, however much memory there is
        return 2 * super().mark(job) + (self._turn is not None and job.node.length > self._turn)

    def order(self, job: Job) -> tuple[int, ...]:
        """Like shapes together, and the rows of a slab together and in order."""
        place = job.place
        at = (id(place.slab), place.index) if isinstance(place, Row) else (id(place), 0)
        return (job.pending, job.columns, *at)

    def keeps(self, length: int) -> bool:
        """Return whether a history of some length can be kept while another is forwarded from it."""
        return 2 * length * self.store.position_bytes <= self.store.limit

    def attempt(self, jobs: list[Job], width: int, every: bool) -> Any:
        """Forward jobs together, in a slab; logits (n, k, V), or None where the slab does not fit.

        Nor does a text with a padding token fit where that changes what the model makes of the rest.
        """
        if self._padding is not None and any(self._padding in job.node.tokens() for job in jobs):
            return None
        placement = self.store.place(jobs, max(width, len(jobs)), self._needed, self.more)
        if placement is None:
            return None
        order = sorted(range(len(jobs)), key=lambda i: placement.rows[i].index)
        jobs[:] = [jobs[i] for i in order]
        placement.rows[:] = [placement.rows[i] for i in order]
        queries = max(job.pending for job in jobs)
        try:
            logits = self._forward(jobs, placement, queries, queries if every else 1)
        except Unshared:  # the model attends otherwise than when it was tried: from now on without trunks
            self.store.shares = False
            self.store.clear()
            return None
        except BaseException:
            placement.slab.drop()  # half-written rows must not be read
            raise
        self.store.settle(jobs, placement)
        return logits

    def fitting(self, jobs: Sequence[Job]) -> int:
        """Return how many of some jobs, from the first on, may fit into memory together; not all."""
        return self.store.fitting(jobs, self._needed())

    def _needed(self) -> list[Job]:
        """Find what other histories of the wave stand on, where that is most of them."""
        found = [self.locate(node, node.length) for node in self.others]
        return [job for job in found if job.base >= job.pending]

    def begin(self) -> None:
        """Note that a wave begins: what is used from now on is kept rather than what was used before."""
        super().begin()
        self.store.begin()

    def bare(self, job: Job, every: bool) -> Any:
        """Forward one whole history and keep nothing; logits (1, k, V)."""
        inputs = {"logits_to_keep": 0 if every else 1} if self._keeps_logits else {}
        ids = self.tensor(np.array([job.node.tokens()], np.int64))
        logits = self.invoke(input_ids=ids, use_cache=False, **inputs).logits
        return (logits if every else logits[:, -1:]).float()

    def _forward(self, jobs: Sequence[Job], placement: Placement, queries: int, keep: int) -> Any:
        rows, end = placement.rows, placement.end
        window = slice(rows[0].index, rows[0].index + len(rows))
        low, origin = min(row.start for row in rows), min(row.origin for row in rows)
        start = np.array([[row.start] for row in rows])
        ids = np.zeros((len(jobs), queries), np.int64)
        for given, job in zip(ids, jobs):
            given[queries - job.pending :] = job.node.tokens(job.base)
        positions = np.arange(end - queries, end) - np.array([[row.origin] for row in rows])
        written = positions >= np.array([[job.base] for job in jobs])
        device = core(self.model).device
        seen = None
        if any(row.trunk is not None for row in rows):
            seen = Seen(rows, low, end - queries, end, device)
        arrays = {"ids": ids}
        if self._takes_positions:
            arrays["positions"] = positions.clip(min=0) + self._first
        if seen is None and (start > low).any():
            arrays["mask"] = (np.arange(low, end) >= start).astype(np.int64)
        if not written.all():
            arrays["valid"] = written[:, None, :, None]
        sent = dict(zip(arrays, send(device, *arrays.values())))
        inputs: dict[str, Any] = {"logits_to_keep": keep} if self._keeps_logits else {}
        if "positions" in sent:
            inputs[self.positions_name] = sent["positions"]
        cache = SlabCache(placement.slab, window, low, end - queries, end - queries - origin, sent.get("valid"), seen)
        own = masking(self.configs if self._masks else ())
        with own if seen is None else attending(self.configs, seen):
            logits = self._call(jobs, sent["ids"], sent.get("mask"), cache, inputs)
        if not placement.slab.layers:
            raise Unsupported(f"{type(self.model).__name__} did not use its attention cache")
        return logits[:, -keep:].float()

    def _call(self, jobs: Sequence[Job], ids: Any, mask: Any, cache: Any, inputs: dict[str, Any]) -> Any:
        """Run the model on the jobs in the order of the batch; logits (n, k or more, V)."""
        if mask is not None:
            inputs["attention_mask"] = mask
        return self.invoke(input_ids=ids, past_key_values=cache, use_cache=True, **inputs).logits


def turn(config: dict[str, Any]) -> int | None:
    """Return the length of text past which a model turns all its keys otherwise (LongRoPE); None where it never does.

    Such a model reads shorter texts with one set of frequencies and longer ones with another, and keys that were kept
    of one set are wrong in the other (Ding et al. 2024, arXiv:2402.13753).
    """
    rope = config.get("rope_parameters") or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    lengths = [kind.get("original_max_position_embeddings") for kind in kinds if kind.get("rope_type") == "longrope"]
    return min((n or config["original_max_position_embeddings"] for n in lengths), default=None)

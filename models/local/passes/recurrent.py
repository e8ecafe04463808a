"""Forward passes over recurrent states: a state is a snapshot after a history, and a fork is a copy of its row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ....ppl.errors import Unsupported
from ..memory.histories import Histories, History
from ..memory.jobs import Job
from ..memory.kept import CacheInfo, Wave
from ..memory.shortage import ran_out
from ..memory.states import FIELDS, States, rebuild, select, tensors
from ..weights.wrappers import FAULTS, accepted, core
from .forward import Forwarder
from .trial import distance, most_by_rounding, trying

_PROBE = 12
_ROWS = 3


class RecurrentForwarder(Forwarder):
    """Runs a causal model whose cache cannot be cut to a prefix: a state-space model, an RNN, a hybrid.

    The state after each forwarded history is kept at its node while memory allows; what goes on from it starts
    from a copy, so any history can be forked at any time. After a history whose state was dropped, the nearest
    one above it is gone on from. Histories are never padded: those with equally many tokens to go share a pass.

    Models differ in what their caches can do, and some are wrong for several tokens after a state, or for a
    batch. So the model is tried on a few tokens: what it gives step by step must be what it gives at once.

    Raises `Unsupported` for a model whose steps give other logits than a pass over the whole.
    """

    def __init__(self, model: Any, tree: Histories, limit: int | None, max_batch: int, vocab_size: int) -> None:
        super().__init__(model, tree, limit, max_batch, vocab_size)
        self._keeps_logits = "logits_to_keep" in accepted(model)
        self._numbers = False
        """Whether the model is told the positions of tokens after a state, as it does not know them itself."""
        self._field = ""
        self._by_row: Sequence[bool] = ()
        self._adapt = _plain
        self._flat = self._slope = 0.0
        self.ragged = False
        """Whether states after histories of different lengths can share a pass."""
        self._chunks = False
        """Whether several tokens can follow a state in one pass."""
        self.measure()

    def allot(self, limit: int) -> None:
        """Share a number of bytes out among what is held, and drop what is beyond."""
        self.kept.limit = limit
        self.kept.make_room(0)

    def info(self) -> CacheInfo:
        """Return what is held in memory."""
        kept = self.kept
        return CacheInfo(
            kept.bytes, kept.peak, kept.limit, len(kept), kept.evictions,
            self.forwarded, self.recomputed, self.shortages,
        )  # fmt: skip

    def locate(self, node: History, first: int) -> Job:
        """Find the longest history with a kept state that this one begins with, of at most ``first`` positions."""
        holder: History | None = node
        while holder is not None:
            if holder.state is not None and holder.length <= first:
                if holder.state[0].state is not None:
                    return Job(node, holder.length, holder, None)
                holder.state = None
            holder = holder.above
        return Job(node, 0, None, None)

    def order(self, job: Job) -> tuple[int, ...]:
        """Like shapes together, and then those that go on from the same states."""
        wave = 0 if job.holder is None or job.holder.state is None else id(job.holder.state[0])
        row = 0 if job.holder is None or job.holder.state is None else job.holder.state[1]
        return (job.pending, *(() if self.ragged else (job.base,)), bool(job.base), wave, row)

    def together(self, one: Job, other: Job) -> bool:
        """Return whether two jobs can share a pass: equally many tokens to go, after a state both or neither."""
        if one.pending != other.pending or bool(one.base) != bool(other.base):
            return False
        return self.ragged or one.base == other.base

    def keeps(self, length: int) -> bool:
        """Return whether a history of some length can be kept while another is forwarded from it."""
        return 2 * self._row_bytes(length) <= self.kept.limit

    def remember(self, jobs: Sequence[Job], last: Any) -> None:
        """Do nothing: the logits after a history are kept with its state."""

    def attempt(self, jobs: list[Job], width: int, every: bool) -> Any:
        """Forward jobs together; logits (n, k, V), or None where their states do not fit."""
        size = sum(self._row_bytes(job.node.length) for job in jobs)
        sources = [job.holder.state for job in jobs if job.holder is not None and job.holder.state is not None]
        using = {id(wave) for wave, _ in sources}
        if self.kept.bytes + size > self.kept.limit:  # nor is what others of the wave are to go on from dropped
            ahead = [job.holder for node in self.others if (job := self.locate(node, node.length)).base >= job.pending]
            using |= {id(node.state[0]) for node in ahead if node is not None and node.state is not None}
        if not self.kept.make_room(size, lambda wave: id(wave) in using):
            return None
        state = select([(wave.state, row) for wave, row in sources]) if sources else None
        for wave, _ in sources:
            self.kept.touch(wave)
        ids = self.tensor(np.array([job.node.tokens(job.base) for job in jobs], np.int64))
        bases = [job.base for job in jobs]
        if state is None or self._chunks:
            logits, state = self._step(ids, state, every, bases)
        else:
            parts = []
            for k in range(ids.shape[1]):
                part, state = self._step(ids[:, k : k + 1], state, every, [base + k for base in bases])
                parts.append(part)
            logits = torch.cat(parts, 1) if every else parts[-1]
        states = self._states(state)
        lasting = any(job.node.root is None for job in jobs)
        wave = Wave(logits[:, -1], states, states.bytes, lasting, self.lens.taken)
        if self.kept.keep(wave):
            for row, job in enumerate(jobs):
                job.node.logits = job.node.state = wave, row
        return logits

    def bare(self, job: Job, every: bool) -> Any:
        """Forward one whole history and keep nothing; logits (1, k, V)."""
        return self._run(self.tensor(np.array([job.node.tokens()], np.int64)), every, use_cache=False)[0]

    def _step(self, ids: Any, state: Any, every: bool, bases: Sequence[int]) -> tuple[Any, Any]:
        """Forward tokens (n, k) after a state of ``bases`` (n,) tokens, used up; logits and the next state."""
        if state is not None and ids.shape[1] == 1:
            state = self._adapt(state)
        given = {} if state is None else {self._field: state}
        if self._numbers:
            given["position_ids"] = self.tensor(np.array(bases)[:, None] + np.arange(ids.shape[1]))
        logits, out = self._run(ids, every, use_cache=True, **given)
        return logits, out[self._field]

    def _run(self, ids: Any, every: bool, **inputs: Any) -> tuple[Any, Any]:
        if self._keeps_logits:
            inputs["logits_to_keep"] = 0 if every else 1
        out = self.invoke(input_ids=ids, **inputs)
        return (out.logits if every else out.logits[:, -1:]).float(), out

    def _states(self, state: Any) -> States:
        state = _bare_tensors(state)
        return States(state, tensors(state), self._by_row)

    def _row_bytes(self, length: int) -> int:
        """Bytes that are held for one history: its state and the logits after it."""
        return int(self._flat + self._slope * length) + 4 * self.vocab_size

    def measure(self) -> None:
        """Find out how the model keeps its state, and what can be done with it."""
        with self.live.hold(), self.unlimited(), trying(self.model):
            self._probe("position_ids" in accepted(self.model))
        self.forget()

    def _probe(self, may_number: bool) -> None:
        name = type(core(self.model)).__name__
        random = np.random.default_rng(0)
        ids = self.tensor(random.integers(0, self.vocab_size, (_ROWS, _PROBE)))
        whole, _ = self._run(ids, True, use_cache=False)
        _, out = self._run(ids[:, :4], True, use_cache=True)
        self._field = next((field for field in FIELDS if out.get(field) is not None), "")
        if not self._field:
            raise Unsupported(f"{name} does not return the state that it keeps, so histories cannot be forked")
        begun = _bare_tensors(out[self._field])
        self._by_row = [bool(tensor.dim()) and len(tensor) == _ROWS for tensor in tensors(begun)]
        start, more = self._states(begun), self._states(self._run(ids[:, :8], True, use_cache=True)[1][self._field])
        self._slope = (more.row_bytes - start.row_bytes) / 4
        self._flat = start.row_bytes - 4 * self._slope
        forked = [2, 0, 0, 1]
        for self._adapt, self._numbers in ((_plain, False), (_shifted, False), *([(_plain, True)] * may_number)):
            if self._agrees(ids, whole, [(start, row) for row in forked], forked, [4] * 4, 1):
                break
        else:
            raise Unsupported(
                f"the steps of {name} give other logits than a pass over the whole (transformers computes them "
                "otherwise), so its histories cannot be forked without error"
            )
        self._chunks = self._agrees(ids, whole, [(start, row) for row in forked], forked, [4] * 4, 4)
        mixed = [(start, 1), (more, 0), (start, 0)]
        self.ragged = self._agrees(ids, whole, mixed, [1, 0, 0], [4, 8, 4], 1)

    def _agrees(self, ids: Any, whole: Any, places: list[Any], rows: list[int], at: list[int], width: int) -> bool:
        """Whether tokens after states, ``width`` in each of a few passes, get the logits of the whole."""
        try:
            state = select(places)
            for step in range(1 if width > 1 else 3):
                begin = [column + step * width for column in at]
                given = torch.stack([ids[row, b : b + width] for row, b in zip(rows, begin)])
                logits, state = self._step(given, state, True, begin)
                truth = torch.stack([whole[row, b : b + width] for row, b in zip(rows, begin)])
                if logits.shape != truth.shape or not distance(logits, truth) <= most_by_rounding(self.model):
                    return False
                state = rebuild(_bare_tensors(state), lambda tensor: tensor.clone())
        except FAULTS as fault:
            if ran_out(fault):
                raise
            return False
        return True


class _Shifted:
    """A part of the RWKV state as its steps ought to read it.

    With one token a row, RWKV of transformers reads the token before as (n, d) where it computes with
    (n, 1, d), and mixes the rows of a batch. Here it is read as (n, 1, d).
    """

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __getitem__(self, at: Any) -> Any:
        return self.tensor[at].unsqueeze(1)

    def __setitem__(self, at: Any, value: Any) -> None:
        self.tensor[at] = value


def _plain(state: Any) -> Any:
    return state


def _shifted(state: Any) -> Any:
    if not isinstance(state, list):
        raise TypeError("not the state of an RWKV")
    return [_Shifted(state[0]), _Shifted(state[1]), *state[2:]]


def _bare_tensors(state: Any) -> Any:
    if isinstance(state, list):
        return [part.tensor if isinstance(part, _Shifted) else part for part in state]
    return state

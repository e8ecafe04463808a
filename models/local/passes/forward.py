"""Forward passes: which histories go through the model together, and what comes out."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ....ppl.memory import Recall
from ...language.host import Tally
from ..memory.allowance import Allowance
from ..memory.histories import Histories, History
from ..memory.jobs import Job
from ..memory.kept import CacheInfo, Kept, Wave
from ..memory.shared import Plan, plan
from ..weights.live import Live
from ..weights.packed import repack
from ..weights.staging import send
from ..weights.varied import Varied
from ..weights.wrappers import core, running
from .frugal import Frugal
from .grouping import grouped
from .lens import Lens

_POSITIONS = 8192
"""Most positions, padding included, in one pass of several rows."""
_LOGITS = 2**26
"""Most logits that one pass of several rows gives."""

Sink = Callable[[Sequence[Job], Any], None]
Rows = Callable[[NDArray[np.intp], Any, NDArray[np.intp] | None], None]
"""Is given the places of some histories among those asked about, (k,), logits (m, V), and which row is whose, (k,).

None says that row i is that of place i. It neither writes to the logits nor keeps them, and asks no model.
"""


class Forwarder(Frugal):
    """Runs a model over the token tree: each history once, what they share once, in passes of like shape.

    Those who inherit from it say how a history goes on from what is kept of its beginning. Threads take turns, and what
    was computed by the model as it was before a change (see `Live`) is dropped.

    Attributes:
        live: the model, watched for changes.
        lens: takes hidden states out of its passes.
        forwarded: token positions forwarded so far, padding not counted.
        recomputed: those of them that had been forwarded before and were dropped as memory was short.
    """

    _keeps_logits: bool
    """Whether the model can be asked for the logits at a last position alone."""

    def __init__(self, model: Any, tree: Histories, limit: int | None, max_batch: int, vocab_size: int) -> None:
        self.model = model
        self.tree = tree
        self.kept = Kept(0)
        self.max_batch = max_batch
        self.vocab_size = vocab_size
        self.allowance = Allowance(model, limit, lambda: self.info().bytes)
        self.forwarded = 0
        self.recomputed = 0
        self.shortages = 0
        self.most_positions = _POSITIONS
        self.others: Sequence[History] = ()
        """Histories of the wave that are yet to go on, but for those of the pass at hand."""
        self.more = 0
        """How many tokens may follow in the wave."""
        self._calls = 0
        self._owed: dict[History, tuple[int, int]] = {}
        self._memory = 1
        self.live = Live(model)
        self.lens = Lens(model)
        self._epochs, self._version = Recall(), self.live.version()
        self._form = self._type_and_place()

    @abstractmethod
    def info(self) -> CacheInfo:
        """Return what is held in memory."""

    @abstractmethod
    def measure(self) -> None:
        """Try the model on a few tokens, to learn what things take."""

    @abstractmethod
    def locate(self, node: History, first: int) -> Job:
        """Find the longest kept beginning of a history, of at most ``first`` positions."""

    def fitting(self, jobs: Sequence[Job]) -> int:
        """Return how many of some jobs, from the first on, may fit into memory together; not all."""
        return len(jobs) // 2

    def begin(self) -> None:
        """Note that a wave begins: what is used from now on is kept rather than what was used before."""
        self.others = ()

    @abstractmethod
    def keeps(self, length: int) -> bool:
        """Return whether a history of some length can be kept while another is forwarded from it."""

    def roots(self, tree: Histories, tokens: NDArray[np.int64]) -> list[History]:
        """Return two beginnings for a trial."""
        return [tree.root((int(token),)) for token in tokens[:2]]

    def together(self, one: Job, other: Job) -> bool:
        """Return whether two jobs can share a pass."""
        return True

    def stretch(self, first: int, end: int) -> int:
        """Return how far, at most to ``end``, one pass over a whole serves its positions from ``first`` on."""
        return end

    @property
    def memory(self) -> int:
        """A number that is another one whenever all was dropped."""
        return self._memory

    def mark(self, job: Job) -> int:
        """Return what marks the positions of a job: those marked so were forwarded before, and should be known."""
        return self._memory

    def order(self, job: Job) -> tuple[int, ...]:
        """Sort key that brings jobs of like shape together."""
        return (job.pending, job.node.length)

    def invoke(self, **inputs: Any) -> Any:
        """Call the model, and count it."""
        self._calls += 1
        with running(self.model):
            return self.lens.look(inputs)

    def owe(self, node: History, positions: int, again: int = 0) -> None:
        """Charge a history of the wave for positions that were forwarded for its sake, ``again`` of them once more."""
        self.forwarded += positions
        self.recomputed += again
        self._owe(node, positions, again)

    def _owe(self, node: History, positions: int, again: int) -> None:
        before = self._owed.get(node, (0, 0))
        self._owed[node] = before[0] + positions, before[1] + again

    def forget(self) -> None:
        """Count from zero."""
        self.forwarded = self.recomputed = self.shortages = self._calls = 0
        self._owed.clear()

    def clear(self) -> None:
        """Drop all that is held in memory. What is forwarded afterwards is not known to have been so before."""
        self.kept.clear()
        self._memory += 1

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        """Within the block all may be held; nothing is afterwards."""
        self.allot(sys.maxsize)
        try:
            yield
        finally:
            self.clear()
            self.allot(self.allowance.limit or 0)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Within the block this thread has the model, and nothing is kept of it as it was in another epoch or state."""
        with self.live.hold() as version:
            changed = version != self._version
            if self._epochs.lapsed() or changed:
                self.clear()
            if changed:
                self._renew()
                self._version = version
            if self.allowance.limit is None:
                self.allot(self.allowance.decide())
            yield

    def _renew(self) -> None:
        if isinstance(self.model, Varied):
            self.model.renew()
        repack(self.model)
        self.lens.forget()
        form = self._type_and_place()
        if form != self._form:
            self.allowance.reopen()
            with self.uncounted(), torch.inference_mode():
                self.measure()
            self._form = form

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Count nothing of what is forwarded within the block."""
        counts = self.forwarded, self.recomputed, self.shortages, self._calls
        try:
            yield
        finally:
            self.forwarded, self.recomputed, self.shortages, self._calls = counts

    def _type_and_place(self) -> tuple[Any, Any]:
        weight = next(core(self.model).parameters())
        return weight.dtype, weight.device

    def next_logits(
        self, nodes: Sequence[History], owners: NDArray[np.intp], tally: Tally, sink: Rows, more: int | None = None
    ) -> None:
        """Give the next-token logits after each history to a sink, those of one pass at a time.

        Repeats are forwarded once; what is forwarded is charged to ``owners[i]`` of the first that needs it. Where
        ``more`` tokens may follow in the wave, the sink is given those of at least one history, and of as many as there
        is room for together: the others are to wait until these have ended their steps.
        """
        with self.hold():
            if more is None:
                self.begin()
            known: dict[int, tuple[Any, list[int], list[int]]] = {}
            missing: dict[History, list[int]] = {}
            for i, node in enumerate(nodes):
                kept = None if node in missing else self._recall(node)
                if kept is None:
                    missing.setdefault(node, []).append(i)
                else:
                    _, places, rows = known.setdefault(id(kept[0]), (kept[0], [], []))
                    places.append(i)
                    rows.append(kept[1])
            while known:
                logits, places, rows = known.popitem()[1]
                _give(sink, logits, places, rows)
            if missing:
                self._next_logits(missing, len(nodes), owners, tally, sink, more)

    def _next_logits(
        self, missing: dict[History, list[int]], width: int, owners: NDArray[np.intp], tally: Tally, sink: Rows,
        more: int | None,
    ) -> None:  # fmt: skip
        def keep(jobs: Sequence[Job], logits: Any) -> None:
            last = logits[:, -1]
            places: list[int] = []
            rows: list[int] = []
            for row, job in enumerate(jobs):
                users = missing[job.node]
                tally.forwarded(owners[users[0]], job.cost, job.again)
                places += users
                rows += [row] * len(users)
            self.remember(jobs, last)
            _give(sink, last, places, rows)

        tally.calls += self.run(list(missing), [node.length - 1 for node in missing], keep, width, more=more)
        for node, (positions, again) in self._owed.items():  # of those that are to wait
            tally.forwarded(owners[missing[node][0]], positions, again)

    def all_logits(self, nodes: Sequence[History], first: Sequence[int], sink: Sink) -> int:
        """Forward histories; ``sink`` gets the logits at positions ``first[i]`` on. Returns the passes made.

        It is given at least one, and as many as there is room for together: the others wait until these have ended.

        ``sink(jobs, logits)`` gets a tensor (n, k, V) whose last ``job.pending`` positions belong to job i;
        these begin at ``first[i]`` or before. ``job.cost`` positions were forwarded for it.
        """
        with self.hold():
            return self.run(nodes, first, sink, 1, every=True, more=0)

    def remember(self, jobs: Sequence[Job], last: Any) -> None:
        """Keep the logits (n, V) after some histories."""
        wave = Wave(last, hidden=self.lens.taken)
        if self.kept.keep(wave):
            for row, job in enumerate(jobs):
                job.node.logits = wave, row

    def run(
        self, nodes: Sequence[History], first: Sequence[int], sink: Sink, width: int, every: bool = False,
        more: int | None = None,
    ) -> int:  # fmt: skip
        """Forward distinct histories from position ``first[i]``, or before, on. Returns the passes made.

        Where ``more`` tokens may follow, those may be left out for which there is no room beside the others.
        """
        self.more = more or 0
        before = self._calls
        self._owed.clear()
        starts = dict(zip(nodes, first))
        jobs = [self.locate(node, start) for node, start in starts.items()]
        shared = plan(self.tree, jobs, starts, self.keeps)
        if shared.first or shared.trunks or shared.stems:
            self._share(shared, starts, sink, every)
            jobs = [self.locate(job.node, starts[job.node]) for job in jobs if job.node not in shared.first]
        self._passes(jobs, starts, sink, width, every, wait=more is not None)
        return self._calls - before

    def _share(self, shared: Plan, starts: dict[History, int], sink: Sink, every: bool) -> None:
        """Forward what several jobs begin with, once, and charge it to one of them."""
        for level in (shared.stems, shared.trunks):
            users = {node: user for node, user in level if self.locate(node, node.length).pending}

            def charge(jobs: Sequence[Job], logits: Any, users: dict[History, History] = users) -> None:
                for job in jobs:
                    self._owe(users[job.node], job.cost, job.again)

            ends = {node: node.length - 1 for node in users}
            self._passes([self.locate(node, end) for node, end in ends.items()], ends, charge, 1, False)
        self._passes([self.locate(node, starts[node]) for node in shared.first], starts, sink, 1, every)

    def _passes(
        self, jobs: Sequence[Job], starts: dict[History, int], sink: Sink, width: int, every: bool, wait: bool = False
    ) -> None:
        """Forward jobs in rounds, each of those that there is room for; with ``wait`` in one round alone."""
        while jobs:
            left = self._round(jobs, starts, sink, width, every, wait)
            if wait:
                break
            jobs = [self.locate(node, starts[node]) for node in left]

    def _round(
        self, jobs: Sequence[Job], starts: dict[History, int], sink: Sink, width: int, every: bool, wait: bool
    ) -> list[History]:
        """Forward those jobs that there is room for, at least one, and return the others.

        What is still to come in the round is not dropped for what goes before it, nor, with ``wait``, what has gone.
        """
        queue = deque(self._groups(jobs, every))
        gone: list[History] = []
        left: list[History] = []
        moved = False
        while queue:
            group = queue.popleft()
            if moved:  # an earlier group may have moved or dropped what this one was to start from
                group, *rest = self._groups([self.locate(job.node, starts[job.node]) for job in group], every)
                queue.extendleft(reversed(rest))
            self.others = [*(job.node for other in queue for job in other), *(gone if wait else ())]
            spare, shortages = width if len(group) == len(jobs) else len(group), self.shortages
            logits = self.tried(group, min(spare, self.max_batch), every)
            moved = True
            if logits is None and len(group) > 1:
                if self.shortages > shortages:  # the pass was too large, not what is kept
                    half = len(group) // 2
                    queue.extendleft((group[half:], group[:half]))
                    continue
                fit = self.fitting(group) or int(not gone and not queue)
                left += [job.node for job in group[fit:]]
                if fit:
                    queue.appendleft(group[:fit])
                continue
            if logits is None and (gone or queue):
                left.append(group[0].node)
                continue
            if logits is None:  # a history alone may fit where it and what it goes on from do not
                group = [Job(group[0].node, 0, None, None)]
                logits = self.tried(group, 1, every)
            if logits is None:
                logits = self.tried_bare(group[0], every)
            gone += [job.node for job in group]
            sink([self._count(job) for job in group], logits)
        return left

    def _groups(self, jobs: Sequence[Job], every: bool) -> Iterator[list[Job]]:
        most = max(1, _LOGITS // self.vocab_size)
        whole = every or not self._keeps_logits
        positions = min(self.most_positions, most) if whole else self.most_positions
        return grouped(sorted(jobs, key=self.order), self.together, min(most, self.max_batch), positions)

    def _count(self, job: Job) -> Job:
        """Count a job that was forwarded, and return it with all that it cost."""
        mark, again = self.mark(job), 0
        node: History | None = job.node
        while node is not None and node.length > job.base:
            above = node.above
            if node.forwarded == mark:
                again += node.length - max(0 if above is None else above.length, job.base)
            node.forwarded = mark
            node = above
        self.forwarded += job.pending
        self.recomputed += again
        extra = self._owed.pop(job.node, (0, 0))
        return replace(job, extra=extra[0], again=again + extra[1])

    def _recall(self, node: History) -> tuple[Any, int] | None:
        if node.logits is None:
            return None
        wave, row = node.logits
        if wave.logits is None:
            node.logits = None
            return None
        self.kept.touch(wave)
        return wave.logits, row

    def tensor(self, array: NDArray[Any]) -> Any:
        """Return an array as a tensor on the model's device."""
        return send(core(self.model).device, array)[0]


def _give(sink: Rows, logits: Any, places: list[int], rows: list[int]) -> None:
    whole = rows == list(range(len(logits)))
    sink(np.array(places, np.intp), logits, None if whole else np.array(rows, np.intp))

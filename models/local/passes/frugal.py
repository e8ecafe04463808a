"""Passes on a device whose memory may run out: in halves, with less kept, at last alone."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from ....ppl.errors import OutOfMemory
from ..memory.allowance import Allowance
from ..memory.jobs import Job
from ..memory.shortage import give_back, ran_out
from ..weights.wrappers import core


class Frugal(ABC):
    """What runs a model, as far as it must make do with the memory of a device.

    Attributes:
        model: the model.
        max_batch: most histories in one pass.
        most_positions: most positions, padding included, in one pass of several rows.
        shortages: passes that ran out of the device's memory.
        allowance: how many bytes may be held.
    """

    model: Any
    max_batch: int
    most_positions: int
    shortages: int
    allowance: Allowance

    @abstractmethod
    def allot(self, limit: int) -> None:
        """Share a number of bytes out among what is held, and drop what is beyond."""

    @abstractmethod
    def clear(self) -> None:
        """Drop all that is held in memory."""

    @abstractmethod
    def attempt(self, jobs: list[Job], width: int, every: bool) -> Any:
        """Forward jobs together: logits (n, k, V), the last position alone unless ``every``.

        None where they do not fit into memory together. The jobs are brought into the order of the logits. ``width`` is
        how many rows will soon be wanted.
        """

    @abstractmethod
    def bare(self, job: Job, every: bool) -> Any:
        """Forward one whole history and keep nothing; logits (1, k, V)."""

    def tried(self, jobs: list[Job], width: int, every: bool) -> Any:
        """`attempt`; None, too, where the device runs out of memory: less is kept and passed from then on."""
        shortages = self.shortages
        logits = self.unless_short(lambda: self.attempt(jobs, width, every))
        if self.shortages > shortages:
            pending = max(job.pending for job in jobs)
            if pending == 1:
                self.max_batch = max(1, len(jobs) // 2)
            else:
                self.most_positions = max(1, len(jobs) * pending // 2)
        return logits

    def unless_short(self, task: Callable[[], Any]) -> Any:
        """Run a task; None where the device runs out of memory: less is kept from then on."""
        try:
            return task()
        except Exception as error:
            if not ran_out(error):
                raise
        self.shortages += 1  # here the error is gone, and with it what its traceback held
        give_back(core(self.model).device)
        self.allot(self.allowance.lower())
        return None

    def tried_bare(self, job: Job, every: bool) -> Any:
        """`bare`, if need be with nothing else in memory."""
        length = job.node.length + len(job.node.top.source)
        return self.alone(lambda: self.bare(job, every), f"a text of {length} tokens")

    def alone(self, task: Callable[[], Any], what: str) -> Any:
        """Run a task; where the device runs out of memory, once more with nothing else in it.

        Raises `OutOfMemory`, naming ``what``, where there is not enough for it even then.
        """
        try:
            return task()
        except Exception as error:
            if not ran_out(error):
                raise
        self.shortages += 1
        self.clear()
        gc.collect()
        give_back(core(self.model).device)
        try:
            return task()
        except Exception as error:
            if not ran_out(error):
                raise
            raise OutOfMemory(
                f"{what} does not fit into the memory of {core(self.model).device} beside "
                f"{type(core(self.model)).__name__}, alone and with nothing kept: load the model in half precision "
                "(dtype=torch.bfloat16), give other models of the device a smaller cache_bytes, or use shorter texts"
            ) from error

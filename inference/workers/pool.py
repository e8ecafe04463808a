"""What a run asks of those who work for it, and the one worker that is always there: this process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ...ppl.cost import Cost
from ..base.checks import positive
from ..base.step import Step
from .job import Facts, Job
from .worker import Outcome, Worker


@dataclass(frozen=True)
class Ready:
    """A worker has its models."""

    facts: Facts


@dataclass(frozen=True)
class Broken:
    """No worker can be had, or one cannot make its models: the run ends with this error."""

    error: Exception


@dataclass(frozen=True)
class News:
    """How far a chunk has come: particles that have finished, of how many, tokens drawn; and steps made since."""

    units: Sequence[int]
    done: int
    total: int
    tokens: int
    steps: Sequence[Step]


@dataclass(frozen=True)
class Finished:
    """A chunk is over."""

    units: Sequence[int]
    outcomes: Sequence[Outcome]
    cost: Cost


@dataclass(frozen=True)
class Lost:
    """The worker of a chunk is gone, and so is what it had of it."""

    units: Sequence[int]
    why: str


Event: TypeAlias = Ready | Broken | News | Finished | Lost


class Pool(Protocol):
    """Workers of one run."""

    @property
    def free(self) -> int:
        """How many workers have their models and nothing to do."""

    @property
    def busy(self) -> bool:
        """Whether any of them runs a chunk."""

    def submit(self, units: Sequence[int]) -> None:
        """Give a chunk to a worker that is free."""

    def wait(self) -> Iterable[Event]:
        """Wait for something to happen, half a second or for one wave at most, and say what it was.

        Where Ctrl-C cuts in, nothing is lost: what had happened is said when this is called again, maybe twice.
        """

    def stop(self, reason: str) -> None:
        """Have all chunks end soon, after the waves that are being made, as `Finished` or `Lost`."""

    def close(self) -> None:
        """Let all workers go, whatever they do."""


class Workers(Protocol):
    """Settings of workers: `Ray`, `InProcess`.

    Attributes:
        chunk: how many problems a worker runs at a time, in shared batches.
        max_retries: how often a chunk is run again whose worker died.
    """

    @property
    def chunk(self) -> int:
        """See above."""

    @property
    def max_retries(self) -> int:
        """See above."""

    def open(self, job: Job, chunks: int | None, follow: bool) -> Pool:
        """Begin to work on a job of so many chunks, if that is known; ``follow`` asks for `News`.

        Raises CannotSend for a job that cannot be had elsewhere.
        """


@dataclass(frozen=True)
class InProcess:
    """This process, one chunk of problems after the other: what runs where ``save=`` is given without ``workers=``.

    A posterior is that of any other workers with the same ``chunk`` (and on models that are exact, of any chunk).

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin(p):
    ...     return await fk.sample("heads", fk.dist.Bernoulli(p))
    >>> found = fk.infer([coin(0.1), coin(0.9)], fk.SMC(100), seed=0, workers=fk.InProcess(chunk=1))
    >>> [round(p.expect(float), 1) for p in found]
    [0.1, 0.9]
    """

    chunk: int = 16
    max_retries: int = 0

    def __post_init__(self) -> None:
        positive("chunk", self.chunk)

    def open(self, job: Job, chunks: int | None, follow: bool) -> Pool:
        """Begin to work on a job."""
        return Here(job)


class Here:
    """The pool of one worker that is this process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker: Worker | None = None
        self._units: Sequence[int] = ()

    @property
    def free(self) -> int:
        """Whether the worker has its models and nothing to do."""
        return int(self._worker is not None and self._worker.over)

    @property
    def busy(self) -> bool:
        """Whether it runs a chunk."""
        return self._worker is not None and not self._worker.over

    def submit(self, units: Sequence[int]) -> None:
        """Give it a chunk."""
        assert self._worker is not None
        self._worker.begin(units)
        self._units = units

    def wait(self) -> Iterable[Event]:
        """Make the models, or a wave."""
        if self._worker is None:
            try:
                self._worker = Worker(self._job)
            except Exception as error:
                return [Broken(error)]
            return [Ready(self._worker.facts)]
        steps = self._worker.wave()
        if steps is not None:
            return [News(self._units, *self._worker.standing(), steps)]
        return [Finished(self._units, *self._worker.finished())]

    def stop(self, reason: str) -> None:
        """Have the chunk end with the waves that were made."""
        if self._worker is not None:
            self._worker.stop(reason)

    def close(self) -> None:
        """There is nothing to let go."""

"""Workers of a Ray cluster: processes on this machine, or on many."""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

from ...ppl.cost import UNITS, charge
from ...ppl.errors import FeynkacWarning, WorkerLost
from ...ppl.lazy import needing
from ...ppl.running.collector import patience
from ..base.checks import is_real, positive
from ..base.step import Step
from .job import Job
from .pool import Broken, Event, Finished, Lost, News, Pool, Ready
from .sending import carried, pickled
from .travel import pack_steps, unpack_steps
from .worker import Worker

_POLL = 0.5
"""Seconds that the run waits for something to happen before it asks how far the workers are."""
_GRACE = 10.0
"""Seconds that workers have to end their waves after Ctrl-C."""
_SLOW = 60.0
"""Seconds without any worker after which somebody should hear of it."""


@dataclass(frozen=True)
class Ray:
    """Workers of a Ray cluster, for ``fk.infer(models, engine, seed=0, workers=fk.Ray(num_workers=8, gpus=1))``.

    Each worker is a process that has the models once and runs chunks of them, as `infer` runs many models: in lockstep,
    in shared batches. Posterior i is the same for any number of workers, since keys are folded from the seed and i. On
    models that are exact, it is the same for any ``chunk``, too; what is computed in floats follows what is batched
    together in the last bits, so that to get equal bits keep ``chunk`` (and the kind of machine).

    Models are given as objects, which are pickled and sent to each worker once, or as a function that makes them, which
    each worker calls once: ``def models(): lm = …; return [solve(lm, p) for p in problems]``. A function is what models
    with weights need; it must make the same models, in the same order, everywhere. With ``gpus`` it is called with the
    device, "cuda". Models behind servers are light, and can be sent.

    A worker that dies (killed, out of memory) is replaced and its chunk run again. What a model raises is raised at the
    end of the run, in its own type, and is not tried again. Ctrl-C ends the run after the waves that are being made,
    and keeps all that is there. Callbacks are called here, with steps that arrive twice a second.

    Needs Ray: ``pip install "feynkac[scale]"``. It is left running after the run (``ray.shutdown()`` ends it).

    Args:
        num_workers: processes.
        chunk: problems that a worker runs at a time (chains, where there is one model).
        cpus: cores for each worker; Ray sets OMP_NUM_THREADS by them.
        gpus: GPUs for each worker; 0.5 puts two on one.
        address: of a cluster, "auto" for the one that this machine belongs to; None: the one that this process is
            connected to, else that of the variable RAY_ADDRESS, else a new one of this machine alone.
        max_retries: how often a chunk whose worker died is run again.
        resources: others that a worker needs, by Ray's names for them.
        runtime_env: what Ray prepares for workers (packages, variables); feynkac must be importable there.
    """

    num_workers: int = 2
    chunk: int = 16
    _: KW_ONLY
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None
    max_retries: int = 3
    resources: Mapping[str, float] = field(default_factory=dict)
    runtime_env: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        positive("num_workers", self.num_workers)
        positive("chunk", self.chunk)
        for name, value in (("cpus", self.cpus), ("gpus", self.gpus)):
            if not is_real(value) or value < 0:
                raise ValueError(f"{name} must be a number from 0 up, not {value!r}")
        if type(self.max_retries) is not int or self.max_retries < 0:
            raise ValueError(f"max_retries must be an integer from 0 up, not {self.max_retries!r}")

    def open(self, job: Job, chunks: int | None, follow: bool) -> Pool:
        """Connect to the cluster and ask for workers.

        Raises ImportError without Ray, and CannotSend for what cannot be pickled.
        """
        with needing("fk.Ray", "scale"):
            import ray
        sent = pickled(job)  # before a cluster is woken
        self._connect(ray)
        return Crew(self, ray, sent, min(self.num_workers, chunks or self.num_workers), follow)

    def _connect(self, ray: Any) -> None:
        if ray.is_initialized():
            return
        if self.address is not None or os.environ.get("RAY_ADDRESS"):
            ray.init(address=self.address, logging_level="warning")
            return
        room = max(os.cpu_count() or 1, int(-(-self.num_workers * self.cpus // 1)))
        ray.init(address="local", num_cpus=room, include_dashboard=False, logging_level="warning")


class Answer(NamedTuple):
    """What a worker returns: what happened, the warnings that were given, and the steps that nobody has asked for."""

    event: Event
    caught: Sequence[tuple[type[Warning], str]] = ()
    steps: Sequence[bytes] = ()


class Crew:
    """The workers of one run."""

    def __init__(self, settings: Ray, ray: Any, sent: bytes, count: int, follow: bool) -> None:
        self._settings, self._ray, self._follow = settings, ray, follow
        self._device = "cuda" if settings.gpus else None
        self._sent = ray.put(sent)
        options: dict[str, Any] = {"num_cpus": settings.cpus, "num_gpus": settings.gpus}
        if settings.resources:
            options["resources"] = dict(settings.resources)
        if settings.runtime_env is not None:
            options["runtime_env"] = dict(settings.runtime_env)
        self._kind = ray.remote(concurrency_groups={"control": 1}, max_restarts=0, **options)(RayWorker)
        self._all: list[Any] = []
        self._able: list[Any] = []
        """Those that have their models."""
        self._calls: dict[Any, tuple[Any, tuple[int, ...] | None]] = {}
        """What workers are asked for: a chunk, or None for the models."""
        self._asked: dict[Any, Any] = {}
        """By the call for a chunk: the question how far it is, which is asked again when it has been answered."""
        self._stillborn = 0
        self._deadline: float | None = None
        self._late: float | None = time.monotonic() + _SLOW
        for _ in range(count):
            self._hire()

    @property
    def free(self) -> int:
        """How many workers have their models and nothing to do."""
        return len(self._idle)

    @property
    def _idle(self) -> list[Any]:
        occupied = [worker for worker, _ in self._calls.values()]
        return [worker for worker in self._able if worker not in occupied]

    @property
    def busy(self) -> bool:
        """Whether any of them runs a chunk."""
        return any(units is not None for _, units in self._calls.values())

    def submit(self, units: Sequence[int]) -> None:
        """Give a chunk to a worker that is free."""
        worker = self._idle[0]
        self._calls[worker.run.remote(tuple(units))] = worker, tuple(units)

    def wait(self) -> list[Event]:
        """Wait for a worker to answer; where none does, ask how far they are."""
        ready: list[Any] = []
        if self._calls:
            ready, _ = self._ray.wait(list(self._calls), timeout=_POLL)
        if not ready:
            self._complain()
        events = [event for call in ready for event in self._answer(call)]
        if self._deadline is not None and time.monotonic() > self._deadline:
            events += self._give_up()
        elif self._follow and not events:
            events += self._look()
        for call in ready:
            self._calls.pop(call, None)
        return events

    def stop(self, reason: str) -> None:
        """Have all chunks end after the waves that are being made."""
        self._deadline = time.monotonic() + (_GRACE if reason == "interrupted" else math.inf)
        for call, (worker, units) in list(self._calls.items()):
            if units is None:
                del self._calls[call]
                self._dismiss(worker)
            else:
                self._control(worker.stop).remote(reason)

    def close(self) -> None:
        """Let all workers go, whatever they do."""
        for worker in self._all:
            self._ray.kill(worker)
        self._all, self._able, self._calls, self._asked = [], [], {}, {}

    def _hire(self) -> None:
        worker = self._kind.remote()
        self._all.append(worker)
        self._calls[worker.make.remote(self._sent, self._device, sys.path)] = worker, None

    def _dismiss(self, worker: Any) -> None:
        for those in (self._all, self._able):
            if worker in those:
                those.remove(worker)
        self._ray.kill(worker)

    def _control(self, method: Any) -> Any:
        """Return a method that a worker serves beside the chunk that it runs."""
        return method.options(concurrency_group="control")

    def _answer(self, call: Any) -> Iterator[Event]:
        worker, units = self._calls[call]
        errors = self._ray.exceptions
        try:
            answer: Answer = self._ray.get(call)
        except errors.RayTaskError:  # a fault of ours, since what models raise is in the answer
            raise
        except errors.RayError as error:
            self._asked.pop(call, None)
            yield from self._replace(worker, units, str(error))
            return
        for category, text in answer.caught:
            warnings.warn(text, category, stacklevel=2)
        self._late, self._stillborn = None, 0
        if worker not in self._able:
            self._able.append(worker)
        if isinstance(answer.event, Finished):
            charge(**{unit: getattr(answer.event.cost, unit) for unit in UNITS})  # to a run that this one is inside of
            yield from self._heard(call)
            yield News(answer.event.units, 0, 0, 0, _unpacked(answer.steps))
        yield answer.event

    def _replace(self, worker: Any, units: tuple[int, ...] | None, why: str) -> list[Event]:
        """Have another worker in place of one that died."""
        self._dismiss(worker)
        self._stillborn += units is None
        if self._stillborn > self._settings.max_retries:
            return [Broken(WorkerLost(f"workers die before they have their models ({self._stillborn} so far): {why}"))]
        if self._deadline is None:
            self._hire()
        return [] if units is None else [Lost(units, why)]

    def _give_up(self) -> Iterator[Event]:
        for call, (worker, units) in list(self._calls.items()):
            del self._calls[call]
            self._asked.pop(call, None)
            self._dismiss(worker)
            if units is not None:
                yield Lost(units, "it did not stop in time")

    def _look(self) -> Iterator[Event]:
        """Ask all that run a chunk how far they are."""
        for call, (worker, units) in self._calls.items():
            if units is not None and call not in self._asked:
                self._asked[call] = self._control(worker.news).remote()
        if self._asked:
            self._ray.wait(list(self._asked.values()), num_returns=len(self._asked), timeout=_POLL)
        for call, question in list(self._asked.items()):
            if self._ray.wait([question], timeout=0)[0]:
                yield from self._heard(call)

    def _heard(self, call: Any) -> Iterator[Event]:
        """Say what was answered of a chunk: the steps that come with it are nowhere else."""
        if call not in self._asked:
            return
        try:
            done, total, tokens, steps = self._ray.get(self._asked[call])
            yield News(self._calls[call][1] or (), done, total, tokens, _unpacked(steps))
        except self._ray.exceptions.RayError:
            pass  # it is gone, as its chunk will tell
        self._asked.pop(call, None)

    def _complain(self) -> None:
        if self._late is not None and time.monotonic() > self._late:
            self._late = None
            wanted = {"CPU": self._settings.cpus, "GPU": self._settings.gpus, **self._settings.resources}
            warnings.warn(
                f"no worker has its models after {_SLOW:.0f} seconds: each asks for {wanted}, and the cluster has "
                f"{self._ray.cluster_resources()}",
                FeynkacWarning,
                stacklevel=2,
            )


class RayWorker:
    """What runs in a process of Ray. What models raise is in its answers."""

    _worker: Worker
    _watched: bool

    def __init__(self) -> None:
        self._steps: deque[bytes] = deque()

    def make(self, sent: bytes, device: str | None, path: Sequence[str]) -> Answer:
        """Make the models; ``path`` is where the driver finds modules."""
        from ray import cloudpickle

        sys.path += [folder for folder in path if folder not in sys.path]
        with warnings.catch_warnings(record=True) as caught:
            try:
                job: Job = cloudpickle.loads(sent)
                self._worker, self._watched = Worker(job, device), job.watched
            except Exception as error:
                return Answer(Broken(carried(error)))
            return Answer(Ready(self._worker.facts), _listed(caught))

    def run(self, units: tuple[int, ...]) -> Answer:
        """Run a chunk."""
        worker = self._worker
        worker.begin(units)
        with warnings.catch_warnings(record=True) as caught, patience(worker.particles * len(units)):
            try:
                while (made := worker.wave()) is not None:
                    if self._watched:
                        self._steps.append(pack_steps(made))
            except TypeError as error:
                error.add_note("feynkac: steps come from workers, for callbacks, as `Posterior.save` writes them")
                return Answer(Broken(carried(error)))
            outcomes, cost = worker.finished()
            sent = [one if one.error is None else one._replace(error=carried(one.error)) for one in outcomes]
            return Answer(Finished(units, sent, cost), _listed(caught), self._news())

    def news(self) -> tuple[int, int, int, list[bytes]]:
        """Return how far the chunk is, and the steps since this was last asked; see `News`."""
        return *self._worker.standing(), self._news()

    def _news(self) -> list[bytes]:
        found = []
        while self._steps:
            found.append(self._steps.popleft())
        return found

    def stop(self, reason: str) -> None:
        """End the chunk after the wave that is being made."""
        self._worker.stop(reason)


def _unpacked(steps: Sequence[bytes]) -> list[Step]:
    return [step for made in steps for step in unpack_steps(made)]


def _listed(caught: Sequence[warnings.WarningMessage]) -> list[tuple[type[Warning], str]]:
    """Return warnings as they can be sent."""
    return list(dict.fromkeys((one.category, str(one.message)) for one in caught))

"""Python functions as rewards, each call under a time limit in a process of its own."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, TypeVar

from ....ppl.errors import FeynkacError
from ....ppl.score import Kind
from ....ppl.sites import short
from ..base import DetailedReward, Template, fill

T = TypeVar("T")
R = TypeVar("R")
Reason = Literal["", "timeout", "crash"]
_START = 60.0
"""Seconds that a worker may take to start and import the function."""
_LONGEST = 1e6
"""Seconds: a poll counts milliseconds in 31 bits."""


class CheckerError(FeynkacError):
    """A checker raised an exception, or could not be started: the fault is its own, not that of what it checks."""


@dataclass(frozen=True)
class Outcome:
    """What became of one check.

    Attributes:
        value: the number returned, or what stands for a failure.
        reason: why there was no number: "timeout", "crash" (the process died), or empty.
        seconds: how long it took.
    """

    value: float
    reason: Reason = ""
    seconds: float = 0.0


@dataclass(frozen=True, repr=False)
class _Call:
    """The arguments of a call, pickled: they cannot change any more, and 1, 1.0 and True differ."""

    message: bytes
    shown: str = field(compare=False)

    def __repr__(self) -> str:
        return self.shown


class Checker(DetailedReward[Outcome]):
    """A Python function as a reward, called in worker processes, in parallel, and never for longer than a limit.

    For trusted functions that may take long or never end (a solver, a parser, a regular expression) or bring their
    process down. A call over its time, or whose process dies, gives ``failed``, and ``details`` says why (see
    `Outcome`); the worker is killed, with what it has started, and replaced. A function that raises is at fault
    itself: CheckerError. To run code that a model wrote, see `CodeTests`.

    The function travels by name, so it must be importable; functions defined in a notebook, in a script, or inside
    others need the package cloudpickle. Linux and macOS.

    Args:
        fn: from the arguments of the call to a bool or a number. Texts arrive as strings.
        timeout: seconds for one call.
        workers: processes; all cores by default. They start when first needed and end with the checker, or at
            ``close()``.
        kind: "probability" (True is 1), or "real" or "log_weight".
        failed: what stands for a call without a result.
        template: makes the arguments of ``fn``: one, or a tuple of them.
        cache: results remembered.

    Raises ValueError for a timeout or workers that are not positive.

    >>> import math
    >>> from feynkac.ppl.score import evaluate
    >>> with Checker(math.sqrt, timeout=5, workers=1, name="root") as root:
    ...     evaluate([root(0.25), root(0.81)])
    [0.5, 0.9]
    """

    def __init__(
        self,
        fn: Callable[..., bool | float],
        *,
        timeout: float = 5.0,
        workers: int | None = None,
        kind: Kind = "probability",
        failed: float = 0.0,
        template: Template = None,
        name: str | None = None,
        cache: int = 10_000,
    ) -> None:
        super().__init__(name or str(getattr(fn, "__name__", "checker")), kind, template, cache)
        check_timeout(timeout)
        self.timeout = timeout
        self.failed = failed
        self.workers = positive_workers(workers)
        self._payload = _payload(fn, self.name)
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._all: list[_Worker] = []
        self._starting = threading.Lock()
        self._end = weakref.finalize(self, _kill_all, self._all)

    def __enter__(self) -> Checker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes; a later call starts new ones."""
        _kill_all(self._all)
        self._idle = SimpleQueue()

    def prepare(self, *args: Any, **named: Any) -> _Call:
        """Return the arguments of the function, texts as strings. Raises TypeError where they cannot be pickled."""
        made = args if self.template is None and not named else fill(self.template, args, named)
        parts = made if isinstance(made, tuple) else (made,)
        parts = tuple(str(part) if hasattr(part, "prompt_tokens") else part for part in parts)
        shown = ", ".join(short(part, 80) for part in parts)
        try:
            return _Call(pickle.dumps(parts), shown)
        except Exception as error:
            raise TypeError(f"reward {self.name!r}: ({shown}) cannot go to another process: {error}") from error

    def detail_batch(self, inputs: Sequence[Any]) -> list[Outcome]:
        """Check some inputs, as many at a time as there are workers."""
        with self._starting:
            while len(self._all) < min(self.workers, len(inputs)):
                worker = _Worker(self._payload, self.name)
                self._all.append(worker)
                self._idle.put(worker)
            idle = self._idle
        return in_parallel(lambda call: self._check(call, idle), inputs, self.workers, self.close)

    def number(self, detail: Outcome) -> float:
        """Return the value."""
        return detail.value

    def _check(self, call: _Call, idle: SimpleQueue[_Worker]) -> Outcome:
        worker = idle.get()
        try:
            began = time.monotonic()
            reason, value = worker.call(call.message, self.timeout)
            seconds = time.monotonic() - began
        finally:
            idle.put(worker)
        if reason == "error":
            raise CheckerError(f"reward {self.name!r} raised for ({call!r}):\n{value}")
        return Outcome(self.failed if reason else float(value), reason, seconds)


class _Worker:
    """One process, started anew after it had to be killed."""

    def __init__(self, payload: bytes, name: str) -> None:
        self._payload = payload
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Any = None
        self._over = False
        self._lock = threading.Lock()

    def call(self, message: bytes, timeout: float) -> tuple[Any, Any]:
        """Return an empty reason and the value, or why there is none: timeout, crash, error (and a traceback)."""
        if self._process is None or self._process.poll() is not None:
            self._start(timeout)
        try:
            self._link.send_bytes(message)
            if not self._link.poll(timeout):
                self.kill()
                return "timeout", None
            state, value = self._link.recv()
        except (EOFError, OSError):
            self.kill()
            return "crash", None
        return ("error", value) if state == "error" else ("", value)

    def _start(self, timeout: float) -> None:
        self.kill()
        self._link, other = Pipe()
        script = str(Path(__file__).with_name("worker.py"))
        with other:
            self._process = subprocess.Popen(
                [sys.executable, script, str(other.fileno())],
                pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        if self._over:
            self.kill()
            raise CheckerError(f"reward {self._name!r} was closed while it was checking")
        try:
            self._link.send((sys.path, timeout, self._payload))
            ready = self._link.recv() if self._link.poll(_START) else ("error", f"no answer in {_START:.0f} s")
        except (EOFError, OSError):
            ready = ("error", "its process died")
        if ready[0] == "error":
            self.kill()
            raise CheckerError(f"reward {self._name!r}: a worker could not start its function:\n{ready[1]}")

    def end(self) -> None:
        """End for good."""
        self._over = True
        self.kill()

    def kill(self) -> None:
        """End the process and all that it has started."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:  # else its number may be another's by now
                kill_group(process)
            self._link.close()


def in_parallel(
    fn: Callable[[T], R], items: Sequence[T], workers: int, stop: Callable[[], None] = lambda: None
) -> list[R]:
    """Return ``fn`` of each item, computed in threads; ``stop`` must end the running ones after an exception."""
    with ThreadPoolExecutor(min(workers, len(items))) as threads:
        try:
            futures = [threads.submit(fn, item) for item in items]
            return [future.result() for future in futures]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            stop()
            raise


def check_timeout(timeout: float) -> None:
    """Raise ValueError unless a timeout is a number of seconds that the system can count."""
    if not 0 < timeout <= _LONGEST:
        raise ValueError(f"timeout must be positive and at most {_LONGEST:,.0f} seconds, not {timeout}")


def positive_workers(workers: int | None) -> int:
    """Return how many workers there are, all cores by default. Raises ValueError unless it is positive."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be a positive integer, or None for all cores, not {workers!r}")
    return workers or os.cpu_count() or 1


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Kill a process that leads a session, if it still runs, and all that it left in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _kill_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().end()


def _payload(fn: Any, name: str) -> bytes:
    """Pickle a function: by name where it can be imported, else whole."""
    if getattr(fn, "__module__", None) != "__main__":
        with contextlib.suppress(Exception):
            return pickle.dumps(fn)
    try:
        import cloudpickle
    except ImportError as error:
        raise ImportError(
            f"reward {name!r}: a function that cannot be imported by name goes to another process by cloudpickle: "
            "pip install cloudpickle, or put the function into a module"
        ) from error
    payload: bytes = cloudpickle.dumps(fn)
    return payload

"""Python that a model wrote, run against tests under limits."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..base import DetailedReward, Template, fill
from .checker import check_timeout, in_parallel, kill_group, positive_workers

_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE | re.IGNORECASE
)

_RUNNER, _EXAMINER = (str(Path(__file__).with_name(f"{name}.py")) for name in ("runner", "examiner"))
_NOBODY = str(None)
"""What the examiner says where the code is gone."""


@dataclass(frozen=True)
class Run:
    """How a run of a piece of Python went.

    Attributes:
        passed: whether code and tests ran to their end without an exception.
        reason: why not: "timeout", "memory", "output", "crash: signal 11", the exception; empty where it passed.
        output: what was written to standard output and error, cut off at the limit.
        seconds: how long it took.
    """

    passed: bool
    reason: str
    output: str
    seconds: float


def run_python(
    code: str,
    tests: str = "",
    *,
    stdin: str = "",
    timeout: float = 5.0,
    memory: int = 1 << 30,
    output: int = 1 << 16,
    started: Callable[[subprocess.Popen[Any]], None] = lambda process: None,
) -> Run:
    """Run code in a fresh process, and tests of it in another, within limits of time, memory and output.

    The verdict does not come from the code's process. Where a test calls a function of the code, the call is made
    there, and its value comes back as plain data (numbers, strings, containers, NumPy arrays), which the test compares
    in its own process: so code that ends itself, replaces what Python has built in, or returns an object that is equal
    to everything, does not pass. Objects of the code's own classes stay there; tests may use their methods, items and
    attributes, compare them with each other, and are refused (TypeError) where they would compare or reckon one with
    data. Containers that a call changes are changed; functions and objects of the tests may be given to the code.
    Names that Python has built in are Python's in the tests. A coroutine is not run, a class of the code cannot be
    inherited from in a test, and its output is not what ``sys.stdout`` is there.

    **This is no security sandbox.** It stops accidents (endless loops, memory, floods of output) and a search's easy
    ways to a pass, not attacks: the code can read and write what you can (files of this Python, too, and, where the
    system lets it trace them, other processes: those of root, say), use the network, and start processes that outlive
    it. And a test that asks an object for its own opinion, as in ``assert f(x)`` or ``assert f(x).startswith("a")``,
    gets it: compare values. Without tests, that code ran to its end is its own word. Run code that you do not trust
    in a container or a virtual machine.

    The process gets an empty temporary folder, none of your environment variables, and the installed packages of this
    Python. Linux and macOS; memory is limited on Linux alone.

    Args:
        code: what the model wrote.
        tests: statements that raise where the code is wrong, such as assertions; they find what it defines by name.
        stdin: what the code may read.
        timeout: seconds; then the process is killed with all that it started.
        memory: bytes of address space.
        output: bytes of output, and of any file that it writes.
        started: called with each of the two processes once it runs.

    Raises ValueError for tests that are not Python (that is no fault of the code), too small an output, and a timeout
    that is not positive.

    >>> run_python("def double(x): return 2 * x", "assert double(4) == 8").passed
    True
    >>> run_python("def double(x): return x", "assert double(4) == 8, 'not doubled'").reason
    'AssertionError: not doubled'
    """
    _check_tests(tests)
    check_timeout(timeout)
    if output < 1024:
        raise ValueError(f"output must be at least 1024 bytes, not {output}")
    job = json.dumps({"code": code, "tests": tests, "memory": memory, "output": output})
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="feynkac-") as folder, contextlib.ExitStack() as files:
        read, written = (files.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        read.write(stdin.encode(errors="surrogatepass"))
        read.seek(0)
        (mine, told), (there, here) = socket.socketpair(), socket.socketpair()
        ends = [files.enter_context(end) for end in (mine, told, there, here)]
        processes: list[subprocess.Popen[Any]] = []
        try:
            for script, given, passed in ((_RUNNER, read, [there]), (_EXAMINER, subprocess.DEVNULL, [here, told])):
                numbers = [end.fileno() for end in passed]
                process = subprocess.Popen(
                    [sys.executable, "-I", "-X", "utf8", script, *map(str, numbers)], cwd=folder,
                    env=_environment(folder), pass_fds=numbers, stdin=given, stdout=written, stderr=written,
                    start_new_session=True,
                )  # fmt: skip
                processes.append(process)
                started(process)
            for end in ends[1:]:
                end.close()
            verdict = _ask(mine, job, began + timeout)
            reached = time.monotonic() < began + timeout
            if verdict == _NOBODY:  # how did it end? It may still be about to.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    processes[0].wait(1.0)
            ended = processes[0].poll()
        finally:
            for process in processes:
                kill_group(process)
        seconds = time.monotonic() - began
        size = os.fstat(written.fileno()).st_size
        written.seek(0)
        shown = written.read(output).decode(errors="replace")
    reason = _reason(verdict, ended, size >= output) if reached else "timeout"
    return Run(not reason, reason, shown, seconds)


class CodeTests(DetailedReward[tuple[Run, ...]]):
    """The share of tests that model-written Python passes, a probability.

    Each test, and the code anew for it, runs in a process of its own (see `run_python`: how they talk, and above all
    what it does **not** protect from), as many at a time as there are workers. Time or memory exceeded, a crash, an
    early exit or an exception is a failed test; ``details`` gives the `Run` of each, with its reason and output.

    Args:
        tests: statements that raise where the code is wrong; several are scored apart.
        extract: from the text to the code; by default the fenced blocks, or all of a text without one.
        timeout: seconds for one test.
        memory: bytes of address space (Linux).
        output: bytes of output.
        workers: tests run at a time; all cores by default.
        template: makes the text of the arguments.
        cache: results remembered.

    Raises ValueError for tests that are not Python, and a timeout or workers that are not positive.

    >>> from feynkac.ppl.score import evaluate
    >>> right = CodeTests(["assert double(4) == 8", "assert double('a') == 'aa'"])
    >>> evaluate([right("def double(x): return x + x"), right("def double(x): return 8")])
    [1.0, 0.5]
    """

    def __init__(
        self,
        tests: str | Sequence[str],
        *,
        extract: Callable[[str], str] | None = None,
        timeout: float = 5.0,
        memory: int = 1 << 30,
        output: int = 1 << 16,
        workers: int | None = None,
        template: Template = None,
        name: str = "tests",
        cache: int = 10_000,
    ) -> None:
        super().__init__(name, "probability", template, cache)
        self.tests = (tests,) if isinstance(tests, str) else tuple(tests)
        if not self.tests:
            raise ValueError(f"reward {name!r} needs at least one test")
        for test in self.tests:
            _check_tests(test)
        check_timeout(timeout)
        self.workers = positive_workers(workers)
        self._extract = extract or extract_code
        self._limits: dict[str, Any] = {"timeout": timeout, "memory": memory, "output": output}

    def prepare(self, *args: Any, **named: Any) -> str:
        """Return the code."""
        return self._extract(str(fill(self.template, args, named)))

    def detail_batch(self, inputs: Sequence[Any]) -> list[tuple[Run, ...]]:
        """Run all tests on some pieces of code."""
        running = _Running(self._limits)
        jobs = [(code, test) for code in inputs for test in self.tests]
        runs = in_parallel(running.run, jobs, self.workers, running.stop)
        n = len(self.tests)
        return [tuple(runs[i : i + n]) for i in range(0, len(runs), n)]

    def number(self, detail: tuple[Run, ...]) -> float:
        """Return the share of tests passed."""
        return sum(run.passed for run in detail) / len(detail)


class _Running:
    """The processes of a batch, so that an interrupt can end them."""

    def __init__(self, limits: dict[str, Any]) -> None:
        self._limits = limits
        self._by_thread: dict[int, list[subprocess.Popen[Any]]] = {}
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, job: tuple[str, str]) -> Run:
        try:
            return run_python(*job, started=self._add, **self._limits)
        finally:
            with self._lock:
                self._by_thread.pop(threading.get_ident(), None)

    def _add(self, process: subprocess.Popen[Any]) -> None:
        with self._lock:
            self._by_thread.setdefault(threading.get_ident(), []).append(process)
            if self._stopped:
                kill_group(process)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in chain.from_iterable(self._by_thread.values()):
                if process.returncode is None:
                    kill_group(process)


def extract_code(text: str) -> str:
    """Return the fenced blocks of a text, joined; a text without one is code itself.

    >>> extract_code("Like this:\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1\\n'
    """
    blocks = _FENCE.findall(text)
    return "\n".join(blocks) if blocks else text


def _environment(home: str) -> dict[str, str]:
    # One thread: what each thread of a numerical library reserves would count as memory.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"HOME": home, "TMPDIR": home, "PATH": os.defpath, **threads}


def _ask(line: socket.socket, job: str, until: float) -> str | None:
    """Give a job to the examiner, and return its verdict; None where it has none in time, or is gone."""
    told = b""
    try:
        line.settimeout(max(until - time.monotonic(), 0.001))
        line.sendall(job.encode(errors="surrogatepass"))
        line.shutdown(socket.SHUT_WR)
        while True:
            line.settimeout(max(until - time.monotonic(), 0.001))
            part = line.recv(1 << 12)
            if not part:
                break
            told += part
        return str(json.loads(told))
    except (OSError, ValueError):  # in time or not, which the caller knows
        return None


def _reason(verdict: str | None, ended: int | None, full: bool) -> str:
    """Return why code failed: what the examiner says, or how its process ended."""
    if verdict is None:
        return "its tests were ended"
    if verdict != _NOBODY:
        return verdict
    if full:
        return "output"
    if ended is None:
        return "it hung up on its tests"
    return f"crash: signal {-ended}" if ended < 0 else f"it ended before its tests did, with exit code {ended}"


def _check_tests(tests: str) -> None:
    try:
        compile(tests, "<tests>", "exec")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"the tests are not Python: {error}") from error

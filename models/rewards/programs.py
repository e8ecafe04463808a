"""Python that a model wrote, run against tests under limits."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .base import DetailedReward, Template, fill
from .checker import check_timeout, in_parallel, kill_group, positive_workers

_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE | re.IGNORECASE
)

_RUNNER = str(Path(__file__).with_name("runner.py"))


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
    """Run code, then tests in its namespace, in a fresh process, within limits of time, memory and output.

    **This is no security sandbox.** It stops accidents (endless loops, memory, floods of output), not attacks: the
    code can read and write what you can, use the network, and start processes that outlive it. Run code that you do
    not trust in a container or a virtual machine.

    The process gets an empty temporary folder, none of your environment variables, and the installed packages of this
    Python. Linux and macOS; memory is limited on Linux alone.

    Args:
        code: what the model wrote.
        tests: statements that raise where the code is wrong, such as assertions.
        stdin: what the code may read.
        timeout: seconds; then the process is killed with all that it started.
        memory: bytes of address space.
        output: bytes of output, and of any file that it writes.
        started: called with the process once it runs.

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
        given, read, written, result = (files.enter_context(tempfile.TemporaryFile()) for _ in range(4))
        for file, string in ((given, job), (read, stdin)):
            file.write(string.encode(errors="surrogatepass"))
            file.seek(0)
        passed = [result.fileno(), given.fileno()]
        process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", _RUNNER, *map(str, passed)], cwd=folder, env=_environment(folder),
            pass_fds=passed, stdin=read, stdout=written, stderr=written, start_new_session=True,
        )  # fmt: skip
        try:
            started(process)
            over = _wait(process, timeout)
        finally:
            kill_group(process)
        seconds = time.monotonic() - began
        size = os.fstat(written.fileno()).st_size
        written.seek(0)
        shown = written.read(output).decode(errors="replace")
        result.seek(0)
        told = result.read()
    reason = "timeout" if over else _reason(process.returncode, told, size >= output)
    return Run(not reason, reason, shown, seconds)


class CodeTests(DetailedReward[tuple[Run, ...]]):
    """The share of tests that model-written Python passes, a probability.

    Each test runs in a process of its own (see `run_python`, above all what it does **not** protect from), as many at
    a time as there are workers. Time or memory exceeded, a crash, an early exit or an exception is a failed test;
    ``details`` gives the `Run` of each, with its reason and output.

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
        self._by_thread: dict[int, subprocess.Popen[Any]] = {}
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
            self._by_thread[threading.get_ident()] = process
            if self._stopped:
                kill_group(process)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._by_thread.values():
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


def _wait(process: subprocess.Popen[Any], timeout: float) -> bool:
    """Wait for a process; return whether it took too long."""
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        return True
    return False


def _reason(code: int, told: bytes, full: bool) -> str:
    if told:
        try:
            return str(json.loads(told))
        except ValueError:  # the code wrote there
            return "its result was written over"
    if full:
        return "output"
    return f"crash: signal {-code}" if code < 0 else f"it ended before its tests did, with exit code {code}"


def _check_tests(tests: str) -> None:
    try:
        compile(tests, "<tests>", "exec")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"the tests are not Python: {error}") from error

"""Start workers (see `worker`), let them take turns on the same seeds, and print one table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".venv-peers"


def interpreter(environment: str) -> Path:
    """Return the Python of one of the peers' environments; ends the program where it has not been made."""
    python = ENVIRONMENTS / environment / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"there is no environment {python.parents[1]}: make it with `make peers`")
    return python


class Worker:
    """One library in a process of its own.

    Args:
        script: the worker, a file of this folder.
        environment: which of the peers' environments runs it; None: this one.
        settings: what the worker is told, as JSON.
        threads: of OpenMP.
        offline: whether models are those that are here already.
    """

    def __init__(
        self,
        script: str,
        environment: str | None,
        settings: Mapping[str, Any],
        threads: int = 1,
        offline: bool = True,
    ) -> None:
        python = Path(sys.executable) if environment is None else interpreter(environment)
        settled = {
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "TQDM_DISABLE": "1",
        } | ({"HF_HUB_OFFLINE": "1"} if offline else {})
        self.name = script
        self._process = subprocess.Popen(
            [python, HERE / script, json.dumps(settings)],
            env=os.environ | settled,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready: dict[str, Any] = self._read()

    def run(self, seed: int) -> dict[str, Any]:
        """Make one run and return what it cost and found."""
        assert self._process.stdin is not None
        print(seed, file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} failed with exit status {self._process.wait()}; its message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def race(workers: Mapping[str, Worker], repeats: int) -> dict[str, dict[str, Any]]:
    """Run each worker on each seed, in turns. Return for each the lists of its answers, and of getting ready."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for seed in range(repeats):
        for name, worker in workers.items():
            answers[name].append(worker.run(seed))
    for worker in workers.values():
        worker.close()
    return {
        name: {key: [made[key] for made in runs] for key in runs[0]} | workers[name].ready
        for name, runs in answers.items()
    }


def mean_error(sample: Sequence[float]) -> str:
    """Show a mean and its standard error."""
    error = np.std(sample, ddof=1) / np.sqrt(len(sample)) if len(sample) > 1 else np.nan
    return f"{np.mean(sample):.2f} ± {error:.2f}"


def log_mean_error(logs: Sequence[float]) -> str:
    """Show the log of the mean of what is given by its logs, where some may be −inf, and its standard error."""
    top = max(logs)
    shares = np.exp(np.array(logs) - top)
    error = np.std(shares, ddof=1) / np.sqrt(len(shares)) / shares.mean() if len(shares) > 1 else np.nan
    return f"{top + np.log(shares.mean()):.2f} ± {error:.2f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns as wide as they need."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    for row in (header, *rows):
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths))
        print("  ".join((first.strip().ljust(widths[0]), *rest)))

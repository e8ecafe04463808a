"""An OpenAI-compatible vLLM server in processes of its own, and what they cost. It needs Linux, for ``/proc``."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path


class Running:
    """A server that runs on this machine, seen from outside.

    Args:
        port: of its HTTP.
        session: the process session of all that it consists of.
    """

    def __init__(self, port: int, session: int) -> None:
        self.port, self.session = port, session

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def generated(self) -> int:
        """Tokens generated so far."""
        for line in self.get("metrics").splitlines():
            if line.startswith("vllm:generation_tokens_total"):
                return int(float(line.split()[-1]))
        raise RuntimeError("the server's metrics do not say how many tokens it generated")

    def cpu_seconds(self) -> float:
        """CPU seconds of all its processes so far."""
        ticks = sum(sum(map(int, fields[11:15])) for _, fields in self._processes())
        return ticks / os.sysconf("SC_CLK_TCK")

    def peak_gib(self) -> float:
        """Sum of the largest resident sets of its processes, in GiB."""
        peaks = (line for folder, _ in self._processes() for line in (folder / "status").read_text().splitlines())
        return sum(int(line.split()[1]) for line in peaks if line.startswith("VmHWM")) / 2**20

    def get(self, path: str) -> str:
        """Return what it answers."""
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=10) as reply:
            text: str = reply.read().decode()
            return text

    def _processes(self) -> Iterator[tuple[Path, list[str]]]:
        """Yield the folder in ``/proc`` and the fields of ``stat`` after the name, for each process of its session."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            if int(fields[3]) == self.session:
                yield folder, fields


class Server(Running):
    """A server of one model, float32, on a free port of this machine.

    Args:
        python: the Python of an environment that has vLLM.
        model: the folder of the model, which is also its name for clients.
        options: more of the server's own, such as ``("--logprobs-mode", "raw_logprobs")``, after ours.
    """

    def __init__(self, python: str, model: str, options: Sequence[str] = ()) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
        command += ["--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
        # Prefixes are shared by whole blocks, and these texts are shorter than a block of its default, 128 tokens.
        command += ["--block-size", "32", "--enable-prompt-tokens-details"]
        # On a CPU, a prompt that is read in parts ends the server where it has a seed.
        command += ["--max-num-batched-tokens", "32768", "--logprobs-mode", "processed_logprobs", *options]
        # vLLM chooses its own number of threads, and warns against a given one.
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it is open as long as the server)
        self._process = subprocess.Popen(
            command, env=environment, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )
        super().__init__(port, self._process.pid)
        atexit.register(self.close)
        self._wait(600.0)

    def close(self) -> None:
        """End the server."""
        self._process.terminate()
        self._process.wait()

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self.get("health")
                return
            except (urllib.error.URLError, OSError):
                time.sleep(1.0)
        self._log.seek(0)
        raise RuntimeError(f"the server did not start: {self._log.read()[-3000:]}")

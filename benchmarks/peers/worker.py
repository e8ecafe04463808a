"""A worker measures one library in a process of its own: the CPU time of each run, and the peak memory.

A worker is a script that calls `serve`. It is given its settings as JSON, gets ready (load, compile, one warm-up), and
then makes one run for each seed that it reads. It imports nothing but the standard library, for it runs in the
environments of the peers too.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def cpu_seconds() -> float:
    """CPU seconds of this process, all its threads and all its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_gib() -> float:
    """Largest resident set of this process so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, but bytes on macOS
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def serve(prepare: Callable[..., Callable[..., dict[str, Any]]]) -> None:
    """Answer seeds, one a line, with ``{"cpu", "wall", "rss"} | run(seed)``.

    ``prepare(**settings)`` returns ``run``. The first run is the warm-up, whose time is reported apart; the setting
    ``warm_up`` holds what it takes other than a seed, so that it may be shorter than the rest.
    """
    # Libraries print what they like: what was standard output is kept for the answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    start = time.perf_counter()
    settings = json.loads(sys.argv[1])
    warm_up = settings.pop("warm_up", {})
    run = prepare(**settings)
    loaded = time.perf_counter()
    run(10**6, **warm_up)
    answer(load=loaded - start, first=time.perf_counter() - loaded)
    for line in sys.stdin:
        cpu, wall = cpu_seconds(), time.perf_counter()
        result = run(int(line))
        measured = {"cpu": cpu_seconds() - cpu, "wall": time.perf_counter() - wall, "rss": peak_gib()}
        answer(**measured | result)

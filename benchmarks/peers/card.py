"""What work takes on a device: its seconds and its peak memory. It needs torch alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from worker import peak_gib


def measured(device: Any, work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return the result of some work, and ``{"seconds", "gib"}``: of a GPU's memory, or of the process on a CPU."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = work()
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    return result, {
        "seconds": seconds,
        "gib": torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else peak_gib(),
    }

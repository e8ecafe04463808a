"""What memory a device has free, what share of it a model may keep things in, and how running out of it is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_GIB = 1 << 30
_CPU = 2 * _GIB
_RESERVE = 2 * _GIB
_WORDS = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
_MOUNTS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Of control groups of version 2, and of version 1: where they are, their limit, use, and the files that they cache."""


def share(device: Any, promised: int = 0) -> int:
    """Return how many bytes a model may keep on a device beside its weights, which are there already.

    Of what is free, 2 GiB (but at most half) are a reserve for what a pass needs while it runs. Of the rest, less what
    other models were ``promised`` and have not filled, it is three quarters, and never less than an eighth of what is
    really free: so a model alone has most of the device, and one that comes later has less, but something. On a CPU it
    is 2 GiB at most, as its memory belongs to other programs, too. The same 2 GiB where a device does not tell.
    """
    room = free(device)
    if room is None:
        return _CPU
    room -= min(_RESERVE, room // 2)
    found = max(3 * (room - promised) // 4, room // 8)
    return min(found, _CPU) if torch.device(device).type == "cpu" else found


def free(device: Any) -> int | None:
    """Return the bytes that are free on a device, or None where it does not tell.

    What torch has set aside and does not use is free. On a GPU that shares the machine's memory it is what the machine
    has left; on a Mac, half of what is left of what it recommends for the GPU.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return available()
    if device.type == "mps":
        beside: int = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
        return max(0, beside) // 2
    module: Any = getattr(torch, device.type, None)
    if not hasattr(module, "mem_get_info"):
        return None
    if getattr(module.get_device_properties(device), "is_integrated", False) and (left := available()) is not None:
        return left
    unused = module.memory_reserved(device) - module.memory_allocated(device)
    return int(module.mem_get_info(device)[0] + unused)


def available(root: Path = Path("/")) -> int | None:
    """Return the bytes that the machine, and any control group that this process is in, have left; None: not told."""
    found = [*_machine(root / "proc/meminfo"), *_groups(root)]
    return max(0, min(found)) if found else None


def _machine(path: Path) -> Iterator[int]:
    lines = _lines(path)
    yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _groups(root: Path) -> Iterator[int]:
    """What each control group has left: that of this process, as far as it is to be seen, and those around it."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        mount = next((mount for name, mount in _MOUNTS.items() if name in controllers.split(",")), None)
        if mount is None:
            continue
        where, most, used, cached = mount
        top = root / "sys/fs/cgroup" / where
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, use = _lines(folder / most), _lines(folder / used)
            if limit and use and limit[0].isdigit():
                stats = (stat.split() for stat in _lines(folder / "memory.stat"))
                yield int(limit[0]) - int(use[0]) + sum(int(stat[1]) for stat in stats if stat[0] == cached)
            if folder == top:
                break


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def ran_out(error: BaseException) -> bool:
    """Return whether an error says that a device has run out of memory, in the words of any.

    >>> ran_out(RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)")), ran_out(RuntimeError("shape"))
    (True, False)
    """
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def give_back(device: Any) -> None:
    """Let a device have back what torch has set aside of its memory and does not use."""
    module: Any = getattr(torch, torch.device(device).type, None)
    if hasattr(module, "empty_cache"):
        module.empty_cache()

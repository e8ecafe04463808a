"""Which histories share a pass: those of like shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..memory.jobs import Job


def grouped(
    jobs: Sequence[Job], together: Callable[[Job, Job], bool], rows: int, positions: int
) -> Iterator[list[Job]]:
    """Cut jobs, like ones beside each other, into passes of similar shape, so that padding at most doubles the work.

    A pass has at most so many rows, and so many positions, padding included; ``together`` says whether two jobs can
    share one.
    """
    group: list[Job] = []
    pending = length = 0
    for job in jobs:
        n = len(group) + 1
        wide = n * job.pending > max(2 * (pending + job.pending), 64)
        longest = max(job.columns, max((other.columns for other in group[-1:]), default=0))
        long = n * longest > 2 * (length + job.columns) + 512
        full = n > rows or n * job.pending > positions
        if group and (full or wide or long or not together(group[0], job)):
            yield group
            group, pending, length = [], 0, 0
        group.append(job)
        pending += job.pending
        length += job.columns
    if group:
        yield group

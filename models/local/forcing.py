"""Given tokens under a local model: their log-probabilities, forwarded together and kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..language.host import Floats, Tally
from ..language.laws import log_prob_of, on, warp
from ..language.sampling import Law
from .forward import Forwarder
from .histories import History
from .jobs import Job

_CHUNK = 1024


def forced(
    forwarder: Forwarder,
    nodes: Sequence[History],
    starts: Sequence[int],
    laws: Sequence[Law],
    owners: Sequence[int],
    tally: Tally,
) -> Floats:
    """Return the log-probability (n,) of the tokens of each history from position ``starts[i]`` to its end.

    The first of them may be known from the logits kept at the history before it; the rest go through the model
    in chunks, shortest prefix first, each building on the last.
    """
    total = np.zeros(len(nodes))
    going = [i for i, node in enumerate(nodes) if node.length > starts[i]]
    if going:
        before = [nodes[i].ancestor(starts[i]) for i in going]
        given = np.array([nodes[i].tokens(starts[i])[0] for i in going], np.int64)
        total[going] = _following(forwarder, before, given, [laws[i] for i in going], [owners[i] for i in going], tally)
    at = list(starts)
    while True:
        # Requests that need the same positions of the same history share them.
        wanted: dict[History, list[int]] = defaultdict(list)
        for i, node in enumerate(nodes):
            if at[i] < node.length - 1:
                reach = forwarder.stretch(at[i], min(node.length - 1, at[i] + _CHUNK))
                wanted[node.ancestor(reach)].append(i)
        if not wanted:
            return total

        def add(jobs: Sequence[Job], logits: Any, wanted: dict[History, list[int]] = wanted) -> None:
            for row, job in enumerate(jobs):
                users = wanted[job.node]
                tally.forwarded(owners[users[0]], job.cost, job.again)
                for i in users:
                    count = job.node.length - at[i]
                    given = np.array(nodes[i].tokens(at[i] + 1)[:count], np.int64)
                    sampling, mask = laws[i]
                    allowed = None if mask is None else on(mask, logits.device).expand(count, -1)
                    total[i] += log_prob_of(warp(logits[row, -count:], sampling, allowed), given).sum()

        ends = list(wanted)
        with torch.inference_mode():
            tally.calls += forwarder.all_logits(ends, [min(at[i] for i in wanted[end]) for end in ends], add)
        for end, users in wanted.items():
            for i in users:
                at[i] = end.length


def _following(
    forwarder: Forwarder,
    nodes: Sequence[History],
    given: NDArray[np.int64],
    laws: Sequence[Law],
    owners: Sequence[int],
    tally: Tally,
) -> Floats:
    """Return the log-probability (n,) of a given token (n,) after each history."""
    result = np.zeros(len(nodes))
    with torch.inference_mode():
        logits = forwarder.next_logits(nodes, np.array(owners, np.intp), tally)
        for law in set(laws):
            rows = [i for i, other in enumerate(laws) if other == law]
            part = logits[torch.tensor(rows, device=logits.device)]
            allowed = None if law[1] is None else on(law[1], logits.device).expand(len(rows), -1)
            result[rows] = log_prob_of(warp(part, law[0], allowed), given[rows])
    return result

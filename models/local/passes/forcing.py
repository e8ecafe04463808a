"""Given tokens under a local model: their log-probabilities, forwarded together and kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...language.drawing.laws import log_prob_of, read
from ...language.drawing.sampling import Law
from ...language.host import Floats, Tally
from ..memory.histories import History
from ..memory.jobs import Job
from ..weights.staging import send
from .drawing import Laws
from .forward import Forwarder

_CHUNK = 1024


def forced(
    forwarder: Forwarder,
    nodes: Sequence[History],
    starts: Sequence[int],
    laws: Sequence[Law],
    owners: Sequence[int],
    tally: Tally,
    onward: bool = False,
) -> Floats:
    """Return the log-probability (n,) of the tokens of each history from position ``starts[i]`` to its end.

    The first of them may be known from the logits kept at the history before it; the rest go through the model
    in chunks, shortest prefix first, each building on the last. Each pass is weighed as it comes; all is read at once.
    With ``onward`` the last tokens go through, too, and the logits after them are kept for the steps that follow.
    """
    found = _Found(Laws([sampling for sampling, _ in laws], [mask for _, mask in laws]))
    going = np.array([i for i, node in enumerate(nodes) if node.length > starts[i]], np.intp)
    with torch.inference_mode():
        if len(going):
            given = np.array([nodes[i].tokens(starts[i])[0] for i in going], np.int64)

            def first(places: NDArray[np.intp], logits: Any, rows: NDArray[np.intp] | None) -> None:
                found.weigh(going[places], given[places], logits, np.arange(len(places)) if rows is None else rows)

            before = [nodes[i].ancestor(starts[i]) for i in going]
            forwarder.next_logits(before, np.array(owners, np.intp)[going], tally, first)
        _rest(forwarder, nodes, list(starts), found, owners, tally, onward)
    return found.sums(len(nodes))


def _rest(
    forwarder: Forwarder,
    nodes: Sequence[History],
    at: list[int],
    found: _Found,
    owners: Sequence[int],
    tally: Tally,
    onward: bool,
) -> None:
    """Weigh the tokens of each history after position ``at[i]``, in passes of all positions."""
    ends = [node.length - 1 + onward for node in nodes]
    forwarder.begin()
    while True:
        # Requests that need the same positions of the same history share them.
        wanted: dict[History, list[int]] = defaultdict(list)
        for i, node in enumerate(nodes):
            if at[i] < ends[i]:
                reach = forwarder.stretch(at[i], min(ends[i], at[i] + _CHUNK))
                wanted[node.ancestor(reach)].append(i)
        if not wanted:
            return

        def add(jobs: Sequence[Job], logits: Any, wanted: dict[History, list[int]] = wanted) -> None:
            width = logits.shape[1]
            who: list[int] = []
            given: list[int] = []
            rows: list[NDArray[np.intp]] = []
            for row, job in enumerate(jobs):
                users = wanted[job.node]
                tally.forwarded(owners[users[0]], job.cost, job.again)
                for i in users:
                    count = job.node.length - at[i]
                    own = nodes[i].tokens(at[i] + 1)[:count]  # none follows the last
                    at[i] = job.node.length
                    who += [i] * len(own)
                    given += own
                    rows.append(np.arange((row + 1) * width - count, (row + 1) * width)[: len(own)])
            if onward:
                forwarder.remember(jobs, logits[:, -1])
            found.weigh(np.array(who, np.intp), np.array(given, np.int64), logits.flatten(0, 1), np.concatenate(rows))

        asked = list(wanted)
        tally.calls += forwarder.all_logits(asked, [min(at[i] for i in wanted[node]) for node in asked], add)


class _Found:
    """Log-probabilities of given tokens, each of one of some requests, that are read together."""

    def __init__(self, laws: Laws) -> None:
        self._laws = laws
        self._owners: list[NDArray[np.intp]] = []
        self._log_prob: list[Any] = []

    def weigh(self, requests: NDArray[np.intp], given: NDArray[np.int64], logits: Any, rows: NDArray[np.intp]) -> None:
        """Note the log-probability of a token of some requests, each under a row of logits; nobody waits for it."""
        for which, sampling, masks in self._laws.alike(requests):
            tokens, index = send(logits.device, given[which], rows[which])
            self._log_prob.append(log_prob_of(logits, tokens, sampling, masks, index))
            self._owners.append(requests[which])

    def sums(self, n: int) -> Floats:
        """Return the sum of each request's, (n,): here the device is waited for."""
        total = np.zeros(n)
        if self._log_prob:
            np.add.at(total, np.concatenate(self._owners), read(torch.cat(self._log_prob)))
        return total

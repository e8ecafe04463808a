"""Hidden states after histories, from the passes that are made anyway."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ....ppl.distributions.batching import groups
from ...language.host import Sink, Tally
from ..memory.histories import Histories, History
from ..memory.jobs import Job
from ..memory.kept import gather
from .forward import Forwarder
from .lens import INTO_HEAD


def depth(forwarder: Forwarder) -> int:
    """Return how many hidden states a model gives, see `Lens`. Raises Unsupported where it gives none."""
    with forwarder.hold():
        if forwarder.lens.depth is None:
            tokens = np.random.default_rng(0).integers(0, forwarder.vocab_size, 16)
            job = Job(forwarder.roots(Histories(), tokens)[0], 0, None, None)
            with forwarder.uncounted(), torch.inference_mode():
                forwarder.lens.measure(lambda: forwarder.bare(job, False))
        found: int = forwarder.lens.depth or 0
        return found


def hidden(
    forwarder: Forwarder,
    nodes: Sequence[History],
    layers: Sequence[int],
    owners: NDArray[np.intp],
    tally: Tally,
    sink: Sink,
) -> None:
    """Say the hidden state of a layer at the end of each history, see `Host`.

    It is that of the pass that gives the logits there, which are kept, so that what goes on from there does not forward
    the position again. Where a pass was made that did not take the layer (see `Lens`), the position is forwarded anew.
    """
    with forwarder.hold():
        known = depth(forwarder)
        wanted = [(node, forwarder.lens.key(layer % known)) for node, layer in zip(nodes, layers)]
        found: dict[tuple[History, int], tuple[Any, int]] = {}
        missing: dict[History, int] = {}
        passed: set[History] = set()
        for i, (node, key) in enumerate(wanted):
            wave, row = node.logits or (None, 0)
            if wave is not None and key in wave.hidden:
                forwarder.kept.touch(wave)
                found[node, key] = wave.hidden[key], row
            else:
                missing.setdefault(node, i)
                if wave is not None and wave.logits is not None:
                    passed.add(node)

        def keep(jobs: Sequence[Job], logits: Any) -> None:
            taken = forwarder.lens.taken
            for row, job in enumerate(jobs):
                again = 0 if job.node in passed else job.again  # it was not forgotten: it was not looked at
                forwarder.recomputed -= job.again - again
                tally.forwarded(owners[missing[job.node]], job.cost, again)
                found.update(((job.node, key), (states, row)) for key, states in taken.items())
            forwarder.remember(jobs, logits[:, -1])

        if missing:
            keys = {key for node, key in wanted if node in missing} - {INTO_HEAD}
            with forwarder.lens.taking(keys) if keys else nullcontext():
                ends = [node.length - 1 for node in missing]
                tally.calls += forwarder.run(list(missing), ends, keep, len(missing))
        for rows in groups(key for _, key in wanted):
            sink(rows, gather([found[wanted[row]] for row in rows]).float())

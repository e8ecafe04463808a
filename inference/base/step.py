"""What is kept of one step of one chain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...ppl.cost import Cost
from ...ppl.model import Floats, Index


@dataclass(frozen=True)
class Step:
    """What happened at one step of one chain of n particles.

    An engine that grows a tree shows a step for each wave of rollouts, of which the particles are the leaves that the
    wave added; what it leaves in the history is the tree, read by depth (see `SearchTree.steps`).

    A tempered population has a step for each stage (see `Chain.stages`): its particles are whole runs, its
    ``log_potential`` that of the whole run, and its weights and evidence those of the tempered target.

    Attributes:
        depth: number of the step, from 0.
        ess: effective sample size of the (twisted) weights, in 1…n, before resampling.
        entropy: entropy of the (twisted) normalised weights, in nats.
        log_evidence: log Ẑ so far.
        resampled: whether the particles were resampled before this step.
        ancestors: (n,) the index of each particle's parent at the step before.
        log_weights: (n,) after this step.
        log_potential: (n,) log G of this step.
        log_twist: (n,) the guide's level.
        done: (n,) whether each particle had finished.
        choices: what each particle chose.
        temperature: of the target at this step; 1 is the model's own.
        scheme: how the ancestors were drawn ("multinomial", …); None where they were not.
        acceptance: the share of the moves of a stage that were accepted; NaN where there were none.
        cost: what the run of its model, all chains together, had used when the step was made: a step used the
            difference from the one before, and what the last one has is the posterior's. Callbacks and `steps` always
            see it; it is None in a history that is put together afterwards: of searches, Markov chains, tempered
            engines, and programs that are compiled.

    All its arrays are read-only.
    """

    depth: int
    ess: float
    entropy: float
    log_evidence: float
    resampled: bool
    ancestors: Index
    log_weights: Floats
    log_potential: Floats
    log_twist: Floats
    done: NDArray[np.bool_]
    choices: Sequence[Any]
    temperature: float = 1.0
    scheme: str | None = None
    acceptance: float = math.nan
    cost: Cost | None = field(default=None, compare=False, repr=False)  # it tells the time, which no seed repeats

    def __post_init__(self) -> None:
        freeze(self, "ancestors", "log_weights", "log_potential", "log_twist", "done")

    @property
    def unique_ancestors(self) -> int:
        """How many particles of the step before have a child at this one, in 1…n."""
        return len(np.unique(self.ancestors))


def freeze(record: Any, *names: str) -> None:
    """Put a read-only view in place of each named array of a frozen dataclass; the array itself stays as it was."""
    for name in names:
        view = np.asarray(getattr(record, name)).view()
        view.flags.writeable = False
        object.__setattr__(record, name, view)

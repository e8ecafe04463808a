"""One independent run of an engine, as it is kept: weights and history, without live state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...ppl.compiled.choices import Choices
from ...ppl.model import Floats
from ...ppl.sites import Site
from .search_tree import SearchTree
from .step import Step, freeze
from .weights import logmeanexp

_PLAIN = frozenset((float, int, str, bool, type(None)))
_CONTAINERS = (list, tuple, set, frozenset, dict)
_new = tuple.__new__  # makes a named tuple at half the price


def detach(value: Any) -> Any:
    """Return ``value`` without what only a live run needs: caches of texts, also inside containers."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is Site:
        inner = detach(value[3])
        return value if inner is value[3] else _new(Site, (*value[:3], inner, *value[4:]))
    if not isinstance(value, _CONTAINERS):
        return value.detach() if hasattr(value, "detach") else value
    if kind is list or kind is tuple:
        items = [detach(item) for item in value]
        if all(a is b for a, b in zip(items, value)):
            return value
        return items if kind is list else tuple(items)
    if isinstance(value, list):  # of one shared by particles, which refused to change
        return [detach(item) for item in value]
    if isinstance(value, tuple):
        return value._make(detach(item) for item in value) if hasattr(value, "_make") else value
    if isinstance(value, set | frozenset):
        return (frozenset if kind is frozenset else set)(detach(item) for item in value)
    return {key: detach(item) for key, item in value.items()}


def detach_choices(choices: Any) -> Any:
    """Return the choices of a step detached; arrays of them, as native models may give, stay as they are."""
    if isinstance(choices, Choices) or (isinstance(choices, np.ndarray) and choices.dtype != object):
        return choices
    return [_detach_sites(chosen) for chosen in choices]


def _detach_sites(chosen: Any) -> Any:
    if type(chosen) is not tuple:
        return detach(chosen)
    for site in chosen:
        if type(site) is not Site or type(site[3]) not in _PLAIN:
            return detach(chosen)
    return chosen


@dataclass(frozen=True)
class Chain:
    """One independent run.

    Attributes:
        log_weights: (n,) unnormalised.
        complete: (n,) whether each particle ran to its end.
        log_evidence: set where it is not the mean weight.
        steps: its history.
        answers: (n,) what each particle votes for, of engines that hold a vote.
        tree: of engines that grow one; the steps are then its own.
        info: numbers by name that say how the engine fared, such as "acceptance"; and as a text, whether its program
            was "compiled".
        serial: whether the particles are draws of one Markov chain, in their order.
        stats: arrays (n,) that say how each draw of a Markov chain came about, by ArviZ's names.
        stages: of engines that temper whole runs: a step for each stage. The steps are then those of the runs.

    All its arrays are read-only.
    """

    log_weights: Floats
    complete: NDArray[np.bool_]
    log_evidence: float | None
    steps: Sequence[Step]
    answers: tuple[Any, ...] | None = None
    tree: SearchTree | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    serial: bool = False
    stats: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    stages: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        freeze(self, "log_weights", "complete")
        for array in self.stats.values():
            array.flags.writeable = False

    @cached_property
    def evidence(self) -> float:
        """log Ẑ of this chain."""
        return logmeanexp(self.log_weights) if self.log_evidence is None else self.log_evidence

    @property
    def history(self) -> Sequence[Step]:
        """What the weights went through: the stages of a tempered population, else the steps."""
        return self.stages or self.steps

    @property
    def arrived(self) -> bool:
        """Whether its target is the model's own: every run is complete, and none is tempered."""
        return bool(self.complete.all()) and (not self.stages or self.stages[-1].temperature == 1.0)

    @cached_property
    def founders(self) -> NDArray[np.intp]:
        """(n,): the index, at the first step of its `history`, of the ancestor of each final particle."""
        index = np.arange(len(self.log_weights))
        for step in self.history[:0:-1]:
            index = step.ancestors[index]
        return index

    @cached_property
    def lines(self) -> NDArray[np.intp]:
        """(steps, n): the index, at each step, of the ancestor of each final particle."""
        out = np.empty((len(self.steps), len(self.log_weights)), np.intp)
        index = np.arange(len(self.log_weights))
        for t in range(len(self.steps) - 1, -1, -1):
            out[t] = index
            index = self.steps[t].ancestors[index]
        out.flags.writeable = False
        return out

    @cached_property
    def log_potential(self) -> Floats:
        """(n,): log G of each final particle's whole path, Σ_t log G_t."""
        out = np.zeros(len(self.log_weights))
        for step, line in zip(self.steps, self.lines):
            out += step.log_potential[line]
        out.flags.writeable = False
        return out

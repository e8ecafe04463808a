"""What workers are to do, and what one says of it before anything is drawn."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ...ppl.cost import Budget
from ...ppl.program import ProgramFactory
from ...ppl.sites import short
from ...ppl.values.canonical import NoForm, digest, form
from ..base.checks import each_engine
from ..base.engine import Engine
from ..problem import Problem, pose

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def plain(name: str) -> str:
    """Return a repr without places in memory, which are others in each process."""
    return _ADDRESS.sub("", name)


class Facts(NamedTuple):
    """What a run is on."""

    names: tuple[str, ...]
    """How each unit is written: of many models the models; of one model, itself, once for each chain."""
    many: bool
    """Whether the units are models; else they are the chains of one."""
    version: str
    """Of feynkac, where the models were made."""
    marks: tuple[str, ...]
    """What tells each unit from others in any process: its name, and the program and arguments behind it."""


@dataclass(frozen=True)
class Job:
    """Models, or a function that makes them, and what is to be done with them. Sent to a worker once.

    Its units, numbered from 0, are the models; the chains, where there is one model alone.
    """

    models: Any
    engine: Engine | Sequence[Engine]
    seed: int
    budget: Budget | None
    watched: bool

    def engine_of(self, unit: int) -> Engine:
        """Return the engine of a unit: the one of all, or its own."""
        return self.engine[unit] if isinstance(self.engine, Sequence) else self.engine

    @property
    def made(self) -> bool:
        """Whether the models are there, and not a function that makes them."""
        found = self.models
        return not callable(found) or hasattr(found, "advance") or isinstance(found, ProgramFactory | type | Iterable)

    def make(self, device: str | None = None) -> Units:
        """Return the units, on a device if one is given.

        Raises TypeError for what are no models, and whatever the function that makes them raises.
        """
        found = self.models
        if not self.made:
            found = found() if device is None else found(device)
            if not hasattr(found, "advance") and not isinstance(found, Iterable):
                raise TypeError(f"the function that makes the models returned {short(found, 60)}, and no list of them")
        many = isinstance(found, Iterable) and not hasattr(found, "advance")
        models = list(found) if many else [found]
        engines = each_engine("infer", models, self.engine, self.budget, many)
        if not many and self.budget is not None and self.budget.limited:
            raise ValueError(
                "budget= of a single model counts all its chains, and on workers each runs apart: leave out budget= or "
                "workers=, or set fewer particles"
            )
        return Units(self, models, engines, many)


@dataclass(frozen=True)
class Units:
    """The units of a job, where their models are."""

    job: Job
    models: Sequence[Any]
    engines: Sequence[Engine]
    many: bool

    @property
    def alone(self) -> bool:
        """Whether the run is on one model."""
        return len(self.models) == 1

    def problem(self, unit: int) -> Problem:
        """Return a unit as a problem, whose keys are the same wherever it is run, and beside whatever others."""
        job = self.job
        if self.many:
            return pose(self.models[unit], self.engines[unit], job.seed, unit)
        return replace(pose(self.models[0], self.engines[0], job.seed, 0), chain=unit)

    @property
    def particles(self) -> int:
        """How many particles a unit has, at most, roughly."""
        return max((one.particles * (one.chains if self.many else 1) for one in self.engines), default=0)

    @property
    def facts(self) -> Facts:
        """What a run on them is on."""
        each = 1 if self.many else self.engines[0].chains
        names, marks = tuple(map(repr, self.models)) * each, tuple(map(mark, self.models)) * each
        return Facts(names, self.many, importlib.metadata.version("feynkac"), marks)


def mark(model: Any) -> str:
    """Return a digest of a model or an engine: a repr leaves out the middle of long arrays, and the code."""
    parts: list[Any] = [plain(repr(model))]
    for part in getattr(model, "reachable", (model,)):
        with suppress(NoForm, RecursionError):  # such a thing is known by its repr alone
            parts.append(form(part))
    return digest(parts).hex()

"""Posteriors in a folder: written as they come, read when they are asked for, so that they may outgrow memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, overload

from ...ppl.errors import UnreadablePosterior
from ...ppl.sites import short
from ..results.keeping.files import LIMIT, writing
from ..results.posterior import Posterior
from .job import Facts, Job, mark, plain
from .travel import unpack

_HEAD = "run.json"
_KIND, _FORMAT = "feynkac posteriors", 1


class Store(Protocol):
    """Where the posteriors of a run go."""

    def open(self, facts: Facts, job: Job) -> set[int]:
        """Begin a run, and return the units whose posteriors are there already."""

    def put(self, unit: int, data: bytes) -> None:
        """Keep the posterior of a unit that came to its end."""

    def found(self, rest: Mapping[int, Posterior]) -> Sequence[Posterior]:
        """Return all posteriors; ``rest`` are those of the units that did not come to their ends."""


class InMemory:
    """Keeps posteriors as they are."""

    def __init__(self) -> None:
        self._found: dict[int, Posterior] = {}
        self._count = 0

    def open(self, facts: Facts, job: Job) -> set[int]:
        """Begin a run."""
        self._count = len(facts.names)
        return set()

    def put(self, unit: int, data: bytes) -> None:
        """Keep a posterior."""
        self._found[unit] = unpack(data, f"the posterior of problem {unit}")

    def found(self, rest: Mapping[int, Posterior]) -> list[Posterior]:
        """Return all posteriors."""
        every = {**self._found, **rest}
        return [every[unit] for unit in range(self._count)]


class Folder:
    """Writes posteriors into a folder, each whole or not at all; a folder of the same run is gone on with."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def open(self, facts: Facts, job: Job) -> set[int]:
        """Begin a run, or go on with one.

        Raises FileExistsError for a folder of something else, which is left as it is.
        """
        digest = hashlib.sha256(json.dumps(facts.marks).encode()).hexdigest()
        head = {
            "kind": _KIND,
            "format": _FORMAT,
            "problems": len(facts.names),
            "models": digest,
            "engine": _told(job.engine),
            "seed": int(job.seed),
            "budget": repr(job.budget),
        }
        if (self.path / _HEAD).exists():
            before = _head(self.path)
            other = [name for name in head if before.get(name) != head[name]]
            if other:
                told = ", ".join(_differing(name, before.get(name), head[name]) for name in other)
                raise FileExistsError(f"{self.path} holds another run ({told}): give another folder, or delete it")
            return {unit for unit in range(len(facts.names)) if (self.path / _name(unit)).exists()}
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise FileExistsError(f"{self.path} is there and holds no run of posteriors: give another folder for save=")
        self.path.mkdir(parents=True, exist_ok=True)
        with writing(self.path / _HEAD) as file:
            file.write(json.dumps(head).encode())
        return set()

    def put(self, unit: int, data: bytes) -> None:
        """Write a posterior."""
        with writing(self.path / _name(unit)) as file:
            file.write(data)

    def found(self, rest: Mapping[int, Posterior]) -> Posteriors:
        """Return all posteriors, those in the folder and the rest."""
        return Posteriors(self.path, rest=rest)


class Posteriors(Sequence[Posterior]):
    """The posteriors of many problems in a folder, in their order: a sequence that reads each when it is asked for.

    What `infer` returns where ``save=`` is given; ``fk.Posteriors(folder)`` opens it again.

    Args:
        folder: what was given as ``save=``.
        limit: bytes that a file may hold, unpacked; see `Posterior.load`.
        rest: posteriors of problems that did not come to their ends, which are not in the folder.

    Attributes:
        missing: the problems that have no posterior in the folder: a run was cut short, or goes on elsewhere, or they
            failed. `infer` with the same arguments and folder runs these.

    Raises FileNotFoundError where there is no such folder, and UnreadablePosterior for one of something else; asked for
    a posterior that is missing, FileNotFoundError, and for one that is damaged, UnreadablePosterior.

    >>> import tempfile
    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin(p):
    ...     return await fk.sample("heads", fk.dist.Bernoulli(p))
    >>> folder = tempfile.TemporaryDirectory()
    >>> found = fk.infer([coin(0.1 * i) for i in range(1, 10)], fk.SMC(2000), seed=0, save=folder.name)
    >>> len(found), found.missing
    (9, ())
    >>> [round(p.expect(float), 1) for p in fk.Posteriors(folder.name)[1::4]]
    [0.2, 0.6]
    >>> folder.cleanup()
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, limit: int = LIMIT, rest: Mapping[int, Posterior] | None = None
    ) -> None:
        self.folder = Path(folder)
        self._limit = limit
        self._rest = dict(rest or {})
        self._count = int(_head(self.folder)["problems"])

    @property
    def missing(self) -> tuple[int, ...]:
        """The problems that have no posterior in the folder."""
        return tuple(unit for unit in range(self._count) if not self.path(unit).exists())

    def path(self, problem: int) -> Path:
        """Return where the posterior of a problem is, or would be."""
        return self.folder / _name(problem)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Posterior: ...
    @overload
    def __getitem__(self, index: slice) -> list[Posterior]: ...
    def __getitem__(self, index: int | slice) -> Posterior | list[Posterior]:
        found = range(self._count)[index]
        if isinstance(found, range):
            return [self[i] for i in found]
        path = self.path(found)
        if not path.exists():
            if found in self._rest:
                return self._rest[found]
            raise FileNotFoundError(
                f"problem {found} of {self._count} has no posterior in {self.folder}: fk.infer with the same arguments "
                "and save= runs what is missing"
            )
        return Posterior.load(path, limit=self._limit)

    def __iter__(self) -> Iterator[Posterior]:
        return (self[i] for i in range(self._count))

    def __repr__(self) -> str:
        return f"<{self._count - len(self.missing)} of {self._count} posteriors in {self.folder}>"


def _told(engine: Any) -> list[Any]:
    """Return what a folder says of an engine, or of one for each problem: how it is written, and its digest."""
    if not isinstance(engine, list | tuple):
        return [plain(repr(engine)), mark(engine)]
    digest = hashlib.sha256(json.dumps(list(map(mark, engine))).encode()).hexdigest()
    return [[plain(repr(one)) for one in engine], digest]


def _differing(name: str, before: Any, now: Any) -> str:
    """Return in what two runs differ, without the digests of code and arguments."""
    if name == "models":
        return "models: of other code or arguments"
    if name == "engine" and isinstance(before, list):
        (before, _), (now, _) = before, now
        if before == now:
            return f"engine: {short(now, 200)} with other functions or arrays"
        if isinstance(before, list) and isinstance(now, list):
            others = (pair for pair in enumerate(zip(before, now)) if pair[1][0] != pair[1][1])
            i, (before, now) = next(others, (0, (f"{len(before)} engines", f"{len(now)} engines")))
            name = f"engine of problem {i}"
    return f"{name}: {short(before, 200)}, and not {short(now, 200)}"


def _name(unit: int) -> str:
    return f"{unit:07d}.fk"


def _head(folder: Path) -> dict[str, Any]:
    """Return what a folder says of its run."""
    text = (folder / _HEAD).read_text(encoding="utf-8")
    try:
        head = json.loads(text)
        if head["kind"] == _KIND and head["format"] == _FORMAT and type(head["problems"]) is int:
            return dict(head)
    except (ValueError, KeyError, TypeError):
        pass
    raise UnreadablePosterior(f"{folder / _HEAD} is not that of a run of posteriors, or it is damaged")

"""What particles of a compiled scan chose: columns of arrays, read as the sites of an interpreted program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import ImpossibleChoice
from ..model import Index
from ..sites import Site, Tentative, address
from ..values.reals import plain


class Line(NamedTuple):
    """A site of a traced piece of code.

    Attributes:
        name: of the site in the first iteration.
        visit: in the first iteration.
        stride: how often an iteration visits the name.
        kind: as of a `Site`.
        hidden: as of a `Site`.
        latent: which of the piece's latents it is, or None.
        fixed: a value that is no array, and the same in all particles.
        drawn: whether a given value must reach it: a latent that no handler forces.
        names: by iteration, where they differ; None: it has the same name in all.
    """

    name: str
    visit: int
    stride: int
    kind: str
    hidden: bool
    latent: int | None = None
    fixed: Any = None
    drawn: bool = False
    names: tuple[str, ...] | None = None

    def at(self, t: int) -> tuple[str, int]:
        """Return name and visit in an iteration."""
        return self.name if self.names is None else self.names[t], self.visit + self.stride * t


def alike(lines: Sequence[Line], others: Sequence[Line]) -> bool:
    """Whether two pieces of code have the same sites, in the same order."""
    same = len(lines) == len(others) and all(a._replace(fixed=b.fixed) == b for a, b in zip(lines, others))
    return lines is others or same


class Column(NamedTuple):
    """What m particles have at a site: values (m, …) or None for a fixed one; log p and log q (m,) or None for 0."""

    values: NDArray[Any] | None
    log_prob: NDArray[Any] | None = None
    log_proposal: NDArray[Any] | None = None


class Piece(NamedTuple):
    """What m particles did in a piece of code.

    Attributes:
        lines: its sites.
        columns: one for each of them.
        iteration: (m,) which iteration of the scan it was.
        rows: (n,) the place of each particle of a batch among the m; −1: it did not take part.
    """

    lines: Sequence[Line]
    columns: Sequence[Column]
    iteration: NDArray[np.int64]
    rows: Index


class Choices(Sequence[Any]):
    """The choices of n particles in a step: a tuple of `Site` for each, made when it is asked for."""

    __slots__ = ("_n", "pieces")

    def __init__(self, n: int, pieces: Sequence[Piece]) -> None:
        self._n = n
        self.pieces = pieces

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> tuple[Site, ...]: ...
    @overload
    def __getitem__(self, index: slice | Index) -> Choices: ...
    def __getitem__(self, index: int | slice | Index) -> tuple[Site, ...] | Choices:
        if isinstance(index, slice | np.ndarray):
            pieces = [piece._replace(rows=piece.rows[index]) for piece in self.pieces]
            return Choices(len(np.arange(self._n)[index]), pieces)
        found: list[Site] = []
        for lines, columns, iteration, rows in self.pieces:
            row = int(rows[index])
            if row >= 0:
                t = int(iteration[row])
                found += [_site(line, column, row, t) for line, column in zip(lines, columns)]
        return tuple(found)

    def __iter__(self) -> Iterator[tuple[Site, ...]]:
        return (self[i] for i in range(self._n))


def _site(line: Line, column: Column, row: int, t: int) -> Site:
    values, log_prob, log_proposal = column
    return Site(
        *line.at(t),
        line.kind,
        line.fixed if values is None else plain(values[row]),
        0.0 if log_prob is None else float(log_prob[row]),
        0.0 if log_proposal is None else float(log_proposal[row]),
        line.hidden,
    )


class Forced(NamedTuple):
    """Values given to n particles.

    Attributes:
        values: for each latent of the piece (n, …).
        masks: for each latent (n,), whose value is given.
        refused: (n,) whose values were given on trial and do not fit, so that they die.
    """

    values: list[NDArray[Any]]
    masks: list[NDArray[np.bool_]]
    refused: NDArray[np.bool_]

    def rows(self, all_of: Index, some: Index) -> Forced:
        """Return what is given to ``some`` of the particles that it is laid out for, both in order."""
        place = np.searchsorted(all_of, some)
        return Forced([v[place] for v in self.values], [m[place] for m in self.masks], self.refused[place])


def force(
    given: Sequence[Any], lines: Sequence[Sequence[Line]], shapes: Sequence[tuple[tuple[int, ...], Any]], iteration: Any
) -> Forced:
    """Lay out what an engine gives back to n particles: sites, values by address, or None.

    Args:
        given: n items.
        lines: for each the sites that it will meet in the step.
        shapes: shape and dtype of each latent.
        iteration: (n,) of the scan.

    Raises:
        ImpossibleChoice: for values that the step does not ask for, or that have another form than its own.
    """
    n = len(given)
    values = [np.zeros((n, *shape), dtype) for shape, dtype in shapes]
    masks = [np.zeros(n, bool) for _ in shapes]
    refused = np.zeros(n, bool)
    for i, item in enumerate(given):
        if item is None:
            continue
        tentative = type(item) is Tentative
        left = dict(item) if isinstance(item, Mapping) else {s.address: s.value for s in item if s.kind == "sample"}
        for line in lines[i]:
            if line.latent is None:
                continue
            name = address(*line.at(int(iteration[i])))
            if name not in left:
                refused[i] |= tentative and line.drawn
                continue
            value, j = left.pop(name), line.latent
            if not _fits(value, *shapes[j]):
                if not tentative:
                    raise ImpossibleChoice(
                        f"the value {value!r:.80} forced on {name!r} has another form than its draws"
                    )
                refused[i] = True
                continue
            values[j][i] = value
            masks[j][i] = True
        if left and not tentative:
            raise ImpossibleChoice(f"the forced choices {sorted(left)} were not met in this step")
        refused[i] |= bool(left)
    return Forced(values, masks, refused)


def _fits(value: Any, shape: tuple[int, ...], dtype: Any) -> bool:
    try:
        found = np.asarray(value)
    except ValueError:
        return False
    if found.shape != shape or found.dtype.kind not in "biuf":
        return False
    return np.dtype(dtype).kind == "f" or found.dtype.kind != "f" or bool((found == np.floor(found)).all())

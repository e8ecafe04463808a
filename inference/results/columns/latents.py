"""What particles hold, as named columns: the parts of what they return, and the sites of programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ....ppl.model import Index
from ....ppl.sites import Site
from .columns import column, columns, free

_KINDS = ("sample", "deterministic")


class Variable(NamedTuple):
    """One named column.

    Attributes:
        array: (n, …) numbers or texts; with a second axis for the visits of a site that is ``visited`` more than once.
        visited: whether it has that axis.
        origins: for each visit (n,), which particles have the same draw of a site: equal numbers; () for values.
    """

    array: NDArray[Any]
    visited: bool = False
    origins: tuple[Index, ...] = ()


def variables(posterior: Any, sites: bool = True, reserved: Iterable[str] = ()) -> dict[str, Variable]:
    """Return the columns of the values and, with ``sites``, of the sites that were drawn or recorded, by name.

    What a program returns of its sites is there once, under the name of the site; "output", the value so far, and what
    is hidden are left out. A name that is taken gets an underscore after it; see `columns`.
    """
    taken = set(reserved)
    drawn = _sites(posterior) if sites else {}
    stacked = {name: _stacked(len(posterior), name, visits.values) for name, visits in drawn.items()}
    own = {name: {_content(array) for array in parts.values()} for name, (_, parts) in stacked.items()}
    known = {_content(part) for times, parts in stacked.values() for a in parts.values() for part in _pieces(a, times)}
    out: dict[str, Variable] = {}
    for name, array in columns(posterior.values, reserved=taken).items():
        named_by_us = name == "value" or name.isdigit()
        again = all(_content(part) in known for part in _pieces(array)[1:]) if array.ndim > 1 else False
        content = _content(array)
        if content not in own.get(name, ()) and not (named_by_us and (content in known or again)):
            out[name] = Variable(array)
    for name, (times, parts) in stacked.items():
        for key, array in parts.items():
            out[free(key, {*taken, *out})] = Variable(array, times > 1, drawn[name].origins)
    return out


def visits_of(posterior: Any, name: str) -> NDArray[Any]:
    """Return a site's values in every particle at every visit, (n, visits, …); what is not there is NaN, or "".

    Raises KeyError where no particle has a site of this name.
    """
    drawn = _sites(posterior)
    if name not in drawn:
        raise KeyError(f"no particle has a site named {name!r}; there are {', '.join(drawn) or 'none'}")
    values = drawn[name].values
    times = _times(values)
    found = column([values.get((i, v)) for i in range(len(posterior)) for v in range(times)])
    return found.reshape(len(posterior), times, *found.shape[1:])


class _Visits(NamedTuple):
    """The values of a site by particle and visit, and for each visit the draw that each particle has."""

    values: dict[tuple[int, int], Any]
    origins: tuple[Index, ...]


def _sites(posterior: Any) -> dict[str, _Visits]:
    found: dict[str, dict[tuple[int, int], Any]] = {}
    origins: dict[str, dict[int, Index]] = {}
    first, made = 0, 0
    for chain in posterior.chains:
        for step, line in zip(chain.steps, chain.lines.tolist()):
            for i, ancestor in enumerate(line, first):
                chosen = step.choices[ancestor]
                for site in chosen if isinstance(chosen, tuple) else ():
                    if isinstance(site, Site) and site.kind in _KINDS and not site.hidden and site.name != "output":
                        found.setdefault(site.name, {})[i, site.visit] = site.value
                        visits = origins.setdefault(site.name, {})
                        if site.visit not in visits:
                            visits[site.visit] = np.full(len(posterior), -1)
                        visits[site.visit][i] = made + ancestor
            made += len(step.choices)
        first += len(chain.log_weights)
    return {
        name: _Visits(values, tuple(origins[name].get(v, np.full(len(posterior), -1)) for v in range(_times(values))))
        for name, values in found.items()
    }


def _times(values: dict[tuple[int, int], Any]) -> int:
    return 1 + max(visit for _, visit in values)


def _stacked(n: int, name: str, values: dict[tuple[int, int], Any]) -> tuple[int, dict[str, NDArray[Any]]]:
    """Return how often a site is visited, and its columns, with an axis of visits where that is more than once."""
    times = _times(values)
    found = columns([values.get((i, v)) for i in range(n) for v in range(times)], name)
    if times == 1:
        return times, found
    return times, {key: array.reshape(n, times, *array.shape[1:]) for key, array in found.items()}


def _pieces(array: NDArray[Any], times: int = 2) -> list[NDArray[Any]]:
    """Return an array (n, …), and what it has at each place of its second axis."""
    return [array, *np.moveaxis(array, 1, 0)] if times > 1 and array.ndim > 1 else [array]


def _content(array: NDArray[Any]) -> Any:
    """Return what is equal for columns that hold the same, integers and floats alike."""
    if array.dtype.kind in "biuf":
        return array.shape, array.astype(np.float64).tobytes()
    return array.shape, array.tobytes() if array.dtype.kind == "c" else tuple(array.ravel().tolist())

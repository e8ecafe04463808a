"""Which way a program's density is had: by JAX, by torch, or by running a coroutine for each path."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..density import Density
from ..errors import NotTraceable, Unsupported
from ..keys import Keys
from ..lazy import needing
from ..model import Advance
from .shared import exact

Launch: TypeAlias = Callable[[Sequence[Any], Keys], Advance[Any]]


def unconstrained(program: Any, paths: Sequence[Any], horizon: int | None, launch: Launch) -> list[Density]:
    """Return the densities of paths; see `Program.unconstrained`. ``launch`` starts several programs in one wave."""
    choices = [[step.choices for step in path.steps()] for path in paths]
    latents = [[site for step in path for site in step if site.kind == "sample"] for path in choices]
    values = [{site.address: site.value for site in sites} for sites in latents]
    found: list[Density] = []
    for key, rows in _groups([tuple(_sign(site) for site in sites) for sites in latents]).items():
        for one, those in _routes(program, key, rows, values, launch):
            found.append(one.density(those, [choices[row] for row in those], horizon))
    if not any(density.position.shape[1] for density in found):
        raise Unsupported(f"{program!r} has no continuous site to move")
    return found


def _routes(
    program: Any, key: Any, rows: list[int], values: list[dict[str, Any]], launch: Launch
) -> Iterator[tuple[Any, list[int]]]:
    """Yield what gives the densities of paths that have the same latents, and the paths that it is for."""
    kept = program.kept_densities
    if key not in kept:
        first = _route(program, key, values[rows[0]], launch)
        kept[key] = first.constants
        kept[key, exact(first.constants, values[rows[0]])] = first
    for constants, places in _groups([exact(kept[key], values[row]) for row in rows]).items():
        those = [rows[place] for place in places]
        if (key, constants) not in kept:
            kept[key, constants] = _route(program, key, values[those[0]], launch)
        yield kept[key, constants], those


def _route(program: Any, key: Any, values: Mapping[str, Any], launch: Launch) -> Any:
    """Return what gives the densities of paths of a signature: JAX where it can, then torch, else forced runs."""
    from .interpreted import Interpreted

    try:
        with needing("the gradient of a program", "jax"):
            from .densities import signature_of
        return signature_of(program, values)
    except (NotTraceable, ImportError) as error:
        reason = str(error)
    if "torch" in sys.modules:  # a program of its distributions has loaded it
        from . import torch_densities

        try:
            if (found := torch_densities.signature_of(program, values)) is not None:
                return found
        except NotTraceable as error:
            reason = str(error)
    return Interpreted(program, reason, key, launch)


def _groups(keys: Sequence[Any]) -> dict[Any, list[int]]:
    groups: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return groups


def _sign(site: Any) -> Any:
    """Return what a latent adds to the signature of its path: where it is, and the form of its value."""
    value = site.value
    kind = type(value)
    if kind is float or kind is int:
        return site.name, site.visit, kind
    if isinstance(value, bool | np.ndarray | np.generic):
        array = np.asarray(value)
        return site.name, site.visit, array.shape, array.dtype.kind
    return site.name, site.visit, kind

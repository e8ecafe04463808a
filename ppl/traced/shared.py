"""What the routes to a density share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..density import Evaluation
from ..errors import NotDifferentiable
from ..model import Floats


def exact(slots: tuple[str, ...], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells the values of latents from others: they are constants of what is compiled."""
    return tuple(_marked(values[slot]) for slot in slots)


def _marked(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value


def with_values(path: Sequence[Any], found: Mapping[str, Any]) -> list[Any]:
    """Return the choices of a path, by step, with other values at some addresses; runs within are made anew."""
    return [tuple(_with(site, found) for site in choices if site.kind != "call") for choices in path]


def _with(site: Any, found: Mapping[str, Any]) -> Any:
    return site._replace(value=found[site.address]) if site.kind == "sample" and site.address in found else site


def check_gradients(found: Evaluation, u: Floats, position: Floats, sites: Sequence[str]) -> None:
    """Raise, naming the site, where a path as it stands has a density but no gradient."""
    total = found.log_prior + found.log_potential
    assert found.grad_prior is not None
    assert found.grad_potential is not None
    broken = ~(np.isfinite(found.grad_prior) & np.isfinite(found.grad_potential))
    bad = np.isfinite(total) & broken.any(-1) & (u == position).all(-1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        site = sites[int(np.flatnonzero(broken[row])[0])]
        raise NotDifferentiable(
            f"site {site!r}: the gradient of the log density is not finite at path {row}; moves that need none are "
            "RandomWalk, PCN and EllipticalSlice"
        )

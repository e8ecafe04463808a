"""From numbers back to paths: those that moved are made again by forced replay, which must agree with the density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ppl import keys as _keys
from ...ppl.density import Density, Unconstrained
from ...ppl.errors import ImpossibleStart, InconsistentDensity, Unsupported
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats, Index
from ...ppl.sites import Site
from ..base.paths import Asking, Path, extend, linked


def densities_of(name: str, model: FeynmanKac[Any], paths: Sequence[Path], horizon: int | None) -> list[Density]:
    """Return the densities of paths that a kernel is about to move.

    Raises:
        Unsupported: where the model has none, or leaves choices unscored.
        ImpossibleStart: for a path of weight zero.
    """
    if not isinstance(model, Unconstrained):
        raise Unsupported(
            f"{name} moves continuous sites, and {model!r:.200} offers no density over them (`unconstrained`); "
            "SuffixMH moves any model"
        )
    for i, path in enumerate(paths):
        if not path.log_weight > -np.inf:
            last = path.choices[-1] if isinstance(path.choices, tuple) and path.choices else None
            where = getattr(last, "address", None)
            raise ImpossibleStart(
                f"{name} starts particle {i} where its weight is zero"
                + (f", after site {where!r}" if where else "")
                + ": start from SMC, which drops such particles, or soften the factor"
            )
    densities = model.unconstrained(paths, horizon)
    for density in densities:
        # How likely a run inside the program was is not known, nor asked: it is drawn anew by its own law.
        if density.estimated is None and not all(paths[i].scored for i in density.rows.tolist()):
            raise Unsupported(f"{name} needs the log-probability of every choice, and {model!r:.200} leaves some out")
    return densities


def left_out(name: str, model: FeynmanKac[Any], path: Path) -> str | None:
    """Return the address of a choice of a path that no move on continuous sites reaches, as far as that is known."""
    moving = {site for density in densities_of(name, model, [path], None) for site in density.sites}
    for step in path.steps() if moving else ():
        for site in step.choices:
            if isinstance(site, Site) and site.kind == "sample" and site.address not in moving:
                return site.address
    return None


def replay(
    model: FeynmanKac[Any], given: Sequence[Sequence[Any]], lengths: Sequence[int], keys: Keys
) -> Asking[list[Path]]:
    """Make a path of each list of forced choices, up to its length, in shared batches."""
    out: list[Path | None] = [None] * len(given)
    for t in range(max(lengths)):
        going = [i for i, path in enumerate(out) if t < lengths[i] and not (path is not None and path.done)]
        forced = [given[i][t] if t < len(given[i]) else None for i in going]
        made = yield from extend(model, [out[i] for i in going], _keys.fold(keys[going], t), forced)
        for i, path in zip(going, made):
            out[i] = path
    return [path for path in out if path is not None]  # which is all of them


def rebuild(
    model: FeynmanKac[Any],
    density: Density,
    olds: Sequence[Path],
    position: Floats,
    rows: Index,
    keys: Keys,
) -> Asking[list[Path]]:
    """Return the paths of some rows of a density, at positions of all rows (n, d): from arrays, or by `replay`."""
    made = None if density.runs is None else density.runs(position, rows)
    if made is not None:
        return linked(made)
    choices = density.choices(position)
    lengths = [olds[i].length for i in rows.tolist()]
    return (yield from replay(model, [choices[i] for i in rows.tolist()], lengths, keys[rows]))


def check_paths(
    density: Density,
    paths: Sequence[Path],
    rows: Index,
    position: Floats,
    log_prior: Floats,
    log_potential: Floats | None,
) -> None:
    """Raise `InconsistentDensity` unless the density of some rows is that of their paths, (n,) each."""
    log_jacobian = density.log_jacobian(position)
    for i, path in zip(rows.tolist(), paths):
        pairs = [("log_prior", log_prior[i], path.log_prob + log_jacobian[i])]
        if log_potential is not None:
            pairs.append(("log_potential", log_potential[i], path.log_potential))
        for what, said, found in pairs:
            # Written so that what is no number fails.
            if not abs(said - found) <= density.tolerance * max(1.0, abs(said), abs(found)):
                raise InconsistentDensity(
                    f"particle {density.rows[i]}: its density says that {what} is {said}, and the path itself that it "
                    f"is {found}. `unconstrained` and `advance` of the model must describe the same law"
                )

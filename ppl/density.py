"""Densities over the continuous choices of paths: what moves by gradient ask of a model.

A model that has one offers the optional method ``unconstrained(paths, horizon)``. It maps what its paths drew at
continuous sites to vectors u of unconstrained real numbers; all else (discrete values, texts) stays as it is. In these
coordinates the target at inverse temperature λ is

    log π_λ(u) = log_prior(u) + λ · log_potential(u),

where ``log_prior`` holds log|det dx/du|. The two are kept apart, so that tempering acts on the potentials alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from .model import Advance, Floats, Index


class Evaluation(NamedTuple):
    """A density at n points.

    Attributes:
        log_prior: (n,) log p of the choices, with log|det dx/du|; −inf outside the support.
        log_potential: (n,) Σ_t log G_t.
        grad_prior: (n, d) its gradient; so is ``grad_potential``. None where gradients were not asked for.
    """

    log_prior: Floats
    log_potential: Floats
    grad_prior: Floats | None = None
    grad_potential: Floats | None = None


@dataclass(frozen=True, eq=False)
class Density:
    """The joint density of n paths of one shape: the same continuous sites, with the same shapes.

    Attributes:
        rows: (n,) which of the paths that were asked about these are.
        position: (n, d) where they are, float64.
        evaluate: ``evaluate(u, gradients)`` of (n, d), row i for path ``rows[i]``, in one batched call.
        choices: ``choices(u)``: for each row a list of what forces these values on a replay, one item per step (None
            for a step without continuous sites that is a function of those before).
        log_jacobian: ``log_jacobian(u)``, (n,): log|det dx/du|, by which ``log_prior`` exceeds the path's ``log_prob``.
        fixed: a pytree of arrays of n rows: what differs from path to path and does not move.
        logdensity: a function of JAX ``(u: (d,), fixed of one row) -> (log_prior, log_potential)``, the *same object*
            for paths of the same shape, so that what is compiled for it can be kept; None where it is none of JAX's. A
            `jax.tree_util.Partial` is the same where its function is: its arrays, which may differ, are handed in.
        gaussian: mean (d,) and lower Cholesky factor (d, d) of the prior where it is one normal law, else None. The
            factor is (d,) where it is diagonal.
        stays: addresses of latents that do not move: discrete values, texts. A chain of moves of coordinates never
            changes them.
        tolerance: relative difference to be expected between ``evaluate`` and a replay.
        signature: what paths of this shape have in common, to know them again; with d it tells densities apart.
        sites: (d,) the address of the site that each coordinate belongs to, for messages; () where that is not known.
        estimated: the address of a site by which the potential is a random estimate (a run inside the program), or
            None. ``choices`` leaves that site free, a replay draws it anew, and ``evaluate`` gives ``log_prior`` alone:
            its ``log_potential`` means nothing.
        runs: ``runs(u, rows)``: the whole runs of some rows at their positions in u (n, d), as the `Advance` of each
            step, made without running the model's code for each; or None where that is to be done. None as a whole
            where it always is.
    """

    rows: Index
    position: Floats
    evaluate: Callable[[Floats, bool], Evaluation]
    choices: Callable[[Floats], list[list[Any]]]
    log_jacobian: Callable[[Floats], Floats]
    fixed: Any = ()
    logdensity: Callable[..., Any] | None = None
    gaussian: tuple[Floats, Floats] | None = None
    stays: tuple[str, ...] = ()
    tolerance: float = 1e-6
    signature: Hashable = ()
    sites: tuple[str, ...] = ()
    estimated: str | None = None
    runs: Callable[[Floats, Index], list[Advance[Any]] | None] | None = None

    @property
    def named(self) -> str:
        """Its sites, as messages name them; "" where they are not known."""
        sites = [repr(site) for site in dict.fromkeys(self.sites)]
        return f" (at {', '.join(sites[:5])}{', …' if len(sites) > 5 else ''})" if sites else ""


@runtime_checkable
class Unconstrained(Protocol):
    """A model whose continuous choices have a density."""

    def unconstrained(self, paths: Sequence[Any], horizon: int | None) -> list[Density]:
        """Return the densities of paths, one for each shape; every path is in one of them.

        Args:
            paths: of the model (see ``Path`` of the engines), finished, or of ``horizon`` steps.
            horizon: the density is that of the first so many steps; None: of whole runs.

        Raises:
            Unsupported: for a model without continuous sites, or one that cannot score its choices.
            NotDifferentiable: for a site through which no gradient can be had; it is named.
        """


class Kept(dict[Any, Any]):
    """What is compiled of a program's densities, by signature. A copy in another process begins without."""

    def __reduce__(self) -> Any:
        return (Kept, ())

"""A NumPyro model as JAX computes it: its sites, its draws, and its log-densities, for many rows at once.

All of it is in float64 (``jax.enable_x64``, which leaves the caller's own setting alone), and compiled once for each
power of two of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
from numpyro import handlers
from numpyro.distributions.distribution import Unit
from numpyro.primitives import Messenger

from ..distributions.adapt_numpyro import exact
from ..errors import NotDifferentiable, Unsupported
from ..model import Floats

Arrays = dict[str, Any]
"""Arrays by the name of their site, with a leading axis of rows on the host."""
_MOST = 2000
"""Coordinates up to which it is found out whether a prior is one normal law."""


class Latent(NamedTuple):
    """A site that is drawn: the shape of its values, and of its unconstrained coordinates (None: it has none)."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    discrete: bool
    free: tuple[int, ...] | None

    @property
    def size(self) -> int:
        """How many coordinates it has."""
        return 0 if self.free is None else int(np.prod(self.free))


class Joint:
    """A NumPyro model with its arguments.

    Args:
        model: the model, a function of NumPyro's primitives.
        args: its arguments; floating arrays are taken in float64. ``kwargs`` too.

    Attributes:
        kinds: of all sites, in their order: "sample", "observe", "factor", "deterministic", or "delta" for a draw that
            is what its arguments are.
        latents: the sites that are drawn.
        constants: observed values, of the sites where they are the same for every row.
    """

    def __init__(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._model = model
        with jax.enable_x64(True):
            self._args, self._kwargs = jax.tree_util.tree_map(_double, (args, kwargs))
            self.kinds: dict[str, str] = {}
            self.constants: Arrays = {}
            self.latents: tuple[Latent, ...] = ()
            self._normal = True
            jax.eval_shape(self._inspect, np.zeros(2, np.uint32))

    # -- one row, within JAX ------------------------------------------------------------------------------------

    def _trace(self, words: Any, values: Arrays, watch: Any = None, place: Callable[[Any], Any] | None = None) -> Any:
        """Run the model once: its sites, and what it returned. What is not among the values is drawn."""
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        put = handlers.substitute(data=values) if place is None else handlers.substitute(substitute_fn=place)
        with handlers.trace() as sites, handlers.seed(rng_seed=key), put, watch or Messenger():
            returned = self._model(*self._args, **self._kwargs)
        return sites, returned

    def _inspect(self, words: Any) -> None:
        """Find out, within a trace of shapes alone, what sites there are."""
        sites, _ = self._trace(words, {}, _Watch())
        latents = []
        for name, site in sites.items():
            kind = _kind(site)
            if kind is not None:
                self.kinds[name] = kind
            if kind == "sample":
                latents.append(_latent(name, site))
                self._normal &= isinstance(_plain(site["fn"]), nd.Normal | nd.MultivariateNormal)
            elif kind == "observe" and not isinstance(site["value"], jax.core.Tracer):
                self.constants[name] = np.asarray(site["value"])
        self.latents = tuple(latents)

    def _row(self, words: Any, values: Arrays) -> dict[str, Any]:
        """Run the model once, and weigh each of its sites."""
        sites, returned = self._trace(words, values)
        out: dict[str, Any] = {"values": {}, "log_prob": {}, "log_proposal": {}}
        for name, kind in self.kinds.items():
            site = sites[name]
            if kind != "factor" and name not in self.constants:
                out["values"][name] = site["value"]
            if kind != "deterministic":
                out["log_prob"][name], out["log_proposal"][name] = _log_probs(site, kind)
        if returned is not None and all(map(_numeric, jax.tree_util.tree_leaves(returned))):
            out["returned"] = returned
        return out

    def _constrain(self, u: Any, fixed: Arrays) -> tuple[Any, Any]:
        """Run the model where its free sites have the coordinates u, (d,): its sites, and log|det dx/du|."""
        ends = np.cumsum([latent.size for latent in self.free])
        parts = {a.name: u[end - a.size : end].reshape(a.free) for a, end in zip(self.free, ends.tolist())}

        def place(site: Any) -> Any:
            name = site["name"]
            if name not in parts:
                return fixed.get(name)
            transform, part = nd.biject_to(_unmasked(site["fn"]).support), parts[name]
            rank = len(site["fn"].shape()) - (transform.codomain.event_dim - transform.domain.event_dim)
            i = site["infer"].get("_scan_current_index")  # in a scan each iteration takes its own part
            return transform(part if i is None or jnp.ndim(part) <= rank else part[i])

        sites, _ = self._trace(np.zeros(2, np.uint32), {}, place=place)
        log_jacobian = jnp.zeros(())
        for name, part in parts.items():
            transform = nd.biject_to(_unmasked(sites[name]["fn"]).support)
            log_jacobian += jnp.sum(transform.log_abs_det_jacobian(part, sites[name]["value"]))
        return sites, log_jacobian

    def _logdensity(self, u: Any, fixed: Arrays) -> tuple[Any, Any]:
        sites, log_prior = self._constrain(u, fixed)
        log_potential = jnp.zeros(())
        for name, kind in self.kinds.items():
            if kind == "sample":
                log_prior += _log_probs(sites[name], kind)[0]
            elif kind != "deterministic":
                log_potential += _log_probs(sites[name], kind)[0]
        return log_prior, log_potential

    # -- many rows, on the host ---------------------------------------------------------------------------------

    def draw(self, words: Any) -> dict[str, Any]:
        """Draw rows, each from the two words of a key, (n, 2) uint32, and weigh their sites."""
        found: dict[str, Any] = _host(self._draw, words)
        return found

    def force(self, values: Arrays) -> dict[str, Any]:
        """Weigh the sites of rows whose latents have these values; there must be one."""
        found: dict[str, Any] = _host(self._force, values)
        return found

    def locate(self, values: Arrays) -> Floats:
        """Return the coordinates of rows, (n, d)."""
        found: Floats = _host(self._locate, values)
        return found

    def spread(self, u: Floats, fixed: Arrays) -> tuple[Arrays, Floats]:
        """Return the latents of rows at these coordinates, and log|det dx/du|, (n,)."""
        values, log_jacobian = _host(self._spread, u, fixed)
        return values, log_jacobian

    def evaluate(self, u: Floats, fixed: Arrays, gradients: bool) -> tuple[Floats, ...]:
        """Return log_prior and log_potential of rows, (n,), and their gradients, (n, d)."""
        found: tuple[Floats, ...] = _host(self._gradients if gradients else self._densities, u, fixed)
        return found

    @cached_property
    def free(self) -> tuple[Latent, ...]:
        """The latents that have coordinates.

        Raises:
            Unsupported: where there are none.
            NotDifferentiable: for a site whose support no transform maps to all real numbers.
        """
        free = tuple(latent for latent in self.latents if not latent.discrete)
        bad = [latent.name for latent in free if latent.free is None]
        if bad:
            raise NotDifferentiable(f"site {bad[0]!r}: NumPyro's biject_to knows no transform for its support")
        if not free:
            raise Unsupported("the model has no continuous site that is drawn, so there is nothing to move")
        return free

    @cached_property
    def tolerance(self) -> float:
        """Relative difference to be expected between densities: larger where a site is not in float64."""
        single = any(jnp.finfo(latent.dtype).bits < 64 for latent in self.free)
        return 1e-3 if single else 1e-6

    @cached_property
    def gaussian(self) -> tuple[Floats, Floats] | None:
        """Mean (d,) and lower Cholesky factor (d, d) of the prior where it is one normal law, else None.

        Laws that are normal given others may be so together, or not: the gradient of a normal law's density is linear,
        g(u) = g(0) − P·u, and tells m and P by its values at d + 1 points, and at others whether it is linear at all.
        """
        d = sum(latent.size for latent in self.free)
        if not self._normal or len(self.free) < len(self.latents) or d > _MOST:
            return None
        rng = np.random.default_rng(0)
        points = np.concatenate([np.zeros((1, d)), np.eye(d), 3.0 * rng.standard_normal((3, d))])
        log_prior, _, gradient, _ = self.evaluate(points, {}, True)
        precision = gradient[0] - gradient[1 : d + 1]
        if not np.isfinite(precision).all() or not np.allclose(precision, precision.T, rtol=1e-9, atol=1e-12):
            return None
        mean = np.linalg.solve(precision, gradient[0])
        factor = np.linalg.cholesky(np.linalg.inv(precision))
        z = np.linalg.solve(factor, (points - mean).T).T
        normal = -0.5 * (z * z).sum(1) - np.log(np.diag(factor)).sum() - 0.5 * d * np.log(2 * np.pi)
        return (mean, factor) if np.allclose(log_prior, normal, rtol=1e-9, atol=1e-9) else None

    @cached_property
    def logdensity(self) -> Callable[..., Any]:
        """log_prior and log_potential of one row: a JAX function of (u, fixed), always the same object."""
        return self._logdensity

    @cached_property
    def _draw(self) -> Any:
        return jax.jit(jax.vmap(lambda words: self._row(words, {})))

    @cached_property
    def _force(self) -> Any:
        return jax.jit(jax.vmap(lambda values: self._row(np.zeros(2, np.uint32), values)))

    @cached_property
    def _locate(self) -> Any:
        def one(values: Arrays) -> Any:
            sites, _ = self._trace(np.zeros(2, np.uint32), values)
            laws = [(_unmasked(sites[latent.name]["fn"]), values[latent.name]) for latent in self.free]
            return jnp.concatenate([nd.biject_to(law.support).inv(x).ravel() for law, x in laws]).astype(float)

        return jax.jit(jax.vmap(one))

    @cached_property
    def _spread(self) -> Any:
        def one(u: Any, fixed: Arrays) -> Any:
            sites, log_jacobian = self._constrain(u, fixed)
            return {latent.name: sites[latent.name]["value"] for latent in self.latents}, log_jacobian

        return jax.jit(jax.vmap(one))

    @cached_property
    def _densities(self) -> Any:
        return jax.jit(jax.vmap(self.logdensity))

    @cached_property
    def _gradients(self) -> Any:
        def one(u: Any, fixed: Arrays) -> Any:
            found, back = jax.vjp(lambda u: self.logdensity(u, fixed), u)
            return *found, *(back((1.0 - of, of))[0] for of in (0.0, 1.0))

        return jax.jit(jax.vmap(one))


class _Watch(Messenger):  # type: ignore[misc]
    """Refuses what would make draws that are not those of the model's sites."""

    def process_message(self, msg: Any) -> None:
        kind, name = msg["type"], msg.get("name")
        if kind == "plate":
            size, subsample_size = msg["args"]
            if subsample_size not in (None, size):
                raise Unsupported(
                    f"plate {name!r} draws a subsample, and its density would be another one each time: give it all "
                    "of the data, or a fixed part of it under numpyro.handlers.scale"
                )
        elif kind == "param":
            raise Unsupported(f"numpyro.param {name!r} has no law: give it a prior (numpyro.sample), or its value")
        elif kind in ("prng_key", "mutable"):
            raise Unsupported(f"numpyro.{kind} holds what is no site of the model, so that it cannot be scored")
        elif kind == "sample" and not msg["is_observed"] and not msg.get("_control_flow_done", False):
            if isinstance(_plain(msg["fn"]), nd.ImproperUniform):
                raise Unsupported(f"site {name!r} has an improper law, from which nothing can be drawn")
            if msg["value"] is not None:
                raise Unsupported(
                    f"site {name!r} is fixed by handlers.substitute, and not drawn from its law: observe it, by "
                    "handlers.condition"
                )
        if kind in ("sample", "control_flow") and msg["kwargs"].get("rng_key") is not None:
            raise Unsupported(
                f"{'a scan' if name is None else f'site {name!r}'} has a key of its own, so that all particles would "
                "draw the same: leave out handlers.seed and rng_key"
            )


def _kind(site: Any) -> str | None:
    """Return what a site of NumPyro's trace is here; None for plates."""
    if site["type"] == "deterministic":
        return "deterministic"
    if site["type"] == "param":
        raise Unsupported(f"numpyro.param {site['name']!r}, in a loop, has no law: give it a prior, or its value")
    if site["type"] != "sample":
        return None
    law = _plain(site["fn"])
    if not site["is_observed"]:
        return "delta" if isinstance(law, nd.Delta) else "sample"
    return "factor" if isinstance(law, Unit) else "observe"


def _latent(name: str, site: Any) -> Latent:
    value, support = site["value"], _unmasked(site["fn"]).support
    free = None
    if not support.is_discrete:
        with suppress(NotImplementedError):  # it can be drawn all the same
            free = jnp.shape(nd.biject_to(support).inv(value))
    return Latent(name, jnp.shape(value), jnp.result_type(value), support.is_discrete, free)


def _log_probs(site: Any, kind: str) -> tuple[Any, Any]:
    """Return log p of a site, −inf outside the support, with its scale; and without, as it is drawn."""
    law, value = site["fn"], site["value"]
    if kind == "sample":
        law = _unmasked(law)
    terms = law.log_prob(value)
    if kind != "factor":
        terms = terms + _outside(law, value)
    scale = 1.0 if site["scale"] is None else site["scale"]
    return jnp.sum(scale * terms), jnp.sum(terms)


def _outside(law: Any, value: Any) -> Any:
    """Return 0 where a value is possible or masked, else −inf, by component: NumPyro scores anything."""
    if isinstance(law, nd.MaskedDistribution):
        return jnp.where(law._mask, _outside(law.base_dist, value), 0.0)
    if isinstance(law, nd.ExpandedDistribution):
        return _outside(law.base_dist, value)
    if isinstance(law, nd.Independent):
        found = _outside(law.base_dist, value)
        return found.sum(tuple(range(-law.reinterpreted_batch_ndims, 0))) if jnp.ndim(found) else found
    return jnp.where(law.support(value), 0.0, -jnp.inf) if exact(law.support) else 0.0


def _unmasked(law: Any) -> Any:
    """Return a law without its mask: what is drawn, though NumPyro's density leaves out what is masked."""
    if isinstance(law, nd.MaskedDistribution):
        return _unmasked(law.base_dist)
    if isinstance(law, nd.ExpandedDistribution):
        inner = _unmasked(law.base_dist)
        return law if inner is law.base_dist else inner.expand(law.batch_shape)
    if isinstance(law, nd.Independent):
        inner = _unmasked(law.base_dist)
        return law if inner is law.base_dist else inner.to_event(law.reinterpreted_batch_ndims)
    return law


def _plain(law: Any) -> Any:
    """Return the law that is masked, expanded or declared independent."""
    while isinstance(law, nd.MaskedDistribution | nd.ExpandedDistribution | nd.Independent):
        law = law.base_dist
    return law


def _host(compiled: Any, *rows: Any) -> Any:
    """Call a compiled function on rows, padded to 8, 16, 32, …; return NumPy's arrays."""
    n = len(jax.tree_util.tree_leaves(rows)[0])
    index = np.minimum(np.arange(max(8, 1 << (n - 1).bit_length())), n - 1)
    with jax.enable_x64(True):
        made = compiled(*jax.tree_util.tree_map(lambda column: np.asarray(column)[index], rows))
        return jax.tree_util.tree_map(lambda column: np.asarray(column)[:n], made)


def _double(leaf: Any) -> Any:
    """Return a floating array in float64, and all else as it is."""
    if isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf.astype(np.float64)
    return leaf


def _numeric(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int) and not (
        hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def stacked(rows: Sequence[Mapping[str, Any]], latents: Sequence[Latent]) -> Arrays:
    """Stack values of latents by row; raises ValueError or TypeError for what is not of their shapes."""
    out: Arrays = {}
    for latent in latents:
        column = np.asarray([np.asarray(row[latent.name]) for row in rows])
        if column.shape[1:] != latent.shape:
            raise ValueError(f"site {latent.name!r}: values of shape {column.shape[1:]}, where its are {latent.shape}")
        if latent.discrete and (column != np.floor(column)).any():
            raise ValueError(f"site {latent.name!r}: a value that is not whole")
        out[latent.name] = column.astype(latent.dtype)
    return out

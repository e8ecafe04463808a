"""Densities of programs that JAX can trace: compiled once for each signature of their paths."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from numpy.typing import NDArray

from ..density import Density, Evaluation
from ..errors import NotTraceable
from ..model import Advance, Floats
from .coordinates import Coordinates, Layout, Pilot
from .driver import trace
from .equations import Equations, equations
from .fiber import Stop
from .runs import Runs, recorded
from .shared import check_gradients, exact, with_values

FOREVER = np.iinfo(np.int64).max
"""A horizon that no program reaches."""


class Signature:
    """The density of a program at paths of one signature. What is compiled of it is kept by its equations.

    So other programs that have the same ones, with other numbers in them, are not compiled anew.

    Args:
        program: a bound program.
        values: by address, of one of the paths.
        static: whether discrete values are constants of the traced code, as it branches on them.

    Raises:
        NotTraceable: where JAX cannot trace the program.
        NotDifferentiable: for a site that has no coordinates.
    """

    def __init__(self, program: Any, values: Mapping[str, Any], static: bool) -> None:
        self._program = program
        double = bool(jax.config.jax_enable_x64)
        with jax.enable_x64(True):
            pilot = Pilot(values, static, double)
            jax.eval_shape(lambda: _to_its_end(program, pilot))
            self.layout: Layout = pilot.layout()
            # Whether the code can be traced shows here: the pilot had numbers.
            row = jax.tree.map(lambda column: column[0], self._columns([values], [()], None))
            self._scored, self._numbers = equations(self._parts, jnp.zeros(self.layout.size), row[1])
            self._inverted, self._inward = equations(self._coordinates, *row)
            self._gaussian = self._normal(row)
            self._recorded = self._recording(row[1])
        self.logdensity = Partial(self._scored.once("logdensity", _logdensity), self._numbers)

        self._sites = tuple(
            address
            for entry in self.layout.of("moves")
            for address in entry.addresses()
            for _ in range(int(np.prod(entry.shape)))
        )
        self.signature = (
            tuple((entry.spot.slot, entry.role, entry.shape) for entry in self.layout.entries.values()),
            exact(self.constants, values),
        )

    @property
    def traces(self) -> int:
        """How often anything that holds the density was compiled, by all programs that have its equations."""
        return self._scored.runs

    @property
    def constants(self) -> tuple[str, ...]:
        """The latents, by address, whose values are constants of what is compiled."""
        return tuple(self.layout.constants)

    @property
    def _tolerance(self) -> float:
        return 1e-3 if self.layout.single else 1e-6

    # -- what is traced ---------------------------------------------------------------------------------------------

    def _parts(self, u: Any, fixed: Any) -> tuple[Any, Any, Any, Any]:
        """Return log prior, log potential and log|det dx/du| at coordinates (d,), and the values that follow.

        NaN is −inf: no move goes there.
        """
        listener = self._walked(self.layout.unpack(u) | fixed["values"], fixed)
        sums = listener.log_prior + fixed["log_prior"], listener.log_potential + fixed["log_potential"]
        prior, potential = (jnp.where(jnp.isnan(x), -jnp.inf, x) for x in map(jnp.asarray, sums))
        return prior, potential, jnp.asarray(listener.log_jacobian, float), listener.parts

    def _walked(self, data: Mapping[str, Any], fixed: Any) -> Coordinates:
        listener = Coordinates(self.layout, data, fixed["horizon"])
        _to_its_end(self._program, listener)
        if listener.stopped is not None:  # another latent within the horizon: not a path of this signature
            beyond = listener.stopped >= fixed["horizon"]
            listener.log_potential = jnp.where(beyond, listener.log_potential, -jnp.inf)
        return listener

    def _recording(self, fixed: Any) -> tuple[Equations, Any, Runs] | None:
        """Return what gives whole runs as arrays, where all of the program is traced."""
        if self.layout.requests or self.layout.estimated or self.layout.of("forced"):
            return None
        seen: dict[str, Any] = {}

        def run(u: Any, fixed: Any) -> Any:
            return recorded(self._program, self.layout, self.layout.unpack(u), fixed, seen)

        try:
            found, numbers = equations(run, jnp.zeros(self.layout.size), fixed)
        except (NotTraceable, Stop):
            return None
        return found, numbers, Runs(self._program, seen["spots"], seen["form"], self._tolerance)

    def _coordinates(self, values: Any, fixed: Any) -> Any:
        """Return the coordinates (d,) of values by slot, and what is known of their prior as a normal law."""
        listener = Coordinates(self.layout, values | fixed["values"], fixed["horizon"], inward=True)
        _to_its_end(self._program, listener)
        return self.layout.pack(listener.parts), jax.tree.map(jnp.asarray, listener.normal)

    def _normal(self, row: Any) -> tuple[Floats, Floats] | None:
        """Return mean and Cholesky factor of the prior where it is one normal law with constant parameters."""
        moving = self.layout.of("moves")
        laws = jax.tree.unflatten(self._inverted.tree, self._inverted.jaxpr.outvars)[1]
        if not moving or len(laws) != len(moving) or self._inverted.depends(lambda outputs: outputs[1]):
            return None
        found = self._inverted.jitted("normal", lambda run: lambda *given: run(*given)[1])(self._inward, *row)
        mean, root = np.zeros(self.layout.size), np.eye(self.layout.size)
        for entry in moving:
            place = slice(entry.offset, entry.offset + entry.size)
            loc, scale = (np.asarray(x, float) for x in found[entry.spot.slot])
            mean[place] = np.broadcast_to(loc, entry.shape).ravel()
            vector = scale.ndim == 2 and scale.shape[0] == entry.size and len(entry.shape) == 1
            root[place, place] = scale if vector else np.diag(np.broadcast_to(scale, entry.shape).ravel())
        diagonal = np.diag(root)
        return mean, diagonal if (root == np.diag(diagonal)).all() else root

    # -- densities --------------------------------------------------------------------------------------------------

    def density(self, rows: Sequence[int], paths: Sequence[list[Any]], horizon: int | None) -> Density:
        """Return the density at paths, each the list of its steps' choices."""
        values = [{s.address: s.value for choices in path for s in choices if s.kind == "sample"} for path in paths]
        with jax.enable_x64(True):
            data, fixed = self._columns(values, paths, horizon)
            n = len(paths)
            take = _padded(n)
            inputs = jax.tree.map(lambda column: column[take], (data, fixed))
            inward = self._inverted.jitted("inward", _mapped(lambda run: lambda *given: run(*given)[0]))
            position = np.asarray(inward(self._inward, *inputs), np.float64)[:n]
        outward = self._scored.jitted("outward", _mapped(lambda run: run))
        gradients = self._scored.jitted("gradients", _mapped(_pulled))

        def run(compiled: Any, u: Floats) -> Any:
            with jax.enable_x64(True):
                given = np.asarray(u, np.float64)[take], jax.tree.map(lambda column: column[take], fixed)
                return jax.tree.map(lambda column: np.asarray(column, np.float64)[:n], compiled(self._numbers, *given))

        def evaluate(u: Floats, pulled: bool) -> Evaluation:
            if not pulled:
                return Evaluation(*run(outward, u)[:2])
            found = Evaluation(*run(gradients, u))
            check_gradients(found, u, position, self._sites)
            return found

        def choices(u: Floats) -> list[list[Any]]:
            with jax.enable_x64(True):
                *_, parts = outward(self._numbers, u[take], jax.tree.map(lambda column: column[take], fixed))
            return self._forced({slot: np.asarray(part)[:n] for slot, part in parts.items()}, paths)

        def runs(u: Floats, which: Any) -> list[Advance[Any]] | None:
            assert self._recorded is not None
            record, numbers, made = self._recorded
            if not self._still(run(outward, position), which[0], paths[which[0]]):
                return None
            place = which[_padded(len(which))]
            with jax.enable_x64(True):
                given = np.asarray(u, np.float64)[place], jax.tree.map(lambda column: column[place], fixed)
                found = record.jitted("outward", _mapped(lambda run: run))(numbers, *given)
            columns, leaves = jax.tree.map(lambda column: np.asarray(column)[: len(which)], found)
            forced = choices(u)
            return made.make(columns, leaves, [paths[i] for i in which], [forced[i] for i in which])

        return Density(
            rows=np.asarray(rows, np.intp),
            position=position,
            evaluate=evaluate,
            choices=choices,
            log_jacobian=lambda u: run(outward, u)[2],
            fixed=fixed,
            logdensity=self.logdensity,
            stays=tuple(a for entry in self.layout.of("fixed", "stays") for a in entry.addresses()),
            signature=self.signature,
            sites=self._sites,
            estimated=self.layout.estimated,
            tolerance=self._tolerance,
            gaussian=self._gaussian if not self.layout.of("fixed", "stays") else None,
            runs=runs if self._recorded is not None and horizon is None else None,
        )

    def _still(self, parts: Any, row: int, path: Any) -> bool:
        """Whether the density is that of a path yet: what the code reads around it may have changed since the trace."""
        sites = [site for choices in path for site in choices]
        said = [float(parts[0][row] - parts[2][row]), float(parts[1][row])]
        found = [
            sum(site.log_prob for site in sites if site.kind == "sample"),
            sum(site.value if site.kind == "factor" else site.log_prob for site in sites if site.kind != "sample"),
        ]
        return bool(np.allclose(said, found, rtol=self._tolerance, atol=self._tolerance))

    def _columns(self, values: Sequence[Mapping[str, Any]], paths: Sequence[Any], horizon: int | None) -> Any:
        """Return the values of what moves, by slot, and all that is fixed: arrays with a leading axis of paths."""
        data: dict[str, NDArray[Any]] = {}
        for entry in self.layout.of("moves", "fixed"):
            rows = np.array([[row[address] for address in entry.addresses()] for row in values])
            lengths = entry.lengths
            data[entry.spot.slot] = rows.reshape(len(values), *lengths, *rows.shape[2:])
        moving = {entry.spot.slot: data.pop(entry.spot.slot).astype(float) for entry in self.layout.of("moves")}
        untraced = [self._untraced(path) for path in paths]
        fixed = {
            "values": data,
            "horizon": np.full(len(paths), FOREVER if horizon is None else horizon, np.int64),
            "log_prior": np.array([prior for prior, _ in untraced]),
            "log_potential": np.array([potential for _, potential in untraced]),
        }
        return moving, fixed

    def _untraced(self, path: Any) -> tuple[float, float]:
        """Return what the sites of a path weigh that are not traced."""
        prior, potential = 0.0, 0.0
        if self.layout.requests:
            for site in (site for choices in path for site in choices if site.address in self.layout.requests):
                if site.kind == "sample":
                    prior += site.log_prob
                else:
                    potential += site.log_prob if site.kind == "observe" else site.value
        return prior, potential

    def _forced(self, parts: Mapping[str, Any], paths: Sequence[list[Any]]) -> list[list[Any]]:
        """Return the choices of paths with other values at the sites that move."""
        new: list[dict[str, Any]] = [{} for _ in paths]
        for slot, part in parts.items():
            entry = self.layout.entries[slot]
            addresses = entry.addresses()
            shape = part.shape[1 + len(entry.lengths) :]
            part = part.reshape(len(paths), len(addresses), *shape)
            for found, row in zip(new, part.tolist() if not shape else part):
                found.update(zip(addresses, row))
        return [with_values(path, found) for path, found in zip(paths, new)]


def _to_its_end(program: Any, listener: Any) -> None:
    """Trace a program as far as its listener lets it."""
    with contextlib.suppress(Stop):
        trace(program, listener)


def _padded(n: int) -> NDArray[np.intp]:
    """Return row numbers, padded to 32, 64, 128, … by the last, so that few sizes are ever compiled."""
    size = max(32, 1 << (n - 1).bit_length())
    return np.minimum(np.arange(size), n - 1)


def _mapped(make: Callable[[Equations], Any]) -> Callable[[Equations], Any]:
    """Let what is made of equations run on rows of arguments, with the same numbers."""
    return lambda run: jax.vmap(make(run), in_axes=(None, 0, 0))


def _logdensity(run: Equations) -> Callable[..., Any]:
    def logdensity(numbers: Any, u: Any, fixed: Any) -> Any:
        return run(numbers, u, fixed)[:2]

    logdensity.equations = run  # type: ignore[attr-defined]
    return logdensity


def _pulled(run: Equations) -> Callable[..., Any]:
    """Return what gives log prior and log potential, and the gradient of each."""

    def pulled(numbers: Any, u: Any, fixed: Any) -> tuple[Any, Any, Any, Any]:
        (prior, potential), pull = jax.vjp(lambda u: run(numbers, u, fixed)[:2], u)
        return prior, potential, pull((1.0, 0.0))[0], pull((0.0, 1.0))[0]

    return pulled


def signature_of(program: Any, values: Mapping[str, Any]) -> Signature:
    """Return the signature's density; discrete values become constants of the code where it branches on them.

    Raises NotTraceable where JAX cannot trace the program all the same.
    """
    try:
        return Signature(program, values, static=False)
    except NotTraceable as error:
        if all(type(value) is float for value in values.values()):
            raise
        try:
            return Signature(program, values, static=True)
        except NotTraceable:
            raise error from None

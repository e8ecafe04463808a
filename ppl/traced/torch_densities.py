"""Densities of programs of ``torch.distributions``: the code runs once for all paths, under ``torch.func.vmap``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributions import Distribution, biject_to

from ..density import Density, Evaluation
from ..distributions.adapt_torch import Stacked, adapt, log_terms
from ..distributions.adapted import arrays
from ..effects import Scan
from ..errors import FeynkacError, NotTraceable
from ..model import Floats
from ..sites import MISSING
from .driver import trace
from .fiber import Stop
from .met import Listener, Met
from .shared import check_gradients, exact, with_values

FOREVER = np.inf
"""A horizon that no program reaches."""
SINGLE = 1e-3
"""Relative difference from a replay, where torch rounds the numbers that a program hands it to single precision."""
_switching = Lock()


@dataclass(frozen=True)
class Entry:
    """A latent that moves: the shape of its coordinates, their place, and its normal law where that is constant."""

    shape: tuple[int, ...]
    place: slice
    normal: tuple[Floats, Floats] | None


class Sums(NamedTuple):
    """What a run comes to: symbols, or tensors of n rows. ``parts`` are values by slot, or coordinates (inward)."""

    log_prior: Any
    log_potential: Any
    log_jacobian: Any
    parts: dict[str, Any]


class Walk(Listener):
    """Answers latents and sums up what sites weigh, in torch.

    Args:
        data: by slot, coordinates of what moves (values, ``inward``).
        constants: by slot, values of the other latents.
        horizon: steps of which potentials count.
        inward: whether to find the coordinates of values.

    Attributes:
        entries: what moves, by slot, in order.
        foreign: whether the trace ended at a law that is none of torch's.
        stopped: the step at which the paths end; `FOREVER` where they do not.
    """

    def __init__(
        self, data: Mapping[str, Any], constants: Mapping[str, Any], horizon: float = FOREVER, inward: bool = False
    ) -> None:
        self._data = data
        self._constants = constants
        self._horizon = horizon
        self._inward = inward
        self.log_prior: Any = 0.0
        self.log_potential: Any = 0.0
        self.log_jacobian: Any = 0.0
        self.parts: dict[str, Any] = {}
        self.entries: dict[str, Entry] = {}
        self.foreign = False
        self.stopped: float = FOREVER

    def sample(self, site: Met) -> Any:
        """Answer a latent's value, and score it."""
        slot, forced = site.slot, site.forced is not MISSING
        if not forced and slot not in self._data and slot not in self._constants:
            self.stopped = site.step
            raise Stop
        law = self._law(site)
        if forced or slot in self._constants:
            value = site.forced if forced else self._constants[slot]
        else:
            value = self._moved(site, law)
        self.log_prior = self.log_prior + _weight(site, law, value)
        return value

    def _moved(self, site: Met, law: Stacked) -> Any:
        """Return the value of a latent that moves; its log|det dx/du| is added."""
        slot, given = site.slot, self._data[site.slot]
        if law.dist.support.is_discrete:
            raise NotTraceable(f"{site!r}: a discrete law gave a real number")
        bijector = biject_to(law.dist.support)
        u, x = (bijector.inv(given), given) if self._inward else (given, bijector(given))
        jacobian = bijector.log_abs_det_jacobian(u, x).sum()
        self.log_prior, self.log_jacobian = self.log_prior + jacobian, self.log_jacobian + jacobian
        self.parts[slot] = u if self._inward else x
        start = max((entry.place.stop for entry in self.entries.values()), default=0)
        self.entries[slot] = Entry(tuple(u.shape), slice(start, start + u.numel()), _normal(site, law))
        return x

    def observe(self, site: Met) -> None:
        """Add log p of the observation."""
        self._weigh(site, _weight(site, self._law(site), site.value))

    def factor(self, site: Met) -> None:
        """Add the log-weight."""
        self._weigh(site, site.value)

    def _weigh(self, site: Met, weight: Any) -> None:
        if site.step < self._horizon:
            self.log_potential = self.log_potential + weight

    def opens(self, effect: Scan) -> None:
        """Refuse a scan."""
        raise NotTraceable(f"scan {effect.name!r}: torch does not trace fk.scan; write a loop of Python")

    def _law(self, site: Met) -> Stacked:
        law = adapt(site.kernel) if isinstance(site.kernel, Distribution) else None
        if not isinstance(law, Stacked):
            self.foreign = not isinstance(site.kernel, Distribution)
            raise NotTraceable(f"{site!r}: {type(site.kernel).__qualname__} is not a family of torch that is traced")
        return law.double()

    def sums(self) -> Sums:
        """Return what was found, in float64. NaN is −inf: no move goes there."""
        prior, potential, jacobian = (
            torch.as_tensor(x, dtype=torch.float64) for x in (self.log_prior, self.log_potential, self.log_jacobian)
        )
        if self.stopped < self._horizon:  # another latent within the horizon: not a path of this signature
            potential = torch.full_like(potential, -torch.inf)
        prior, potential = (torch.where(x.isnan(), -torch.inf, x) for x in (prior, potential))
        return Sums(prior, potential, jacobian, self.parts)


def _weight(site: Met, law: Stacked, value: Any) -> Any:
    """Return log p of a value, as it counts: scaled, and of an observation under its mask."""
    mask, scale = site.terms
    x = torch.as_tensor(value, dtype=torch.float64)
    if x.shape != law.dist.batch_shape + law.dist.event_shape:
        raise NotTraceable(f"{site!r}: a value of shape {tuple(x.shape)} for draws of another shape")
    if site.spot.kind != "observe" or mask is True:
        return scale * log_terms(law.dist, law.names, x).sum()
    if mask is False or not mask.any():
        return 0.0
    kept = torch.as_tensor(np.array(mask))
    if kept.shape != law.dist.batch_shape:
        raise NotTraceable(f"{site!r}: a mask of shape {tuple(kept.shape)} for components of another shape")
    x = torch.where(kept, x, x[kept][0])  # what is left out may be NaN
    return scale * torch.where(kept, log_terms(law.dist, law.names, x), 0.0).sum()


def _normal(site: Met, law: Stacked) -> tuple[Floats, Floats] | None:
    """Return mean and Cholesky factor (or scales) of a normal law with constant parameters."""
    if type(law.dist).__name__ not in ("Normal", "MultivariateNormal") or site.terms.scale != 1.0:
        return None
    try:
        loc, scale = arrays([getattr(law.dist, name) for name in law.names])
    except RuntimeError:  # a symbol has no numbers
        return None
    return loc, scale


class Signature:
    """The density of a program at paths of one signature; see `densities.Signature`, which does it by JAX.

    Args:
        program: a bound program.
        values: by address, of one of the paths.

    Raises:
        NotTraceable: where torch cannot trace the program, or loses its gradient on the way.
    """

    def __init__(self, program: Any, values: Mapping[str, Any]) -> None:
        self._program = program
        self._moving = [address for address, value in values.items() if _is_real(value)]
        self._fixed = {address: value for address, value in values.items() if address not in self._moving}
        self.constants = tuple(self._fixed)
        self.foreign = False
        self._values = values

    def trace(self) -> None:
        """Find out what moves, and whether the gradients hold."""
        position, pilot = self._inward([self._values])
        self._entries, self._ends = pilot.entries, pilot.stopped
        self._sites = tuple(
            slot for slot, entry in self._entries.items() for _ in range(entry.place.start, entry.place.stop)
        )
        self._gaussian = None if self._fixed else self._prior()
        self._probe(position[0])

    def density(self, rows: Sequence[int], paths: Sequence[list[Any]], horizon: int | None) -> Density:
        """Return the density at paths, each the list of its steps' choices."""
        values = [{s.address: s.value for choices in path for s in choices if s.kind == "sample"} for path in paths]
        position, _ = self._inward(values)
        upto = FOREVER if horizon is None else horizon

        def evaluate(u: Floats, gradients: bool) -> Evaluation:
            found = self._at(u, upto, gradients)[0]
            if gradients:
                check_gradients(found, u, position, self._sites)
            return found

        def choices(u: Floats) -> list[list[Any]]:
            parts = {slot: _array(part) for slot, part in self._at(u, upto, False)[1].parts.items()}
            columns = {slot: part.tolist() if part.ndim == 1 else part for slot, part in parts.items()}
            found = [{slot: column[i] for slot, column in columns.items()} for i in range(len(paths))]
            return [with_values(path, row) for path, row in zip(paths, found)]

        return Density(
            rows=np.asarray(rows, np.intp),
            position=position,
            evaluate=evaluate,
            choices=choices,
            log_jacobian=lambda u: _array(self._at(u, upto, False)[1].log_jacobian),
            gaussian=self._gaussian,
            stays=self.constants,
            signature=(
                *((slot, entry.shape) for slot, entry in self._entries.items()),
                exact(self.constants, self._fixed),
            ),
            sites=self._sites,
            tolerance=1e-6 if torch.get_default_dtype() is torch.float64 else SINGLE,
        )

    # -- what is traced ---------------------------------------------------------------------------------------------

    def _walked(self, walk: Walk) -> Walk:
        try:
            with contextlib.suppress(Stop):
                trace(self._program, walk)
        except NotTraceable:
            self.foreign = walk.foreign
            raise
        return walk

    def _inward(self, values: Sequence[Mapping[str, Any]]) -> tuple[Floats, Walk]:
        """Return the coordinates (n, d) of paths, and the walk that found them."""
        data = {slot: torch.from_numpy(np.array([row[slot] for row in values], float)) for slot in self._moving}
        walks: list[Walk] = []

        def found(data: Mapping[str, Any]) -> Any:
            walk = self._walked(Walk(data, self._fixed, inward=True))
            walks.append(walk)
            flat = [u.reshape(-1) for u in walk.parts.values()]
            return torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64)

        for column in data.values():
            column.requires_grad_()
        if not data:
            self._walked(empty := Walk({}, self._fixed))
            return np.zeros((len(values), 0)), empty
        with _tracing():
            position = torch.func.vmap(found)(data)
        return _array(position), walks[0]

    def _at(self, u: Floats, horizon: float, gradients: bool) -> tuple[Evaluation, Sums]:
        """Return the density at coordinates (n, d)."""
        x = torch.tensor(np.asarray(u, np.float64), requires_grad=True)

        def found(u: Any) -> Sums:
            data = {slot: u[entry.place].reshape(entry.shape) for slot, entry in self._entries.items()}
            return self._walked(Walk(data, self._fixed, horizon)).sums()

        with _tracing():
            sums: Sums = torch.func.vmap(found)(x)
            pulled = [_pulled(y, x) for y in sums[:2]] if gradients else [None, None]
        return Evaluation(_array(sums.log_prior), _array(sums.log_potential), *pulled), sums

    # -- what is found out once -------------------------------------------------------------------------------------

    def _prior(self) -> tuple[Floats, Floats] | None:
        """Return mean and Cholesky factor of the prior where it is one normal law with constant parameters."""
        size = len(self._sites)
        mean, root = np.zeros(size), np.eye(size)
        for entry in self._entries.values():
            if entry.normal is None:
                return None
            loc, scale = entry.normal
            mean[entry.place] = loc.ravel()
            root[entry.place, entry.place] = scale if scale.ndim > loc.ndim else np.diag(scale.ravel())
        diagonal = np.diag(root)
        return mean, diagonal if (root == np.diag(diagonal)).all() else root

    def _probe(self, u: Floats) -> None:
        """Raise NotTraceable where gradients are not those of the values: ``torch.tensor(x)`` cuts them, silently."""
        if not len(u):
            return
        steps = 1e-5 * np.diag(np.maximum(1.0, np.abs(u)))
        here = self._at(u[None], self._ends, True)[0]
        up, down = (self._at(u + sign * steps, self._ends, False)[0] for sign in (1.0, -1.0))
        for value, slope, above, below in (
            (here.log_prior, here.grad_prior, up.log_prior, down.log_prior),
            (here.log_potential, here.grad_potential, up.log_potential, down.log_potential),
        ):
            assert slope is not None
            with np.errstate(invalid="ignore"):
                error = np.abs((above - below) / (2 * np.diag(steps)) - slope[0])
                wrong = error > 1e-4 * (1.0 + np.abs(slope[0])) + 1e-9 * np.abs(value)
            if wrong.any():
                raise NotTraceable(
                    f"site {self._sites[int(np.flatnonzero(wrong)[0])]!r}: the gradient that torch gives is not that "
                    "of the values; torch.tensor(x) and x.detach() cut it, and torch.as_tensor(x) does not"
                )


def signature_of(program: Any, values: Mapping[str, Any]) -> Signature | None:
    """Return the signature's density; None where the program is none of torch's.

    Raises NotTraceable where torch cannot trace it.
    """
    found = Signature(program, values)
    try:
        found.trace()
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        if found.foreign:
            return None
        if isinstance(error, FeynkacError):
            raise
        raise NotTraceable(f"by torch: {type(error).__name__}: {error}") from error
    return found


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
    """Let distributions be made of symbols, which torch cannot validate. The setting is one for all threads."""
    with _switching, torch.inference_mode(False), torch.enable_grad():
        before = Distribution._validate_args
        Distribution.set_default_validate_args(False)
        try:
            yield
        finally:
            Distribution.set_default_validate_args(before)


def _pulled(y: Any, x: Any) -> Floats:
    """Return the gradient of each row's number with respect to that row of x."""
    if not y.requires_grad:
        return np.zeros(tuple(x.shape))
    (found,) = torch.autograd.grad(y.sum(), x, retain_graph=True, materialize_grads=True)
    return _array(found)


def _array(tensor: Any) -> NDArray[np.float64]:
    found: NDArray[np.float64] = tensor.detach().numpy()
    return found


def _is_real(value: Any) -> bool:
    return isinstance(value, float | np.ndarray) and np.asarray(value).dtype.kind == "f"

"""Scans under JAX: the step is traced once, and `lax.scan` repeats it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..effects import Scan
from ..errors import FeynkacError, NotTraceable
from .fiber import Stop, TracedFiber, TracedRun, first_lines
from .met import Listener, Loop, Met, Spot


class Plan:
    """A scan that is to be traced: what its step does, found out by one abstract run of it.

    Attributes:
        name: the scan's name, in messages.
        length: iterations.
        init: the carry that it starts from, as arrays, with the dtypes that it comes to.
        xs: the inputs, stacked; ``inputs``, as the program gave them.
        strides: how often an iteration visits each name.
        steps: how many steps of the program an iteration makes.
        spots: the sites of an iteration, those of scans in it included.
        depth: how many loops are around it.
        twisted: whether an iteration sets the guide's level; else it adds to it.
    """

    def __init__(self, fiber: TracedFiber, effect: Scan, drive: Callable[[TracedFiber], Any]) -> None:
        self.name = effect.name
        self._drive = drive
        self._fiber = fiber
        self._effect = effect
        self._before = dict(fiber.visits)
        self.length = len(effect.xs)
        self.inputs = effect.xs
        self.strides: dict[str, int] = {}
        self.steps = 0
        self.twisted = False
        self.depth = len(fiber.loops)
        self._known = False
        self.spots: list[Spot] = []
        with self._traceable():
            self.xs = stacked(effect.xs)
            self.init = jax.tree.map(jnp.asarray, plain(effect.init))
            self._settle()

    def _settle(self) -> None:
        """Find out what an iteration does, and the dtypes that its carry keeps."""
        x = jax.tree.map(lambda column: column[0], self.xs)
        for _ in range(4):
            known, probe, visits = self._known, self._fiber.listener.probe(), dict(self._before)
            carry = jax.eval_shape(lambda carry, x: self._iterate(carry, x, 0, probe, visits)[0], self.init, x)  # noqa: B023
            was, now = jax.tree.structure(self.init), jax.tree.structure(carry)
            if was != now:
                raise TypeError(f"the carry begins as {was} and becomes {now}")
            wanted = jax.tree.map(_promoted, self.init, carry)
            self.spots = getattr(probe, "spots", [])
            self.strides, self._known = {name: n - self._before.get(name, 0) for name, n in visits.items()}, True
            same = jax.tree.map(lambda a, b: a.dtype == b.dtype, self.init, wanted)
            if known and all(jax.tree.leaves(same)):
                return
            self.init = wanted

    def _iterate(
        self, carry: Any, x: Any, t: Any, listener: Listener, visits: dict[str, int]
    ) -> tuple[Any, Any, TracedFiber]:
        fiber = self._fiber
        child = TracedFiber(
            TracedRun(listener, fiber.run.name),  # type: ignore[attr-defined]
            self._effect.iterate(carry, x),
            fiber.handlers,
            visits,
            fiber,
            len(fiber.handlers),
        )
        child.run.last = fiber.run.last
        # Until it is known how often names are visited, there is but the first iteration.
        child.loops = (*fiber.loops, Loop(self.length if self._known else 1, t, self.strides, self.steps))
        value = self._drive(child)
        if not (isinstance(value, tuple) and len(value) == 2):
            raise TypeError(f"the step of fk.scan must return (carry, y), not {value!r}")
        if not self._known:
            self.steps, self.twisted = child.step - fiber.step, child.twisted
        return plain(value[0]), plain(value[1]), child

    def step(self, carry: Any, x: Any, t: Any, listener: Listener) -> tuple[Any, Any, Any]:
        """Trace iteration ``t``: return the next carry, y, and the level that it sets or adds."""
        with self._traceable():
            carry, y, child = self._iterate(carry, x, t, listener, dict(self._before))
            carry = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), carry, self.init)
        return carry, y, jnp.asarray(child.level, float)

    def run(self, listener: Listener, length: int | None = None) -> tuple[Any, Any]:
        """Run all iterations, or the first ``length``, by one `lax.scan`; return the last carry and the `Outputs`."""
        length = self.length if length is None else length
        seen: list[Listener] = []

        def body(carry: Any, inputs: Any) -> Any:
            t, x, extra = inputs
            inside = listener.iterate(extra)
            carry, y, level = self.step(carry, x, t, inside)
            seen.append(inside)
            return carry, (y, level, inside.outputs())

        with self._traceable():
            repeated = jax.checkpoint(body) if listener.checkpoint else body
            inputs = jax.tree.map(lambda column: column[:length], (self.xs, listener.enter(self)))
            times = jnp.arange(length)
            carry, (ys, levels, outputs) = jax.lax.scan(repeated, self.init, (times, *inputs), length=length)
        guide: Any = self._fiber.guide
        guide.level = levels[-1] if self.twisted else guide.level + levels.sum()
        guide.twisted = guide.twisted or self.twisted
        listener.leave(self, seen[-1], outputs)
        return carry, Outputs(ys, length)

    def unrolled(self, listener: Listener) -> tuple[Any, Any]:
        """Write out all iterations, one after another, for one listener; return the last carry and the ys."""
        carry, ys = self.init, []
        guide: Any = self._fiber.guide
        for t in range(self.length):
            x = jax.tree.map(lambda column: column[t], self.xs)  # noqa: B023
            carry, y, level = self.step(carry, x, t, listener)
            guide.level = level if self.twisted else guide.level + level
            ys.append(y)
        guide.twisted = guide.twisted or self.twisted
        return carry, tuple(ys)

    def _traceable(self) -> _Named:
        return _Named(f"scan {self.name!r}")


class _Named:
    """Within it, whatever is no error of feynkac's is a NotTraceable that names the scan."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, FeynkacError | Stop):
            raise NotTraceable(f"{self._what}: {first_lines(error)}") from error


class Outputs(Sequence[Any]):
    """The ys of a scan: a sequence of as many, held as arrays with a leading axis (``stacked``)."""

    def __init__(self, stacked: Any, length: int) -> None:
        self.stacked = stacked
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self._length)))
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return jax.tree.map(lambda column: column[index], self.stacked)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(self._length))

    def __jax_array__(self) -> Any:
        return self.stacked


jax.tree_util.register_pytree_node(
    Outputs, lambda ys: ((ys.stacked,), ys._length), lambda length, parts: Outputs(parts[0], length)
)


def plain(value: Any) -> Any:
    """Return a value with the read-only containers of programs as plain ones, which JAX knows."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if type(value) is tuple:
        return tuple(plain(item) for item in value)
    return value


def by_iteration(values: list[Any], site: Met) -> Any:
    """Return the value of a site's current iteration, of those of all iterations in order."""
    lengths = site.spot.lengths
    try:
        column = jnp.asarray(_column(values))
    except (TypeError, ValueError) as error:
        raise NotTraceable(f"{site!r}: the values of a scan's iterations do not stack: {first_lines(error)}") from error
    return column.reshape(*lengths, *column.shape[1:])[site.index]


def stacked(xs: Any) -> Any:
    """Return inputs with a leading axis of iterations."""
    if isinstance(xs, Outputs):
        return xs.stacked
    if hasattr(xs, "dtype"):
        return xs if isinstance(xs, np.ndarray | jax.Array) else jnp.asarray(xs)
    if isinstance(xs, range):
        return np.array(xs)
    items = [plain(x) for x in xs]
    first = jax.tree.structure(items[0])
    if any(jax.tree.structure(item) != first for item in items):
        raise TypeError("its inputs are of several structures")
    return jax.tree.map(lambda *parts: _column(parts), *items)


def _column(parts: Sequence[Any]) -> Any:
    if any(isinstance(part, jax.Array | jax.core.Tracer) for part in parts):
        return jnp.stack([jnp.asarray(part) for part in parts])
    return np.array(parts)  # NumPy's, so that no trace keeps what it makes no use of


def _promoted(before: Any, after: Any) -> Any:
    if before.shape != after.shape:
        raise TypeError(f"the carry begins with shape {before.shape} and becomes {after.shape}")
    return before.astype(jnp.promote_types(before.dtype, after.dtype))

"""A program in three pieces, each traced once for one particle: up to the scan's first iteration, one more, the rest.

A piece runs the program's code from its start. What comes before the piece is repeated with the latents that it had,
so that what the code closes over (a parameter drawn before the scan) is there; XLA drops what is not needed of it.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import NotTraceable
from ..program import Program
from ..traced.driver import trace
from ..traced.equations import outside
from ..traced.fiber import Stop
from ..traced.loops import Outputs, stacked
from ..traced.returned import skeleton
from .choices import Line
from .listening import Doing, stop

Shape = tuple[tuple[int, ...], Any]
_AFTER = 1 << 20
"""Where the numbers of latents after the scan begin."""
FREE, GIVEN, FORCED = "free", "given", "forced"
"""How the latents of a piece are chosen: drawn; some of them given, by masks; all of them given."""


@dataclass(frozen=True, eq=False)
class Code:
    """A traced function: the equations, and the arrays in them, which are given when it runs.

    ``key`` is the same for the same equations on arrays of the same shapes, so that what is compiled can be shared, and
    another for each function outside JAX that they call.
    """

    jaxpr: Any
    constants: list[Any]
    tree: Any
    key: Hashable

    def __call__(self, constants: Sequence[Any], *args: Any) -> Any:
        """Run it on one particle, in JAX."""
        return jax.tree.unflatten(self.tree, jax.core.eval_jaxpr(self.jaxpr, constants, *jax.tree.leaves(args)))

    def uses(self, first: int, count: int) -> bool:
        """Whether any of ``count`` arguments from ``first`` on is used."""
        used = {id(v) for equation in self.jaxpr.eqns for v in equation.invars} | {id(v) for v in self.jaxpr.outvars}
        return any(id(v) in used for v in self.jaxpr.invars[first : first + count])

    def reached(self, name: str, arguments: Iterable[int]) -> list[bool]:
        """Return for each leaf of an output whether it may depend on any of some arguments, by their numbers."""
        found = {id(self.jaxpr.invars[i]) for i in arguments}
        for equation in self.jaxpr.eqns:
            if any(id(v) in found for v in equation.invars):
                found |= {id(v) for v in equation.outvars}
        outputs = jax.tree.unflatten(self.tree, self.jaxpr.outvars)
        return [id(v) in found for v in jax.tree.leaves(outputs[name])]


def code(fn: Callable[..., Any], *args: Any) -> Code:
    """Trace a function on arrays, or on what has their shapes."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    inside = [(np.shape(c), str(getattr(c, "dtype", type(c)))) for c in closed.consts]
    text = re.sub(r" at 0x[0-9a-f]+", "", f"{closed.jaxpr} {inside} {jax.tree.structure((args, shapes))}")
    key = (hashlib.sha256(text.encode()).hexdigest(), *outside(closed.jaxpr))
    return Code(closed.jaxpr, closed.consts, jax.tree.structure(shapes), key)


@dataclass(frozen=True, eq=False)
class Piece:
    """A traced piece.

    Attributes:
        code: of `Doing.made` as a function of the piece's arguments.
        lines: its sites.
        latents: shape and dtype of each latent.
        faults: what each code of ``bad`` means, from 1.
        proposes: whether log p and log q may differ; ``twists``, whether it sets the level; ``weighs``, whether it has
            potentials.
    """

    code: Code
    lines: tuple[Line, ...]
    latents: tuple[Shape, ...]
    faults: tuple[tuple[type[Exception], str], ...]
    proposes: bool
    twists: bool
    weighs: bool


def _in_doubles(trace: Callable[[Any, str], Piece]) -> Callable[[Any, str], Piece]:
    """Let a piece be traced with numbers of 64 bits, whenever that is."""

    @wraps(trace)
    def traced(self: Any, given: str) -> Piece:
        with jax.enable_x64(True):
            return trace(self, given)

    return traced


class Pieces:
    """A program's pieces, traced when they are first needed.

    Attributes:
        xs: the inputs of the scan, a tree of arrays with a leading axis of iterations.
        length: how many there are.
        parameters: numbers among the program's arguments, which compiled code is given.
        carry: a tree of the shapes of the carry; so ``y``.
        before: how many latents come before the scan.
        value: what the program returns, see `returned`.
    """

    def __init__(self, program: Program, xs: Any) -> None:
        self.program = program
        self.xs = jax.tree.map(_double, stacked(xs))
        self.length = len(xs)
        self.before = 0
        self.carry: Any = None
        self.y: Any = None
        self.value: Any = None
        self._first = jax.tree.map(lambda column: column[0], self.xs)
        try:
            self._places = _numbers(program)
            self.begin = self._start(FREE)
        except NotTraceable:
            if not self._places:
                raise
            self._places = []  # its code computes with them where JAX does not
            self.begin = self._start(FREE)
        self.move = self._advance(FREE)

    @property
    def parameters(self) -> list[Any]:
        """Numbers among the arguments."""
        return [np.float64(_argument(self.program, place)) for place in self._places]

    @cached_property
    def begin_given(self) -> Piece:
        """The first piece with given values."""
        return self._start(GIVEN)

    @cached_property
    def move_given(self) -> Piece:
        """An iteration with given values."""
        return self._advance(GIVEN)

    @cached_property
    def begin_forced(self) -> Piece:
        """The first piece, all of whose latents are given."""
        return self._start(FORCED)

    @cached_property
    def move_forced(self) -> Piece:
        """An iteration, all of whose latents are given."""
        return self._advance(FORCED)

    @cached_property
    def end(self) -> Piece:
        """What comes after the scan."""
        return self._finish(FREE)

    @cached_property
    def end_given(self) -> Piece:
        """The same with given values."""
        return self._finish(GIVEN)

    @cached_property
    def needed(self) -> tuple[bool, ...]:
        """Which of the latents before the scan are looked at later."""
        first = len(self._places)
        codes = self.move.code, self.end.code
        return tuple(any(code.uses(first + i, 1) for code in codes) for i in range(self.before))

    def keep(self, latents: Sequence[Any]) -> list[Any]:
        """Return those of the latents before the scan that are needed later."""
        return [latent for latent, needed in zip(latents, self.needed) if needed]

    def fill(self, kept: Sequence[Any]) -> list[Any]:
        """Return one particle's latents before the scan, with zeros for those that are not needed."""
        rest = iter(kept)
        shapes = self.begin.latents[: self.before]
        return [next(rest) if needed else np.zeros(*shape) for needed, shape in zip(self.needed, shapes)]

    def kept(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Return what was compiled for programs that look at the same latents before the scan later, or make it."""
        return kept((*key, self.needed), make)

    @cached_property
    def needs_ys(self) -> bool:
        """Whether what comes after the scan looks at the ys."""
        first = len(self._places) + self.before + len(jax.tree.leaves(self.carry))
        return self.end.code.uses(first, len(jax.tree.leaves(self.y)))

    @cached_property
    def markov(self) -> bool:
        """Whether an iteration's latents alone say all that later ones, and the end, depend on."""
        if any(self.needed):
            return False
        begin, move = self.begin_forced, self.move_forced
        total = len(begin.code.jaxpr.invars)
        shared = [not r for r in begin.code.reached("carry", range(total - len(begin.latents), total))]
        total, first = len(move.code.jaxpr.invars), len(self._places) + self.before
        latents = range(total - len(move.latents), total)
        while True:  # what is the same in all particles, such as a count of iterations, is no memory
            own = [first + i for i, same in enumerate(shared) if not same]
            found = [same and not r for same, r in zip(shared, move.code.reached("carry", [*latents, *own]))]
            if found == shared:
                return not any(move.code.reached("carry", own))
            shared = found

    @property
    def weighs_end(self) -> bool:
        """Whether a site after the scan weighs particles."""
        return self.end.weighs or self.end.proposes

    def bound(self, parameters: Sequence[Any]) -> Program:
        """Return the program with these numbers, or symbols of them, as its arguments."""
        args, kwargs = list(self.program._args), dict(self.program._kwargs)
        for place, value in zip(self._places, parameters):
            (args if isinstance(place, int) else kwargs)[place] = value  # type: ignore[index]
        return Program(self.program._fn, tuple(args), kwargs, self.program.handlers)

    # -- the three --------------------------------------------------------------------------------------------------

    @_in_doubles
    def _start(self, given: str) -> Piece:
        def run(parameters: Any, x: Any, alive: Any, words: Any, slot: Any, values: Any, masks: Any) -> Doing:
            def main(plan: Any) -> Any:
                self._check(plan)
                self.before = len(doing.latents)
                doing.result = doing.iterate_main(plan, plan.init, x, jnp.asarray(0), doing.level)
                return stop()

            doing = Doing(words, slot, alive, values, masks, None, main)
            self._follow(parameters, doing)
            return doing

        piece = self._piece(run, given, () if given is FREE else self.begin.latents, self.parameters, self._first)
        return piece

    @_in_doubles
    def _advance(self, given: str) -> Piece:
        def run(
            parameters: Any, fixed: Any, carry: Any, level: Any, x: Any, t: Any, alive: Any, words: Any, slot: Any,
            values: Any, masks: Any,
        ) -> Doing:  # fmt: skip
            def main(plan: Any) -> Any:
                doing.result = doing.iterate_main(plan, carry, x, t, level)
                return stop()

            doing = Doing(words, slot, alive, values, masks, fixed, main)
            self._follow(parameters, doing)
            return doing

        latents = () if given is FREE else self.move.latents
        return self._piece(
            run, given, latents, self.parameters, self._fixed(), self.carry, 0.0, self._first, jnp.asarray(1)
        )

    @_in_doubles
    def _finish(self, given: str) -> Piece:
        def run(
            parameters: Any, fixed: Any, carry: Any, ys: Any, level: Any, alive: Any, words: Any, slot: Any,
            values: Any, masks: Any,
        ) -> Doing:  # fmt: skip
            def main(plan: Any) -> Any:
                doing.counts, doing.tag = True, _AFTER  # it has the key of the last iteration
                return carry, Outputs(ys, self.length)

            doing = Doing(words, slot, alive, values, masks, fixed, main)
            leaves: list[Any] = []
            self.value = skeleton(trace(self.bound(parameters), doing).value, leaves)
            doing.result = leaves, ()
            return doing

        ys = jax.tree.map(lambda y: jax.ShapeDtypeStruct((self.length, *y.shape), y.dtype), self.y)
        latents = () if given is FREE else self.end.latents
        return self._piece(run, given, latents, self.parameters, self._fixed(), self.carry, ys, 0.0)

    def _follow(self, parameters: Any, doing: Doing) -> None:
        try:
            trace(self.bound(parameters), doing)
        except Stop:
            return
        raise NotTraceable(f"{self.program.name!r} came to its end without the scan")

    def _fixed(self) -> list[Any]:
        return [jax.ShapeDtypeStruct(*shape) for shape in self.begin.latents[: self.before]]

    def _piece(self, run: Callable[..., Doing], given: str, latents: Sequence[Shape], *args: Any) -> Piece:
        seen: list[Doing] = []

        def traced(*args: Any) -> Any:
            seen.append(doing := run(*args))
            return doing.made(*doing.result)

        values = tuple(jax.ShapeDtypeStruct(*shape) for shape in latents)
        masks = tuple(jax.ShapeDtypeStruct((), bool) for _ in latents if given is GIVEN)
        words = jax.ShapeDtypeStruct((2,), np.uint32)
        found = code(traced, *args, True, words, 0, values, masks)
        doing = seen[-1]
        shapes = jax.tree.unflatten(found.tree, [v.aval for v in found.jaxpr.outvars])
        if self.carry is None:
            self.carry, self.y = (jax.tree.map(_struct, shapes[name]) for name in ("carry", "y"))
        return Piece(
            found,
            tuple(doing.lines),
            tuple((v.shape, v.dtype) for v in shapes["latents"]),
            tuple(doing.faults),
            doing.proposes,
            doing.twists,
            doing.weighs,
        )

    def _check(self, plan: Any) -> None:
        inputs = jax.tree.leaves([plan.inputs] if hasattr(plan.inputs, "dtype") else list(plan.inputs))
        if any(isinstance(x, jax.core.Tracer) for x in inputs):
            raise NotTraceable(f"scan {plan.name!r}: its inputs depend on what was drawn before it")


def _struct(aval: Any) -> Any:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _double(column: Any) -> Any:
    array = np.asarray(column)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _numbers(program: Program) -> list[int | str]:
    """Return where among a program's arguments there are floats."""
    found: list[int | str] = [i for i, arg in enumerate(program._args) if isinstance(arg, float)]
    return found + [name for name, arg in program._kwargs.items() if isinstance(arg, float)]


def _argument(program: Program, place: int | str) -> Any:
    return program._args[place] if isinstance(place, int) else program._kwargs[place]


# -- what is compiled ----------------------------------------------------------------------------------------------


_KEPT = 128
_compiled: OrderedDict[Any, Any] = OrderedDict()
_lock = Lock()


def kept(key: Any, make: Callable[[], Any]) -> Any:
    """Return what was compiled under a key, or make it; the last 128 are kept."""
    with _lock:
        if key in _compiled:
            _compiled.move_to_end(key)
            return _compiled[key]
    made = make()
    with _lock:
        _compiled[key] = made
        while len(_compiled) > _KEPT:
            _compiled.popitem(last=False)
    return made

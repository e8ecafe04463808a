"""A program whose scan is compiled: a Feynman–Kac model on arrays, with one call for a step of all particles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ..keys import Keys
from ..model import Advance, Floats, Index, retry
from ..program import Program
from ..traced.laws import words
from ..traced.returned import Place, build
from ..values.reals import plain
from .batch import Batch, Trail, concat, put, resolve
from .choices import Choices, Column, Forced, Line, Piece, alike, force
from .pieces import Piece as Traced
from .pieces import Pieces

_EVEN = 1024
"""Up to here batches are padded to the next power of two, beyond it to a multiple."""


class CompiledScan:
    """A bound program of the form prefix → `fk.scan` → suffix, as a native model (see `FeynmanKac`).

    A step is an iteration of the scan, its potentials summed; what comes before the scan belongs to the first, and
    what comes after to the last. The target and Z are those of the program.
    """

    def __init__(self, program: Program, xs: Any) -> None:
        self.program = program
        self.inputs = xs if not isinstance(xs, np.ndarray) else xs.copy()
        with jax.enable_x64(True):
            self.pieces = Pieces(program, xs)
            self.xs = jax.tree.map(jnp.asarray, self.pieces.xs)
            self.pieces.end  # noqa: B018  # what cannot be traced is found now
            self.needs_ys = self.pieces.needs_ys
        self.carry = jax.tree.structure(self.pieces.carry)
        self.y = jax.tree.structure(self.pieces.y)

    def __repr__(self) -> str:
        return repr(self.program)

    fuses: ClassVar[bool] = True
    """Whether engines may run it as one program of XLA."""

    @property
    def length(self) -> int:
        """Iterations of the scan."""
        return self.pieces.length

    @property
    def padded_length(self) -> int:
        """Iterations that fused programs are compiled for: the next power of two, from two on."""
        return max(2, 1 << (self.length - 1).bit_length())

    @cached_property
    def padded_xs(self) -> Any:
        """The inputs, with copies of the last for as many iterations."""
        more = self.padded_length - self.length
        return jax.tree.map(lambda c: np.concatenate([c, np.repeat(c[-1:], more, 0)]), self.pieces.xs)

    # -- the contract -----------------------------------------------------------------------------------------------

    def start(self, keys: Keys, given: Sequence[Any] | None = None) -> Advance[Batch]:
        """Run n particles through what comes before the scan, and its first iteration."""
        n = len(keys)
        t = np.zeros(n, np.int64)
        fresh = Batch(t, np.zeros(n, bool), np.zeros(n, bool), (), (), np.zeros(n), None, np.arange(n))
        return self._step(fresh, keys, given, True)

    def advance(self, state: Batch, keys: Keys, given: Sequence[Any] | None = None) -> Advance[Batch]:
        """Make one iteration of each particle; those done pass through."""
        return self._step(state, keys, given, False)

    def select(self, state: Batch, index: Index) -> Batch:
        """Keep, duplicate or reorder particles."""
        return state.select(index)

    def concat(self, states: Sequence[Batch]) -> Batch:
        """Join batches."""
        return concat(states)

    def values(self, state: Batch) -> list[Any]:
        """Return what each particle returned; its last ``"output"`` where it has not."""
        form, whole = self.pieces.value, state.done & ~state.dead
        if whole.all() and len(state) and isinstance(form, Place) and state.result[form.leaf].ndim == 1:
            return state.result[form.leaf].tolist()  # type: ignore[no-any-return]
        return [
            build(form, state.result, (i,)) if finished else None if state.output is None else plain(state.output[i])
            for i, finished in enumerate(whole.tolist())
        ]

    # -- a step -----------------------------------------------------------------------------------------------------

    def _step(self, state: Batch, keys: Keys, given: Sequence[Any] | None, first: bool) -> Advance[Batch]:
        n, pieces = len(state), self.pieces
        live = np.flatnonzero(~state.done)
        t = state.t if first else np.where(state.done, state.t, state.t + 1)
        piece = pieces.begin if first else pieces.move
        forced = self._forced(piece, given, live, t)
        made = self._call("begin" if first else "move", state, live, t, keys, forced)
        dead = state.dead.copy()
        dead[live] = ~made["alive"] if forced is None else ~made["alive"] | forced.refused
        now = self._after(state, live, t, dead, made)
        numbers, choices = np.zeros((3, n)), [self._piece(piece, made, t, live, n)]
        _add(numbers, live, made)
        last = live[(t[live] == self.length - 1) & ~dead[live]]
        self._finish(now, last, keys, None if forced is None else forced.rows(live, last), numbers, choices)
        refused = live[:0] if forced is None else live[forced.refused]
        numbers[:, refused] = -np.inf
        return self._advance(now, state.done, numbers, choices, piece.proposes)

    def finish(self, state: Batch, keys: Keys) -> Advance[Batch]:
        """Run what comes after the scan, for particles that are through it."""
        numbers, done = np.zeros((3, len(state))), state.done
        choices: list[Piece] = []
        self._finish(state, np.flatnonzero(~done), keys, None, numbers, choices)
        return self._advance(state, done, numbers, choices, False)

    def _finish(self, now: Batch, last: Index, keys: Keys, forced: Any, numbers: Floats, choices: list[Piece]) -> None:
        """Let some particles come to their end, and add what they weigh and choose there."""
        end, n = self.pieces.end, len(now)
        if len(last):
            ended = self._call("end", now, last, now.t, keys, forced)
            now.result = put(now.result, last, tuple(ended["carry"]), n)
            now.dead[last] |= ~ended["alive"]
            _add(numbers, last, ended)
            if end.lines:
                choices.append(self._piece(end, ended, now.t, last, n))
        now.done = now.done | now.dead | (now.t == self.length - 1)

    def _advance(
        self, now: Batch, done: NDArray[np.bool_], numbers: Floats, choices: list[Piece], proposes: bool
    ) -> Advance[Batch]:
        n = len(now)
        log_prob, log_proposal, log_potential = numbers
        log_potential[now.dead & ~done] = -np.inf
        if not (proposes or self.pieces.end.proposes):
            log_proposal = log_prob
        twist, scored = np.where(now.done, 0.0, now.level), np.ones(n, bool)
        return Advance(now, Choices(n, choices), log_prob, log_proposal, log_potential, twist, now.done, scored)

    def _forced(self, piece: Traced, given: Sequence[Any] | None, live: Index, t: Any) -> Forced | None:
        if given is None or all(item is None for item in given):
            return None
        end = self.pieces.end
        if isinstance(given, Choices) and (own := self._own(piece, given, live, t)) is not None:
            return own
        tail = [line if line.latent is None else _later(line, len(piece.latents)) for line in end.lines]
        both = [piece.lines, [*piece.lines, *tail]]
        lines = [both[int(s == self.length - 1)] for s in t[live].tolist()]
        return force([given[i] for i in live.tolist()], lines, [*piece.latents, *end.latents], t[live])

    def _own(self, piece: Traced, given: Choices, live: Index, t: Any) -> Forced | None:
        """Return what choices of this piece, or of one like it, give, which are arrays already; None for others."""
        end = self.pieces.end
        shapes = [*piece.latents, *end.latents]
        values = [np.zeros((len(live), *shape), dtype) for shape, dtype in shapes]
        masks = [np.zeros(len(live), bool) for _ in shapes]
        for part in given.pieces:
            rows = part.rows[live]
            first = 0 if alike(part.lines, piece.lines) else len(piece.latents) if alike(part.lines, end.lines) else -1
            if first < 0 or not (rows >= 0).all() or not (part.iteration[rows] == t[live]).all():
                return None
            for line, column in zip(part.lines, part.columns):
                if line.latent is not None and column.values is not None:
                    j, found = first + line.latent, column.values[rows]
                    if found.shape != values[j].shape or found.dtype != values[j].dtype:
                        return None
                    values[j], masks[j] = found, masks[j] | True
        return Forced(values, masks, np.zeros(len(live), bool))

    def log_transition(self, state: Batch, choices: Sequence[Any]) -> Floats:
        """Return the table (n, k) of log p + log G of k choices of the next iteration, each after each particle.

        All particles have made as many iterations, and those of the choices are one more.
        """
        piece, t = self.pieces.move_forced, int(state.t[0]) + 1
        n, k = len(state), len(choices)
        if t == self.length - 1 and self.pieces.end.lines:  # the choices are those of two pieces
            rows, tries = np.repeat(np.arange(n), k), [retry(chosen) for chosen in choices]
            made = self.advance(state.select(rows), np.zeros(n * k, np.uint64), tries * n)
            return np.where(np.isneginf(made.log_potential), -np.inf, made.log_prob + made.log_potential).reshape(n, k)
        at = np.full(k, t)
        own = self._own(self.pieces.move, choices, np.arange(k), at) if isinstance(choices, Choices) else None
        forced = own or force(choices, [piece.lines] * k, piece.latents, at)
        one, other = (np.minimum(np.arange(_room(m)), m - 1) for m in (n, k))
        batched = {
            "fixed": tuple(leaf[one] for leaf in state.fixed),
            "carry": tuple(leaf[one] for leaf in state.carry),
            "level": state.level[one],
        }
        with jax.enable_x64(True):
            run = self.pieces.kept(("pairs", piece.code.key), lambda: jax.jit(pairs(piece, self.pieces)))
            tried = other, tuple(v[other] for v in forced.values[: len(piece.latents)])
            table: Floats = run(piece.code.constants, self.pieces.parameters, self.xs, batched, tried, t)
        return np.asarray(table)[:n, :k]

    def _call(self, which: str, state: Batch, rows: Index, t: Any, keys: Keys, forced: Any) -> dict[str, Any]:
        """Run a piece for some rows of a batch; return what it made of them, as arrays of NumPy."""
        pieces, m = self.pieces, len(rows)
        with jax.enable_x64(True):
            piece: Traced = getattr(pieces, which if forced is None else f"{which}_given")
        place = np.minimum(np.arange(_room(m)), m - 1)
        padded = rows[place]
        latents = len(piece.latents)
        skipped = len(forced.values) - latents if which == "end" and forced is not None else 0
        batched: dict[str, Any] = {
            "alive": np.ones(len(padded), bool),
            "words": words(keys[padded]),
            "values": () if forced is None else tuple(v[place] for v in forced.values[skipped : skipped + latents]),
            "masks": () if forced is None else tuple(v[place] for v in forced.masks[skipped : skipped + latents]),
        }
        if which != "begin":
            batched["fixed"] = tuple(leaf[padded] for leaf in state.fixed)
            batched["carry"] = tuple(leaf[padded] for leaf in state.carry)
            batched["level"] = state.level[padded]
            batched["t"] = t[padded]
        if which == "end" and self.needs_ys:
            batched["ys"] = tuple(leaf[place] for leaf in resolve(state.trail, state.place[rows], self.length))
        with jax.enable_x64(True):
            known = "each", which, self.needs_ys, piece.code.key
            run = pieces.kept(known, lambda: jax.jit(each(which, piece, pieces)))
            out = run(piece.code.constants, pieces.parameters, self.xs, batched)
        made: dict[str, Any] = jax.tree.map(lambda x: np.asarray(x)[:m], out)
        if made["bad"].any():
            blame(piece, made["bad"], t[rows], rows)
        return made

    def _after(self, state: Batch, live: Index, t: Any, dead: Any, made: dict[str, Any]) -> Batch:
        n = len(state)
        fixed = state.fixed
        if not state.carry:
            fixed = tuple(self.pieces.keep(made["latents"]))
        carry = put(state.carry, live, tuple(jax.tree.leaves(made["carry"])), n)
        (level,) = put((state.level,), live, (made["level"],), n)
        trail, place = state.trail, state.place
        if self.needs_ys:
            trail = Trail(tuple(jax.tree.leaves(made["y"])), state.trail, state.place[live])
            place = place.copy()
            place[live] = np.arange(len(live))
        output = _output(self.pieces.begin if not state.carry else self.pieces.move, made, state.output, live, n)
        return Batch(t, state.done, dead, fixed, carry, level, trail, place, state.result, output)

    def _piece(self, piece: Traced, made: dict[str, Any], t: Any, rows: Index, n: int) -> Piece:
        at = np.full(n, -1)
        at[rows] = np.arange(len(rows))
        return Piece(piece.lines, columns(piece.lines, made), t[rows], at)


def _later(line: Line, by: int) -> Line:
    assert line.latent is not None
    return line._replace(latent=line.latent + by)


def _room(m: int) -> int:
    return max(16, 1 << (m - 1).bit_length()) if m <= _EVEN else -(-m // _EVEN) * _EVEN


def _add(numbers: Floats, rows: Index, made: dict[str, Any]) -> None:
    for row, name in zip(numbers, ("log_prob", "log_proposal", "log_potential")):
        row[rows] += made[name]


def columns(lines: Sequence[Line], made: dict[str, Any]) -> list[Column]:
    """Return the columns of a piece's sites, of what it made as arrays of NumPy."""
    return [
        Column(made["latents"][line.latent] if line.latent is not None else column[0], *column[1:])
        for line, column in zip(lines, made["columns"])
    ]


def each(which: str, piece: Traced, pieces: Pieces) -> Any:
    """Return a piece as a function of a batch, each of whose particles has a key of its own, for `jax.jit`."""
    carry, y = (jax.tree.structure(tree) for tree in (pieces.carry, pieces.y))
    zeros = [np.zeros((pieces.length, *leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(pieces.y)]

    def run(constants: Any, parameters: Any, xs: Any, batched: dict[str, Any]) -> Any:
        def one(b: dict[str, Any]) -> Any:
            rest = (b["alive"], b["words"], 0, b["values"], b["masks"])
            if which == "begin":
                first = jax.tree.map(lambda column: column[0], xs)
                return piece.code(constants, parameters, first, *rest)
            before = (parameters, pieces.fill(b["fixed"]), jax.tree.unflatten(carry, b["carry"]))
            if which == "move":
                x = jax.tree.map(lambda column: column[b["t"]], xs)
                return piece.code(constants, *before, b["level"], x, b["t"], *rest)
            ys = jax.tree.unflatten(y, b.get("ys", zeros))
            return piece.code(constants, *before, ys, b["level"], *rest)

        return jax.vmap(one)(batched)

    return run


def pairs(piece: Traced, pieces: Pieces) -> Any:
    """Return the density of choices of an iteration after particles, as a table, for `jax.jit`.

    Choices are their numbers and their values: where an iteration has no latents there are no values to count.
    """
    carry = jax.tree.structure(pieces.carry)

    def run(constants: Any, parameters: Any, xs: Any, batched: dict[str, Any], choices: Any, t: Any) -> Any:
        x = jax.tree.map(lambda column: column[t], xs)
        rest = True, np.zeros(2, np.uint32), 0

        def one(b: dict[str, Any], tried: Any) -> Any:
            _, values = tried
            before = parameters, pieces.fill(b["fixed"]), jax.tree.unflatten(carry, b["carry"]), b["level"], x, t
            made = piece.code(constants, *before, *rest, values, ())
            return jnp.where(made["alive"], made["log_prob"] + made["log_potential"], -jnp.inf)

        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(batched, choices)

    return run


def blame(piece: Traced, bad: NDArray[Any], t: Any, rows: Any) -> None:
    """Raise the error of the first particle for which something is wrong."""
    i = int(np.flatnonzero(bad)[0])
    kind, message = piece.faults[int(bad[i]) - 1]
    raise kind(f"particle {int(rows[i])}, iteration {int(t[i])} of the scan, {message}")


def _output(piece: Traced, made: dict[str, Any], old: Any, live: Index, n: int) -> Any:
    """Return the last value recorded as "output" by each particle."""
    found = [j for j, line in enumerate(piece.lines) if line.kind == "deterministic" and line.name == "output"]
    if not found:
        return old
    value = made["columns"][found[-1]][0]
    if value is None:
        value = np.full(len(live), piece.lines[found[-1]].fixed, object)
    return put(() if old is None else (old,), live, (value,), n)[0]

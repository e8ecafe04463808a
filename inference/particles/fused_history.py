"""The history of a fused filter: steps that are worked out when somebody looks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple, cast, overload

import jax
import jax.numpy as jnp
import numpy as np

from ...ppl import keys as _keys
from ...ppl.compiled.batch import Batch, Whole
from ...ppl.compiled.choices import Choices, Piece
from ...ppl.compiled.model import CompiledScan, blame, columns
from ...ppl.compiled.pieces import Pieces
from ...ppl.keys import Keys
from ...ppl.model import Index
from ..base.engine import Report
from ..base.step import Step
from ..base.weights import logmeanexp, spread


class Now(NamedTuple):
    """The particles within a filter: latents before the scan, carry, level (None without twists) and log-weights.

    The log-weights are those since the last resampling.
    """

    fixed: Any
    carry: Any
    level: Any
    logs: Any


class Facts(NamedTuple):
    """What is known of a step: numbers, and of the worst particle what is wrong with it (``bad``, 0 for nothing).

    ``base`` is what was taken off all log-weights when the particles were resampled before the step.
    """

    ess: Any
    entropy: Any
    log_mean: Any
    guided_mean: Any
    resampled: Any
    base: Any
    bad: Any
    culprit: Any


class FusedHistory(Sequence[Step]):
    """The steps of a fused filter.

    Args:
        model: the compiled scan.
        made: what the filter handed out, as arrays of NumPy.
        key: (1,) of the run, for what is drawn after the scan.
        scheme: how particles were resampled.

    Raises:
        InvalidWeight, ValueError, UnsupportedProposal: for a weight, a law or a proposal that cannot be; it names the
            particle, the iteration and the site.
    """

    def __init__(self, model: CompiledScan, made: dict[str, Any], key: Keys, scheme: str) -> None:
        self._model, self._made, self._scheme = model, made, scheme
        first, rest = made["facts"]
        t = model.length
        self._facts = type(first)(*(np.concatenate([[a], b[: t - 1]]) for a, b in zip(first, rest)))
        offset = np.cumsum(self._facts.base)
        self._log_evidence = offset + self._facts.log_mean
        self._offset = offset
        gone = np.flatnonzero(np.isneginf(self._facts.log_mean))
        self.extinct = bool(len(gone))
        self._length = int(gone[0]) + 1 if self.extinct else t
        for t in np.flatnonzero(self._facts.bad[: self._length]).tolist():
            piece = model.pieces.move if t else model.pieces.begin
            blame(piece, self._facts.bad[t : t + 1], np.array([t]), self._facts.culprit[t : t + 1])
        self._end(key)

    def _end(self, key: Keys) -> None:
        """Run what comes after the scan."""
        model, now = self._model, self._made["now"]
        logs = now.logs + self._offset[-1]
        n = len(logs)
        dead = np.isneginf(logs) | self.extinct
        last = np.full(n, self._length - 1)
        trail = None
        if model.needs_ys and not self.extinct:
            trail = Whole(tuple(self._path(*pair) for pair in self._columns("ys")))
        carry, level = tuple(jax.tree.leaves(now.carry)), np.zeros(n) if now.level is None else now.level
        state = Batch(last, dead, dead, tuple(now.fixed), carry, level, trail, np.arange(n))
        lineage = _keys.fold(key, _keys.tag("particle"), np.arange(n))
        self._ended = model.finish(state, _keys.fold(lineage, self._length))
        self.log_weights = np.where(dead, -np.inf, logs + self._ended.log_increment)
        self.log_weights[self._ended.state.dead] = -np.inf
        if model.pieces.weighs_end:
            self.extinct = self.extinct or bool(np.isneginf(self.log_weights).all())

    @classmethod
    def of_paths(cls, model: CompiledScan, m: int, first: Any, later: Any, key: Keys) -> FusedHistory:
        """Return the history of m whole runs by their latents: the first (m, …), and later ones (T − 1, m, …)."""
        size = model.padded_length
        ancestors = np.broadcast_to(np.arange(m, dtype=np.int32), (size - 1, m))
        made: dict[str, Any] = {
            "first": {"latents": first},
            "later": {"latents": later, "ancestors": ancestors},
            "facts": (_plain_facts(()), _plain_facts((size - 1,))),
        }
        passed = replay(model, made)
        made["now"] = Now(*passed["now"])
        for name in ("first", "later"):
            made[name]["ys"] = passed[name].get("ys")
        return cls(model, made, key, "")

    def latents(self, particle: int) -> tuple[Any, Any]:
        """Return the latents of a final particle's path: of the first iteration, and of the others (T − 1, …)."""
        line = self._lines[:, particle]
        first, later = self._made["first"]["latents"], self._made["later"]["latents"]
        t = np.minimum(np.arange(1, self._model.padded_length), self._model.length - 1)
        return jax.tree.map(lambda leaf: leaf[line[0]], first), jax.tree.map(lambda leaf: leaf[t - 1, line[t]], later)

    def passed(self, model: CompiledScan) -> dict[str, Any]:
        """Return what a model with the same latents, its own or another, makes of those of its particles."""
        return replay(model, self._made)

    @property
    def model(self) -> CompiledScan:
        """The compiled scan."""
        return self._model

    @property
    def log_evidence(self) -> Any:
        """(T,) log Ẑ so far, after each step."""
        return np.append(self._log_evidence[: self._length - 1], logmeanexp(self.log_weights))

    @property
    def state(self) -> Batch:
        """The particles at their end."""
        state: Batch = self._ended.state
        return state

    def report(self) -> Report:
        """Return the filter's report."""
        return Report(self._ended.state, self.log_weights, None, history=self)

    # -- steps ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Step, ...]: ...
    def __getitem__(self, index: int | slice) -> Step | tuple[Step, ...]:
        return self._steps[index]

    @cached_property
    def _steps(self) -> tuple[Step, ...]:
        return tuple(self._step(t) for t in range(self._length))

    @property
    def ancestors(self) -> Any:
        """(T, n): each particle's parent at the step before."""
        later: Any = self._made["later"]["ancestors"]
        return np.concatenate([np.arange(later.shape[1], dtype=later.dtype)[None], later[: self._model.length - 1]])

    def _step(self, t: int) -> Step:
        model, facts = self._model, self._facts
        first, later = self._replayed
        made = first if t == 0 else jax.tree.map(lambda column: column[t - 1], later)
        piece = model.pieces.move if t else model.pieces.begin
        n = len(self.log_weights)
        pieces = [Piece(piece.lines, columns(piece.lines, made), np.full(n, t), np.arange(n))]
        log_weights, log_potential = made["logs"] + self._offset[t], made["log_potential"]
        ess, entropy, log_evidence = facts.ess[t], facts.entropy[t], self._log_evidence[t]
        done = ~made["alive"]
        twist = np.where(done, 0.0, made["level"])
        if t == model.length - 1:
            log_weights, done, twist = self.log_weights, np.ones(n, bool), np.zeros(n)
            log_potential = log_potential + self._ended.log_potential
            pieces += cast(Choices, self._ended.choices).pieces
            found = spread(log_weights)
            ess, entropy, log_evidence = found.ess, found.entropy, logmeanexp(log_weights)
        return Step(
            depth=t,
            ess=float(ess),
            entropy=float(entropy),
            log_evidence=float(log_evidence),
            resampled=bool(facts.resampled[t]),
            ancestors=self.ancestors[t].astype(np.intp),
            log_weights=log_weights,
            log_potential=log_potential,
            log_twist=twist,
            done=done,
            choices=Choices(n, pieces),
            scheme=self._scheme if facts.resampled[t] else None,
        )

    @cached_property
    def _replayed(self) -> tuple[Any, Any]:
        """What the particles made of the latents that they drew: of the first step, and of the others (T − 1, n, …)."""
        passed, let_go = replay(self._model, self._made), ("log_prob", "carry", "fixed")
        first, later = ({k: v for k, v in passed[when].items() if k not in let_go} for when in ("first", "later"))
        return first, later

    # -- the ys -----------------------------------------------------------------------------------------------------

    def _columns(self, name: str) -> list[tuple[Any, Any]]:
        first, later = self._made["first"][name], self._made["later"][name]
        return list(zip(jax.tree.leaves(first), jax.tree.leaves(later)))

    @cached_property
    def _lines(self) -> Index:
        """(T, n): which particle of each step is the ancestor of each of the last."""
        ancestors = self.ancestors
        out = np.empty(ancestors.shape, np.intp)
        index = np.arange(ancestors.shape[1])
        for t in range(len(ancestors) - 1, -1, -1):
            out[t] = index
            index = ancestors[t][index]
        return out

    def _path(self, first: Any, later: Any) -> Any:
        """Return (n, T, …): what each of the last particles had in each iteration."""
        whole = np.concatenate([first[None], later[: self._model.length - 1]])
        lines = self._lines
        return np.swapaxes(whole[np.arange(len(lines))[:, None], lines], 0, 1)


def _plain_facts(shape: tuple[int, ...]) -> Facts:
    """Return the facts of steps of which nothing is to be said."""
    number, whole = np.zeros(shape), np.zeros(shape, int)
    return Facts(number, number, number, number, np.zeros(shape, bool), number, whole, whole)


def replay(model: CompiledScan, made: dict[str, Any]) -> dict[str, Any]:
    """Make the second pass: force the latents that a filter drew on particles that descend as its did."""
    pieces, ys = model.pieces, model.needs_ys
    with jax.enable_x64(True):
        begin, move = pieces.begin_forced.code, pieces.move_forced.code
        run = pieces.kept(("replay", ys, begin.key, move.key), lambda: jax.jit(replaying(pieces, ys)))
        latents = made["first"]["latents"], made["later"]["latents"]
        rest = made["later"]["ancestors"], made["facts"][1].resampled
        out = run((begin.constants, move.constants), pieces.parameters, model.padded_xs, *latents, *rest)
        found: dict[str, Any] = jax.tree.map(np.asarray, out)
    return found


def replaying(pieces: Pieces, ys: bool) -> Any:
    """Return the second pass as a function for `jax.jit`."""
    begin, move = pieces.begin_forced, pieces.move_forced
    twisted = begin.twists or move.twists
    none = np.zeros(2, np.uint32)  # nothing is drawn

    def gained(made: Any) -> Any:
        return jnp.where(made["alive"], made["log_potential"] + (made["log_prob"] - made["log_proposal"]), -jnp.inf)

    def told(made: Any, fixed: Any, logs: Any) -> Any:
        names = ("log_prob", "log_potential", "level", "alive", "latents", "columns", "carry")
        rest = {"fixed": fixed, "logs": logs, **({"ys": made["y"]} if ys else {})}
        return {**{name: made[name] for name in names}, **rest}

    def run(constants: Any, parameters: Any, xs: Any, first: Any, later: Any, ancestors: Any, resampled: Any) -> Any:
        more, n = ancestors.shape

        def start(_: Any, values: Any) -> Any:
            x = jax.tree.map(lambda column: column[0], xs)
            return begin.code(constants[0], parameters, x, True, none, 0, values, ())

        made = jax.vmap(start)(jnp.arange(n), first)
        fixed = pieces.keep(made["latents"])
        logs = gained(made)

        def step(state: Any, inputs: Any) -> Any:
            t, x, values, parents, few = inputs
            fixed, carry, level, logs = jax.tree.map(lambda leaf: leaf[parents], state)
            logs = jnp.where(few, -level if twisted else 0.0, logs)

            def one(fixed: Any, carry: Any, level: Any, alive: Any, values: Any) -> Any:
                before = parameters, pieces.fill(fixed), carry, level, x, t, alive
                return move.code(constants[1], *before, none, 0, values, ())

            made = jax.vmap(one)(fixed, carry, level, logs > -jnp.inf, values)
            logs = logs + gained(made)
            return (fixed, made["carry"], made["level"], logs), told(made, fixed, logs)

        inputs = jnp.arange(1, more + 1), jax.tree.map(lambda column: column[1:], xs), later, ancestors, resampled
        first = told(made, fixed, logs)
        now, rest = jax.lax.scan(step, (fixed, made["carry"], made["level"], logs), inputs)
        return {"first": first, "later": rest, "now": now}

    return run

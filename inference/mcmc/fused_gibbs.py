"""Particle Gibbs on a compiled scan: each sweep is one program of XLA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...ppl import keys as _keys
from ...ppl.compiled.model import CompiledScan, blame
from ...ppl.compiled.pieces import Pieces
from ...ppl.keys import Keys
from ...ppl.traced.laws import jax_key, words
from ..base.engine import Report, Run
from ..base.resampling import resample as draw
from ..base.schemes_jax import resample
from ..base.search_tree import SearchTree
from ..particles.fused import filtered, gained
from ..particles.fused_history import FusedHistory
from .chain import burnt


def fuses(engine: Any, model: CompiledScan) -> bool:
    """Whether a chain can be run so: what comes after the scan weighs nothing, and the reference's futures are short.

    With ancestor sampling the future of the reference is weighed by its next iteration alone, which says all where the
    latents of an iteration determine the carry.
    """
    end = model.pieces.end
    simple = model.length > 1 and not (end.latents or end.weighs) and engine.resampling == "multinomial"
    return simple and (not engine.ancestor_sampling or model.pieces.markov)


def fused_gibbs(engine: Any, model: CompiledScan, key: Keys) -> Run:
    """Run a chain of particle Gibbs, and report its draws at once."""
    begun = filtered(model, key, engine.particles_per_sweep, engine.ess_threshold, "multinomial")
    if begun.extinct:
        yield from engine.run(model, key)
        return
    chosen = int(draw(begun.log_weights, 1, _keys.fold(key, _keys.tag("pick")), "multinomial")[0])
    path, pieces = begun.latents(chosen), model.pieces
    draws: list[Any] = []
    shared: list[int] = []
    renewed, least = [], model.length
    with jax.enable_x64(True):
        codes = pieces.begin_given.code, pieces.move_given.code, pieces.move_forced.code
        settings = engine.particles_per_sweep, engine.ess_threshold, engine.ancestor_sampling, model.padded_length
        run = pieces.kept(("gibbs", settings, *(c.key for c in codes)), lambda: jax.jit(sweeping(pieces, *settings)))
        constants = [c.constants for c in codes]
        for s in range(engine.sweeps):
            pair = words(_keys.fold(key, _keys.tag("sweep"), s))[0]
            path, same, wrong = run(constants, pieces.parameters, model.padded_xs, pieces.length, pair, path)
            _check(pieces, *(int(x) for x in wrong))
            same = int(same)
            renewed.append(1.0 - same / model.length)
            least = min(least, same)
            if s >= burnt(engine) and (s - burnt(engine)) % engine.thin == 0:
                draws.append(jax.tree.map(np.asarray, path))
                shared.append(least if len(draws) > 1 else 0)
                least = model.length
    rates = {"acceptance": float(np.mean(np.array(renewed) > 0)), "renewed": float(np.mean(renewed))}
    yield _report(model, draws, shared, rates, key)


def sweeping(pieces: Pieces, n: int, threshold: float, ancestor_sampling: bool, size: int) -> Any:
    """Return a sweep as a function for `jax.jit`: from the latents of a path to those of the next.

    It also returns how many of the first iterations are the same in both.
    """
    begin, move, forced = pieces.begin_given, pieces.move_given, pieces.move_forced
    themselves = jnp.arange(n, dtype=jnp.int32)
    reference = themselves == 0

    def run(constants: Any, parameters: Any, xs: Any, length: Any, pair: Any, path: Any) -> Any:
        first, later = path

        def words_at(t: Any, what: int) -> Any:
            return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(jax_key(pair), t), what))

        def start(slot: Any, own: Any) -> Any:
            x = jax.tree.map(lambda column: column[0], xs)
            rest = True, words_at(0, 0), slot, first, (own,) * len(first)
            return begin.code(constants[0], parameters, x, *rest)

        made = jax.vmap(start)(themselves, reference)
        fixed = pieces.keep(made["latents"])
        state = fixed, made["carry"], made["level"], gained(made, begin)
        wrong = _worst(made, 0, jnp.zeros(3, int))

        def step(t: Any, everything: Any) -> Any:
            state, seen, own_past, wrong = everything
            x = jax.tree.map(lambda column: column[t], xs)
            values = jax.tree.map(lambda column: column[t - 1], later)
            fixed, carry, level, logs = state
            guided = logs + level
            peak = guided.max()
            weights = jnp.exp(guided - peak)
            few = weights.sum() ** 2 <= threshold * n * (1 + 1e-12) * (weights @ weights)

            def again(state: Any) -> Any:
                keep = _past(state, values, x, t) if ancestor_sampling else jnp.int32(0)
                parents = resample(weights, jax_key(words_at(t, 1)), "multinomial").at[0].set(keep)
                fixed, carry, level, _ = jax.tree.map(lambda leaf: leaf[parents], state)
                return (fixed, carry, level, -level), parents

            def _past(state: Any, values: Any, x: Any, t: Any) -> Any:
                """Draw the reference's past: ∝ W · p · G of its next iteration after each particle."""

                def one(fixed: Any, carry: Any, level: Any, logs: Any) -> Any:
                    before = parameters, pieces.fill(fixed), carry, level, x, t, logs > -jnp.inf
                    made = forced.code(constants[2], *before, words_at(t, 0), 0, values, ())
                    return jnp.where(made["alive"], logs + made["log_prob"] + made["log_potential"], -jnp.inf)

                scores = jax.vmap(one)(*state)
                chances = jnp.exp(scores - scores.max())
                return resample(chances, jax_key(words_at(t, 2)), "multinomial")[0]

            state, parents = jax.lax.cond(few, again, lambda state: (state, themselves), state)
            fixed, carry, level, logs = state
            own_key = words_at(t, 0)

            def go(slot: Any, own: Any, fixed: Any, carry: Any, level: Any, alive: Any) -> Any:
                before = parameters, pieces.fill(fixed), carry, level, x, t, alive
                return move.code(constants[1], *before, own_key, slot, values, (own,) * len(values))

            made = jax.vmap(go)(themselves, reference, fixed, carry, level, logs > -jnp.inf)
            state = fixed, made["carry"], made["level"], logs + gained(made, move)
            found = parents, made["latents"]
            seen = jax.tree.map(lambda whole, one: whole.at[t - 1].set(one), seen, found)
            return state, seen, own_past.at[t].set(parents[0] == 0), _worst(made, t, wrong)

        latents = jax.tree.map(lambda leaf: jnp.zeros((size - 1, n, *leaf.shape[1:]), leaf.dtype), later)
        seen = jnp.zeros((size - 1, n), jnp.int32), latents
        everything = state, seen, jnp.ones(size, bool), wrong
        (_, _, _, logs), (parents, latents), own, wrong = jax.lax.fori_loop(1, length, step, everything)
        weights = jnp.exp(logs - logs.max())
        last = resample(weights, jax_key(words_at(0, 3)), "multinomial")[0]

        def back(i: Any, carry: Any) -> Any:
            """Follow the chosen particle to its start; past the length there is nothing."""
            row, line, path = carry
            t = length - 1 - i
            path = jax.tree.map(lambda whole, one: whole.at[t - 1].set(one[t - 1][row]), path, latents)
            line = line.at[t].set(row)
            return parents[t - 1][row], line, path

        line = jnp.zeros(size, jnp.int32)
        row, line, new = jax.lax.fori_loop(0, length - 1, back, (last, line, later))
        line = line.at[0].set(row)
        begun = jax.tree.map(lambda leaf: leaf[row], made["latents"])
        # The first iterations are the same as long as it is the reference's own line.
        mine = (line == 0) & own & (jnp.arange(size) < length)
        return (begun, new), jnp.where(mine.all(), size, jnp.argmin(mine)), wrong

    return run


def _worst(made: Any, t: Any, wrong: Any) -> Any:
    """Return code, iteration and particle of what went wrong first."""
    code = made["bad"].max()
    found = jnp.stack([code.astype(int), jnp.asarray(t, int), made["bad"].argmax()])
    return jnp.where((wrong[0] == 0) & (code > 0), found, wrong)


def _check(pieces: Pieces, code: int, t: int, particle: int) -> None:
    if code:
        piece = pieces.move_given if t else pieces.begin_given
        blame(piece, np.array([code]), np.array([t]), np.array([particle]))


def _report(model: CompiledScan, draws: Sequence[Any], shared: list[int], rates: dict[str, float], key: Keys) -> Report:
    """Report draws of latents: as whole runs, in a tree in which what neighbours share is there once."""
    m, t = len(draws), model.length
    first, later = jax.tree.map(lambda *leaves: np.stack(leaves), *draws)
    later = jax.tree.map(lambda leaf: np.moveaxis(leaf, 0, 1), later)
    history = FusedHistory.of_paths(model, m, first, later, key)
    steps = tuple(history)
    nodes = np.zeros((m, t), np.intp)
    made: list[tuple[int, int]] = []
    for j in range(m):
        for s in range(t):
            if s < shared[j]:
                nodes[j, s] = nodes[j - 1, s]
            else:
                made.append((s, j))
                nodes[j, s] = len(made)
    depth = np.array([-1, *(s for s, _ in made)])
    owner = np.array([0, *(j for _, j in made)])
    parent = np.array([-1, *(nodes[j, s - 1] if s else 0 for s, j in made)])
    visits = np.bincount(nodes.ravel(), minlength=len(parent))
    visits[0] = m
    gains = np.stack([step.log_weights for step in steps])
    potentials = np.stack([step.log_potential for step in steps])
    rows = depth[1:], owner[1:]
    tree = SearchTree(
        parent=parent,
        depth=depth,
        visits=visits,
        value=np.zeros(len(parent)),
        log_weight=np.concatenate([[0.0], gains[rows]]),
        log_mass=np.log(visits / m),
        log_potential=np.concatenate([[0.0], potentials[rows]]),
        done=depth == t - 1,
        choices=Nodes([step.choices for step in steps], depth, owner),
        particles=nodes[:, -1],
    )
    return Report(history.state, np.zeros(m), None, math.nan, tree=tree, info=rates, serial=True)


class Nodes(Sequence[Any]):
    """The choices of nodes, each of which is a draw in one of the steps; () for the root."""

    def __init__(self, choices: Sequence[Any], depth: Any, owner: Any) -> None:
        self._choices, self._depth, self._owner = choices, depth, owner

    def __len__(self) -> int:
        return len(self._depth)

    def __getitem__(self, node: Any) -> Any:
        t = int(self._depth[node])
        return () if t < 0 else self._choices[t][int(self._owner[node])]

"""Backward sampling from the history of a fused filter: the same as in `backward`, as one program of XLA."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...ppl.compiled.choices import alike
from ...ppl.compiled.model import CompiledScan
from ...ppl.compiled.pieces import Pieces
from ...ppl.keys import Keys
from ...ppl.model import Floats, Index
from ..particles.fused_history import FusedHistory
from .backward import PAIRS, Did, Retraced, check_order, check_weights, impossible, uniforms_at


def goes_at_once(model: Any, steps: Any, order: int) -> bool:
    """Whether a history is a fused filter's, with the model's sites, and nothing is drawn or weighed at its end."""
    if order > 1 or not (isinstance(model, CompiledScan) and isinstance(steps, FusedHistory)):
        return False
    pieces, others = model.pieces, steps.model.pieces
    pairs = (pieces.begin, others.begin), (pieces.move, others.move)
    same = all(alike(a.lines, b.lines) and a.latents == b.latents for a, b in pairs)
    return same and model.length == steps.model.length and not (pieces.weighs_end or pieces.end.latents)


def draw_backward_at_once(model: CompiledScan, history: FusedHistory, ends: Index, key: Keys) -> tuple[Index, Retraced]:
    """Draw the past of particles of the last step; see `backward.draw_backward`.

    Raises:
        InconsistentDensity: where the model, forced to the choices of the history, does not weigh them as they were.
        Unsupported: where more than one step depends on a particle.
    """
    length, m, pieces = model.length, len(ends), model.pieces
    passed = history.passed(model)
    before = _joined(passed, ("fixed", "carry", "level", "alive", "logs"))
    if model is not history.model:
        known = _joined(history.passed(history.model), ("logs",))["logs"]
        for t in range(length):
            check_weights(before["logs"][t], known[t], t)
    chosen: Any = passed["later"]["latents"]
    ends = np.append(ends, np.repeat(ends[-1], -m % _grain(m)))  # so that few numbers of draws are compiled for
    uniforms = np.full((len(before["logs"]), len(ends)), 0.5)
    for t in range(length - 1):
        uniforms[t, :m] = uniforms_at(key, t, m)
    with jax.enable_x64(True):
        move = pieces.move_forced.code
        run = pieces.kept(("backward", move.key), lambda: jax.jit(drawing(pieces)))
        constants = move.constants, pieces.parameters
        drawn, found = run(*constants, model.padded_xs, before, chosen, ends, uniforms, length)
    scores: Floats = np.asarray(found)[: length - 1]
    lost = ~np.isfinite(scores).all(1)
    if lost.any():
        raise impossible(int(np.flatnonzero(lost)[-1]))
    index = np.concatenate([np.asarray(drawn)[: length - 1], ends[None]]).astype(np.intp)
    rows = np.concatenate([index, np.repeat(ends[None], model.padded_length - length, 0)])[1:]
    first = jax.tree.map(lambda leaf: leaf[index[0]], passed["first"]["latents"])
    later = jax.tree.map(lambda leaf: leaf[np.arange(len(rows))[:, None], rows], chosen)
    paths = FusedHistory.of_paths(model, len(ends), first, later, key)
    again = paths.passed(model)["later"]
    densities: Floats = np.where(again["alive"], again["log_prob"] + again["log_potential"], -np.inf)[: length - 1]
    check_order(densities, scores, 1)
    did = [Did(step.choices[:m], step.log_potential[:m], step.done[:m]) for step in paths]
    return index[:, :m], Retraced(did, model.values(model.select(paths.state, np.arange(m))))


def _grain(m: int) -> int:
    """Return what m is rounded up to a multiple of: a quarter of it or less, from 64 on."""
    return max(16, 1 << max(m.bit_length() - 3, 0))


def _joined(passed: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return what particles had after each step, leaves (T, n, …)."""
    first, later = ({name: passed[when][name] for name in names} for when in ("first", "later"))
    joined: dict[str, Any] = jax.tree.map(lambda one, rest: np.concatenate([one[None], rest]), first, later)
    return joined


def drawing(pieces: Pieces) -> Any:
    """Return the backward pass as a function for `jax.jit`: of what was before each step, and what was chosen in it."""
    move, none = pieces.move_forced, np.zeros(2, np.uint32)  # nothing is drawn

    def run(
        constants: Any, parameters: Any, xs: Any, before: Any, chosen: Any, ends: Any, uniforms: Any, length: Any
    ) -> tuple[Any, Any]:
        n = before["logs"].shape[1]
        block = max(1, min(len(ends), PAIRS // n))
        fill = -len(ends) % block  # the last block is filled up

        def back(current: Any, inputs: Any) -> Any:
            t, was, values, x, points = inputs

            def density(here: Any, values: Any) -> Any:
                past = parameters, pieces.fill(here["fixed"]), here["carry"], here["level"], x, t + 1, here["alive"]
                made = move.code(constants, *past, none, 0, values, ())
                return jnp.where(made["alive"], made["log_prob"] + made["log_potential"], -jnp.inf)

            def draw(mine: Any) -> Any:
                rows, u = mine
                own = jax.tree.map(lambda leaf: leaf[rows], values)
                table = jax.vmap(lambda _, v: jax.vmap(lambda here: density(here, v))(was))(rows, own)
                logits = table + was["logs"]
                found = jax.vmap(invert)(jnp.exp(logits - logits.max(1, keepdims=True)), u)
                return found, table[jnp.arange(block), found]

            def on(current: Any) -> Any:
                found, scores = jax.lax.map(draw, (current.reshape(-1, block), points.reshape(-1, block)))
                return found.reshape(-1), scores.reshape(-1)

            def off(current: Any) -> Any:
                return current, jnp.zeros(len(current))

            found, scores = jax.lax.cond(t + 1 < length, on, off, current)
            return found, (found, scores)

        inputs = (
            jnp.arange(len(uniforms) - 1),
            jax.tree.map(lambda leaf: leaf[:-1], before),
            chosen,
            jax.tree.map(lambda leaf: leaf[1:], xs),
            jnp.pad(uniforms[:-1], ((0, 0), (0, fill)), constant_values=0.5),
        )
        _, (found, scores) = jax.lax.scan(back, jnp.pad(ends, (0, fill)), inputs, reverse=True)
        return found[:, : len(ends)], scores[:, : len(ends)]

    return run


def invert(weights: Any, u: Any) -> Any:
    """Return the place of u times the sum of weights (n,) among their sums: first the group, then the place in it.

    XLA sums many short rows twice as fast as a long one. What has no weight is never found.
    """
    size = max(1, round(len(weights) ** 0.5))
    groups = jnp.pad(weights, (0, -len(weights) % size)).reshape(-1, size)
    masses = groups.sum(1)
    ends = jnp.cumsum(masses)
    point = u * ends[-1]
    group = jnp.minimum((ends <= point).sum(), len(ends) - 1)
    inner = jnp.cumsum(groups[group])
    rest = jnp.clip(point - (ends[group] - masses[group]), 0.0, inner[-1] * (1.0 - 2.0**-52))
    return group * size + (inner <= rest).sum()

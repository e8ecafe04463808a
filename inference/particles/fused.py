"""The whole of SMC on a compiled scan as one program of XLA: a `lax.scan` over its iterations.

Each step has one key for all particles, and resampling is behind a `lax.cond`. What a step hands out are the particles'
ancestors and latents, and a few numbers. All else (sites, their weights, the weights of each particle) is worked out by
a second pass over these, when somebody asks for the history: see `FusedHistory`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...ppl.compiled.model import CompiledScan
from ...ppl.compiled.pieces import Piece, Pieces
from ...ppl.keys import Keys
from ...ppl.traced.laws import jax_key, words
from ..base.engine import Run, check_alive
from ..base.schemes_jax import resample
from .fused_history import Facts, FusedHistory, Now


class Setting(NamedTuple):
    """What a filter is compiled for: n particles, when and how to resample, whether the ys are needed, iterations."""

    particles: int
    threshold: float
    scheme: str
    ys: bool
    size: int


def fused_smc(engine: Any, model: CompiledScan, key: Keys) -> Run:
    """Run SMC on a compiled scan; its one report has the whole history."""
    history = filtered(model, key, engine.particles, engine.ess_threshold, engine.resampling)
    yield history.report()
    if history.extinct:
        check_alive(history[-1], engine.all_dead)


def filtered(model: CompiledScan, key: Keys, particles: int, threshold: float, scheme: str) -> FusedHistory:
    """Run a filter by the key (1,)."""
    pieces = model.pieces
    setting = Setting(particles, threshold, scheme, model.needs_ys, model.padded_length)
    with jax.enable_x64(True):
        run = pieces.kept(
            ("filter", setting, pieces.begin.code.key, pieces.move.code.key),
            lambda: jax.jit(filtering(pieces, setting)),
        )
        constants = pieces.begin.code.constants, pieces.move.code.constants
        out = run(constants, pieces.parameters, model.padded_xs, pieces.length, words(key)[0])
        made: dict[str, Any] = jax.tree.map(np.asarray, out)
    return FusedHistory(model, made, key, scheme)


def filtering(pieces: Pieces, setting: Setting) -> Any:
    """Return the filter as a function for `jax.jit`: of constants, parameters, padded inputs, length and key."""
    n, twisted = setting.particles, pieces.begin.twists or pieces.move.twists
    themselves = jnp.arange(n, dtype=jnp.int32)

    def taken(made: Any, fixed: Any, logs: Any, few: Any, base: Any) -> tuple[Now, Facts, Any, Any]:
        """Return the particles after a piece, what is known of them, their weights, and what is handed out."""
        now = Now(fixed, made["carry"], made["level"] if twisted else None, logs)
        facts, weights = describe(now, few, base, made["bad"])
        out = {"latents": made["latents"], **({"ys": made["y"]} if setting.ys else {})}
        return now, facts, weights, out

    def run(constants: Any, parameters: Any, xs: Any, length: Any, pair: Any) -> Any:
        def words_at(t: Any, what: int) -> Any:
            return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(jax_key(pair), t), what))

        def begin(slot: Any) -> Any:
            first = jax.tree.map(lambda column: column[0], xs)
            return pieces.begin.code(constants[0], parameters, first, True, words_at(0, 0), slot, (), ())

        made = jax.vmap(begin)(themselves)
        fixed = pieces.keep(made["latents"])
        now, facts, weights, first = taken(made, fixed, gained(made, pieces.begin), jnp.asarray(False), 0.0)
        begun = facts

        def on(state: Any, t: Any, x: Any) -> Any:
            now, facts, weights = state
            few = (facts.ess > 0.0) & (facts.ess <= setting.threshold * n * (1 + 1e-12))

            def again(now: Now) -> Any:
                ancestors = resample(weights, jax_key(words_at(t, 1)), setting.scheme)
                now = jax.tree.map(lambda leaf: leaf[ancestors], now)
                return now._replace(logs=jnp.zeros(n) if now.level is None else -now.level), ancestors

            now, ancestors = jax.lax.cond(few, again, lambda now: (now, themselves), now)
            own = words_at(t, 0)

            def move(slot: Any, now: Now) -> Any:
                level = 0.0 if now.level is None else now.level
                before = parameters, pieces.fill(now.fixed), now.carry, level, x, t, now.logs > -jnp.inf
                return pieces.move.code(constants[1], *before, own, slot, (), ())

            made = jax.vmap(move)(themselves, now)
            logs = now.logs + gained(made, pieces.move)
            now, facts, weights, out = taken(made, now.fixed, logs, few, jnp.where(few, facts.guided_mean, 0.0))
            return (now, facts, weights), ({**out, "ancestors": ancestors}, facts)

        def step(t: Any, state: Any) -> Any:
            at, kept = state
            at, found = on(at, t, jax.tree.map(lambda column: column[t], xs))
            return at, jax.tree.map(lambda whole, one: whole.at[t - 1].set(one), kept, found)

        start = now, facts, weights
        shapes = jax.eval_shape(on, start, 1, jax.tree.map(lambda column: column[0], xs))[1]
        empty = jax.tree.map(lambda one: jnp.zeros((setting.size - 1, *one.shape), one.dtype), shapes)
        # Iterations beyond the length are not made: programs of several lengths share what is compiled.
        (now, _, _), (later, rest) = jax.lax.fori_loop(1, length, step, (start, empty))
        return {"now": now, "first": first, "later": later, "facts": (begun, rest)}

    return run


def gained(made: Any, piece: Piece) -> Any:
    """Return the log-weights (n,) that particles gained in a piece."""
    if not piece.proposes:
        return made["log_potential"]
    log_p, log_q, log_g = made["log_prob"], made["log_proposal"], made["log_potential"]
    ratio = jnp.where(log_p == log_q, 0.0, log_p - log_q)
    return jnp.where(log_g == -jnp.inf, -jnp.inf, log_g + ratio)


def describe(now: Now, few: Any, base: Any, bad: Any) -> tuple[Facts, Any]:
    """Return what is known of weighted particles, and their weights, guided by the twist, up to a factor."""
    logs, n = now.logs, len(now.logs)
    guided = logs if now.level is None else logs + now.level
    peak = guided.max()
    peak = jnp.where(peak > -jnp.inf, peak, 0.0)
    relative = guided - peak
    weights = jnp.exp(relative)
    total = weights.sum()
    alive = total > 0.0
    safe = jnp.where(alive, total, 1.0)
    ess = jnp.where(alive, safe * safe / jnp.where(alive, weights @ weights, 1.0), 0.0)
    inner = jnp.where(weights > 0.0, weights * relative, 0.0).sum() / safe
    entropy = jnp.where(alive, jnp.maximum(jnp.log(safe) - inner, 0.0), 0.0)
    guided_mean = jnp.where(alive, peak + jnp.log(safe / n), -jnp.inf)
    log_mean = guided_mean if now.level is None else jax.nn.logsumexp(logs) - jnp.log(n)
    worst = bad.max()
    culprit = jax.lax.cond(worst > 0, lambda: bad.argmax(), lambda: jnp.zeros((), int))
    base = jnp.asarray(base, float)
    return Facts(ess, entropy, log_mean, guided_mean, few, base, worst, culprit), weights

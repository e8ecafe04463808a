"""Jumps: where code decides by a number that gradients are to follow, so that what they find would be wrong.

A draw that is a smooth function of parameters and noise passes gradients only to what is continuous in it. A comparison
whose outcome steers the objective (``jnp.where(z > 0, a, b)``), rounding, or an index computed from it makes jumps,
which no gradient sees. They are looked for in what JAX traced, in the user's own lines: what libraries compare on their
way to a continuous function (a support, a special case) is their business.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval as pe

from ....ppl.errors import NotDifferentiable
from .estimators import MARK, STILL

_JUMPS = frozenset(("lt", "le", "gt", "ge", "eq", "ne", "sign", "floor", "ceil", "round", "argmax", "argmin", "rem"))
_NAMED = frozenset(("round", "floor_divide", "remainder", "searchsorted", "digitize", "trunc", "fix", "heaviside"))
"""Functions of ``jax.numpy`` that jump; others, such as ``clip``, are taken for continuous."""
_ROOMS = ("ppl", "inference", "models", "diffusion")
Sites = frozenset[str]
_NONE: Sites = frozenset()


def check_jumps(function: Any, *args: Any) -> None:
    """Raise NotDifferentiable where a function's result jumps with a site whose gradient goes along its path."""
    closed = jax.make_jaxpr(function)(*args)
    jaxpr, _ = pe.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    _follow(jaxpr, [_NONE] * len(jaxpr.invars), None)


def _follow(jaxpr: Any, given: Sequence[Sites], line: str | None) -> list[Sites]:
    """Return of which sites each result is a function; ``line`` is the user's that called what is in here, if known."""
    sites: dict[Any, Sites] = {**dict.fromkeys(jaxpr.constvars, _NONE), **dict(zip(jaxpr.invars, given))}

    def of(var: Any) -> Sites:
        return _NONE if hasattr(var, "val") else sites.get(var, _NONE)

    for eqn in jaxpr.eqns:
        inputs = [of(var) for var in eqn.invars]
        outputs = _step(eqn, inputs, line)
        sites.update(zip(eqn.outvars, outputs))
    return [of(var) for var in jaxpr.outvars]


def _step(eqn: Any, inputs: list[Sites], line: str | None) -> list[Sites]:
    every: Sites = frozenset().union(*inputs)
    name, params = eqn.primitive.name, eqn.params
    if name == "name" and params["name"] == STILL:  # how its law changes is its estimator's business
        return [_NONE]
    if name == "name" and params["name"].startswith(MARK):
        every |= {params["name"].removeprefix(MARK)}
    if not every and "jaxpr" not in params and "branches" not in params:
        return [every] * len(eqn.outvars)
    here = line or _line(eqn)
    if name == "cond":
        _jump(inputs[0], here)
        branches = [_follow(branch.jaxpr, inputs[1:], line) for branch in params["branches"]]
        return [frozenset().union(*parts) for parts in zip(*branches)]
    if name == "scan":
        return _loop(params["jaxpr"].jaxpr, inputs, params["num_consts"], params["num_carry"], line)
    if name == "jit":
        called = params["name"].lstrip("_")
        if not _library(called):
            return _follow(params["jaxpr"].jaxpr, inputs, here)
        if called in _NAMED:
            _jump(every, here)
    elif name in ("checkpoint", "remat2", "closed_call"):
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        return _follow(getattr(inner, "jaxpr", inner), inputs, line)
    elif _jumps(eqn):
        _jump(every, here)
    return [every] * len(eqn.outvars)


def _jumps(eqn: Any) -> bool:
    """Whether an equation makes a jump of something continuous."""
    if eqn.primitive.name == "convert_element_type":
        return _is_float(eqn.invars[0].aval) and not _is_float(eqn.outvars[0].aval)
    twice = len(set(map(id, eqn.invars))) < len(eqn.invars)  # x != x asks for NaN
    return eqn.primitive.name in _JUMPS and not twice


def _loop(body: Any, inputs: list[Sites], consts: int, carried: int, line: str | None) -> list[Sites]:
    """Follow a scan until its carry is a function of no further site."""
    carry = inputs[consts : consts + carried]
    while True:
        outputs = _follow(body, [*inputs[:consts], *carry, *inputs[consts + carried :]], line)
        wider = [before | after for before, after in zip(carry, outputs)]
        if wider == carry:
            return outputs
        carry = wider


def _jump(sites: Sites, line: str | None) -> None:
    if sites and line:
        site = min(sites)
        raise NotDifferentiable(
            f"site {site!r}: at {line} the code decides by it, so that what follows jumps, and its gradient along its "
            f'path ("reparam") would be wrong. Ask for estimators={{{site!r}: "score"}} (or "mvd" for a normal law), '
            "or write what is continuous without a comparison (jnp.maximum, jnp.abs, jnp.clip)"
        )


def _line(eqn: Any) -> str | None:
    """Return the user's line that made an equation; None where a library did."""
    trace = eqn.source_info.traceback
    for frame in () if trace is None else trace.frames:
        if frame.file_name.startswith(_folder("jax")) or frame.file_name.startswith("<frozen"):
            continue
        mine = os.path.relpath(os.path.realpath(frame.file_name), _home()).partition(os.sep)[0] in _ROOMS
        if mine or frame.file_name.startswith(_folder("numpyro")):
            return None
        return f"{os.path.basename(frame.file_name)}, line {frame.line_num}"
    return None


@lru_cache(maxsize=8)
def _folder(package: str) -> str:
    return os.path.dirname(__import__(package).__file__ or "") + os.sep


@lru_cache(maxsize=1)
def _home() -> str:
    root = sys.modules[__name__.partition(".")[0]]
    return os.path.dirname(os.path.realpath(root.__file__ or ""))


@lru_cache(maxsize=256)
def _library(name: str) -> bool:
    """Whether a compiled function is one of JAX's own, by its name."""
    return any(hasattr(room, name) for room in (jax.numpy, jax.nn, jax.numpy.linalg, jax.scipy.special))


def _is_float(aval: Any) -> bool:
    return bool(np.issubdtype(aval.dtype, np.floating) or aval.dtype.name == "bfloat16")

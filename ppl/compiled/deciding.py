"""Whether a program's scan is compiled. Nothing here needs JAX until it has been decided that one is.

A scan is compiled where JAX and NumPyro are installed, its step can be traced, and it pays: `PAYS` iterations of
particles, below which tracing and compiling (a second or two) take longer than to interpret it. ``compiled=True`` of
`fk.scan` compiles it all the same, and ``False`` does not.
"""

from __future__ import annotations

import contextlib
import types
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from .. import keys as _keys
from ..distributions.adapted import Adapted
from ..distributions.adapters import as_kernel
from ..distributions.batching import digest
from ..distributions.distribution import Distribution
from ..effects import Scan
from ..errors import FeynkacError, NotTraceable
from ..program import Program, ProgramFactory
from ..sites import MISSING
from ..traced.driver import follow, trace
from ..traced.fiber import Stop, first_lines
from ..traced.met import Listener, Met
from ..values.pictures import HOME
from ..values.reach import around

PAYS = 50_000
"""Iterations of particles from which on compiling pays: about two seconds of interpreting."""
_DEPTH = 4


class Prepared(NamedTuple):
    """A model as it is run, and what is to be said of it: None where it has no scan."""

    model: Any
    note: str | None = None


def prepare(model: Any, particles: int, refused: str | None = None) -> Prepared:
    """Return a model as it is best run with so many particles; ``refused`` is why an engine needs it interpreted.

    Raises NotTraceable for a scan with ``compiled=True`` that cannot be compiled.
    """
    if type(model) is not Program or not _mentions_scan(model):
        return Prepared(model)
    try:
        scan = _scan_of(model)
    except _No as no:
        return Prepared(model, f"no: {no}")
    if scan is None:
        return Prepared(model)
    if refused is not None:
        return Prepared(model, f"no: {refused}")
    count = particles * len(scan.xs)
    if scan.compiled is None and count < PAYS:
        return Prepared(model, f"no: {count:,} iterations of particles, and it pays from {PAYS:,} on")
    try:
        return Prepared(_compile(model, scan), "yes")
    except NotTraceable as error:
        if scan.compiled:
            raise
        return Prepared(model, f"no: {error}")


class _No(Exception):
    """Why a program is not compiled."""


class _Found(Stop):
    def __init__(self, scan: Scan) -> None:
        self.scan = scan


class _First(Listener):
    """Runs a program's code, with draws of numbers, up to its first scan."""

    def __init__(self) -> None:
        self.seen = 0

    def sample(self, site: Met) -> Any:
        """Draw, where that takes no model."""
        if site.forced is not MISSING:
            return site.forced
        try:
            kernel: Any = as_kernel(site.effect.kernel)  # here it is as the program wrote it
        except TypeError:
            kernel = site.effect.kernel
        if not isinstance(kernel, Distribution | Adapted):
            raise NotTraceable(f"site {site.slot!r}: a {type(kernel).__name__} is not a law that JAX can trace")
        self.seen += 1
        return kernel.sample_batch([kernel], _keys.fold(_keys.root(0), self.seen)).values[0]

    def opens(self, scan: Scan) -> None:
        """Stop here."""
        raise _Found(scan)


def _scan_of(program: Program) -> Scan | None:
    """Return the program's first scan, or None, by a run of its code up to there. Raises `_No` where it gets stuck."""
    try:
        trace(program, _First())
    except _Found as found:
        if found.scan.compiled is False:
            raise _No("compiled=False") from None
        return found.scan if len(found.scan.xs) else None
    except Exception as error:  # whatever it is, the interpreter meets it as well, and says more of it
        raise _No(error) from error
    return None


def _try_step(program: Program, scan: Scan) -> None:
    """Run an iteration with numbers, so that a step on a language model, say, costs no trace.

    Raises NotTraceable, naming the site.
    """
    try:
        follow(scan.iterate(scan.init, scan.xs[0]), _First(), program.handlers, program.name)
    except (NotTraceable, Stop):
        raise
    except Exception:  # numbers that do not suit it: the run will say so
        pass


def _compile(program: Program, scan: Scan) -> Any:
    """Return the compiled program, or the one that was compiled before. Raises NotTraceable."""
    missing = [name for name in ("jax", "numpyro") if find_spec(name) is None]
    if missing:
        raise NotTraceable(f"it needs {' and '.join(missing)}: pip install 'feynkac[jax]'")
    around = _around(program._fn)
    before = program.compiled
    if before is not None and before[0] == around and _same(before[1].inputs, scan.xs):
        return before[1]
    with contextlib.suppress(_Found):
        _try_step(program, scan)
    from .model import CompiledScan

    try:
        made = CompiledScan(program, scan.xs)
    except FeynkacError:
        raise
    except Exception as error:
        raise NotTraceable(f"scan {scan.name!r}: {type(error).__name__}: {first_lines(error)}") from error
    program.compiled = around, made
    return made


def _same(one: Any, other: Any) -> bool:
    """Whether inputs are equal, as far as that is quickly seen."""
    if one is other and not isinstance(one, np.ndarray):
        return True
    try:
        return len(one) == len(other) and bool(np.array_equal(np.asarray(one), np.asarray(other)))
    except (TypeError, ValueError):
        return False


def _around(fn: Any, depth: int = _DEPTH) -> dict[str, Any]:
    """Return what the code reads from around it, by name: numbers and small arrays by content, others by identity."""
    found: dict[str, Any] = {}
    for name, value in around(fn).items():
        if isinstance(value, bool | int | float | str | tuple):
            found[name] = repr(value)
        elif isinstance(value, np.ndarray):
            found[name] = id(value), digest(value)
        else:
            found[name] = id(value)
            inner = getattr(value, "_fn", value)
            if depth and isinstance(inner, types.FunctionType) and not (inner.__module__ or "").startswith(HOME):
                found |= {f"{name}.{key}": item for key, item in _around(inner, depth - 1).items()}
    return found


def _mentions_scan(program: Program) -> bool:
    """Whether the code of a program, or of what it calls by name, speaks of a scan."""
    seen: set[int] = set()
    waiting = [(value, _DEPTH) for value in program.reachable]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, Program | ProgramFactory):
            waiting += [(inner, depth) for inner in value.reachable]
            continue
        inner = getattr(value, "__func__", value)
        home = (getattr(inner, "__module__", None) or "").startswith(HOME)
        if home or not isinstance(inner, types.FunctionType) or id(inner.__code__) in seen:
            continue
        seen.add(id(inner.__code__))
        if _speaks(inner.__code__):
            return True
        if depth:
            waiting += [(found, depth - 1) for found in around(inner).values()]
    return False


@lru_cache(maxsize=1024)
def _speaks(code: types.CodeType) -> bool:
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return "scan" in code.co_names or any(map(_speaks, inner))

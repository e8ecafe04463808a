"""What JAX traced of a function: its equations, apart from the numbers in them.

Programs of the same code with other data, other arguments or other variables around them give the same equations with
other numbers. The numbers are handed in when it runs, so that all of them share what is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from ..values.memo import Memo

_KEPT = 128


@dataclass(eq=False)
class Equations:
    """The equations of a traced function, and what is compiled of them: one object for all that have the same.

    Attributes:
        jaxpr: with each number among the constants, but for those in the code of branches and the like.
        tree: of what it returns.
        made: functions of them, by name; what is compiled of these goes with them.
        runs: how often something that has them was compiled.
    """

    jaxpr: Any
    tree: Any
    made: dict[str, Any] = field(default_factory=dict)
    runs: int = 0

    def __call__(self, numbers: Sequence[Any], *args: Any) -> Any:
        """Run them on numbers and on a tree of arguments, in JAX."""
        self.runs += 1
        return jax.tree.unflatten(self.tree, jax.core.eval_jaxpr(self.jaxpr, numbers, *jax.tree.leaves(args)))

    def once(self, name: str, make: Callable[[Equations], Any]) -> Any:
        """Return what is made of them under a name; it is made once."""
        if name not in self.made:
            self.made[name] = make(self)
        return self.made[name]

    def jitted(self, name: str, make: Callable[[Equations], Any]) -> Any:
        """Return the function that is made of them, under `jax.jit`."""
        return self.once(name, lambda run: jax.jit(make(run)))

    def depends(self, outputs: Callable[[Any], Any]) -> bool:
        """Whether any of the outputs that are picked may depend on an argument."""
        found = set(map(id, self.jaxpr.invars))
        for equation in self.jaxpr.eqns:
            if any(id(var) in found for var in equation.invars):
                found.update(map(id, equation.outvars))
        picked = outputs(jax.tree.unflatten(self.tree, self.jaxpr.outvars))
        return any(id(var) in found for var in jax.tree.leaves(picked))


_known = Memo[Hashable, Equations](_KEPT)


def equations(fn: Callable[..., Any], *args: Any) -> tuple[Equations, tuple[Any, ...]]:
    """Trace a function; return its equations, the same object for all functions that have the same, and its numbers."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    jaxpr, numbers = _lifted(closed.jaxpr)
    tree = jax.tree.structure(shapes)
    key = _Key((_spelled(jaxpr), tree, jax.tree.structure(args), bool(jax.config.jax_enable_x64)))
    found = _known.get(key)
    if found is None:
        found = _known[key] = Equations(jaxpr, tree)
    return found, tuple(jnp.asarray(number) for number in (*numbers, *closed.consts))


def _lifted(jaxpr: Any) -> tuple[Any, list[Any]]:
    """Return a jaxpr whose numbers, those in its loops too, are its first constants; and these numbers."""
    places: list[Any] = []
    numbers: list[Any] = []

    def place(number: Any, aval: Any) -> Any:
        places.append(Var(aval))
        numbers.append(number)
        return places[-1]

    def read(atom: Any) -> Any:
        return place(np.asarray(atom.val, atom.aval.dtype), atom.aval) if _is_number(atom) else atom

    equations = []
    for eqn in jaxpr.eqns:
        params, more = _inside(eqn, place)
        equations.append(eqn.replace(invars=[*more, *map(read, eqn.invars)], params=params))
    outvars = [read(atom) for atom in jaxpr.outvars]
    return jaxpr.replace(constvars=[*places, *jaxpr.constvars], eqns=equations, outvars=outvars), numbers


def _inside(eqn: Any, place: Callable[[Any, Any], Any]) -> tuple[dict[str, Any], list[Any]]:
    """Return the parameters of an equation with the numbers lifted out of its loop, and what is handed in for them."""
    params, name = eqn.params, eqn.primitive.name
    if name == "scan" and not params["jaxpr"].consts:
        inner, numbers = _lifted(params["jaxpr"].jaxpr)
        params = {**params, "jaxpr": ClosedJaxpr(_opened(inner), ()), "num_consts": params["num_consts"] + len(numbers)}
        if "linear" in params:
            params["linear"] = (*[False] * len(numbers), *params["linear"])
    elif name in ("remat2", "checkpoint") and not params["jaxpr"].constvars:
        inner, numbers = _lifted(params["jaxpr"])
        params = {**params, "jaxpr": _opened(inner)}
    else:
        return params, []
    return params, [place(number, var.aval) for number, var in zip(numbers, inner.constvars)]


def _opened(jaxpr: Any) -> Any:
    """Return a jaxpr with its constants as its first arguments."""
    named = jaxpr.debug_info.with_unknown_names() if hasattr(jaxpr.debug_info, "with_unknown_names") else None
    more = {} if named is None else {"debug_info": named}
    return jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars], **more)


def _is_number(atom: Any) -> bool:
    return isinstance(atom, Literal) and np.ndim(atom.val) == 0 and np.dtype(atom.aval.dtype).kind in "biufc"


# -- what tells equations apart ------------------------------------------------------------------------------------


class _Key:
    """A key with its hash, which takes a while to compute."""

    __slots__ = ("_hash", "what")

    def __init__(self, what: Any) -> None:
        self.what = what
        self._hash = hash(what)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Key) and self._hash == other._hash and bool(self.what == other.what)


class This:
    """An object that equals itself alone; as long as there is a key with it, no other has its place in memory."""

    __slots__ = ("_what",)

    def __init__(self, what: Any) -> None:
        self._what = what

    def __hash__(self) -> int:
        return id(self._what)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, This) and self._what is other._what


def outside(jaxpr: Any) -> list[This]:
    """Return the functions outside JAX that equations call, such as that of a ``pure_callback``."""
    found = []
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            if "callback" in eqn.primitive.name and callable(value):
                found.append(This(value))
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, ClosedJaxpr | Jaxpr):
                    found += outside(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)
    return found


def _spelled(jaxpr: Any, rules: bool = True) -> Any:
    """Return what is equal for the same equations alone: variables by number, functions in it by identity.

    With ``rules``, what has a derivative of its own is the same where that is the same, too: to the first order, which
    is what moves ask for. (The rule of many a function calls the function.)
    """
    numbers: dict[int, int] = {}

    def variable(var: Any) -> int:
        return numbers.setdefault(id(var), len(numbers))

    def atom(x: Any) -> Any:
        return ("=", str(x.aval), np.asarray(x.val).tobytes()) if isinstance(x, Literal) else variable(x)

    given = [(variable(var), str(var.aval)) for var in (*jaxpr.constvars, *jaxpr.invars)]
    lines = [
        (
            eqn.primitive,
            tuple(map(atom, eqn.invars)),
            tuple((name, _said(value, rules)) for name, value in sorted(_params(eqn, rules).items())),
            tuple((variable(var), str(var.aval)) for var in eqn.outvars),
        )
        for eqn in jaxpr.eqns
    ]
    return len(jaxpr.constvars), tuple(given), tuple(lines), tuple(map(atom, jaxpr.outvars))


def _params(eqn: Any, rules: bool) -> dict[str, Any]:
    """Return the parameters of an equation, with the rule of its derivative, if it has one, as equations.

    The rule itself is made anew in each trace. One that cannot be written as equations here is a rule of its own.
    """
    if eqn.primitive.name != "custom_jvp_call":
        return eqn.params  # type: ignore[no-any-return]
    params = dict(eqn.params)
    for name in [name for name in params if name.startswith("jvp")]:
        rule = params.pop(name)
        if rules:
            try:
                jaxpr, constants, zeros = rule.call_wrapped(*[False] * len(eqn.invars))
                params[name] = _spelled(jaxpr, False), tuple(map(np.asarray, constants)), tuple(zeros)
            except Exception:  # of another version of JAX, or one that asks which tangents are zeros
                params[name] = rule
    return params


def _said(value: Any, rules: bool) -> Any:
    """Return what is equal for the same parameter of an equation."""
    if isinstance(value, ClosedJaxpr):
        return _spelled(value.jaxpr, rules), tuple(_said(constant, rules) for constant in value.consts)
    if isinstance(value, Jaxpr):
        return _spelled(value, rules)
    if isinstance(value, tuple | list):
        return type(value), tuple(_said(item, rules) for item in value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer):
        return value.shape, str(value.dtype), np.asarray(value).tobytes()
    try:
        hash(value)
    except TypeError:
        return This(value)
    return type(value), value

"""NumPyro's laws of plain numbers, made in a fraction of the time while a program's code runs.

NumPyro's constructors broadcast shapes and check parameters in JAX's way, which takes some 35 µs, and its pytrees are
flattened in another 5; an interpreted program makes one law for each particle and site. Of numbers alone there is
nothing to broadcast: what the constructor sets is known, and so are leaves and structure. A family whose constructor
sets anything else is made by NumPyro, as is whatever does not pass the checks of its parameters, so that errors are
NumPyro's. The objects are the same either way.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..sites import Running

NUMBERS = frozenset((float, int, np.float64, np.float32, np.int64, np.int32))
_FAMILIES = (
    *("BernoulliLogits", "BernoulliProbs", "Cauchy", "Exponential", "Gamma", "GeometricLogits", "GeometricProbs"),
    *("Gumbel", "Laplace", "Logistic", "Normal", "Poisson"),
)
_STANDS_FOR = (0.25, 0.5, 0.75)  # parameters that each of the families takes


class Form(NamedTuple):
    """What a family's laws of numbers are made of.

    Attributes:
        names: of its parameters, in the order of its constructor.
        defaults: of those that have one.
        checks: what each has to satisfy, by name.
        rest: what else the constructor sets.
        fields: the parameters in the order of the leaves.
        structure: how JAX flattens it.
    """

    names: tuple[str, ...]
    defaults: dict[str, Any]
    checks: tuple[tuple[str, Any], ...]
    rest: dict[str, Any]
    fields: tuple[str, ...]
    structure: Any


forms: dict[type, Form] = {}
"""By class."""


@cache
def install() -> None:
    """Have NumPyro ask `make` before it makes a distribution; learn what there is to know of each family."""
    from numpyro import distributions
    from numpyro.distributions.distribution import COERCIONS

    for name in _FAMILIES:
        cls = getattr(distributions, name)
        if (form := _form(cls)) is not None:
            forms[cls] = form
    COERCIONS.insert(0, make)  # NumPyro's own come and go at the end of the list


def make(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the distribution that a constructor would; None where it is to do it itself."""
    if Running.fiber is None:
        return None
    form = forms.get(cls)
    if form is None:
        return None
    given = dict(zip(form.names, args))
    if kwargs:
        given.update(kwargs)
    if len(given) != len(args) + len(kwargs):  # too many, or one twice
        return None
    if len(given) != len(form.names):
        given = {**form.defaults, **given}
    for name, check in form.checks:
        value = given.get(name)
        if type(value) not in NUMBERS or not check(value):
            return None
    if len(given) != len(form.names):  # it has others, such as validate_args
        return None
    made: Any = object.__new__(cls)
    made.__dict__ = {**given, **form.rest}
    return made


def flat(dist: Any) -> tuple[list[Any], Any] | None:
    """Return leaves and structure of a law of numbers; None for any other."""
    form = forms.get(type(dist))
    if form is None:
        return None
    held = dist.__dict__
    if len(held) != len(form.names) + len(form.rest):  # it remembers something, or checks its values
        return None
    leaves = [held[name] for name in form.fields]
    return (leaves, form.structure) if NUMBERS.issuperset(map(type, leaves)) else None


def _form(cls: Any) -> Form | None:
    """Return what is known of a family; None where a constructor sets more than parameters and shapes."""
    import jax
    from numpyro.distributions import constraints

    signature = inspect.signature(cls.__init__).parameters
    names = tuple(name for name in signature if name in cls.arg_constraints)
    given = dict(zip(names, _STANDS_FOR))
    found = vars(type.__call__(cls, **given))
    rest = {name: value for name, value in found.items() if name not in given}
    plain = all(value == () or isinstance(value, bool) for value in rest.values())
    if not plain or any(found[name] is not value for name, value in given.items()):
        return None
    fields = tuple(name for name in cls.gather_pytree_data_fields() if name in given)
    preset = {name: signature[name].default for name in names}
    defaults = {name: value for name, value in preset.items() if value is not inspect.Parameter.empty}
    checks = tuple((name, cls.arg_constraints[name]) for name in names)
    if any(constraints.is_dependent(check) for _, check in checks):
        return None
    structure = jax.tree_util.tree_structure(type.__call__(cls, **given))
    return Form(names, defaults, checks, rest, fields, structure)

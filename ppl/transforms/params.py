"""Parameters: numbers that a guide has, and that fitting it finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import OutsideProgram
from ..running.handling import Handler
from ..sites import Running, check_name
from ..values.guard import guard


class Declared(NamedTuple):
    """What a program says of a parameter: where it starts, and what it must be."""

    init: Any
    constraint: Any


class Parameters(Handler):
    """The values of parameters by name; what is not among them is as it starts.

    ``declared`` holds what the programs within have asked for so far, and ``estimators`` what they said by `estimator`.
    """

    def __init__(self, values: Mapping[str, Any], declared: dict[str, Declared] | None = None) -> None:
        self.values = values
        self.declared = {} if declared is None else declared
        self.estimators: dict[str, str] = {}


def param(name: str, init: Any, constraint: Any = None) -> Any:
    """Return the current value of a parameter: what `fit` has found, else ``init``.

    It is a plain look-up, and is not awaited. A repeated name is the same parameter; scopes and branches put their
    prefixes before it.

    Args:
        name: the parameter's name.
        init: where fitting starts: a number or an array, which must obey the constraint, or a (nested) dictionary of
            them, such as the weights of a network.
        constraint: None for any real numbers; else one of ``numpyro.distributions.constraints``, or its name, such as
            ``"positive"``, ``"unit_interval"``, ``"simplex"`` or ``"lower_cholesky"``. Fitting keeps to it.

    Raises:
        OutsideProgram: where no program is running.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def guide():
    ...     return await fk.sample("z", fk.dist.Normal(fk.param("loc", 2.0), fk.param("scale", 1e-3, "positive")))
    >>> round(fk.simulate(guide(), seed=0).value, 1)
    2.0
    """
    for handler, full in _around("param", name):
        handler.declared.setdefault(full, Declared(init, constraint))
        if full in handler.values:
            return handler.values[full]
    return steady(init)


def estimator(name: str, how: str) -> None:
    """Say in a guide how gradients pass a site of it when it is fitted, see `fit`; elsewhere it says nothing.

    Args:
        name: the site's, in the guide's own words.
        how: "reparam", "score", "enum" or "mvd".

    Raises:
        OutsideProgram: where no program is running.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def guide():
    ...     fk.estimator("z", "mvd")
    ...     return await fk.sample("z", fk.dist.Normal(fk.param("loc", 0.0), 1.0))
    """
    for handler, full in _around("estimator", name):
        handler.estimators[full] = how


def steady(value: Any) -> Any:
    """Return a parameter's value, read-only: an array, or a tree of dictionaries of them, which stay plain ones."""
    return {key: steady(part) for key, part in value.items()} if isinstance(value, dict) else guard(value)


def _around(what: str, name: str) -> Iterator[tuple[Parameters, str]]:
    """Yield the holders of parameters around the code that runs, innermost first, each with the name that it knows."""
    fiber = Running.fiber
    if fiber is None:
        raise OutsideProgram(f"fk.{what}({name!r}, …) was used where no program is running")
    check_name(name, f"what fk.{what} is about")
    for handler in reversed(fiber.handlers):
        if type(handler) is Parameters:
            yield handler, name
        name = handler.rename(name)

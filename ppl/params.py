"""Parameters: numbers that a guide has, and that fitting it finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .errors import OutsideProgram
from .guard import guard
from .handling import Handler
from .sites import Running, check_name


class Declared(NamedTuple):
    """What a program says of a parameter: where it starts, and what it must be."""

    init: Any
    constraint: Any


class Parameters(Handler):
    """The values of parameters by name; what is not among them is as it starts.

    ``declared`` holds what the programs within have asked for so far.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.declared: dict[str, Declared] = {}


def param(name: str, init: Any, constraint: Any = None) -> Any:
    """Return the current value of a parameter: what `fit` has found, else ``init``.

    It is a plain look-up, and is not awaited. A repeated name is the same parameter; scopes and branches put their
    prefixes before it.

    Args:
        name: the parameter's name.
        init: where fitting starts, a number or an array; it must obey the constraint.
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
    fiber = Running.fiber
    if fiber is None:
        raise OutsideProgram(f"fk.param({name!r}, …) was used where no program is running")
    check_name(name, "a parameter")
    full = name
    for handler in reversed(fiber.handlers):
        if type(handler) is Parameters:
            handler.declared.setdefault(full, Declared(init, constraint))
            if full in handler.values:
                return handler.values[full]
        full = handler.rename(full)
    return guard(init)

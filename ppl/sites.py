"""What a site is: its record, its address, and the fiber whose code is running."""

from __future__ import annotations

import contextlib
import threading
from typing import Any, NamedTuple


class _Missing:
    """No value was given (None is a value)."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<missing>"


MISSING = _Missing()


class Site(NamedTuple):
    """What happened at one site of one particle.

    Attributes:
        name: as the program gave it, with the prefixes of scopes and branches.
        visit: how often the name had been visited before, from 0.
        kind: "sample", "call", "observe", "factor", "twist", "deterministic", or "do" for an intervention.
        value: the value drawn, returned, observed, recorded or fixed; the log-weight of a factor or twist.
        log_prob: log p of a sampled or observed value, 0.0 elsewhere.
        log_proposal: log q of a sampled value, 0.0 elsewhere.
        hidden: whether a ``block`` handler hides the site from traces.
    """

    name: str
    visit: int
    kind: str
    value: Any
    log_prob: float = 0.0
    log_proposal: float = 0.0
    hidden: bool = False

    @property
    def address(self) -> str:
        """The name, followed by the visit where it is not the first: ``"line"``, ``"line[1]"``."""
        return address(self.name, self.visit)


class Tentative(tuple[Site, ...]):
    """The choices of a step, to be tried on another past, which they may not fit.

    Given so, they need not be met: where the program there does not ask for these choices and no others, or a value is
    none that its site can have, the particle dies, with log_prob −inf. Calls are made anew, as they depend on the past.
    Choices that are given plainly must be met.
    """

    __slots__ = ()


def address(name: str, visit: int) -> str:
    """Write a site's address: ``"line"`` for its first visit, then ``"line[1]"``."""
    return f"{name}[{visit}]" if visit else name


class _Running(threading.local):
    """The fiber whose code this thread is executing; set by the runtime alone.

    ``tries`` counts what the code of a coroutine that is being closed still tries to await; None where none is.
    ``stuck`` is the name of one that would not be closed.
    """

    fiber: Any = None
    tries: int | None = None
    stuck: str | None = None

    def insists(self) -> bool:
        """Whether a coroutine that is being closed keeps trying to go on, so that only its await can end the loop."""
        if self.tries is None:
            return False
        self.tries += 1
        return self.tries > _PATIENCE


_PATIENCE = 50
"""How often the code of a particle that is gone may try to await something, as several ``finally`` blocks may."""
Running = _Running()
names: set[str] = set()
"""Names that have been checked."""


def check_name(name: Any, what: str = "a site") -> None:
    """Raise unless a name is a string that cannot be taken for the address of another site."""
    if not isinstance(name, str):
        raise TypeError(f"the name of {what} must be a string, not {name!r}")
    if "/" in name or "[" in name:
        raise ValueError(f"the name {name!r} of {what} must hold neither '/' nor '[': scopes and visits are written so")
    names.add(name)


def short(value: Any, width: int) -> str:
    """Show a value in a message, in at most ``width`` characters, whatever its own ``repr`` does."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= width else text[: width - 3] + "…"


def shut(coro: Any) -> None:
    """Close a coroutine whose particle is gone; what its ``finally`` blocks still try cannot matter any more.

    One that catches what closes it, and tries again for ever, is left as it is, and noted as ``Running.stuck``.
    """
    outer, Running.fiber = Running.fiber, None
    tries, Running.tries = Running.tries, 0
    try:
        with contextlib.suppress(Exception):
            coro.close()
    finally:
        Running.fiber, Running.tries = outer, tries
    if getattr(coro, "cr_frame", None) is not None:  # it is still on its way
        Running.stuck = coro.__name__
        _keep(coro)


def _keep(coro: Any) -> None:
    """Keep a coroutine for ever: Python would close it again where it is collected, and never come back."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(coro))

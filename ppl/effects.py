"""Effects: what a program may await, and nothing else; `words` has the functions that make them.

Awaiting an effect hands it to the runtime, which batches it with those of all other particles. Constructing it does no
work.
"""

from __future__ import annotations

import inspect
import operator
import types
from collections.abc import Callable, Generator, Sequence
from types import CoroutineType
from typing import Any, ClassVar, TypeVar

import numpy as np

from .distributions.terms import Terms
from .errors import FeynkacError, OutsideProgram
from .model import Kernel
from .score import Score
from .sites import MISSING, Running, check_name, names, shut

F = TypeVar("F", bound=Callable[..., Sequence[Any]])


class Effect:
    """Something a program awaits. Awaiting it gives the runtime's answer."""

    __slots__ = ("awaited", "hidden", "maker", "name", "terms", "visit")
    kind: ClassVar[str] = ""
    visit: int

    def __init__(self, name: str) -> None:
        fiber = Running.fiber
        self.awaited = True  # until it is well made
        if fiber is None:
            if Running.insists():
                return
            raise OutsideProgram(
                f"fk.{self.kind}({name!r}, …) was used where no program is running; "
                "effects belong in an `async def` decorated with @fk.program, run by fk.infer or fk.simulate"
            )
        if name not in names:
            check_name(name)
        self.maker = id(fiber)
        fiber.run.unawaited += 1
        self.name = name
        self.awaited = False
        self.terms: Terms | None = None
        self.hidden = False

    def claim(self) -> None:
        """Note that the effect is awaited, or handed to a gather, which a replay may skip."""
        if self.awaited:
            if Running.fiber is None and Running.insists():
                return
            raise FeynkacError(f"fk.{self.kind}({self.name!r}, …) is awaited twice: make a new effect each time")
        self.awaited = True
        Running.fiber.run.unawaited -= 1

    def __await__(self) -> Generator[Effect, Any, Any]:
        self.claim()
        return (yield self)

    def __del__(self) -> None:
        # A dropped effect that was never awaited is a forgotten `await`; the runtime raises at once. An effect of
        # another particle, whose coroutine happens to be collected now, is not.
        try:
            if not self.awaited and self.maker == id(Running.fiber):
                Running.fiber.run.dropped = f"fk.{self.kind}({self.name!r}, …)"
        except AttributeError:
            pass  # Ctrl-C came while it was made

    @property
    def request(self) -> Any:
        """What a replay compares by `fingerprint`, besides kind and name."""
        return None


def fingerprint(request: Any) -> Any:
    """Return a summary of a request that can be compared: a kernel's own, a function's name, a value's contents."""
    if hasattr(request, "fingerprint"):
        return request.fingerprint
    if isinstance(request, Score):
        return (request.kind, *((scorer.name, fingerprint(args)) for scorer, args in request.leaves))
    if callable(request):
        return getattr(request, "__qualname__", type(request).__name__)
    if isinstance(request, list | tuple):
        return tuple(fingerprint(part) for part in request)
    if isinstance(request, dict):
        return tuple((key, fingerprint(part)) for key, part in request.items())
    if isinstance(request, np.ndarray) and request.dtype != object:
        return (request.shape, request.dtype.str, request.tobytes())
    if isinstance(request, float):
        return repr(request)  # so that NaN equals itself
    try:
        hash(request)
    except TypeError:
        return type(request).__name__
    return request


class Sample(Effect):
    """See `sample`. ``forced`` is a value that a handler or an engine imposes, ``fixed`` that of an intervention."""

    __slots__ = ("fixed", "forced", "kernel", "log_proposal", "obs", "proposal", "unscored", "value")
    kind = "sample"
    value: Any
    log_proposal: float
    unscored: list[Any]

    def __init__(self, name: str, kernel: Kernel, obs: Any, proposal: Kernel | None) -> None:
        Effect.__init__(self, name)
        self.kernel = kernel
        self.obs = obs
        self.proposal = proposal
        self.forced: Any = MISSING
        self.fixed: Any = MISSING

    @property
    def request(self) -> Any:
        """The kernel, with its proposal and what it observes, if any."""
        if self.proposal is None and self.obs is MISSING:
            return self.kernel
        return (self.kernel, self.proposal, None if self.obs is MISSING else self.obs)


class Factor(Effect):
    """See `factor`."""

    __slots__ = ("log_weight",)
    kind = "factor"

    def __init__(self, name: str, log_weight: float | Score) -> None:
        Effect.__init__(self, name)
        self.log_weight = log_weight

    @property
    def request(self) -> Any:
        """The number, or what is to be scored."""
        return self.log_weight


class Twist(Factor):
    """See `twist`."""

    __slots__ = ()
    kind = "twist"


class Call(Effect):
    """See `call`."""

    __slots__ = ("args", "fn", "forced")
    kind = "call"

    def __init__(self, name: str, fn: Any, args: tuple[Any, ...]) -> None:
        super().__init__(name)
        self.fn = fn
        self.args = args
        self.forced: Any = MISSING

    @property
    def request(self) -> Any:
        """The function and its arguments."""
        return (self.fn, self.args)


class Gather(Effect):
    """See `gather`."""

    __slots__ = ("branches", "label")
    kind = "gather"

    def __init__(self, name: str, branches: tuple[Any, ...]) -> None:
        self.branches: tuple[Any, ...] = ()
        self.label = name  # inside the handlers, which rename the effect itself
        super().__init__(name)
        for i, branch in enumerate(branches):  # one by one, so that where one is refused those before are closed
            self.branches += (as_coroutine(branch, f"branch {i} of {name!r}"),)

    def close(self) -> None:
        """Close the branches that have not started; they would warn that they were never awaited."""
        for branch in self.branches:
            if inspect.getcoroutinestate(branch) == inspect.CORO_CREATED:
                shut(branch)

    def __del__(self) -> None:
        super().__del__()
        self.close()

    @property
    def request(self) -> Any:
        """The number of branches."""
        return len(self.branches)


class Race(Gather):
    """See `race`."""

    __slots__ = ("k",)
    kind = "race"

    def __init__(self, name: str, branches: tuple[Any, ...], k: int) -> None:
        super().__init__(name, branches)
        self.k = operator.index(k)
        if not 1 <= self.k <= len(branches):
            self.claim()
            raise ValueError(f"race {name!r} waits for {k} of its {len(branches)} branches: 1 <= k <= that")

    @property
    def request(self) -> Any:
        """The number of branches, and of those that win."""
        return (len(self.branches), self.k)


class Scan(Effect):
    """See `scan`."""

    __slots__ = ("compiled", "init", "step", "xs")
    kind = "scan"

    def __init__(
        self, name: str, step: Callable[[Any, Any], Any], init: Any, xs: Sequence[Any], compiled: bool | None = None
    ) -> None:
        super().__init__(name)
        self.compiled = compiled
        self.step = step
        self.init = init
        self.xs = xs if hasattr(xs, "__len__") else tuple(xs)

    def iterate(self, carry: Any, x: Any) -> Any:
        """Return the coroutine of an iteration."""
        made = self.step(carry, x)
        return made if type(made) is CoroutineType else as_coroutine(made, f"what the step of {self.name!r} returns")

    @property
    def request(self) -> Any:
        """The number of inputs."""
        return len(self.xs)


async def _only(effect: Effect) -> Any:
    return await _claimed(effect)


@types.coroutine
def _claimed(effect: Effect) -> Generator[Effect, Any, Any]:
    result = yield effect
    return result


def as_coroutine(branch: Any, what: str) -> Any:
    """Return what runs a branch, an iteration or an effect; ``what`` names it where it is none of them."""
    if isinstance(branch, Effect):
        branch.claim()
        return _only(branch)
    made = branch.inline() if hasattr(branch, "inline") else branch
    if not inspect.iscoroutine(made):
        raise TypeError(
            f"{what} is a {type(branch).__name__}; it must be a coroutine (call the async function, do not await "
            "it) or a bound program"
        )
    return made

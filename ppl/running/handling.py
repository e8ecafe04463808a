"""What handlers do to a program's sites; `handlers` has the functions that make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..distributions.terms import Terms
from ..effects import Call, Effect, Sample, Scan
from ..errors import OutsideProgram, Unsupported
from ..sites import MISSING, Running, address
from ..words import observing


class Handler:
    """Base of handlers; each overrides what it changes."""

    sees_hidden: ClassVar[bool] = False
    """Whether it sees the sites, too, that a handler inside it hides: so does what is no handler of the user's."""

    def rename(self, name: str) -> str:
        """Return the name that a site has outside this handler."""
        return name

    def hides(self, name: str) -> bool:
        """Whether a site is hidden from what is outside this handler."""
        return False

    def touch(self, effect: Effect, address: str, length: int) -> bool:
        """Change an effect; return True to keep it from the handlers outside.

        ``length`` is the number of iterations of a scan around the site and within the handler, 0 where there is none.
        Raises ValueError for values that do not fit the site.
        """
        return False

    def inside(self) -> None:
        """Raise where the handler makes no sense inside a running program."""

    def __enter__(self) -> Handler:
        if Running.fiber is None:
            raise OutsideProgram("a handler without a model is a context manager for use inside a program")
        self.inside()
        Running.fiber.handlers.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        # No fiber is running where a dropped particle's coroutine is being closed.
        if Running.fiber is not None and self in Running.fiber.handlers:
            Running.fiber.handlers.remove(self)


@dataclass(frozen=True, eq=False)
class Seed(Handler):
    """See `seed`."""

    rng_seed: int

    def inside(self) -> None:
        """Refuse: the same draws in each particle would not be draws from the program's law."""
        raise Unsupported(
            "handlers.seed inside a program: every draw there comes from the engine's keys, one for each particle, so "
            "a seed cannot be kept; give it to fk.infer(…, seed=), or wrap the outermost model for fk.simulate"
        )


@dataclass(frozen=True, eq=False)
class Data(Handler):
    """Base of handlers that hold values by address."""

    data: Mapping[str, Any]

    def find(self, address: str, visit: int, length: int) -> Any:
        """Return the value for a site's visit, or MISSING.

        ``"x[0]"`` is ``"x"``, and under ``"x"`` a scanned site may have an array: one value for each iteration.

        Raises ValueError for an array that has not as many.
        """
        name, data = address.partition("[")[0], self.data
        if length and name in data and _length(data[name]) is not None:
            values = data[name]
            if _length(values) != length or visit >= length:
                raise ValueError(
                    f"site {address!r} is in a scan of {length} iterations, and under {name!r} there are "
                    f"{_length(values)} values: give one for each iteration, or name the visits ({name + '[0]'!r}, "
                    f"{name + '[1]'!r}, …)"
                )
            return values[visit]
        if visit == 0 and f"{name}[0]" in data:
            return data[f"{name}[0]"]
        return data.get(address, MISSING)


class Condition(Data):
    """See `condition`."""

    def touch(self, effect: Effect, address: str, length: int) -> bool:
        """Observe the site."""
        if type(effect) is Sample and (value := self.find(address, effect.visit, length)) is not MISSING:
            effect.kernel, effect.obs = observing(effect.kernel, value)
        return False


class Substitute(Data):
    """See `substitute`."""

    def touch(self, effect: Effect, address: str, length: int) -> bool:
        """Force the value of a sample or a call; of an observed site, the observation."""
        if isinstance(effect, Sample | Call) and (value := self.find(address, effect.visit, length)) is not MISSING:
            if type(effect) is Sample and effect.obs is not MISSING:
                effect.kernel, effect.obs = observing(effect.kernel, value)
            else:
                effect.forced = value
        return False


@dataclass(frozen=True, eq=False)
class Replay(Handler):
    """See `replay`: force the samples and calls of a trace; ``observed`` are the addresses it observed."""

    data: Mapping[str, Any]
    observed: frozenset[str] = frozenset()

    def touch(self, effect: Effect, address: str, length: int) -> bool:
        """Force the site's value."""
        if not isinstance(effect, Sample | Call) or (type(effect) is Sample and effect.obs is not MISSING):
            return False
        if address in self.observed:
            raise ValueError(
                f"site {address!r} is drawn here, and the trace observed it: there is no draw to replay; use "
                "handlers.condition, or handlers.substitute with its value"
            )
        if address in self.data:
            effect.forced = self.data[address]
        return False


class Given(Replay):
    """The values given to `simulate`, which reach hidden sites as well."""

    sees_hidden = True


class Do(Data):
    """See `do`."""

    def touch(self, effect: Effect, address: str, length: int) -> bool:
        """Fix what follows sees as the site's value."""
        if type(effect) is Sample and (value := self.find(address, effect.visit, length)) is not MISSING:
            effect.fixed = value
        return False


@dataclass(frozen=True, eq=False)
class Block(Handler):
    """See `block`."""

    hidden: Callable[[str], bool]

    def hides(self, name: str) -> bool:
        """Whether the name is blocked."""
        return self.hidden(name)

    def touch(self, effect: Effect, address: str, length: int) -> bool:
        """Hide the site, and keep it from the handlers outside."""
        if not self.hidden(address.partition("[")[0]):
            return False
        effect.hidden = True
        return True


@dataclass(frozen=True, eq=False)
class Scope(Handler):
    """See `scope`."""

    prefix: str

    def rename(self, name: str) -> str:
        """Put the prefix before the name."""
        return f"{self.prefix}/{name}"


@dataclass(frozen=True, eq=False)
class Mask(Handler):
    """See `mask`."""

    keep: Any

    def touch(self, effect: Effect, address: str, length: int) -> bool:
        """Leave the site's terms out, or an array's under the mask."""
        if self.keep is not True:
            effect.terms = (effect.terms or Terms()).under(self.keep)
        return False


@dataclass(frozen=True, eq=False)
class Scale(Handler):
    """See `scale`."""

    scale: float

    def touch(self, effect: Effect, address: str, length: int) -> bool:
        """Multiply the site's terms."""
        terms = effect.terms or Terms()
        effect.terms = Terms(terms.mask, terms.scale * self.scale)
        return False


def handle(fiber: Any, effect: Effect) -> None:
    """Let a fiber's handlers see an effect, innermost first, each under the name that it has there; count its visit.

    Raises ValueError for values that do not fit the site.
    """
    names = [effect.name]
    for handler in reversed(fiber.handlers):
        names.append(handler.rename(names[-1]))
    full = names[-1]
    effect.visit = visit = fiber.visits.get(full, 0)
    fiber.visits[full] = visit + 1
    effect.name = touch(fiber, effect, names, visit)


def touch(fiber: Any, effect: Effect, names: Sequence[str], visit: int) -> str:
    """Let handlers see a visit of an effect; ``names`` are those it has from the innermost on. Return the last."""
    handlers = fiber.handlers
    within, length = _scanned(fiber)
    hidden = False
    for place, handler in zip(range(len(handlers) - 1, -1, -1), reversed(handlers)):
        if handler.sees_hidden or not hidden:
            at = address(names[len(handlers) - 1 - place], visit)
            hidden |= handler.touch(effect, at, length if place < within else 0)
    return names[-1]


def _scanned(fiber: Any) -> tuple[int, int]:
    """Return how many handlers are around the innermost scan that a fiber is in, and its number of iterations."""
    while fiber is not None and fiber.parent is not None:
        if type(fiber.parent.effect) is Scan:
            return fiber.index, len(fiber.parent.effect.xs)
        fiber = fiber.parent
    return 0, 0


def _length(values: Any) -> int | None:
    """Return how many values there are; None for one: a number, a string, a text."""
    shape = getattr(values, "shape", None)
    if shape is not None:
        return int(shape[0]) if shape else None
    return len(values) if isinstance(values, list | tuple) else None

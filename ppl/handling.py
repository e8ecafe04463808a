"""What handlers do to a program's sites; `handlers` has the functions that make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .effects import Call, Effect, Sample
from .errors import OutsideProgram
from .sites import Running


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

    def touch(self, effect: Effect, address: str) -> bool:
        """Change an effect; return True to keep it from the handlers outside."""
        return False

    def __enter__(self) -> Handler:
        if Running.fiber is None:
            raise OutsideProgram("a handler without a model is a context manager for use inside a program")
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


@dataclass(frozen=True, eq=False)
class Condition(Handler):
    """See `condition`."""

    data: Mapping[str, Any]

    def touch(self, effect: Effect, address: str) -> bool:
        """Observe the site."""
        if type(effect) is Sample and address in self.data:
            effect.obs = self.data[address]
        return False


@dataclass(frozen=True, eq=False)
class Replay(Handler):
    """See `replay` and `substitute`: force values of samples, and of calls."""

    data: Mapping[str, Any]

    def touch(self, effect: Effect, address: str) -> bool:
        """Force the site's value."""
        if isinstance(effect, Sample | Call) and address in self.data:
            effect.forced = self.data[address]
        return False


class Given(Replay):
    """The values given to `simulate`, which reach hidden sites as well."""

    sees_hidden = True


@dataclass(frozen=True, eq=False)
class Do(Handler):
    """See `do`."""

    data: Mapping[str, Any]

    def touch(self, effect: Effect, address: str) -> bool:
        """Fix the site's value, with no probability."""
        if type(effect) is Sample and address in self.data:
            effect.forced, effect.fixed = self.data[address], True
        return False


@dataclass(frozen=True, eq=False)
class Block(Handler):
    """See `block`."""

    hidden: Callable[[str], bool]

    def hides(self, name: str) -> bool:
        """Whether the name is blocked."""
        return self.hidden(name)

    def touch(self, effect: Effect, address: str) -> bool:
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

    keep: bool

    def touch(self, effect: Effect, address: str) -> bool:
        """Mark the site's terms as zero."""
        effect.masked = effect.masked or not self.keep
        return False

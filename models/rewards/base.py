"""What all rewards share: a name, a kind, a memory, how arguments become an input, and details kept beside numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from ...ppl.cost import charge, rows
from ...ppl.memory import Memory
from ...ppl.score import Kind, Score, remember
from ...ppl.sites import short
from ...ppl.words import batched

Chat: TypeAlias = tuple[tuple[str, str], ...]
"""Messages as (role, content)."""
Input: TypeAlias = str | tuple[str, str] | Chat
"""What a text model reads: a string, a pair of strings, or a chat."""
Template: TypeAlias = str | Callable[..., Any] | None
"""A ``str.format`` template, or a function to a string, a pair or messages."""

D = TypeVar("D")


class TextReward(ABC):
    """A reward of text: calling it fills the template and gives a lazy `Score`.

    ``template`` is a string for ``str.format``, filled from the arguments (``{text}`` is the first), or a function
    of them that returns a string, a pair of strings, or chat messages. Without one, one argument is read as a
    string and two as a pair.
    """

    def __init__(self, name: str, kind: Kind, template: Template, cache: int) -> None:
        self.name = name
        self.kind: Kind = kind
        self.template = template
        self.memory = Memory[float](cache)

    def __call__(self, *args: Any, **named: Any) -> Score:
        """Return the score of one input, to be evaluated when awaited."""
        return Score(((self, (self.prepare(*args, **named),)),), self.kind)

    def __repr__(self) -> str:
        return f"<{self.kind} reward {self.name}>"

    def version(self) -> Hashable:
        """Return what tells the state of the model that it holds from other states; None where it holds none."""
        return None

    def prepare(self, *args: Any, **named: Any) -> Any:
        """Return what is scored, as plain hashable data."""
        return as_input(self.name, fill(self.template, args, named))

    @abstractmethod
    def score_batch(self, inputs: Sequence[tuple[Any, ...]]) -> Sequence[float]:
        """Return one number for each input."""


def fill(template: Template, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Return what a template makes of the arguments. Raises ValueError where a string cannot be filled from them."""
    if callable(template):
        return template(*args, **named)
    if template is not None:
        try:
            return template.format(*args, **({"text": args[0], **named} if args else named))
        except (LookupError, ValueError) as error:
            raise ValueError(
                f"the template {short(template, 80)} cannot be filled from {len(args)} arguments"
                f"{''.join(f' and {name}=' for name in named)} ({type(error).__name__}: {error}); {{text}} is the "
                "first, and a brace that is meant as such is written twice"
            ) from error
    return args[0] if len(args) == 1 and not named else tuple(str(part) for part in (*args, *named.values()))


def as_input(name: str, made: Any) -> Input:
    """Return a string, a pair of strings, or a chat as (role, content) pairs.

    Raises TypeError, naming the reward, for anything else.

    >>> as_input("r", [{"role": "user", "content": "Hi"}]), as_input("r", ("a", "b"))
    ((('user', 'Hi'),), ('a', 'b'))
    """
    if isinstance(made, Sequence) and not isinstance(made, str):
        parts = list(made)
        if parts and all(isinstance(part, Mapping) and {"role", "content"} <= part.keys() for part in parts):
            return tuple((str(part["role"]), str(part["content"])) for part in parts)
        if len(parts) == 2 and all(isinstance(part, str) for part in parts):
            return parts[0], parts[1]
    elif isinstance(made, str) or hasattr(made, "prompt_tokens"):
        return str(made)
    raise TypeError(
        f"reward {name!r} reads a string, a text, a pair of strings or chat messages, not {short(made, 80)}: "
        "give a template that makes one of them"
    )


def messages(chat: Chat) -> list[dict[str, str]]:
    """Return a chat as the messages that tokenizers take."""
    return [{"role": role, "content": content} for role, content in chat]


class DetailedReward(TextReward, Generic[D]):
    """A reward whose numbers are made of details (steps, votes, outcomes) that can be asked for as well.

    Numbers and details come from one computation, whichever is asked for first.
    """

    def __init__(self, name: str, kind: Kind, template: Template, cache: int) -> None:
        super().__init__(name, kind, template, cache)
        self._details = Memory[D](cache)

    @abstractmethod
    def detail_batch(self, inputs: Sequence[Any]) -> Sequence[D]:
        """Compute the details of distinct inputs."""

    @abstractmethod
    def number(self, detail: D) -> float:
        """Return the reward that details amount to."""

    def score_batch(self, inputs: Sequence[tuple[Any, ...]]) -> list[float]:
        """Return one number for each input."""
        return [self.number(detail) for detail in self._lookup([key for (key,) in inputs])]

    @batched
    def details(self, items: list[Any]) -> list[D]:
        """Return the details of each item, for ``fk.call(name, reward.details, *args)``.

        An item is the argument of the reward, or the tuple of its arguments where there are several.
        """
        keys = [self.prepare(*item) if type(item) is tuple else self.prepare(item) for item in items]
        found = self._lookup(keys, asked=True)
        for key, detail in zip(keys, found):
            remember(self, (key,), self.number(detail))
        return found

    def _lookup(self, keys: Sequence[Hashable], asked: bool = False) -> list[D]:
        version = self.version()
        found = {key: self._details.get(key, version) for key in keys}
        fresh = [key for key, detail in found.items() if detail is None]
        if fresh:
            first = {key: i for i, key in reversed(list(enumerate(keys)))}
            with rows([first[key] for key in fresh]):
                if asked:  # what is scored is counted where it is scored
                    charge(reward_calls=[1] * len(fresh))
                made = self.detail_batch(fresh)
            for key, detail in zip(fresh, made):
                found[key] = detail
                self._details.put(key, detail, version)
        return [found[key] for key in keys]  # type: ignore[misc]

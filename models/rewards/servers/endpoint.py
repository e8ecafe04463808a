"""A path of a server that takes lists: a wave of inputs is one request, and an answer has an item for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ....ppl.cost import charge
from ....ppl.errors import ContextOverflow, ServerError, UnusableAnswer
from ....ppl.sites import short
from ...served.client import Client, client_of, too_long


class Endpoint:
    """A path of a server, as a reward asks it.

    Args:
        server: its URL, or the client that speaks to it.
        path: such as ``"/classify"``.
        name: of the reward, for messages.
        model: what the server calls the model; None where it has only one.
        api_key: what lets us in, see `Client`.
        max_batch: most inputs in a request.
        fixed: what every request says besides.
    """

    def __init__(
        self,
        server: str | Client,
        path: str,
        name: str,
        *,
        model: str | None,
        api_key: str | None,
        max_batch: int,
        fixed: Mapping[str, Any],
    ) -> None:
        self.client = client_of(server, api_key)
        self.path, self.name, self.max_batch = path, name, max_batch
        self.fixed = dict(fixed) if model is None else {"model": model, **fixed}

    def __repr__(self) -> str:
        return f"{self.client.url}{self.path}"

    @property
    def journal_key(self) -> Any:
        """What tells it from others in a journal: where it is, and what is always asked."""
        return (self.client.url, self.path, self.fixed)

    def ask(self, **columns: Sequence[Any]) -> list[Any]:
        """Return what the server says of each input, in order: an item for each row of the columns.

        Raises ContextOverflow where an input is too long for the server, ServerError, and UnusableAnswer.
        """
        n = len(next(iter(columns.values())))
        starts = range(0, n, self.max_batch)
        payloads = [
            {**self.fixed, **{key: list(column[start : start + self.max_batch]) for key, column in columns.items()}}
            for start in starts
        ]
        try:
            answers = self.client.post(self.path, payloads)
        except ServerError as error:
            if too_long(error):
                raise ContextOverflow(f"reward {self.name!r}: an input is too long for the server: {error}") from error
            raise
        read = sum((answer.get("usage") or {}).get("prompt_tokens") or 0 for answer in answers if _is_object(answer))
        charge(model_calls=len(payloads), tokens_in=read)
        return [
            item
            for start, answer in zip(starts, answers)
            for item in self._items(answer, min(self.max_batch, n - start))
        ]

    def numbers(self, given: Any, what: str) -> list[float]:
        """Return a list of finite numbers, or one number as such a list."""
        listed = given if isinstance(given, list) else [given]
        if not listed or not all(type(x) in (int, float) and math.isfinite(x) for x in listed):
            self.unusable(f"{what} is {short(given, 80)}, and no finite number")
        return [float(x) for x in listed]

    def unusable(self, what: str) -> NoReturn:
        """Raise UnusableAnswer, naming the reward and the path."""
        raise UnusableAnswer(f"reward {self.name!r}, {self!r}: {what}")

    def _items(self, answer: Any, n: int) -> list[Any]:
        """Return the items of an answer by their index, as nobody promises their order."""
        items = answer.get("data") if _is_object(answer) else None
        if not isinstance(items, list) or not all(map(_is_object, items)):
            self.unusable(f"an answer has no list of data: {short(answer, 200)}")
        found = {item.get("index", i): item for i, item in enumerate(items)}
        if len(items) != n or found.keys() != set(range(n)):
            self.unusable(f"{n} inputs were answered by {len(items)} items, of the indices {short(list(found), 80)}")
        return [found[i] for i in range(n)]


def _is_object(data: Any) -> bool:
    return isinstance(data, dict)

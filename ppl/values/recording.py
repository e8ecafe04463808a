"""Where the answers of models, rewards and functions pass that may be kept in a journal, and played from one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from ..errors import NotRecorded
from .canonical import NoForm, form

Make = Callable[[list[int]], Sequence[Any]]
"""Gives the answers to some of the requests, by their places, as plain data."""


class Unkept(NamedTuple):
    """An answer that is used and not kept, such as what a function raised."""

    value: Any


class Recorder(Protocol):
    """What keeps answers, and plays them: a journal."""

    def serve(self, kind: str, forms: Sequence[Any], make: Make) -> list[Any]:
        """Return the answer to each request: as it was kept, or as it is made now.

        Args:
            kind: of answer, part of what it is kept under.
            forms: what is asked, as `canonical` data: all that the answer depends on. None for what has no such form.
            make: makes the answers that are not known: plain data, or `Unkept`. Those that it made come back as they
                are, the very objects, unless another process has been quicker.

        What an answer cost is charged as if it was made now. Raises `NotRecorded` for what is not known and may not be
        made.
        """

    def meet(self, place: str, signature: Any, facts: dict[str, Any]) -> None:
        """Take note of a language model. Raises JournalError where another one has answered in its place."""

    def note(self, kind: str, form: Any, answer: Any) -> None:
        """Keep an answer that was found by the way, and costs nothing."""

    def pass_over(self, what: str, why: str) -> None:
        """Tell the user, once, that some answers cannot be kept."""

    def form_of(self, fn: Any) -> Any:
        """Return the form that a function had when it was first met. Raises NoForm."""


_recorder: ContextVar[Recorder | None] = ContextVar("feynkac_recorder", default=None)


def current() -> Recorder | None:
    """Return what records the run of this thread or asynchronous task, if anything does."""
    return _recorder.get()


def enter(recorder: Recorder | None) -> Any:
    """Record by this from now on, in the context of the caller; `leave` takes what it returns."""
    return _recorder.set(recorder)


def leave(token: Any) -> None:
    """Record as before."""
    _recorder.reset(token)


def form_of(value: Any, what: str) -> Any:
    """Return the form of a value as the recorder in force knows functions; None, and the user is told, if it has none.

    ``what`` says which answers are not kept then.
    """
    recorder = current()
    assert recorder is not None
    try:
        return form(value, recorder.form_of)
    except NoForm as error:
        recorder.pass_over(what, str(error))
        return None


def served(kind: str, forms: Sequence[Any], make: Make, rows: Sequence[int] | None = None) -> list[Any]:
    """Return what the recorder in force serves; ``rows`` are the places of the requests in the caller's batch."""
    recorder = current()
    assert recorder is not None
    try:
        return recorder.serve(kind, forms, make)
    except NotRecorded as error:
        if rows is not None and error.row is not None:
            error.row = rows[error.row]
        raise

"""A journal: what a run was answered, written as it comes, so that the same line goes on where it was cut off."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from ...ppl.cost import UNITS, Cost, Ledger, assign, charge, rows
from ...ppl.cost import recording as accounting
from ...ppl.errors import JournalError, JournalWarning, NotRecorded
from ...ppl.memory import afresh
from ...ppl.program import Program
from ...ppl.sites import short
from ...ppl.values import recording
from ...ppl.values.canonical import digest, function_form
from ...ppl.values.recording import Make, Unkept
from .packing import pack, unpack
from .store import SCHEMA, Answer, Call, Store

Mode: TypeAlias = Literal["record", "replay"]
_UNITS = tuple(unit for unit in UNITS if unit != "model_calls")
_outside: ContextVar[tuple[Any, ...]] = ContextVar("feynkac_outside", default=())
"""What recorded around each ``with`` block that this thread or asynchronous task is in."""


class Journal:
    """A file of all that models, rewards and functions answered in some runs.

    Draws of language models, log-probabilities of given tokens, rewards, answers of `call` and predictions of denoisers
    are written to it as they come: what belongs to one batch in one transaction, before the run goes on. A run that is
    made again, ``fk.infer(model, engine, seed=0, journal="run.fkj")``, plays what it finds and asks for the rest, so
    that one that was killed loses at most a wave. Numbers drawn from `dist` are not written, as their keys give them
    again; nor are draws under a constraint or of texts side by side (`together`), which the model makes anew.

    An answer is kept under the SHA-256 of all that it depends on: the model, the tokens, how the step ends and is
    drawn, and, for draws and calls, the particle's key and site. So draws are played under the same key alone, while
    rewards and log-probabilities of given tokens, which have no key, are used again by any run on the file.

    Args:
        path: of the file, on a local disk; it is made where there is none.
        mode: "record" plays what is there and writes what is new; "replay" asks no model, and what is missing raises
            `NotRecorded`, naming the particle and the site.

    What was written is what a run gets back, to the last bit; what is asked for anew is as the model gives it. A
    posterior's `cost` is what the run would have used without the journal (but for the seconds), and `saved` what it
    did not use. A budget of seconds does not replay: it stops a run that plays at another wave than the first one.

    A function under `call` or `reward` is known by its code, its defaults, and the functions, constants and containers
    of its own package that it names. Functions of other packages, the state of objects and, where it changes
    containers, these, are not seen: use another file where they change. Where an argument or an answer is no number,
    string, text, array, dataclass or container of these, nothing is kept: a `JournalWarning` says so once, and the
    function is called anew in each run. What a function raised is not kept, either.

    Threads may share a journal, and processes a file: who is first with an answer is right for all. Within
    ``with journal:`` all runs of this thread are recorded, whatever starts them (`compare`, `nested`, `simulate`).

    Raises:
        UnreadableJournal: for a file that is damaged or no journal. It is never written over.
        JournalError: for a file of another schema, and, in a run, where a language model is another one than that which
            answered in its place, or where the file cannot be written (a full disk).
        FileNotFoundError: for a file to replay that is not there.

    >>> import feynkac as fk, tempfile, os
    >>> from feynkac.models.testing import tiny_lm
    >>> @fk.program
    ... async def two(lm):
    ...     text = await fk.sample("first", lm.tokens(lm.prompt("Once"), 3))
    ...     await fk.factor("long", 0.1 * len(str(text)))
    ...     return await fk.sample("second", lm.tokens(text, 3))
    >>> path = os.path.join(tempfile.mkdtemp(), "run.fkj")
    >>> first = fk.infer(two(tiny_lm()), fk.SMC(4), seed=0, journal=path)
    >>> with fk.Journal(path, mode="replay") as journal:
    ...     again = fk.infer(two(tiny_lm()), fk.SMC(4), seed=0, journal=journal)
    >>> again.values == first.values, again.log_evidence == first.log_evidence, journal.saved.tokens_out
    (True, True, 24)
    """

    def __init__(self, path: str | os.PathLike[str], mode: Mode = "record") -> None:
        if mode not in get_args(Mode):
            raise ValueError(f'mode must be "record" or "replay", not {mode!r}')
        self.path = Path(path)
        self.mode: Mode = mode
        self._store = Store(self.path, reads=mode == "replay")
        weakref.finalize(self, self._store.close)
        self._lock = threading.Lock()
        self._saved = dict.fromkeys(UNITS, 0)
        self._seconds = 0.0
        self._told: set[str] = set()
        self._met: dict[str, str] = {}
        self._functions: dict[tuple[int, int], tuple[Any, Any]] = {}

    def __repr__(self) -> str:
        return f"<Journal {self.path}, {self.mode}>"

    def __len__(self) -> int:
        """Return how many answers there are."""
        return self._store.count()

    @property
    def saved(self) -> Cost:
        """What was not used so far, as it was played; its seconds are those that the answers took when they came."""
        with self._lock:
            return Cost(**self._saved, seconds=self._seconds)

    def models(self) -> dict[str, dict[str, Any]]:
        """Return what is known of the language models that answered, by the places where they did."""
        return {place: json.loads(facts) for place, (_, facts) in self._store.models().items()}

    def merge(self, *paths: str | os.PathLike[str]) -> None:
        """Take over the answers of other journals, such as those of workers that had a file each.

        Raises JournalError in mode "replay".
        """
        if self.mode == "replay":
            raise JournalError(f"{self!r} is only read: open it without mode to merge others into it")
        for path in paths:
            self._store.merge(Path(path))

    def close(self) -> None:
        """Close the file, which is then one file; it is opened again when it is needed."""
        self._store.close()

    def __enter__(self) -> Journal:
        _outside.set((*_outside.get(), recording.current()))
        recording.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        *others, before = _outside.get()
        _outside.set(tuple(others))
        recording.enter(before)
        self.close()

    @contextmanager
    def over(self, models: Sequence[Any], engine: Any, seed: int) -> Iterator[None]:
        """Record a run of an engine on models, which knows nothing of what rewards had scored before."""
        self._begin(models, engine, seed)
        token = recording.enter(self)
        try:
            with afresh():
                yield
        finally:
            recording.leave(token)

    def _begin(self, models: Sequence[Any], engine: Any, seed: int) -> None:
        names = list(dict.fromkeys(one.name if isinstance(one, Program) else repr(one) for one in models))
        told = sorted({json.dumps(function_form(one.reachable[0])) if isinstance(one, Program) else repr(one)
                       for one in models})  # fmt: skip
        program = hashlib.sha256("\n".join(told).encode()).hexdigest()
        several = engine if isinstance(engine, list | tuple) else [engine]
        kinds = ", ".join(dict.fromkeys(type(one).__name__ for one in several))
        known = self._store.began(program, kinds, str(int(seed)), ", ".join(names)[:200])
        if known and program not in [run[0] for run in known]:
            warnings.warn(
                f"the journal {self.path} was written by another program ({known[-1][3]}): what it asked as "
                f"{', '.join(names)} does now is played, and all else is asked anew",
                JournalWarning,
                stacklevel=7,  # at the line that calls `infer` or `steps`
            )

    # What runs ask of it, see `Recorder`

    def serve(self, kind: str, forms: Sequence[Any], make: Make) -> list[Any]:
        """Return the answer to each request, see `Recorder`."""
        keys = [None if one is None else digest([SCHEMA, kind, one]) for one in forms]
        found = self._store.find([key for key in keys if key is not None])
        known = {key: answer for key, answer in found.items() if answer.data}
        missing = [i for i, key in enumerate(keys) if key not in known]
        unknown = [i for i, key in enumerate(keys) if key is not None and key not in found]
        if unknown and self.mode == "replay":
            raise NotRecorded(
                f"the journal {self.path} does not know this {kind} ({len(unknown)} of {len(forms)} in its batch): the "
                "program, its arguments, the engine, the seed or the model is another, or the run was cut off here",
                unknown[0],
            )
        hits = {i: known[key] for i, key in enumerate(keys) if key in known}
        self._play(hits)
        answers = self._make(kind, keys, missing, make) if missing else {}
        return [answers[i] if i in answers else self._read(hits[i]) for i in range(len(forms))]

    def _make(self, kind: str, keys: Sequence[bytes | None], missing: list[int], make: Make) -> dict[int, Any]:
        """Make the missing answers, and write them."""
        begun = time.perf_counter()
        with rows(missing), accounting(Ledger(len(missing))) as ledger:
            assign(np.arange(len(missing)))
            made = make(missing)
        seconds, written, answers = time.perf_counter() - begun, [], {}
        for place, (i, answer) in enumerate(zip(missing, made, strict=True)):
            answers[i] = answer.value if isinstance(answer, Unkept) else answer
            if (key := keys[i]) is not None:
                mine, data = ledger.of(place), self._pack(kind, answer)
                written.append((key, data, {unit: n for unit in _UNITS if (n := getattr(mine, unit))}))
        if written and self.mode == "record":
            late = self._store.write(written, ledger.total().model_calls, seconds)
            for i in missing:
                if keys[i] in late:
                    answers[i] = self._read(late[keys[i]])  # type: ignore[index]
        return answers

    def _pack(self, kind: str, answer: Any) -> bytes:
        """Return an answer as bytes; none where it cannot be kept."""
        if isinstance(answer, Unkept):
            return b""
        try:
            return pack(answer)
        except TypeError as error:
            self.pass_over(f"some answers of {kind}s", str(error))
            return b""

    def _read(self, answer: Answer) -> Any:
        try:
            return unpack(answer.data)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise self._store.damaged(f"an answer cannot be read: {error!r:.100}") from error

    def _play(self, hits: dict[int, Answer]) -> None:
        """Charge what answers cost when they came, and count it as saved."""
        if not hits:
            return
        places, costs = list(hits), [answer.cost for answer in hits.values()]
        calls = self._store.calls(sorted({answer.call for answer in hits.values()}))
        sums: dict[str, int] = {}
        with rows(places):
            for unit in _UNITS:
                amounts = [cost.get(unit, 0) for cost in costs]
                if any(amounts):
                    charge(**{unit: amounts})
                    sums[unit] = sum(amounts)
        self._charge_calls(hits, calls)
        with self._lock:
            for unit, amount in sums.items():
                self._saved[unit] += amount
            for number, call in calls.items():
                mine = sum(answer.call == number for answer in hits.values())
                self._saved["model_calls"] += call.model_calls
                self._seconds += call.seconds * mine / max(call.answers, mine)

    def _charge_calls(self, hits: dict[int, Answer], calls: dict[int, Call]) -> None:
        for number, call in calls.items():
            if call.model_calls:
                with rows([i for i, answer in hits.items() if answer.call == number]):
                    charge(model_calls=call.model_calls)

    def meet(self, place: str, signature: Any, facts: dict[str, Any]) -> None:
        """Take note of a language model, see `Recorder`."""
        said = json.dumps(signature)
        if self._met.get(place) == said:
            return
        known = self._store.meet(place, said, json.dumps(facts))
        if known is not None and known[0] != said:
            raise JournalError(
                f"the journal {self.path} was written with another model at {place}: it was "
                f"{_differing(json.loads(known[1]), facts)}. Use the same model, or another file"
            )
        self._met[place] = said

    def note(self, kind: str, form: Any, answer: Any) -> None:
        """Keep an answer that was found by the way, see `Recorder`."""
        if form is not None and self.mode == "record":
            self._store.write([(digest([SCHEMA, kind, form]), pack(answer), {})], 0, 0.0)

    def pass_over(self, what: str, why: str) -> None:
        """Say that some answers cannot be kept, see `Recorder`."""
        with self._lock:
            if what in self._told:
                return
            self._told.add(what)
        warnings.warn(
            f"the journal {self.path} does not keep {what}, which are made anew in each run: {why}",
            JournalWarning,
            stacklevel=3,
        )

    def form_of(self, fn: Any) -> Any:
        """Return the form that a function had when it was first met, see `Recorder`."""
        parts = (id(getattr(fn, "__func__", fn)), id(getattr(fn, "__self__", None)))
        known = self._functions.get(parts)
        if known is None:
            known = self._functions[parts] = fn, function_form(fn)
        return known[1]


def _differing(before: dict[str, Any], now: dict[str, Any]) -> str:
    told = [f"{name} {short(value, 60)}, and now it is {short(now.get(name), 60)}" for name, value in before.items()
            if value != now.get(name)]  # fmt: skip
    return "; ".join(told) or "of other weights"


@contextmanager
def journalled(
    journal: Journal | str | os.PathLike[str] | None, models: Sequence[Any], engine: Any, seed: int
) -> Iterator[None]:
    """Record a run in a journal, or in the file of that name, which is closed afterwards; None records nothing more."""
    if journal is None:
        yield
        return
    opened = journal if isinstance(journal, Journal) else Journal(journal)
    try:
        with opened.over(models, engine, seed):
            yield
    finally:
        if opened is not journal:
            opened.close()

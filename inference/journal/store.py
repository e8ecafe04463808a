"""The file of a journal: a database of SQLite, written in transactions, shared by threads and processes."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from ...ppl.errors import JournalError, UnreadableJournal

SCHEMA = 1
_APPLICATION = 0x666B6A31  # "fkj1"
_WAIT = 60.0
"""Seconds to wait for another process that writes."""
_AT_ONCE = 500
_CHECK = 4
"""Bytes of a checksum."""
_TABLES = (
    "create table meta (name text primary key, value text not null)",
    "create table runs (program text not null, engine text not null, seed text not null, name text not null, "
    "primary key (program, engine, seed))",
    "create table models (place text primary key, signature text not null, facts text not null)",
    "create table calls (id integer primary key, model_calls integer not null, seconds real not null, "
    "answers integer not null)",
    "create table answers (key blob primary key, call integer not null, cost text not null, value blob not null)",
)
_inherited: list[sqlite3.Connection] = []
_INSERT = (
    "insert into answers values (?, ?, ?, ?) on conflict (key) do update set "
    f"call = excluded.call, cost = excluded.cost, value = excluded.value where length(value) = {_CHECK}"
)
"""An answer that is known stays as it is; one that could not be kept may be."""
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT")


class Answer(NamedTuple):
    """A row of the file.

    Attributes:
        data: the answer, packed; empty where it could not be kept.
        cost: what it used, by units of `Cost`.
        call: the number of the call that it was part of.
    """

    data: bytes
    cost: dict[str, int]
    call: int


class Call(NamedTuple):
    """A call that gave answers: how often a model ran, how long it took, and how many answers were kept."""

    model_calls: int
    seconds: float
    answers: int


class Store:
    """Reads and writes the file of a journal.

    Args:
        path: of the file; it is made where there is none, unless it is only read.
        reads: whether nothing is written.

    Raises FileNotFoundError, UnreadableJournal for a file that is no journal or is damaged, and JournalError for one of
    another schema. None of them is changed.
    """

    def __init__(self, path: Path, reads: bool) -> None:
        self.path = path
        self.reads = reads
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._process = os.getpid()
        if path.exists() and not path.is_file():
            raise UnreadableJournal(f"{path} is no regular file")
        if reads and not path.exists():
            raise FileNotFoundError(f"there is no journal {path} to replay")
        if not reads and not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent} for the journal {path.name}")
        with self._turn():
            pass

    # The connection

    @contextmanager
    def _turn(self) -> Iterator[sqlite3.Connection]:
        """Give the connection to one thread at a time, and say what went wrong in words of ours."""
        with self._lock:
            try:
                if self._connection is not None and self._process != os.getpid():
                    _inherited.append(self._connection)  # the parent's: a fork must neither use nor close it
                    self._connection = None
                if self._connection is None:
                    self._connection, self._process = self._open(), os.getpid()
                yield self._connection
            except sqlite3.Error as error:
                raise self._told(error) from error

    def _open(self) -> sqlite3.Connection:
        live = self.path.with_name(self.path.name + "-wal")
        still = self.reads and not (live.exists() and live.stat().st_size)
        mode = "mode=ro&immutable=1" if still else "mode=ro" if self.reads else "mode=rwc"
        connection = sqlite3.connect(
            f"file:{quote(str(self.path.resolve()))}?{mode}",
            uri=True, timeout=_WAIT, isolation_level=None, check_same_thread=False,
        )  # fmt: skip
        try:
            self._check(connection)
            if not self.reads:
                self._make(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        """Raise unless the file is empty, or a journal of this schema."""
        tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
        if not tables and not self.reads:
            return
        (mark,) = connection.execute("pragma application_id").fetchone()
        if mark != _APPLICATION or "meta" not in tables:
            raise UnreadableJournal(f"{self.path} is a database, but no journal of feynkac; it is left as it is")
        found = connection.execute("select value from meta where name = 'schema'").fetchone()
        if found != (str(SCHEMA),):
            raise JournalError(
                f"{self.path} is a journal of schema {found[0] if found else '?'}, and this version of feynkac reads "
                f"{SCHEMA}: use another file, or the version that wrote it"
            )

    def _make(self, connection: sqlite3.Connection) -> None:
        """Make ready to write: a log beside the file, and the tables of a new one."""
        deadline = time.monotonic() + _WAIT
        while True:
            try:
                connection.execute("pragma journal_mode = wal")
                break
            except sqlite3.OperationalError as error:  # another process does the same, which SQLite does not wait for
                if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        connection.execute("pragma synchronous = normal")
        with _transaction(connection):
            if not connection.execute("select 1 from sqlite_master limit 1").fetchone():
                for table in _TABLES:
                    connection.execute(table)
                connection.execute("insert into meta values ('schema', ?)", (str(SCHEMA),))
                connection.execute(f"pragma application_id = {_APPLICATION}")

    def close(self) -> None:
        """Close the file; what stands in the log beside it is written into it."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None and self._process == os.getpid():
                connection.close()

    def _told(self, error: sqlite3.Error) -> JournalError:
        name = getattr(error, "sqlite_errorname", None) or ""
        if name.startswith(_DAMAGED):
            return self.damaged(str(error))
        if name == "SQLITE_BUSY":
            why = f"another process has been writing to it for {_WAIT:.0f} seconds"
        elif name == "SQLITE_FULL":
            why = "the disk is full; make room and run the same line again"
        else:
            why = f"{error} ({name or type(error).__name__})"
        return JournalError(f"the journal {self.path} cannot be {'read' if self.reads else 'written'}: {why}. What is "
                            "in it is sound, and the posterior so far is kept")  # fmt: skip

    def damaged(self, why: str) -> UnreadableJournal:
        """Return the error that says so."""
        return UnreadableJournal(
            f"the journal {self.path} is damaged, or no journal ({why}). It is left as it is: restore it from a copy, "
            "or use another file"
        )

    # Answers

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """Return the answers that are known under some keys."""
        with self._turn() as connection:
            return self._find(connection, keys)

    def _find(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        found = {}
        for begin in range(0, len(keys), _AT_ONCE):
            part = keys[begin : begin + _AT_ONCE]
            marks = ",".join("?" * len(part))
            rows = connection.execute(f"select key, value, cost, call from answers where key in ({marks})", part)
            for key, value, cost, call in rows:
                if zlib.crc32(key + value[_CHECK:]).to_bytes(_CHECK, "little") != value[:_CHECK]:
                    raise self.damaged("the checksum of an answer is another")
                found[key] = Answer(value[_CHECK:], json.loads(cost) if cost else {}, call)
        return found

    def calls(self, numbers: Sequence[int]) -> dict[int, Call]:
        """Return calls by their numbers."""
        with self._turn() as connection:
            found = {}
            for number in numbers:
                row = connection.execute(
                    "select model_calls, seconds, answers from calls where id = ?", (number,)
                ).fetchone()
                if row is None:
                    raise self.damaged("a call is missing")
                found[number] = Call(*row)
            return found

    def write(
        self, rows: Sequence[tuple[bytes, bytes, dict[str, int]]], model_calls: int, seconds: float
    ) -> dict[bytes, Answer]:
        """Write (key, data, cost) of a call, in one transaction; return those that somebody else had written before."""
        with self._turn() as connection, _transaction(connection):
            call = connection.execute(
                "insert into calls (model_calls, seconds, answers) values (?, ?, ?)", (model_calls, seconds, len(rows))
            ).lastrowid
            late = []
            for key, data, cost in rows:
                value = zlib.crc32(key + data).to_bytes(_CHECK, "little") + data
                said = json.dumps(cost, separators=(",", ":")) if cost else ""
                if not connection.execute(_INSERT, (key, call, said, value)).rowcount:
                    late.append(key)
            return self._find(connection, late) if late else {}

    # What the file is of

    def meet(self, place: str, signature: str, facts: str) -> tuple[str, str] | None:
        """Note a model; return the signature and the facts that are known in its place, if any."""
        with self._turn() as connection:
            if not self.reads:
                connection.execute("insert or ignore into models values (?, ?, ?)", (place, signature, facts))
            known: tuple[str, str] | None = connection.execute(
                "select signature, facts from models where place = ?", (place,)
            ).fetchone()
            return known

    def models(self) -> dict[str, tuple[str, str]]:
        """Return the signatures and the facts of all models, by their places."""
        with self._turn() as connection:
            rows = connection.execute("select place, signature, facts from models order by rowid")
            return {place: (signature, facts) for place, signature, facts in rows}

    def began(self, program: str, engine: str, seed: str, name: str) -> list[tuple[Any, ...]]:
        """Note a run; return those that were known, as (program, engine, seed, name)."""
        with self._turn() as connection:
            known = connection.execute("select * from runs order by rowid").fetchall()
            if not self.reads and (program, engine, seed) not in [run[:3] for run in known]:
                connection.execute("insert or ignore into runs values (?, ?, ?, ?)", (program, engine, seed, name))
            return known

    def count(self) -> int:
        """Return how many answers there are."""
        with self._turn() as connection:
            found: int = connection.execute("select count(*) from answers").fetchone()[0]
            return found

    def merge(self, other: Path) -> None:
        """Take over what another journal has and this one has not."""
        with Store(other, reads=True) as source, source._turn() as theirs, self._turn() as ours, _transaction(ours):
            moved = {}
            for number, *told in theirs.execute("select id, model_calls, seconds, answers from calls"):
                moved[number] = ours.execute(
                    "insert into calls (model_calls, seconds, answers) values (?, ?, ?)", told
                ).lastrowid
            for key, call, cost, value in theirs.execute("select key, call, cost, value from answers"):
                ours.execute(_INSERT, (key, moved[call], cost, value))
            for table, columns in (("models", 3), ("runs", 4)):
                for row in theirs.execute(f"select * from {table}"):
                    ours.execute(f"insert or ignore into {table} values ({','.join('?' * columns)})", row)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Write all that the block writes, or nothing, also where Ctrl-C comes."""
    try:
        connection.execute("begin immediate")
        yield
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise

"""Results in a file of JSON lines, written one by one, so that a benchmark can be stopped and go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Records:
    """A file of results; ``keys`` are the names that tell one from another."""

    def __init__(self, path: Path, keys: tuple[str, ...]) -> None:
        self.path, self.keys = path, keys
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        # A line that a stopped run did not finish is no result.
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):
            path.write_text("".join(whole), encoding="utf-8")
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in whole]
        self._known = {self._key(row) for row in self.rows}

    def _key(self, row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[key] for key in self.keys)

    def __contains__(self, row: dict[str, Any]) -> bool:
        return self._key(row) in self._known

    def add(self, row: dict[str, Any]) -> None:
        if row in self:
            raise ValueError(f"there is a result of {self._key(row)} already")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        self._known.add(self._key(row))

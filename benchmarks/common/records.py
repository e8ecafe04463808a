"""Results in a file of JSON lines, written one by one, so that a benchmark can be stopped and go on."""

from __future__ import annotations

import argparse
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


def asked(
    about: str | None,
    name: str,
    keys: tuple[str, ...],
    argv: list[str] | None,
    *,
    plot: bool = True,
    show: bool = False,
) -> tuple[argparse.Namespace, Records]:
    """Return what the command line of a benchmark asks for, and its records, those of a short run apart."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a small run, to see that it works")
    parser.add_argument("--folder", type=Path, default=Path("out/benchmarks"), help="where records are kept")
    if plot:
        parser.add_argument("--plot", help="where the picture goes")
    if show:
        parser.add_argument("--show", action="store_true", help="only show what there is")
    arguments = parser.parse_args(argv)
    return arguments, Records(arguments.folder / f"{name}{'_short' if arguments.short else ''}.jsonl", keys)

"""A tape's file: what is written, and what must hold of a file that is read, whoever wrote it."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_SEPARATOR = "\0"
_LIMIT = 2**30
"""Bytes that a file may hold, unpacked."""
_COLUMNS = {"line_of": "i", "count": "i", "log_prob": "f", "tokens": "iu", "missing": "f"}


def write(tape: Any, path: str | Path) -> None:
    """Write a tape. Raises ValueError for words and numbers that the file could not give back."""
    words = [tape.name, *tape.prompts, *tape.lines]
    if strange := [word for word in words if _SEPARATOR in word]:
        raise ValueError(f"a tape's file cannot keep {strange[0]!r}, which has a null character")
    with np.errstate(divide="ignore"):
        odds = {f"score_{k}": (np.log(v) - np.log1p(-v)).astype(np.float16) for k, v in tape.scores.items()}
    np.savez_compressed(
        path,
        words=np.frombuffer(_SEPARATOR.join(words).encode(), np.uint8),
        depth=tape.depth.astype(np.int32),
        line_of=tape.line_of.astype(np.int32),
        count=tape.count.astype(np.int32),
        log_prob=tape.log_prob.astype(np.float16),
        tokens=tape.tokens.astype(np.int32),
        flags=np.packbits(np.stack([tape.finished, tape.solved])),
        missing=tape.missing.astype(np.float16),
        temperature=np.array(tape.temperature),
        **odds,
    )


def read(path: str | Path) -> dict[str, Any]:
    """Return what a tape is made of. Raises ValueError for a file that is none."""
    with open(path, "rb") as file:
        try:
            return _checked(_arrays(file))
        except Exception as error:  # what is damaged fails in many ways
            raise ValueError(f"{os.fspath(path)} is not a tape, or it is damaged: {error!r:.300}") from error


def _arrays(file: Any) -> dict[str, Any]:
    """Return the arrays of a file, once it is known that no more is announced than is there."""
    with zipfile.ZipFile(file) as archive:
        if sum(member.file_size for member in archive.infolist()) > _LIMIT:
            raise ValueError(f"it unpacks to more than {_LIMIT:,} bytes")
        for member in archive.infolist():
            with archive.open(member) as part:
                old = np.lib.format.read_magic(part) == (1, 0)
                shape, _, kind = getattr(np.lib.format, f"read_array_header_{1 if old else 2}_0")(part)
            if int(np.prod(shape, dtype=object)) * kind.itemsize > member.file_size:
                raise ValueError(f"{member.filename} announces {shape} numbers, and is cut")
    file.seek(0)
    with np.load(file, allow_pickle=False) as found:
        return dict(found)


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    problems, n = len(found["depth"]), len(found["count"])
    columns = {key: found[key] for key in _COLUMNS} | {k: v for k, v in found.items() if k.startswith("score_")}
    for key, column in columns.items():
        if column.shape != (n,) or column.dtype.kind not in _COLUMNS.get(key, "f"):
            raise ValueError(f"{key} is no column of {n} numbers")
    prompts, lines = _words(found["words"], problems)
    count, line_of = (found[key].astype(np.int64) for key in ("count", "line_of"))
    flags = np.unpackbits(found["flags"])[: 2 * n].reshape(2, n).astype(bool)
    if (count < 0).any() or (count > n).any() or count.sum() != n - problems:
        raise ValueError(f"{n - problems} lines are there, and others are announced")
    parent = np.repeat(np.arange(n), count)
    if (parent >= np.arange(problems, n)).any() or count[flags[0]].any():
        raise ValueError("its places are no tree")
    if (line_of[:problems] != -1).any() or not ((line_of[problems:] >= 0) & (line_of[problems:] < len(lines))).all():
        raise ValueError(f"a place is of none of its {len(lines)} lines")
    raw = np.exp(found["log_prob"].astype(float))
    total = np.bincount(parent, raw[problems:], n)
    if not (np.isfinite(total).all() and (total[parent] > 0).all()) or (found["tokens"] < 0).any():
        raise ValueError("the lines after a place have no law")
    raw[problems:] /= total[parent]
    with np.errstate(divide="ignore"):
        log_prob = np.log(raw)
    log_prob[:problems] = 0.0
    return {
        "name": prompts[0],
        "prompts": prompts[1:],
        "lines": lines,
        "depth": found["depth"].astype(np.int64),
        "line_of": line_of,
        "count": count,
        "log_prob": log_prob,
        "tokens": found["tokens"].astype(np.int64),
        "finished": flags[0],
        "solved": flags[1],
        "missing": found["missing"].astype(float),
        "scores": {k[6:]: 1 / (1 + np.exp(-v.astype(float))) for k, v in columns.items() if k.startswith("score_")},
        "temperature": float(found["temperature"]),
    }


def _words(coded: Any, problems: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the name and the prompts, and the lines."""
    words = tuple(coded.tobytes().decode().split(_SEPARATOR))
    heads, lines = words[: problems + 1], words[problems + 1 :]
    if len(heads) < problems + 1 or len(set(heads[1:])) < problems:
        raise ValueError(f"there are no {problems} different prompts")
    return heads, lines

"""Posteriors in files: one zip of JSON and NumPy arrays, without pickle.

A file may come from anybody. Reading one runs nothing that is in it, takes no more memory than a limit, and gives a
posterior that a run can have made, or `UnreadablePosterior`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ....ppl.cost import UNITS, Cost
from ....ppl.errors import UnreadablePosterior
from ...base.chain import Chain
from ...base.search_tree import ARRAYS as TREE
from ...base.search_tree import SearchTree
from ...base.step import Step
from .encoding import KINDS, Decoder, Encoder
from .validation import check_posterior

_FORMAT = 4
"""Formats 1 to 3 had a member for each array of each step."""
LIMIT = 2**30
"""Bytes that a file may hold, unpacked, unless more is asked for."""
_FACTS = ("guarantee", "engine", "model", "seed", "stopped", "ranking")
_SCALARS = ("depth", "ess", "entropy", "log_evidence", "resampled", "temperature", "acceptance")
_ARRAYS = ("ancestors", "log_weights", "log_potential", "log_twist", "done")
_COSTS = (*UNITS, "seconds")
_NODE = 120
"""Bytes of a piece of JSON in memory, at most, roughly; a character of it has at most four."""


def save(posterior: Any, path: str | os.PathLike[str]) -> None:
    """Write a posterior to a file, whole or not at all."""
    with writing(path) as file:
        write(posterior, file)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file that takes its place when the block ends; where it raises, what was there before stays."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write(posterior: Any, file: IO[bytes]) -> None:
    """Write a posterior to an open file."""
    encoder = Encoder()
    head = {
        "format": _FORMAT,
        "kind": "feynkac posterior",
        "values": _values(posterior, encoder),
        "chains": [_chain(chain, f"chain {c}", encoder) for c, chain in enumerate(posterior.chains)],
        "cost": dataclasses.asdict(posterior.cost),
        **{name: getattr(posterior, name) for name in _FACTS},
    }
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("posterior.json", json.dumps(head))
        for i, array in enumerate(encoder.arrays.values()):
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            archive.writestr(f"array{i}.npy", buffer.getvalue())


def _values(posterior: Any, encoder: Encoder) -> Any:
    """Write the values together; where one cannot be, they are written one by one, so that it can be named."""
    try:
        return encoder.many(posterior.values, "values")
    except TypeError:
        for i, value in enumerate(posterior.values):
            encoder.encode(value, f"the value of particle {i}")
        raise


def _chain(chain: Chain, where: str, encoder: Encoder) -> dict[str, Any]:
    tree = None
    if chain.tree is not None:
        tree = {name: encoder.array(getattr(chain.tree, name)) for name in TREE}
        tree["choices"] = encoder.encode(_rows(chain.tree.choices), f"the choices of {where}")
    return {
        "log_weights": encoder.array(chain.log_weights),
        "complete": encoder.array(chain.complete),
        "log_evidence": encoder.encode(chain.log_evidence, "log_evidence"),
        "answers": encoder.encode(chain.answers, f"the answers of {where}"),
        "info": encoder.encode(dict(chain.info), f"the info of {where}"),
        "serial": chain.serial,
        "stats": {name: encoder.array(array) for name, array in chain.stats.items()},
        **encode_steps(chain.steps if chain.tree is None else (), where, encoder),  # a tree tells its steps
        "stages": encode_steps(chain.stages, f"the stages of {where}", encoder) if chain.stages else None,
        "tree": tree,
    }


def encode_steps(steps: Sequence[Step], where: str, encoder: Encoder) -> dict[str, Any]:
    """Return JSON for steps; ``where`` names them in errors."""
    choices = [_rows(step.choices) for step in steps]
    return {
        "sizes": encoder.array(np.array([len(step.done) for step in steps], np.int64)),
        "schemes": [step.scheme for step in steps],
        "costs": [None if step.cost is None else [getattr(step.cost, name) for name in _COSTS] for step in steps],
        "scalars": {name: encoder.array(np.array([getattr(step, name) for step in steps])) for name in _SCALARS},
        "arrays": {name: encoder.array(_joined([getattr(step, name) for step in steps])) for name in _ARRAYS},
        "choices": [encoder.encode(rows, f"the choices of step {t} of {where}") for t, rows in enumerate(choices)]
        if any(isinstance(rows, np.ndarray) for rows in choices)
        else encoder.many(choices, f"the choices of {where}"),
    }


def _rows(choices: Any) -> Any:
    """Return choices as they are written: an array of them as such."""
    return choices if isinstance(choices, np.ndarray) and choices.dtype.kind in KINDS else list(choices)


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0)


def load(path: str | os.PathLike[str], limit: int = LIMIT) -> dict[str, Any]:
    """Read the fields of a posterior from a file.

    Raises:
        FileNotFoundError: if there is none.
        UnreadablePosterior: if the file is no posterior, of another format, damaged, larger than the limit, or holds
            what no run can have made.
    """
    name = os.fspath(path)
    if os.path.exists(name) and not os.path.isfile(name):  # a device or a pipe may never end
        raise UnreadablePosterior(f"{name} is no regular file")
    with open(path, "rb") as file:
        return read(file, name, limit)


def read(file: IO[bytes], name: str, limit: int = LIMIT) -> dict[str, Any]:
    """Read the fields of a posterior from an open file; see `load`."""
    try:
        head, arrays = _unpack(file, limit)
        form = head.get("format") if head.get("kind") == "feynkac posterior" else None
        if form == _FORMAT:
            fields = _read(head, Decoder(arrays, limit))
            check_posterior(fields)
            return fields
    except Exception as error:  # what is damaged or hostile fails in many ways
        raise UnreadablePosterior(f"{name} is not a saved posterior, or it is corrupt: {error!r:.300}") from error
    if type(form) is not int:
        raise UnreadablePosterior(f"{name} is not a saved posterior")
    raise UnreadablePosterior(f"{name} has format {form}, and this version reads {_FORMAT}: infer and save it again")


def _unpack(file: IO[bytes], limit: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the JSON and the arrays of an archive, by their type, if they are no more than the limit."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            raise ValueError("it is packed in another way")
        if sum(member.file_size for member in members) > limit:
            raise ValueError(f"it unpacks to more than {limit:,} bytes; if you trust it, load it with a larger limit")
        text = archive.read("posterior.json")
        if 4 * len(text) + _NODE * sum(map(text.count, (b",", b"[", b"{"))) > limit:
            raise ValueError(f"its JSON needs more than {limit:,} bytes; if you trust it, load it with a larger limit")
        head = json.loads(text)
        if not isinstance(head, dict):
            raise ValueError("its JSON is no object")
        found = [_array(archive.read(member)) for member in members if member.filename.endswith(".npy")]
        return head, {array.dtype.str: array for array in found}


def _array(data: bytes) -> NDArray[Any]:
    """Return an array of one dimension from the bytes of an .npy file, without trust in what its header says."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"an array has version {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    begin = stream.tell()
    if dtype.kind not in KINDS or dtype.names is not None or len(shape) != 1:
        raise ValueError("an array is of another kind")
    if shape[0] * dtype.itemsize != len(data) - begin:
        raise ValueError("an array is longer or shorter than it says")
    return np.frombuffer(data, dtype, shape[0], begin) if shape[0] else np.zeros(0, dtype)


def _read(head: dict[str, Any], decoder: Decoder) -> dict[str, Any]:
    return {
        "values": tuple(decoder.many(head["values"])),
        "chains": tuple(_read_chain(chain, decoder) for chain in head["chains"]),
        "cost": Cost(**head["cost"]),
        **{name: head[name] for name in _FACTS},
    }


def _read_chain(data: dict[str, Any], decoder: Decoder) -> Chain:
    tree = None
    if data["tree"] is not None:
        arrays = {name: decoder.array(data["tree"][name]) for name in TREE}
        tree = SearchTree(**arrays, choices=decoder.decode(data["tree"]["choices"]))
    return Chain(
        log_weights=decoder.array(data["log_weights"]),
        complete=decoder.array(data["complete"]),
        log_evidence=decoder.decode(data["log_evidence"]),
        steps=decode_steps(data, decoder) if tree is None else (),
        answers=decoder.decode(data["answers"]),
        tree=tree,
        info=decoder.decode(data["info"]),
        serial=data["serial"],
        stats={name: decoder.array(array) for name, array in data.get("stats", {}).items()},
        stages=decode_steps(data["stages"], decoder) if data.get("stages") is not None else (),
    )


def decode_steps(data: dict[str, Any], decoder: Decoder) -> tuple[Step, ...]:
    """Return steps from their JSON."""
    sizes = decoder.array(data["sizes"]).tolist()
    count, total = len(sizes), sum(sizes)
    known = [name for name in _SCALARS if name in data["scalars"]]  # older files lack the last
    scalars: dict[str, list[Any]] = {name: decoder.array(data["scalars"][name]).tolist() for name in known}
    columns: dict[str, Any] = {name: decoder.array(data["arrays"][name]) for name in _ARRAYS}
    if any(len(column) != count for column in scalars.values()) or any(len(c) != total for c in columns.values()):
        raise ValueError("the columns of its steps differ in length")
    choices, schemes = decoder.many(data["choices"], count), data["schemes"]
    costs = data.get("costs", [None] * count)  # older files have none
    if len(costs) != count:
        raise ValueError("the columns of its steps differ in length")
    ends = np.cumsum(sizes).tolist()
    return tuple(
        Step(
            **{name: column[t] for name, column in scalars.items()},
            **{name: column[end - size : end] for name, column in columns.items()},
            choices=choices[t],
            scheme=schemes[t],
            cost=None if costs[t] is None else Cost(**dict(zip(_COSTS, costs[t], strict=True))),
        )
        for t, (size, end) in enumerate(zip(sizes, ends))
    )
